"""Groups as the privacy unit: kept whole by every split, counted, and named for what they are."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rapid_dist.data.declaration import PrivateSource
from rapid_dist.data.groups import synthetic_groups
from rapid_dist.data.images import ImageSpec, PrivateImages, content_hashes
from rapid_dist.data.sources import load_private
from rapid_dist.errors import ConfigError, DataError

DIGITS = PrivateSource(source="digits", name="digits", num_records=1432, num_classes=10, size=8)
MADE_UP = replace(DIGITS, group_column="synthetic", num_groups=500)


def _write(path: Path, count: int = 80) -> dict[bytes, str]:
    """Writes images of four a patient; returns the patient of every image by its content."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    patients = np.array([f"p{i // 4}" for i in range(count)])
    np.savez(path, images=images, labels=np.arange(count) % 2, patient=patients)
    return dict(zip(content_hashes(images[:, None]), patients.tolist(), strict=True))


def _declared(path: Path, **changes: object) -> PrivateSource:
    source = PrivateSource(
        source="npz", name="scans", num_records=80, num_classes=2, size=8, path=str(path)
    )
    return replace(source, **changes)  # type: ignore[arg-type]


def _found(source: PrivateSource) -> int:
    with pytest.raises(DataError, match="num_records") as caught:
        load_private(source)
    return int(str(caught.value).split("the source holds ")[1].split(".")[0])


def _patients_on_both_sides(path: Path, **groups: object) -> set[str]:
    patient_of = _write(path)
    found = _found(_declared(path, num_records=79))
    if groups:
        found = _found(_declared(path, num_records=79, num_groups=20, **groups))
        groups["num_groups"] = found // 4
    sides = load_private(_declared(path, num_records=found, **groups))
    train, held_out = (
        {patient_of[digest] for digest in content_hashes(side.images)} for side in sides
    )
    return train & held_out


def test_a_split_by_group_cuts_no_patient_in_two(tmp_path: Path) -> None:
    assert _patients_on_both_sides(tmp_path / "x.npz", group_column="patient") == set()


def test_the_split_test_would_notice_a_split_by_image(tmp_path: Path) -> None:
    assert len(_patients_on_both_sides(tmp_path / "x.npz")) > 5


def _with_test_part(path: Path, test_patients: list[str] | None) -> PrivateSource:
    rng = np.random.default_rng(0)
    arrays = {
        "images": rng.integers(0, 256, (4, 8, 8), dtype=np.uint8),
        "labels": np.array([0, 1, 0, 1]),
        "patient": np.array(["a", "a", "b", "c"]),
        "test_images": rng.integers(0, 256, (2, 8, 8), dtype=np.uint8),
        "test_labels": np.array([0, 1]),
    }
    if test_patients is not None:
        arrays["test_patient"] = np.array(test_patients)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return _declared(path, num_records=4, group_column="patient", num_groups=3)


def test_a_test_part_that_shares_a_patient_with_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in the train part and in the test part") as caught:
        load_private(_with_test_part(tmp_path / "x.npz", ["d", "b"]))
    assert "'b'" not in str(caught.value)  # Not which patient.
    train, held_out = load_private(_with_test_part(tmp_path / "y.npz", ["d", "e"]))
    assert train.groups is not None
    assert np.bincount(train.groups).tolist() in ([2, 1, 1], [1, 2, 1], [1, 1, 2])
    assert len(held_out) == 2


def test_a_test_part_that_does_not_say_whose_its_images_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no array 'test_patient'"):
        load_private(_with_test_part(tmp_path / "x.npz", None))


def test_synthetic_groups_are_uneven_none_empty_and_depend_on_positions_alone() -> None:
    groups = synthetic_groups(1432, 500)
    sizes = np.bincount(groups, minlength=500)
    assert len(sizes) == 500
    assert sizes.min() == 1
    assert sizes.max() > 4
    # A longer set only adds members: nobody changes groups because others came.
    np.testing.assert_array_equal(synthetic_groups(1500, 500)[:1432], groups)
    np.testing.assert_array_equal(load_private(MADE_UP)[0].groups, groups)


def test_a_source_with_synthetic_groups_has_the_images_that_it_has_without() -> None:
    with_groups, without = load_private(MADE_UP), load_private(DIGITS)
    for one, other in zip(with_groups, without, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
    assert with_groups[0].spec.num_units == 500
    assert with_groups[1].groups is None  # Held-out images belong to none of these groups.


def test_more_synthetic_groups_than_images_are_refused() -> None:
    with pytest.raises(DataError, match="num_groups=5 synthetic groups cannot share 4"):
        synthetic_groups(4, 5)


@pytest.mark.parametrize("num_groups", [0, -1, 1433])
def test_an_impossible_number_of_groups_is_refused(num_groups: int) -> None:
    with pytest.raises(ConfigError, match=f"num_groups .* got {num_groups}"):
        replace(DIGITS, group_column="patient", num_groups=num_groups)


def test_a_number_of_groups_with_a_gap_in_it_is_refused() -> None:
    spec = ImageSpec(
        name="x", num_records=3, channels=1, size=8, num_classes=0, licence="", num_groups=3
    )
    pixels, labels = np.zeros((3, 1, 8, 8), np.uint8), np.zeros(3, np.int64)
    PrivateImages(images=pixels, labels=labels, groups=np.array([2, 0, 1]), spec=spec)
    for groups in (np.array([0, 0, 2]), np.array([0, 1, 1]), None):
        with pytest.raises(DataError, match="without gaps"):
            PrivateImages(images=pixels, labels=labels, groups=groups, spec=spec)


def test_the_unit_is_named_and_told_apart_on_the_ledger() -> None:
    grouped = replace(DIGITS, group_column="case", num_groups=9)
    assert [s.unit_name for s in (DIGITS, grouped, MADE_UP)] == [
        "record",
        "group",
        "synthetic group",
    ]
    assert replace(grouped, group_name="patient").unit_name == "patient"
    units = [DIGITS, grouped, replace(grouped, group_column="clinic"), MADE_UP]
    units += [replace(MADE_UP, num_groups=501)]
    assert len({source.unit_id for source in units}) == 5
    assert replace(grouped, group_column="case number").unit_id == "group:case_number"


def test_made_up_groups_say_so_and_cannot_be_named_otherwise() -> None:
    named = replace(MADE_UP, group_name="synthetic patient")
    assert "made up" in named.unit_note
    assert "not for real people" in named.unit_note
    assert replace(DIGITS, group_column="case", num_groups=9).unit_note == ""
    with pytest.raises(ConfigError, match="Call them 'synthetic patient'"):
        replace(MADE_UP, group_name="patient")


@pytest.mark.parametrize("name", ["", "<b>", "Two\nlines", "x" * 60])
def test_a_group_name_is_a_few_plain_words(name: str) -> None:
    with pytest.raises(ConfigError, match="group_name"):
        replace(DIGITS, group_column="case", num_groups=9, group_name=name)
    with pytest.raises(ConfigError, match="beside a group_column"):
        replace(DIGITS, group_name="patient")
