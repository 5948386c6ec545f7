"""A run whose public stages are there, untrained: enough to draw from and to search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapid_dist.config import load_recipe, method_settings
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.methods import artifacts, private_stages, public_stages
from rapid_dist.methods.context import RunContext
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import plan
from rapid_dist.public.build import build_knowledge_base, knowledge_base_spec
from rapid_dist.retrieval.features import ContrastExtractor
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.prior import TrajectoryPrior
from rapid_dist.runtime.process_workers import ProcessWorkers
from rapid_dist.storage import LocalStorage, Storage

TINY = [
    "data.public.0.count=60",
    "network.widths=[8]",
    "network.norm_groups=4",
    "network.attention=[false]",
    "network.head_width=8",
    "contrast.extractor.width=8",
    "contrast.extractor.dim=8",
    "sampling.source=query",
    "sampling.count=70",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "privacy.prior_share=0",
    "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
]


class UntrainedRun:
    """The digits recipe on 60 letters, with networks of one block.

    A prior and an adapted network are there as well, for a recipe that has a prior.
    """

    def __init__(self, root: Path, *overrides: str) -> None:
        self.recipe = load_recipe("digits", [*TINY, *overrides])
        self.settings = method_settings(self.recipe)
        self.public, self.out = LocalStorage(root / "public"), LocalStorage(root / "out")
        settings = self.settings
        _, reference = artifacts.load_public_split(settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            own = _denoiser(settings, private_stages.num_classes(settings))
            public = _denoiser(settings, reference.spec.num_classes)
            extractor = ContrastExtractor(settings.contrast.extractor, 1, 8).freeze()
        name = artifacts.pretrain_name(settings)
        artifacts.put_denoiser(self.public.child(name), public)
        artifacts.put_extractor(self.public.child(artifacts.extractor_name(settings)), extractor)
        artifacts.put_denoiser(self.out.child(private_stages.PRIVATE), own)
        spec = knowledge_base_spec(
            settings.knowledge_base,
            reference,
            query_level=settings.schedule.level(settings.split.query_step),
            embedder="test",
        )
        build_knowledge_base(
            reference,
            spec,
            public_stages.open_embedder(settings, self.public.uri),
            self.public.child(artifacts.knowledge_base_name(settings)),
        )
        artifacts.put_denoiser(self.out.child(private_stages.ADAPTED), own)
        entries = len(self.knowledge_base())
        votes = np.random.default_rng(0).random((private_stages.num_classes(settings), 3))
        prior = TrajectoryPrior(np.arange(entries) % 3, votes)
        self.out.child(private_stages.PRIOR).write("prior.npz", prior.to_bytes())

    def knowledge_base(self) -> KnowledgeBase:
        return private_stages.open_knowledge_base(self.settings, self.public.uri)

    def context(self, reports: list[tuple[str, dict[str, float]]]) -> RunContext:
        """Returns the context of a run that samples by query; what it reports is collected."""

        def on_report(stage: str, figures: dict[str, float]) -> None:
            reports.append((stage, figures))

        return RunContext(
            settings=self.settings,
            plan=plan(self.settings.privacy, self.recipe.num_units),
            out=self.out,
            internal=self.out.child("internal"),
            public=self.public,
            backend=_ChargesNothing(self, on_report),
            privacy=dict,
            versions={},
            report=on_report,
        )


class _ChargesNothing:
    """A backend of one process for what needs no ledger."""

    num_workers = 1

    def __init__(
        self, run: UntrainedRun, on_report: Callable[[str, dict[str, float]], None]
    ) -> None:
        self._run = run
        self.workers: Any = ProcessWorkers(threads=1, on_report=on_report)

    def searcher(self, storage: Storage) -> KnowledgeBase:
        return self._run.knowledge_base()

    def private_searcher(self, storage: Storage) -> None:
        return None


def _denoiser(settings: MethodSettings, num_classes: int) -> Denoiser:
    denoiser = Denoiser(settings.network, channels=1, size=8, num_classes=num_classes)
    torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.3)  # Else all but nothing is drawn.
    return denoiser
