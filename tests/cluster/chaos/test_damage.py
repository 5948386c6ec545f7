"""Damaged files of a run: it finishes with repeats charged, or one line says what and why."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.chaos.damage import Row, Snapshots, torn, try_row
from tests.cluster.chaos.damage_table import rows

TABLE = rows()


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Snapshots:
    return Snapshots(tmp_path_factory.mktemp("snapshots"))


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in TABLE])
def test_a_damaged_run_finishes_with_repeats_charged_or_stops_with_one_line_and_loses_nothing(
    row: Row, snapshots: Snapshots, tmp_path: Path, record_property: Callable[[str, str], None]
) -> None:
    found = try_row(row, snapshots, tmp_path)
    record_property("stopped", found.stopped)
    assert bool(found.stopped) == (row.stops is not None)


@pytest.mark.slow
def test_the_table_would_notice_damage_that_is_silently_accepted(
    snapshots: Snapshots, tmp_path: Path
) -> None:
    unread = Row(
        kind="torn", point="notice", moment="training", damage=torn("run/internal/README.txt"),
        stops="README.txt",
    )  # fmt: skip
    with pytest.raises(AssertionError, match="silently accepted"):
        try_row(unread, snapshots, tmp_path)


def test_every_row_is_another_one() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE) >= 60
