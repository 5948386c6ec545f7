"""A user's own images: folders, zips and npz files, local and on S3."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapid_dist.data.images import content_hashes
from rapid_dist.data.sources import PrivateSource, PublicSource, load_private, load_public
from rapid_dist.errors import ConfigError, DataError


def picture(seed: int, side: int = 8, mode: str = "L") -> Image.Image:
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def write_tree(root: Path, classes: dict[str, int], first_seed: int = 0) -> None:
    seed = first_seed
    for name, count in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / name / f"{number:03}.png").write_bytes(png(picture(seed)))
            seed += 1


def _folder(path: Path | str, **changes: object) -> PrivateSource:
    declared = {"source": "folder", "name": "scans", "num_classes": 2, "size": 8, "channels": 1}
    return PrivateSource(**{**declared, "path": str(path), **changes})  # type: ignore[arg-type]


def _found(source: PrivateSource) -> int:
    """N as the refusal of a wrong declaration states it."""
    with pytest.raises(DataError, match="num_records=1 is declared") as caught:
        load_private(source)
    return int(str(caught.value).split("the source holds ")[1].split(".")[0])


def test_each_sub_folder_is_a_class(tmp_path: Path) -> None:
    write_tree(tmp_path, {"sick": 3, "healthy": 2})
    public = load_public([PublicSource(source="folder", path=str(tmp_path))], size=8, channels=1)
    assert np.bincount(public.labels).tolist() == [2, 3]  # Sorted: healthy, sick.
    np.testing.assert_array_equal(public.images[2, 0], np.asarray(picture(0)))


def test_a_folder_with_train_and_test_keeps_its_own_split(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"a": 3, "b": 3})
    write_tree(tmp_path / "test", {"a": 2, "b": 1}, first_seed=100)
    train, held_out = load_private(_folder(tmp_path, num_records=6))
    assert (len(train), len(held_out)) == (6, 3)
    assert held_out.labels.tolist() == [0, 0, 1]


def test_declared_class_names_are_the_folders_in_its_order(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"sick": 3, "healthy": 3})
    write_tree(tmp_path / "test", {"sick": 2, "healthy": 1}, first_seed=100)
    named = _folder(tmp_path, num_records=6, class_names=("healthy", "sick"))
    assert len(load_private(named)[0]) == 6
    for wrong in (("sick", "healthy"), ("healthy", "ill")):
        with pytest.raises(DataError, match="the source calls it otherwise") as caught:
            load_private(_folder(tmp_path, num_records=6, class_names=wrong))
        assert "\n" not in str(caught.value)
        own = {"sick", "healthy"} - {wrong[0], wrong[1]}
        assert not any(name in str(caught.value) for name in own)  # The folder's are not quoted.


def test_numbered_classes_may_be_called_anything(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", {"0": 3, "1": 3})
    write_tree(tmp_path / "test", {"0": 2, "1": 1}, first_seed=100)
    named = _folder(tmp_path, num_records=6, class_names=("healthy", "sick"))
    assert len(load_private(named)[0]) == 6


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a",), "1 names for num_classes=2"),
        (("a", "b", "c"), "3 names for num_classes=2"),
        (("a", "a"), "a name of its own"),
        (("a", " "), "a name of its own"),
        (("a", "b\nc"), "a name of its own"),
    ],
)
def test_class_names_that_do_not_name_every_class_once_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        _folder(tmp_path, num_records=6, class_names=names)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_test_part_is_split_by_content(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / "copy.png").write_bytes(png(picture(0)))
    found = _found(_folder(tmp_path, num_records=1, held_out_share=0.4))
    train, held_out = load_private(_folder(tmp_path, num_records=found, held_out_share=0.4))
    assert len(train) + len(held_out) == 41
    assert not set(content_hashes(train.images)) & set(content_hashes(held_out.images))


def test_images_in_no_sub_folder_are_a_source_without_classes(tmp_path: Path) -> None:
    write_tree(tmp_path, {".": 30})
    found = _found(_folder(tmp_path, num_records=1, num_classes=0))
    train, _ = load_private(_folder(tmp_path, num_records=found, num_classes=0))
    assert (train.spec.num_classes, train.labels.max()) == (0, 0)


def test_images_of_any_size_and_colour_come_out_as_declared(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number, (side, mode) in enumerate([(8, "L"), (31, "RGB"), (64, "L"), (9, "RGB")]):
        (tmp_path / "a" / f"{number}.png").write_bytes(png(picture(number, side, mode)))
    source = PublicSource(source="folder", path=str(tmp_path))
    assert load_public([source], size=16, channels=3).images.shape == (4, 3, 16, 16)
    assert load_public([source], size=16, channels=1).images.shape == (4, 1, 16, 16)


def _folder_of_another_size(root: Path) -> PrivateSource:
    write_tree(root, {"a": 6, "b": 6})
    (root / "b" / "003.png").write_bytes(png(picture(99, side=9)))
    return _folder(root, num_records=9)


def _npz_of_another_size(root: Path) -> PrivateSource:
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 9), dtype=np.uint8)
    write_npz(root / "x.npz", images=images)
    return _npz(root / "x.npz", num_records=40)


@pytest.mark.parametrize("write", [_folder_of_another_size, _npz_of_another_size])
def test_private_images_of_another_size_are_resized_only_if_that_is_said(
    write: Callable[[Path], PrivateSource], tmp_path: Path
) -> None:
    source = write(tmp_path)
    with pytest.raises(DataError, match=r"not 8x8\. Declare another size, or set resize") as caught:
        load_private(source)
    assert "003" not in str(caught.value)
    resized = replace(source, resize=True, num_records=1)
    count = _found(resized)
    train, _ = load_private(replace(resized, num_records=count))
    assert train.images.shape == (count, 1, 8, 8)


def test_a_zip_reads_as_the_folder_it_holds(tmp_path: Path) -> None:
    write_tree(tmp_path / "tree", {"a": 2, "b": 3})
    with zipfile.ZipFile(tmp_path / "tree.zip", "w") as archive:
        for path in sorted((tmp_path / "tree").rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path / "tree").as_posix())
    read = [
        load_public([PublicSource(source="folder", path=str(path))], size=8, channels=1)
        for path in (tmp_path / "tree", tmp_path / "tree.zip")
    ]
    assert read[0].fingerprint == read[1].fingerprint


@pytest.mark.parametrize("content", [b"", b"no image", png(picture(0))[:60]])
def test_an_unreadable_image_is_refused_by_position_not_by_name(
    content: bytes, tmp_path: Path
) -> None:
    write_tree(tmp_path, {"a": 3, "b": 3})
    (tmp_path / "b" / "001.png").write_bytes(content)
    (tmp_path / "b" / "001.png").rename(tmp_path / "b" / "001-jane-doe.png")
    with pytest.raises(DataError, match="position 4") as caught:
        load_private(_folder(tmp_path, num_records=6))
    assert "jane" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_of_more_than_eight_bits_are_refused_not_clipped(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 1})
    deep = Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16))
    (tmp_path / "a" / "deep.png").write_bytes(png(deep))
    with pytest.raises(DataError, match="position 1"):
        load_public([PublicSource(source="folder", path=str(tmp_path))], size=8, channels=1)


def test_a_folder_that_is_half_sorted_into_classes_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": 1, ".": 1})
    with pytest.raises(DataError, match="inside and outside"):
        load_public([PublicSource(source="folder", path=str(tmp_path))], size=8, channels=1)


@pytest.mark.parametrize("name", ["absent", "absent.zip", "empty"])
def test_a_folder_without_images_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    source = PublicSource(source="folder", path=str(tmp_path / name))
    with pytest.raises(DataError, match=r"does not exist|no image"):
        load_public([source], size=8, channels=1)


def write_npz(path: Path, count: int = 40, **changes: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (count, 8, 8), dtype=np.uint8),
        "labels": np.arange(count) % 2,
        "patient": np.array([f"p{i // 4}" for i in range(count)]),
    }
    np.savez_compressed(path, **{**arrays, **changes})  # type: ignore[arg-type]


def _npz(path: Path | str, **changes: object) -> PrivateSource:
    return _folder(path, source="npz", **changes)


def test_an_npz_with_its_own_test_part_keeps_it(tmp_path: Path) -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    write_npz(tmp_path / "x.npz", test_images=images, test_labels=np.array([0, 1, 1]))
    train, held_out = load_private(_npz(tmp_path / "x.npz", num_records=40))
    assert (len(train), held_out.labels.tolist()) == (40, [0, 1, 1])


@pytest.mark.parametrize(
    "shape", [(6, 8, 8), (6, 1, 8, 8), (6, 8, 8, 1), (6, 3, 8, 8), (6, 8, 8, 3)]
)
def test_channels_may_come_first_last_or_not_at_all(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=np.zeros(shape, np.uint8))
    source = PublicSource(source="npz", path=str(tmp_path / "x.npz"))
    public = load_public([source], size=8, channels=1)
    assert (public.images.shape, public.spec.num_classes) == ((6, 1, 8, 8), 1)


def test_an_npz_of_floats_is_read_by_its_declared_range(tmp_path: Path) -> None:
    images = np.linspace(-1, 1, 2 * 64).reshape(2, 8, 8)
    np.savez(tmp_path / "x.npz", images=images)
    source = PublicSource(source="npz", path=str(tmp_path / "x.npz"), value_range=(-1.0, 1.0))
    public = load_public([source], size=8, channels=1)
    assert (public.images.min(), public.images.max()) == (0, 255)
    wrong = PublicSource(source="npz", path=str(tmp_path / "x.npz"))
    with pytest.raises(DataError, match="value_range"):
        load_public([wrong], size=8, channels=1)


def test_a_group_stays_whole_and_is_the_privacy_unit(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", count=80)
    source = _npz(tmp_path / "x.npz", group_column="patient", num_groups=1, num_records=1)
    found = _found(source)
    assert found % 4 == 0
    num_groups = found // 4
    train, held_out = load_private(
        _npz(tmp_path / "x.npz", group_column="patient", num_groups=num_groups, num_records=found)
    )
    assert train.groups is not None
    assert np.bincount(train.groups).tolist() == [4] * num_groups
    assert train.spec.num_units == num_groups
    assert len(held_out) == 80 - found


def test_a_wrong_declared_number_of_groups_is_refused(tmp_path: Path) -> None:
    write_npz(
        tmp_path / "x.npz",
        test_images=np.zeros((3, 8, 8), np.uint8),
        test_labels=np.array([0, 1, 1]),
        test_patient=np.array(["q0", "q1", "q1"]),
    )
    source = _npz(tmp_path / "x.npz", group_column="patient", num_groups=9, num_records=40)
    with pytest.raises(DataError, match="num_groups=9 is declared, the source holds 10"):
        load_private(source)


def test_which_side_a_group_is_on_depends_on_no_other_group(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", count=80)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8), dtype=np.uint8)[40:]
    names = np.array([f"p{i // 4}" for i in range(40, 80)])
    np.savez(tmp_path / "half.npz", images=images, labels=np.arange(40) % 2, patient=names)
    held_out = []
    for name in ("x.npz", "half.npz"):
        source = _npz(tmp_path / name, group_column="patient", num_groups=1, num_records=1)
        found = _found(source)
        declared = _npz(
            tmp_path / name, group_column="patient", num_groups=found // 4, num_records=found
        )
        held_out.append(set(content_hashes(load_private(declared)[1].images)))
    assert held_out[1] == held_out[0] & set(content_hashes(images[:, None]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": np.zeros((40, 8), np.uint8)}, "shape"),
        ({"images": np.array(["x"] * 40)}, "Store numbers"),
        ({"images": np.array([None] * 40)}, "plain arrays"),
        ({"labels": np.zeros(39, np.int64)}, "40 images and 39 labels"),
        ({"labels": np.zeros(40)}, "one integer"),
        ({"labels": np.full(40, 5)}, r"outside 0\.\.1"),
        ({"labels": np.full(40, -1)}, r"outside 0\.\.1"),
        ({"labels": np.zeros(40, np.int64)}, "class 1 of 2 has no image"),
    ],
)
def test_an_npz_that_is_not_what_it_should_be_is_refused(
    changes: dict[str, np.ndarray], said: str, tmp_path: Path
) -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    test_part = {"test_images": images, "test_labels": np.array([0, 1, 1])}
    write_npz(tmp_path / "x.npz", **{**test_part, **changes})
    with pytest.raises(DataError, match=said) as caught:
        load_private(_npz(tmp_path / "x.npz", num_records=40))
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz")
    with pytest.raises(DataError, match=r"'diagnosis'\. It has images, labels, patient"):
        load_private(_npz(tmp_path / "x.npz", num_records=40, label_column="diagnosis"))


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 torn"])
def test_a_torn_or_missing_npz_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"does not exist|plain arrays"):
        load_private(_npz(tmp_path / "x.npz", num_records=40))
