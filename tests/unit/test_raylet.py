"""A Ray that does not start in its time."""

import pytest

from rapid_dist.errors import RapidError
from rapid_dist.runtime.raylet import started


def test_a_ray_that_did_not_start_in_its_time_is_one_line() -> None:
    said = "The current node timed out during startup. This could happen because ..."
    with (
        pytest.raises(RapidError, match=r"did not start .* same command again") as caught,
        started(),
    ):
        raise Exception(said)
    assert "\n" not in str(caught.value)


def test_any_other_error_of_its_start_is_left_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"^num_cpus$"), started():
        raise ValueError("num_cpus")
