"""A comparison whose pieces run on Ray: the same pieces, figures and charges."""

from pathlib import Path

import pytest

from rapid_dist.config import load_recipe
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.runtime.compare import run_compare
from rapid_dist.runtime.compare_piece import run_piece

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

TINY = [
    "data.public.0.count=400", "network.widths=[8]", "network.attention=[false]",
    "network.head_width=8", "network.norm_groups=4",
    "contrast.extractor.width=8", "contrast.extractor.dim=8",
    "pretrain.steps=2", "pretrain.batch_size=16", "contrast.steps=2", "contrast.batch_size=16",
    "knowledge_base.clusters=12", "adapt.steps=2", "adapt.batch_size=16",
    "privacy.expected_batch=16", "privacy.steps=2", "sampling.count=40",
    "sampling.late_intervals=2", "sampling.early_intervals=2", "evaluation.fidelity_images=40",
    "evaluation.memorisation_images=40", "evaluation.classifiers.steps=3",
    "evaluation.classifiers.logistic_iterations=3", "evaluation.classifiers.hidden_width=8",
    "runtime.backend=ray", "runtime.workers=2", "compare.methods=[rapid, references]",
    "compare.epsilons=[10]", "compare.seeds=1",
]  # fmt: skip


def test_pieces_run_on_rays_workers_and_are_charged_to_the_one_ledger(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "compare"
    result = run_compare(load_recipe("digits", TINY), str(out), run_one=run_piece)
    assert [(one["piece"], one["state"]) for one in result["pieces"]] == [
        ("rapid-10-0", "done"), ("references-10-0", "done"),
    ]  # fmt: skip
    ledger = Ledger.open(out.parent / "ledger", "digits")
    assert len(ledger.runs()) == result["cost"]["pieces"] == 2
    kinds = [entry.kind for entry in ledger.entries() if entry.event is not None]
    assert sorted(kinds) == ["query", "query", "step", "step"]
    assert all(0 < row["mean"]["epsilon_spent"] <= 10 for row in result["rows"])
    ran: list[str] = []
    run_compare(load_recipe("digits", TINY), str(out), run_one=lambda job: ran.append(job.name))
    assert ran == []
