"""The question that tells a head node from a mistyped address, asked of a real one."""

import pytest
import ray

from rapid_dist.runtime.ray_address import check_answers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_a_real_head_node_answers_the_first_time_it_is_asked() -> None:
    address = ray.get_runtime_context().gcs_address
    check_answers(address, tries=1)
