"""The hash of the code: the same for the same files, another for any other."""

import shutil
from pathlib import Path

import pytest

import rapid_dist
from rapid_dist import __version__
from rapid_dist.config import load_recipe, recipe_hash
from rapid_dist.installed import code_hash, code_version, hash_of

PACKAGE = Path(rapid_dist.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PACKAGE / "privacy", tmp_path / "package"))


def test_a_copy_of_the_code_has_its_hash(copy: Path) -> None:
    assert hash_of(copy) == hash_of(PACKAGE / "privacy")
    assert code_version() == f"{__version__}+{code_hash()[:16]}"


def test_one_changed_byte_is_another_code(copy: Path) -> None:
    before = hash_of(copy)
    path = copy / "noise.py"
    path.write_bytes(path.read_bytes() + b"#")
    assert hash_of(copy) != before


def test_a_moved_or_an_added_file_is_another_code(copy: Path) -> None:
    before = hash_of(copy)
    (copy / "noise.py").rename(copy / "other.py")
    moved = hash_of(copy)
    (copy / "more.py").touch()
    assert len({before, moved, hash_of(copy)}) == 3


def test_what_python_makes_of_the_code_does_not_count(copy: Path) -> None:
    before = hash_of(copy)
    (copy / "__pycache__").mkdir(exist_ok=True)
    (copy / "__pycache__" / "noise.cpython-311.pyc").write_bytes(b"\x00")
    assert hash_of(copy) == before


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ("privacy.epsilon=9", False),
        ("train.mode=full", False),
        ("split.split_step=440", False),
        ("seed=1", False),
        ("data.public.0.count=999", False),
        ("runtime.workers=7", True),
        ("tracking.experiment=other", True),
        ("release.audit_days=3", True),
        ("data.root=/elsewhere", True),
        ("sampling.count=9", True),
        ("evaluation.controls=false", True),
    ],
)
def test_the_recipes_hash_is_of_what_shapes_the_private_run(change: str, same: bool) -> None:
    plain = recipe_hash(load_recipe("digits"))
    assert (recipe_hash(load_recipe("digits", [change])) == plain) is same
