"""Attendance sees who was in the sum, whatever the step, its noise and its workers."""

import numpy as np
import pytest

from rapid_dist.audit.attendance import attend
from rapid_dist.audit.result import failed
from rapid_dist.audit.sampling import check_sampling
from tests.faults.steps import WholeBatchOnEveryRank
from tests.faults.subjects import small_subject
from tests.models import FixedBatch, mechanism


@pytest.mark.parametrize("noise", ["fast", "secure"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_attendance_is_of_those_who_were_drawn_and_no_other(world_size: int, noise: str) -> None:
    subject = small_subject(mechanism=mechanism(noise=noise))
    found = attend(
        subject, subject.new_key(), 2, world_size=world_size, sampler=FixedBatch(1, 4, 5, 6, 11)
    )
    assert np.flatnonzero(found.times[0]).tolist() == [1, 4, 5, 6, 11]
    assert np.array_equal(found.times[0], found.times[1])
    assert found.times.max() == 1
    assert found.charged == [0, 1]


def test_attendance_counts_a_unit_that_is_summed_twice() -> None:
    subject = small_subject(step_type=WholeBatchOnEveryRank)
    found = attend(subject, subject.new_key(), 1, world_size=3, sampler=FixedBatch(2))
    assert found.times.tolist() == [[0, 0, 3] + [0] * 9]


def test_a_step_on_nobody_is_noise() -> None:
    subject = small_subject()
    found = attend(subject, subject.new_key(), 1, sampler=FixedBatch())
    assert found.times.sum() == 0
    assert found.released.all()


def test_the_product_passes_with_secure_noise_and_a_full_batch() -> None:
    subject = small_subject(mechanism=mechanism(expected_batch=12.0, noise="secure"))
    assert failed(check_sampling(subject, "quick")) == []
