"""Declarations, splits and refusals, mostly on the embedded digits."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from rapid_dist.data.declaration import SOURCES, PrivateSource, PublicSource
from rapid_dist.data.images import ImageSpec, PublicImages, content_hashes
from rapid_dist.data.readers import _READERS
from rapid_dist.data.sources import check_disjoint, load_private, load_public, split_public
from rapid_dist.errors import ConfigError, DataError

DIGITS = PrivateSource(source="digits", name="digits", num_records=1432, num_classes=10, size=8)


def test_the_digits_split_is_what_the_recipe_declares() -> None:
    train, held_out = load_private(DIGITS)
    assert (len(train), len(held_out)) == (1432, 365)
    assert train.images.shape == (1432, 1, 8, 8)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert np.bincount(held_out.labels, minlength=10).min() > 0


def test_no_image_is_in_both_parts_of_a_private_source() -> None:
    train, held_out = load_private(DIGITS)
    assert not set(content_hashes(train.images)) & set(content_hashes(held_out.images))


def test_loading_twice_gives_the_same_records() -> None:
    first, second = load_private(DIGITS)[0], load_private(DIGITS)[0]
    np.testing.assert_array_equal(first.images, second.images)


@pytest.mark.parametrize("declared", [1431, 1433])
def test_a_wrong_declared_number_of_records_is_refused(declared: int) -> None:
    with pytest.raises(DataError, match=f"num_records={declared} is declared"):
        load_private(replace(DIGITS, num_records=declared))


def test_a_wrong_declared_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match="num_classes=9"):
        load_private(replace(DIGITS, num_classes=9))


def test_a_source_declared_without_classes_keeps_no_label() -> None:
    train, _ = load_private(replace(DIGITS, num_classes=0))
    assert train.spec.num_classes == 0
    assert not train.labels.any()


def test_a_limit_takes_records_by_position_not_by_content() -> None:
    whole, _ = load_private(DIGITS)
    some, _ = load_private(replace(DIGITS, limit=300, num_records=300))
    assert len(some) == 300
    assert set(content_hashes(some.images)) <= set(content_hashes(whole.images))
    assert len(np.unique(some.labels)) == 10  # Not the head of a sorted file.


def test_a_class_without_an_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"class \d of 10 has no image"):
        load_private(replace(DIGITS, limit=5, num_records=5))


def test_colour_and_another_size_follow_the_declaration() -> None:
    source = replace(DIGITS, size=16, channels=3, num_records=1)
    with pytest.raises(DataError, match="declared") as caught:
        load_private(source)
    found = int(str(caught.value).split("the source holds ")[1].split(".")[0])
    assert load_private(replace(source, num_records=found))[0].images.shape[1:] == (3, 16, 16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "imagenet"}, "imagenet"),
        ({"name": "My Scans"}, "My Scans"),
        ({"num_records": 0}, "num_records"),
        ({"num_classes": -1}, "num_classes"),
        ({"size": 7}, "size"),
        ({"channels": 2}, "channels"),
        ({"limit": 10}, "limit=10"),
        ({"held_out_share": 1.0}, "held_out_share"),
        ({"group_column": "patient"}, "group_column"),
        ({"num_groups": 3}, "num_groups"),
        ({"path": "x.npz"}, "path"),
        ({"source": "npz"}, "path"),
        ({"value_range": (1.0, 1.0)}, "value_range"),
        ({"margin": 0.5}, "margin"),
    ],
)
def test_a_wrong_private_declaration_is_refused_in_one_line(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        replace(DIGITS, **changes)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"count": 0}, {"labels": "some"}, {"source": ""}])
def test_a_wrong_public_declaration_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        replace(PublicSource(source="digits"), **changes)  # type: ignore[arg-type]


def test_every_declarable_source_has_a_reader() -> None:
    assert set(SOURCES) == set(_READERS)


def test_settings_are_plain_values_with_defaults_for_all_but_the_essential() -> None:
    required = {f.name for f in fields(PrivateSource) if f.default is f.default_factory}
    assert required == {"source", "name", "num_records", "num_classes", "size"}


def test_a_count_takes_a_random_part_that_depends_on_the_seed() -> None:
    source = PublicSource(source="digits", count=200)
    first, again, other = (
        load_public([source], size=8, channels=1, seed=seed) for seed in (0, 0, 1)
    )
    assert len(first) == 200
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.spec.num_classes == 10


def test_more_public_images_than_there_are_cannot_be_had() -> None:
    with pytest.raises(DataError, match="1797 images, count asks for 1798"):
        load_public([PublicSource(source="digits", count=1798)], size=8, channels=1)


def test_excluded_classes_leave_and_the_rest_are_renumbered() -> None:
    source = PublicSource(source="digits", exclude=("0", "5"))
    public = load_public([source], size=8, channels=1)
    whole = load_public([PublicSource(source="digits")], size=8, channels=1)
    assert public.spec.num_classes == 8
    assert len(public) == np.isin(whole.labels, (0, 5), invert=True).sum()
    kept = set(content_hashes(whole.images[whole.labels == 1]))
    assert set(content_hashes(public.images[public.labels == 0])) == kept


def test_excluding_a_class_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="'CXR'"):
        load_public([PublicSource(source="digits", exclude=("CXR",))], size=8, channels=1)


def test_at_least_one_public_source_is_needed() -> None:
    with pytest.raises(DataError, match="No public source"):
        load_public([], size=8, channels=1)


def _public(images: np.ndarray) -> PublicImages:
    spec = ImageSpec(
        name="x", num_records=len(images), channels=1, size=8, num_classes=1, licence=""
    )
    return PublicImages(images=images, labels=np.zeros(len(images), np.int64), spec=spec)


def test_copies_of_an_image_stay_on_one_side_of_the_public_split() -> None:
    distinct = np.random.default_rng(0).integers(0, 256, (100, 1, 8, 8), dtype=np.uint8)
    pretrain, reference = split_public(_public(np.concatenate([distinct, distinct])), 0.5)
    assert len(pretrain) + len(reference) == 200
    assert not set(content_hashes(pretrain.images)) & set(content_hashes(reference.images))
    # Binomial(100, 0.5) leaves 25..75 with a chance below 1e-6.
    assert 25 <= len(set(content_hashes(reference.images))) <= 75


def test_which_side_an_image_is_on_depends_on_no_other_image() -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
    whole = set(content_hashes(split_public(_public(images), 0.3)[1].images))
    half = set(content_hashes(split_public(_public(images[30:]), 0.3)[1].images))
    assert half == whole & set(content_hashes(images[30:]))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_a_public_split_needs_two_sides(share: float) -> None:
    with pytest.raises(ConfigError, match="reference_share"):
        split_public(_public(np.zeros((2, 1, 8, 8), np.uint8)), share)


def _npz(path: Path) -> PrivateSource:
    return PrivateSource(
        source="npz", name="scans", num_records=2, num_classes=0, size=8, path=str(path)
    )


def test_a_source_cannot_be_private_and_public_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shares files"):
        check_disjoint(DIGITS, [PublicSource(source="letters"), PublicSource(source="digits")])
    check_disjoint(DIGITS, [PublicSource(source="letters")])


def test_a_public_path_to_private_files_is_refused_however_it_is_spelt(tmp_path: Path) -> None:
    scans = tmp_path / "scans" / "a.npz"
    scans.parent.mkdir()
    scans.write_bytes(b"private")
    (tmp_path / "link.npz").symlink_to(scans)
    (tmp_path / "copy.npz").write_bytes(b"private")
    (tmp_path / "other.npz").write_bytes(b"another")
    for shared in ("scans/../scans/a.npz", "link.npz", "copy.npz"):
        public = PublicSource(source="npz", path=str(tmp_path / shared))
        with pytest.raises(DataError, match="shares files"):
            check_disjoint(_npz(scans), [public])
    inside = PublicSource(source="folder", path=str(scans.parent))
    with pytest.raises(DataError, match="shares files"):
        check_disjoint(_npz(scans), [inside])
    check_disjoint(_npz(scans), [PublicSource(source="npz", path=str(tmp_path / "other.npz"))])


def test_a_public_path_into_a_named_private_set_is_refused(tmp_path: Path) -> None:
    mnist = replace(DIGITS, source="mnist", name="mnist")
    inside = PublicSource(source="folder", path=str(tmp_path / "MNIST" / "raw"))
    with pytest.raises(DataError, match="shares files"):
        check_disjoint(mnist, [inside], tmp_path)
    check_disjoint(mnist, [PublicSource(source="omniglot")], tmp_path)


def test_buckets_are_compared_by_prefix() -> None:
    private = PrivateSource(
        source="folder", name="s", num_records=1, num_classes=0, size=8, path="s3://b/scans/"
    )
    with pytest.raises(DataError, match="shares files"):
        check_disjoint(private, [PublicSource(source="npz", path="s3://b/scans/x.npz")])
    pneumonia = replace(private, source="pneumonia", path=None)
    inside = PublicSource(source="npz", path="s3://b/sets/PneumoniaMNIST/pneumoniamnist.npz")
    with pytest.raises(DataError, match="shares files"):
        check_disjoint(pneumonia, [inside], "s3://b/sets/")
    check_disjoint(pneumonia, [inside], "s3://b/other-sets")
    check_disjoint(private, [PublicSource(source="npz", path="s3://b/scans-public/x.npz")])
