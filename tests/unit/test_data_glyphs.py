"""Readers of the MNIST family, each on a tiny set in the real format."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapid_dist.data import glyphs
from rapid_dist.data.download import download_torchvision
from rapid_dist.data.omniglot import read_omniglot
from rapid_dist.data.raw import Request
from rapid_dist.data.sources import PrivateSource, PublicSource, load_private, load_public
from rapid_dist.errors import DataError


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = idx_bytes(array)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)


def write_family(root: Path, folder: str, suffix: str = ".gz", prefix: str = "", test: str = "t10k",
                 first_label: int = 0) -> None:  # fmt: skip
    for split, count in (("train", 20), (test, 10)):
        base = root / folder / "raw" / f"{prefix}{split}"
        write_idx(Path(f"{base}-images-idx3-ubyte{suffix}"), pictures(count, count))
        labels = np.arange(count) % 10 + first_label
        write_idx(Path(f"{base}-labels-idx1-ubyte{suffix}"), labels)


def _mnist(**changes: object) -> PrivateSource:
    declared = {"source": "mnist", "name": "mnist", "num_records": 20, "num_classes": 10}
    return PrivateSource(**{**declared, "size": 28, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_mnist_is_read_from_idx_files_gzipped_or_not(suffix: str, tmp_path: Path) -> None:
    write_family(tmp_path, "MNIST", suffix)
    train, held_out = load_private(_mnist(), tmp_path)
    np.testing.assert_array_equal(train.images[:, 0], pictures(20, 20))
    np.testing.assert_array_equal(held_out.images[:, 0], pictures(10, 10))
    assert train.labels.tolist() == list(range(10)) * 2


@pytest.mark.parametrize(
    ("source", "folder"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_the_other_sets_of_the_family_are_in_folders_of_their_own(
    source: str, folder: str, tmp_path: Path
) -> None:
    write_family(tmp_path, folder)
    public = load_public([PublicSource(source=source)], tmp_path, size=28, channels=1)
    assert (len(public), public.spec.num_classes) == (30, 10)


def test_emnist_letters_count_from_one_and_are_stored_transposed(tmp_path: Path) -> None:
    write_family(tmp_path, "EMNIST", prefix="emnist-letters-", test="test", first_label=1)
    raw = glyphs.read_family(Request(source="emnist_letters", root=tmp_path, size=28, channels=1))
    np.testing.assert_array_equal(raw.train.images[:, 0], pictures(20, 20).transpose(0, 2, 1))
    assert raw.train.labels.tolist() == list(range(10)) * 2
    assert raw.class_names == tuple("abcdefghijklmnopqrstuvwxyz")


def test_omniglot_is_labelled_by_character_or_by_alphabet(tmp_path: Path) -> None:
    (tmp_path / "Omniglot").mkdir()
    np.savez_compressed(
        tmp_path / "Omniglot" / "omniglot28.npz",
        images=pictures(8),
        labels=np.arange(8) // 2,
        char_names=np.array(["a1", "a2", "b1", "b2"]),
        alphabet=np.arange(8) // 4,
        alphabet_names=np.array(["a", "b"]),
    )
    counts = [
        load_public(
            [PublicSource(source="omniglot", labels=labels)], tmp_path, size=14, channels=1
        ).spec.num_classes
        for labels in ("fine", "coarse", "none")
    ]
    assert counts == [4, 2, 1]


def test_the_original_omniglot_is_downloaded_and_its_dark_strokes_made_bright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def download(name: str, folder: Path) -> None:
        assert name == "Omniglot"
        for half, alphabet in (("background", "Greek"), ("evaluation", "Tengwar")):
            for character in ("character01", "character02"):
                drawing = Image.new("1", (105, 105), 1)  # White paper,
                drawing.paste(0, (40, 0, 60, 105))  # a black stroke.
                place = folder / "omniglot-py" / f"images_{half}" / alphabet / character
                place.mkdir(parents=True)
                drawing.save(place / "0001_01.png")

    for labels, num_classes in (("fine", 4), ("coarse", 2)):
        request = Request(source="omniglot", root=None, size=28, channels=1, labels=labels)
        raw = read_omniglot(request, download if labels == "fine" else pytest.fail)
        assert len(raw.class_names) == num_classes
        assert (raw.train.images[:, 0, :, 0] == 0).all()
        assert (raw.train.images[:, 0, :, 13] == 255).all()


def test_a_download_that_fails_says_where_to_put_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder can be made here")
    request = Request(source="mnist", root=tmp_path / "nowhere", size=28, channels=1)
    with pytest.raises(DataError) as caught:
        glyphs.read_family(request, lambda name, _: download_torchvision(name, tmp_path / "file"))
    said = str(caught.value)
    assert said.startswith(
        f"Source mnist is not under data.root={tmp_path / 'nowhere'}. MNIST could"
    )
    assert said.endswith("Put its files into a folder MNIST of data.root.")
    assert "\n" not in said


def _write_public_glyphs(root: Path) -> None:
    kannada = root / "Kannada-MNIST"
    for part, count in (("kannada_MNIST_test", 10), ("dig_MNIST", 20)):
        write_idx(kannada / f"X_{part}-idx3-ubyte.gz", pictures(count, count))
        write_idx(kannada / f"y_{part}-idx1-ubyte.gz", np.arange(count) % 10)
    write_idx(root / "notMNIST-10k" / "t10k-images-idx3-ubyte.gz", pictures(10, 3))
    write_idx(root / "notMNIST-10k" / "t10k-labels-idx1-ubyte.gz", np.arange(10))
    (root / "KMNIST-test").mkdir()
    np.savez(root / "KMNIST-test" / "kmnist-test.npz", images=pictures(10), labels=np.arange(10))


def test_every_class_of_every_public_source_is_a_class_of_its_own(tmp_path: Path) -> None:
    _write_public_glyphs(tmp_path)
    sources = [PublicSource(source=source) for source in ("kannada", "notmnist", "kmnist")]
    public = load_public(sources, tmp_path, size=28, channels=1)
    assert public.spec.num_classes == 30
    assert np.bincount(public.labels).tolist() == [3] * 10 + [1] * 20
    np.testing.assert_array_equal(public.images[:10, 0], pictures(10, 10))
    assert public.spec.licence.count("CC BY-SA 4.0") == 1  # Said once for the two that share it.


def test_a_missing_set_is_downloaded_into_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked: list[str] = []

    def download(name: str, folder: Path) -> None:
        asked.append(name)
        write_family(folder, name)

    request = Request(source="mnist", root=tmp_path, size=28, channels=1)
    for _ in range(2):
        assert len(glyphs.read_family(request, download).train.images) == 20
    assert asked == ["MNIST"]
    assert not (tmp_path / "MNIST").exists()  # data.root may be read-only.


def test_a_set_without_files_or_download_says_where_it_was_sought(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"notMNIST-10k under data\.root="):
        load_public([PublicSource(source="notmnist")], tmp_path, size=28, channels=1)


GOOD = idx_bytes(pictures(2))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "not an idx file"),
        (GOOD[:10], "inside its header"),
        (GOOD[:-1], "bytes for shape"),
        (GOOD + b"\x00", "bytes for shape"),
        (gzip.compress(GOOD)[:-20], "cannot be read"),
    ],
)
def test_a_torn_idx_file_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        glyphs.read_idx(path)
    assert "\n" not in str(caught.value)


def test_a_whole_idx_file_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(GOOD)
    np.testing.assert_array_equal(glyphs.read_idx(tmp_path / "images"), pictures(2))


def test_images_without_their_labels_are_refused(tmp_path: Path) -> None:
    write_family(tmp_path, "MNIST")
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz", np.arange(19) % 10)
    with pytest.raises(DataError, match="20 images and 19 labels"):
        load_private(_mnist(), tmp_path)


def test_a_label_that_no_class_has_is_refused_without_being_quoted(tmp_path: Path) -> None:
    write_family(tmp_path, "MNIST")
    labels = np.array([77, *range(19)]) % 78
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz", labels)
    with pytest.raises(DataError, match=r"outside 0\.\.9") as caught:
        load_private(_mnist(), tmp_path)
    assert "77" not in str(caught.value)


def test_an_npz_that_needs_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "KMNIST-test" / "kmnist-test.npz"
    path.parent.mkdir()
    np.savez(path, images=np.array([{}], dtype=object), labels=np.zeros(1))
    with pytest.raises(DataError, match="cannot be read"):
        load_public([PublicSource(source="kmnist")], tmp_path, size=28, channels=1)
