"""Readers of CIFAR's tiles and batches, CelebA and the medical sets, on tiny sets in format."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapid_dist.data.faces import read_celeba
from rapid_dist.data.raw import Request
from rapid_dist.data.sources import PrivateSource, PublicSource, load_private, load_public
from rapid_dist.data.tiles import read_tiles
from rapid_dist.errors import DataError


def _pictures(count: int, seed: int = 0, side: int = 32) -> np.ndarray:
    shape = (count, 3, side, side)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _tile(images: np.ndarray) -> bytes:
    """uint8 [1000, 3, 32, 32] -> one lossless WebP of 25 rows of 40 images."""
    grid = images.reshape(25, 40, 3, 32, 32).transpose(0, 3, 1, 4, 2).reshape(800, 1280, 3)
    stream = io.BytesIO()
    Image.fromarray(grid).save(stream, "WEBP", lossless=True, quality=0, method=0)
    return stream.getvalue()


def _write_tiles(path: Path, images: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(len(images) // 1000):
            tile = _tile(images[1000 * number : 1000 * (number + 1)])
            archive.writestr(f"tile_{number:02d}.webp", tile)


def test_cifar_tiles_are_cut_in_order_and_split_by_their_labels(tmp_path: Path) -> None:
    images = np.zeros((2000, 3, 32, 32), dtype=np.uint8)
    images[:, 0] = (np.arange(2000) % 256)[:, None, None]
    images[:, 1, :16] = (np.arange(2000) // 256)[:, None, None]
    _write_tiles(tmp_path / "CIFAR10" / "cifar10_webp_tiles.zip", images)
    labels = np.arange(2000) % 10
    np.savez(
        tmp_path / "CIFAR10" / "cifar10_labels.npz",
        train_labels=labels[:1500],
        test_labels=labels[1500:],
    )
    source = PrivateSource(
        source="cifar10", name="cifar10", num_records=1500, num_classes=10, size=32, channels=3
    )
    train, held_out = load_private(source, tmp_path)
    np.testing.assert_array_equal(train.images, images[:1500])
    np.testing.assert_array_equal(held_out.images, images[1500:])
    assert train.labels.tolist() == labels[:1500].tolist()


def test_cifar100_tiles_are_a_public_source(tmp_path: Path) -> None:
    images = np.tile(_pictures(10), (100, 1, 1, 1))
    _write_tiles(tmp_path / "CIFAR100-20k" / "cifar100_20k_webp_tiles.zip", images)
    np.save(tmp_path / "CIFAR100-20k" / "labels.npy", np.arange(1000) % 100)
    public = load_public([PublicSource(source="cifar100")], tmp_path, size=32, channels=3)
    np.testing.assert_array_equal(public.images, images)
    assert public.spec.num_classes == 100


def _write_batches(folder: Path) -> np.ndarray:
    folder.mkdir(parents=True)
    images = _pictures(12)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = [bytes([i % 10]) + images[i].tobytes() for i in (2 * number, 2 * number + 1)]
        (folder / f"{name}.bin").write_bytes(b"".join(rows))
    return images


def test_cifar10_is_read_from_its_binary_batches_and_never_from_pickles(tmp_path: Path) -> None:
    images = _write_batches(tmp_path / "cifar-10-batches-bin")
    raw = read_tiles(Request(source="cifar10", root=tmp_path, size=32, channels=3))
    assert raw.test is not None
    np.testing.assert_array_equal(raw.train.images, images[:10])
    np.testing.assert_array_equal(raw.test.images, images[10:])
    assert raw.train.labels.tolist() == list(range(10))


def test_a_torn_binary_batch_is_refused(tmp_path: Path) -> None:
    _write_batches(tmp_path / "cifar-10-batches-bin")
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_3\.bin is torn"):
        read_tiles(Request(source="cifar10", root=tmp_path, size=32, channels=3))


@pytest.mark.parametrize("content", [b"no image", None])
def test_tiles_that_are_no_tiles_are_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "CIFAR10" / "cifar10_webp_tiles.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt" if content is None else "tile_00.webp", content or b"")
    labels = np.zeros(1, np.int64)
    np.savez(path.parent / "cifar10_labels.npz", train_labels=labels, test_labels=labels)
    with pytest.raises(DataError, match=r"no image|holds no tile"):
        read_tiles(Request(source="cifar10", root=tmp_path, size=32, channels=3))


def _jpeg(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _write_celeba(folder: Path) -> None:
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, 9)]
    for number, name in enumerate(names):
        picture = np.full((218, 178, 3), 20 * number, dtype=np.uint8)
        (folder / "img_align_celeba" / name).write_bytes(_jpeg(picture))
    attributes = [f"{name} -1 {1 if number % 2 else -1}" for number, name in enumerate(names)]
    lines = ["8", "Smiling Male", *attributes]
    (folder / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    splits = [0, 0, 0, 0, 0, 1, 2, 2]
    partition = [f"{name} {split}" for name, split in zip(names, splits, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(partition))
    identities = [f"{name} {900 + number // 2}" for number, name in enumerate(names)]
    (folder / "identity_CelebA.txt").write_text("\n".join(identities))


CELEBA = PrivateSource(
    source="celeba", name="faces", num_records=5, num_classes=2, size=32, channels=3
)


def test_celeba_is_labelled_by_attribute_and_keeps_its_official_parts(tmp_path: Path) -> None:
    _write_celeba(tmp_path / "celeba")
    train, held_out = load_private(CELEBA, tmp_path)
    assert train.labels.tolist() == [0, 1, 0, 1, 0]
    assert held_out.labels.tolist() == [0, 1]  # The validation image is in neither part.
    assert abs(float(train.images[3].mean()) - 60) < 2


def test_celebas_people_can_be_the_privacy_unit(tmp_path: Path) -> None:
    _write_celeba(tmp_path / "celeba")
    source = PrivateSource(
        source="celeba", name="faces", num_records=5, num_classes=2, size=32, channels=3,
        group_column="identity", num_groups=3,
    )  # fmt: skip
    train, _ = load_private(source, tmp_path)
    assert train.groups is not None
    assert train.groups.tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    ("label_column", "group_column", "said"),
    [("Tall", None, "no attribute 'Tall'"), (None, "person", "no group column 'person'")],
)
def test_columns_that_celeba_has_not_are_refused(
    label_column: str | None, group_column: str | None, said: str, tmp_path: Path
) -> None:
    _write_celeba(tmp_path / "celeba")
    request = Request(
        source="celeba", root=tmp_path, size=32, channels=3,
        label_column=label_column, group_column=group_column,
    )  # fmt: skip
    with pytest.raises(DataError, match=said):
        read_celeba(request)


def test_a_missing_face_is_refused_by_position(tmp_path: Path) -> None:
    _write_celeba(tmp_path / "celeba")
    (tmp_path / "celeba" / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(DataError, match="position 2"):
        load_private(CELEBA, tmp_path)


def test_pneumonia_uses_the_official_train_and_test_parts(tmp_path: Path) -> None:
    (tmp_path / "PneumoniaMNIST").mkdir()
    arrays = {}
    for split, count in (("train", 6), ("val", 2), ("test", 4)):
        arrays[f"{split}_images"] = _pictures(count, count, side=28)[:, 0]
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez(tmp_path / "PneumoniaMNIST" / "pneumoniamnist.npz", **arrays)
    source = PrivateSource(
        source="pneumonia", name="pneumonia", num_records=6, num_classes=2, size=28
    )
    train, held_out = load_private(source, tmp_path)
    np.testing.assert_array_equal(train.images[:, 0], arrays["train_images"])
    assert held_out.labels.tolist() == [0, 1, 0, 1]


def test_mednist_without_its_chest_x_rays_is_a_public_source(tmp_path: Path) -> None:
    (tmp_path / "MedNIST64").mkdir()
    path = tmp_path / "MedNIST64" / "MedNIST64_2000_per_class.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in ((10, "CXR"), (90, "Hand"), (170, "HeadCT")):
            for number in range(2):
                image = np.full((64, 64), value, dtype=np.uint8)
                archive.writestr(f"{name}/{number}.jpeg", _jpeg(image))
    source = PublicSource(source="mednist", exclude=("CXR",))
    public = load_public([source], tmp_path, size=28, channels=1)
    assert (len(public), public.spec.num_classes) == (4, 2)
    assert public.images.min() > 50
