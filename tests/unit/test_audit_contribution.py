"""What the contribution check leaves out, and that it would notice if it left out nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rapid_dist.audit.contribution import LeavingOut, check_contribution, extreme_images
from rapid_dist.audit.reduction import check_reduction
from rapid_dist.audit.result import failed
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.workers import ProcessWorkers, ThreadWorkers
from rapid_dist.collective import Collective
from rapid_dist.private.settings import TrainConfig
from tests.faults.keys import FixedSeed
from tests.faults.steps import OwnNoiseAfterTheSum, WholeBatchOnEveryRank
from tests.faults.subjects import small_subject
from tests.models import FixedBatch, mechanism, private_images, tiny_denoiser

GROUPS = np.array([0, 0, 0, 1, 2, 2, 3, 3, 4, 4, 5, 6])


def _with_groups() -> Subject:
    return small_subject(
        images=private_images(12, GROUPS),
        mechanism=mechanism(num_records=7, expected_batch=3.5),
        config=TrainConfig(mode="late", images_per_group=2, multiplicity=2),
    )


def test_the_product_passes_with_its_own_kind_of_network() -> None:
    subject = small_subject(make_denoiser=tiny_denoiser, images=private_images(4))
    assert failed(check_contribution(subject, "quick")) == []


def test_the_product_passes_where_a_unit_is_a_group() -> None:
    assert failed(check_contribution(_with_groups(), "quick")) == []


def test_the_product_passes_with_secure_noise() -> None:
    subject = small_subject(mechanism=mechanism(noise="secure"))
    assert failed(check_contribution(subject, "quick")) == []


def test_the_sum_over_processes_passes_and_notices_ranks_that_differ() -> None:
    assert failed(check_reduction(small_subject(), "quick")) == []
    apart = small_subject(step_type=OwnNoiseAfterTheSum)
    _, agreement = check_reduction(apart, "quick")
    assert not agreement.passed


def test_processes_sum_as_threads_do_to_the_bit() -> None:
    def total(collective: Collective) -> torch.Tensor:
        flat = torch.linspace(0.1, 1, 1_000) ** (collective.rank + 1)
        collective.sum_(flat)
        return flat

    with ProcessWorkers(2) as workers:
        over_processes = workers.run(total)
        assert (
            workers.run(lambda c: c.broadcast_bytes(bytes([c.rank + 5] * 3))) == [b"\x05" * 3] * 2
        )
    for flat in [*over_processes, *ThreadWorkers(2).run(total)]:
        assert torch.equal(flat, over_processes[0])


def test_a_lost_rank_is_not_in_the_sum() -> None:
    def total(collective: Collective) -> float:
        flat = torch.tensor([10.0**collective.rank])
        collective.sum_(flat)
        return float(flat)

    assert ThreadWorkers(3, lost=1).run(total) == [101.0] * 3


def test_the_extremes_are_black_white_random_and_doubled() -> None:
    images = extreme_images(private_images(12), 8).images
    assert (images[0] == 0).all()
    assert (images[1] == 255).all()
    assert np.array_equal(images[3], images[4])
    assert len({image.tobytes() for image in images}) == 7


def test_the_extremes_of_groups_fill_all_their_images() -> None:
    found = extreme_images(private_images(12, GROUPS), 6)
    assert found.spec.num_units == 6
    assert (found.images[:3] == 0).all()
    assert (found.images[3] == 255).all()


@pytest.mark.parametrize("left_out", [0, 3, None])
def test_a_unit_that_is_left_out_is_in_no_batch_and_all_others_are(left_out: int | None) -> None:
    subject = small_subject()
    batch = LeavingOut(subject, subject.new_key(), left_out).batch(step=0)
    assert batch.tolist() == [unit for unit in range(12) if unit != left_out]


def test_a_step_that_does_not_heed_who_is_left_out_does_not_pass_as_harmless() -> None:
    class AlwaysTheSame(WholeBatchOnEveryRank):
        def batch(self, step: int) -> np.ndarray:
            return FixedBatch(0, 1).batch(step)

    results = check_contribution(small_subject(step_type=AlwaysTheSame), "quick")
    assert [result.passed for result in results] == [True, True, True, False]


def test_a_fixed_key_changes_nothing_in_what_is_measured() -> None:
    # The check freezes all randomness, so two audits under one key print the same numbers.
    subject = replace(small_subject(), new_key=FixedSeed())
    one, other = (check_contribution(subject, "quick") for _ in range(2))
    assert [result.statistic for result in one] == [result.statistic for result in other]
