"""The audit's subject of a recipe whose method asks a private index: its own index, on stand-ins.

As in ``audit_subject.py`` nothing private is read: images are letters in the declared shape, and
embeddings those of an untrained extractor of the recipe's own architecture.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from rapid_dist.audit.index_subject import IndexSubject
from rapid_dist.data.declaration import PublicSource
from rapid_dist.errors import ConfigError
from rapid_dist.methods import artifacts, public_stages
from rapid_dist.methods.audit_subject import LETTERS, stand_ins
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import PrivacyPlan
from rapid_dist.retrieval.features import ContrastExtractor
from rapid_dist.storage import LocalStorage


def index_subject(settings: MethodSettings, plan: PrivacyPlan) -> IndexSubject:
    """Returns the subject.

    Raises:
      ConfigError: the plan has no rounds.
    """
    if plan.retrieval is None:
        raise ConfigError(
            f"Method {settings.method} plans no rounds of a private index, and this audit is of "
            "those. Audit it as private training."
        )
    own = replace(settings, public=(PublicSource(source="letters", count=LETTERS),))
    public, _ = artifacts.load_plain_split(own)
    images = stand_ins(settings, public)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(own.seed)
        extractor = ContrastExtractor(
            own.contrast.extractor, public.spec.channels, public.spec.size
        ).freeze()
    with tempfile.TemporaryDirectory(prefix="rapid-audit-") as folder:
        store = LocalStorage(Path(folder))
        artifacts.put_extractor(store.child(artifacts.extractor_name(own)), extractor)
        embed = public_stages.open_extractor(own, store.uri)  # As the run opens it.
    return IndexSubject(
        images=images,
        embed=embed,
        mechanism=replace(plan.retrieval, num_records=images.spec.num_units),
        budget=plan.budget,
        queries=plan.queries,
        reserve_steps=plan.reserve_steps,
    )
