"""A finished folder says whose it is and what is in it; damage is named, with what to do."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from rapid_dist.confined import PREFIX
from rapid_dist.errors import CheckpointError, ShardError
from rapid_dist.methods.artifacts import put_folder, with_folder
from rapid_dist.methods.seal import (
    is_done,
    mark_done,
    read_done,
    read_sealed,
    require_manifest,
    whose,
)
from rapid_dist.storage import LocalStorage, Storage

PUBLIC = "denoiser-0123456789abcdef"


def _filled(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "weights").write_bytes(b"0123456789" * 20)
    (folder / "facts.json").write_text("{}")


def test_what_is_on_its_way_into_a_folder_and_out_is_its_owners_alone(place: Storage) -> None:
    """A killed process leaves it behind; the next one that needs such a folder removes it."""
    seen = []

    def look(folder: Path) -> None:
        seen.append((folder.name.startswith(PREFIX), stat.S_IMODE(folder.stat().st_mode)))

    put_folder(LocalStorage(Path(place.uri).parent / "other"), look, of="run-1")
    with_folder(place, look, sealed=True)
    assert seen == [(True, 0o700)] * 2


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def place(tmp_path: Path) -> Storage:
    storage = LocalStorage(tmp_path / PUBLIC)
    put_folder(storage, _filled)
    return storage


def test_a_whole_folder_is_read_as_it_was_written(place: Storage) -> None:
    assert is_done(place)
    assert whose(place) == PUBLIC
    assert with_folder(place, _names, sealed=True) == ["deep/weights", "facts.json"]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("deep/weights", lambda d: d[:90], r"weights has SHA-256 .* torn or replaced\. Delete"),
        ("deep/weights", lambda d: bytes([d[0] ^ 1]) + d[1:], "deep/weights has SHA-256"),
        ("deep/weights", lambda d: b"", "deep/weights has SHA-256"),
        ("facts.json", lambda d: b"[]", "facts.json has SHA-256"),
        ("done.json", lambda d: d[:20], r"done\.json is torn\. Delete"),
        ("done.json", lambda d: b"[1]", "done.json is torn"),
        ("done.json", lambda d: b"", "done.json is torn"),
        ("done.json", lambda d: d.replace(PUBLIC.encode(), b"denoiser-fedcba9876543210"),
         "holds 'denoiser-fedcba9876543210', which was made from other data or settings"),
    ],
)  # fmt: skip
def test_a_file_that_was_torn_changed_or_replaced_is_named(
    place: Storage, name: str, damage: Callable[[bytes], bytes], said: str
) -> None:
    place.write(name, damage(place.read(name)))
    with pytest.raises(CheckpointError, match=said) as caught:
        with_folder(place, _names, sealed=True)
    assert "\n" not in str(caught.value)
    assert place.uri in str(caught.value)


def test_a_missing_file_and_an_unfinished_folder_are_named(place: Storage) -> None:
    place.delete("deep/weights")
    with pytest.raises(CheckpointError, match=f"{PUBLIC}/deep/weights is missing"):
        with_folder(place, _names, sealed=True)
    place.delete("done.json")
    with pytest.raises(CheckpointError, match="is not finished"):
        with_folder(place, _names, sealed=True)


def test_a_file_that_nobody_sealed_is_not_read(place: Storage) -> None:
    place.write("deep/weights.index.json", b"{}")
    assert with_folder(place, _names, sealed=True) == ["deep/weights", "facts.json"]


def test_a_folder_of_a_version_without_hashes_is_read_as_it_is(place: Storage) -> None:
    place.write("done.json", b"{}")
    place.write("facts.json", b"[1]")
    assert with_folder(place, _names, sealed=True) == ["deep/weights", "facts.json"]
    assert read_sealed(place, "facts.json") == b"[1]"
    assert whose(place) is None


@pytest.mark.parametrize(
    ("folder", "said"),
    [("prior", "Restore it from a backup"), ("private", r"stages/train\.json"),
     ("adapted", r"stages/adapt\.json"), ("samples", r"stages/generate\.json")],
)  # fmt: skip
def test_the_line_says_what_brings_a_folder_of_the_run_back(
    folder: str, said: str, tmp_path: Path
) -> None:
    storage = LocalStorage(tmp_path / folder)
    storage.write("x.npz", b"data")
    mark_done(storage, {"attempt": 1}, of="run-1", names=("x.npz",))
    assert read_done(storage)["of"] == "run-1"
    storage.write("x.npz", b"other")
    with pytest.raises(CheckpointError, match=said):
        read_sealed(storage, "x.npz")


def test_another_table_of_contents_is_refused(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "knowledge-base-0123456789abcdef")
    require_manifest(storage, "manifest.json", "a" * 64)  # Nothing is finished yet.
    mark_done(storage, {"manifest": "a" * 64})
    require_manifest(storage, "manifest.json", "a" * 64)
    with pytest.raises(ShardError, match=r"manifest\.json has SHA-256 bbbb.*says aaaa.*Delete"):
        require_manifest(storage, "manifest.json", "b" * 64)
