"""The public stand-in: which images play the private part, and that no private one is opened."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rapid_dist.data.declaration import PrivateSource, PublicSource
from rapid_dist.data.images import content_hashes
from rapid_dist.data.sources import load_private, load_public
from rapid_dist.errors import ConfigError
from rapid_dist.methods.sweep_proxy import make_proxy
from rapid_dist.methods.sweep_settings import ProxyConfig
from rapid_dist.storage import LocalStorage

CLASSES = ("A", "B", "D", "E")
LETTERS = PublicSource(source="letters", count=520)
# Nobody could read it: there is no such file.
DECLARED = PrivateSource(
    source="npz", name="scans", path="/nowhere/scans.npz", num_records=25, num_classes=10, size=8
)
BY_CLASS = ProxyConfig(classes=CLASSES)


def _made(config, storage, *, declared=DECLARED, public=(LETTERS,)):
    return make_proxy(config, declared, public, None, storage, seed=0)


def test_the_stand_in_is_read_like_any_source_and_the_private_one_is_never_opened(
    tmp_path: Path,
) -> None:
    proxy = _made(BY_CLASS, LocalStorage(tmp_path))
    train, held_out = load_private(proxy.private)
    public = load_public([proxy.public], size=8, channels=1)
    assert len(train) == proxy.private.num_records == 25  # N of the private data: all are used.
    assert set(train.labels) | set(held_out.labels) == set(range(4))
    assert public.spec.num_classes == 48
    assert len(public) == 520 - 40
    assert proxy.told == "classes A, B, D, E of letters, 25 images"


def test_no_image_is_on_two_sides(tmp_path: Path) -> None:
    proxy = _made(BY_CLASS, LocalStorage(tmp_path))
    train, held_out = load_private(proxy.private)
    public = load_public([proxy.public], size=8, channels=1)
    sides = [set(content_hashes(side.images)) for side in (train, held_out, public)]
    assert all(not sides[a] & sides[b] for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_whole_source_can_play_the_private_part(tmp_path: Path) -> None:
    other = replace(LETTERS, count=104, labels="coarse", invert=True)
    proxy = _made(ProxyConfig(source=1), LocalStorage(tmp_path), public=(LETTERS, other))
    public = load_public([proxy.public], size=8, channels=1)
    assert len(public) == 520
    assert proxy.private.num_classes == 26
    assert proxy.private.num_records == 25


def test_the_same_split_is_the_same_files_whenever_it_is_made(tmp_path: Path) -> None:
    first = _made(BY_CLASS, LocalStorage(tmp_path))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert _made(BY_CLASS, LocalStorage(tmp_path)) == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    other = _made(ProxyConfig(classes=("A", "B", "D", "H")), LocalStorage(tmp_path))
    assert other.private.path != first.private.path


def test_groups_are_made_up_for_a_stand_in_of_a_grouped_source(tmp_path: Path) -> None:
    declared = replace(DECLARED, num_records=50, group_column="patient", num_groups=10)
    proxy = _made(BY_CLASS, LocalStorage(tmp_path), declared=declared)
    train, _ = load_private(proxy.private)
    assert proxy.private.group_column == "synthetic"
    assert proxy.private.num_groups == round(10 * len(train) / 50)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ProxyConfig(source=1), "has 1 sources"),
        (ProxyConfig(), "cannot play the private part and the public one"),
        (ProxyConfig(classes=("A", "?")), r"has '\?', which letters lacks"),
        (ProxyConfig(classes=tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")),
         "names every class"),
    ],
)  # fmt: skip
def test_a_split_that_leaves_a_side_empty_is_refused(config, said, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        _made(config, LocalStorage(tmp_path))


def test_which_images_are_held_out_goes_by_their_content(tmp_path: Path) -> None:
    few = _made(BY_CLASS, LocalStorage(tmp_path / "few"))
    many = _made(BY_CLASS, LocalStorage(tmp_path / "many"), declared=replace(
        DECLARED, num_records=1_000))  # fmt: skip
    held_out = [load_private(proxy.private)[1].images for proxy in (few, many)]
    np.testing.assert_array_equal(*held_out)
