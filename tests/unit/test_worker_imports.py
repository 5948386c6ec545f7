"""What a process that Ray starts has to import before it can work: seconds of every stage."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "sklearn", "torchmetrics", "mlflow")


def _loaded(module: str) -> set[str]:
    """Returns which of the heavy vendors come along with a module, in a fresh process."""
    code = f"import sys, {module}; print(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        ("rapid_dist.runtime.beside_driver", set()),  # A mailbox, one for every group of workers.
        ("rapid_dist.runtime.cluster_smoke", {"torch"}),  # And with it every group of workers.
        ("rapid_dist.methods.private_stages", {"torch", "diffusers"}),
        ("rapid_dist.methods.drawing", {"torch", "diffusers"}),
    ],
)
def test_a_process_imports_no_heavy_vendor_that_its_stage_does_not_need(
    module: str, needed: set[str]
) -> None:
    assert _loaded(module) == needed


def test_the_comparison_would_notice_what_only_the_evaluation_needs() -> None:
    needed = {"torch", "diffusers", "sklearn", "torchmetrics"}
    assert _loaded("rapid_dist.methods.evaluation_stage") == needed
