"""The audit's subject of a recipe: its own loop, engine, network and retrieval, on stand-ins.

Nothing private is read and nothing has to be downloaded. Stand-ins for the private images, and the
references that they retrieve, are letters rendered from fonts in the declared shape. The network
has the recipe's architecture with random weights; the knowledge base is small. What a check
measures of the mechanism depends on none of these.
"""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from rapid_dist.audit.subject import Subject
from rapid_dist.data.declaration import PublicSource
from rapid_dist.data.images import ImageSpec, PrivateImages, PublicImages
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.errors import ConfigError
from rapid_dist.methods import artifacts, private_stages, public_stages
from rapid_dist.methods.catalog import require_training
from rapid_dist.methods.context import Keeper
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import PrivacyPlan
from rapid_dist.privacy.mechanism import DpSgdConfig
from rapid_dist.private.draws import DrawMaker, FindReferences
from rapid_dist.private.settings import TrainConfig
from rapid_dist.public.autoencode import make_autoencoder, measure_latents
from rapid_dist.public.build import build_knowledge_base, knowledge_base_spec
from rapid_dist.retrieval.features import ContrastExtractor
from rapid_dist.storage import LocalStorage

LETTERS = 400  # Rendered; half of them are the knowledge base's.
STAND_INS = 64
_CLUSTERS = 12
_PER_GROUP = 2  # Images of a stand-in for a patient.


@contextmanager
def audit_subject(settings: MethodSettings, plan: PrivacyPlan) -> Iterator[Subject]:
    """Yields the subject; its knowledge base lies in a temporary folder meanwhile.

    Raises:
      ConfigError: the recipe, or its method, takes no step of DP-SGD.
    """
    require_training(settings, "an audit")
    if plan.dp_sgd is None:
        raise ConfigError(
            f"privacy.prior_share={settings.privacy.prior_share} leaves no step of DP-SGD, and an "
            "audit tries those. Lower prior_share."
        )
    base = settings.knowledge_base
    own = replace(
        settings,
        public=(PublicSource(source="letters", count=LETTERS),),
        knowledge_base=replace(
            base, clusters=min(base.clusters, _CLUSTERS), num_shards=1, variants=1
        ),
    )
    pretrain, reference = artifacts.load_public_split(own)
    images = stand_ins(settings, pretrain)
    with tempfile.TemporaryDirectory(prefix="rapid-audit-") as folder:
        finder = _Finder(own, plan.dp_sgd, reference, Path(folder))
        denoiser = _denoiser(own, private_stages.num_classes(own), reference)

        def make_draws(images: PrivateImages, config: TrainConfig) -> DrawMaker:
            return DrawMaker(
                images=images,
                config=config,
                schedule=own.schedule,
                split_step=own.split.split_step,
                no_label=denoiser.no_label,
                label_drop=own.network.label_drop,
                find_references=finder.of(images),
                autoencoder=denoiser.autoencoder,
            )

        units = images.spec.num_units
        yield Subject(
            make_denoiser=lambda: copy.deepcopy(denoiser),
            make_draws=make_draws,
            images=images,
            config=replace(settings.train, micro_batch=settings.train.micro_batch or STAND_INS),
            mechanism=replace(
                plan.dp_sgd, num_records=units, expected_batch=plan.dp_sgd.sample_rate * units
            ),
            budget=plan.budget,
            queries=plan.queries,
            prior=plan.prior,
            candidates=plan.candidates,
            reserve_steps=plan.reserve_steps,
        )


def stand_ins(settings: MethodSettings, public: PublicImages) -> PrivateImages:
    """Returns public images in the form of the private ones: their shape, classes and groups."""
    private, count = settings.private, min(STAND_INS, len(public))
    grouped = private.group_column is not None
    spec = ImageSpec(
        name="stand-ins",
        num_records=count,
        channels=private.channels,
        size=private.size,
        num_classes=private.num_classes,
        licence=public.spec.licence,
        num_groups=-(-count // _PER_GROUP) if grouped else None,
    )
    ids = np.arange(count, dtype=np.int64)
    return PrivateImages(
        images=public.images[:count].copy(),
        labels=ids % max(1, private.num_classes),
        groups=ids // _PER_GROUP if grouped else None,
        spec=spec,
    )


class _Finder:
    """The recipe's own retrieval, over a knowledge base that is built when first asked for."""

    def __init__(
        self,
        settings: MethodSettings,
        mechanism: DpSgdConfig,
        reference: PublicImages,
        folder: Path,
    ) -> None:
        self._settings, self._mechanism, self._reference = settings, mechanism, reference
        self._public = LocalStorage(folder)
        self._found: dict[bytes, FindReferences | None] = {}

    def of(self, images: PrivateImages) -> FindReferences | None:
        if self._settings.train.mode != "surrogate":
            return None
        if not self._found:
            self._build()
        key = images.images.tobytes()
        if key not in self._found:
            task = private_stages.TrainTask(
                settings=self._settings,
                mechanism=self._mechanism,
                public_uri=self._public.uri,
                out_uri=self._public.uri,
                keeper=cast(Keeper, None),  # Nothing is trained, only searched.
            )
            self._found[key] = task.find_references(images)
        return self._found[key]

    def _build(self) -> None:
        own, reference, public = self._settings, self._reference, self._public
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(own.seed)
            extractor = ContrastExtractor(
                own.contrast.extractor, reference.spec.channels, reference.spec.size
            ).freeze()
        network = _denoiser(own, reference.spec.num_classes, reference)
        artifacts.put_denoiser(public.child(artifacts.pretrain_name(own)), network)
        artifacts.put_extractor(public.child(artifacts.extractor_name(own)), extractor)
        spec = knowledge_base_spec(
            own.knowledge_base,
            reference,
            query_level=own.schedule.level(own.split.query_step),
            embedder="audit",
        )
        place = public.child(artifacts.knowledge_base_name(own))
        embed = public_stages.open_embedder(own, public.uri)
        build_knowledge_base(reference, spec, embed, place, encode=network.encode)


def _denoiser(settings: MethodSettings, num_classes: int, public: PublicImages) -> Denoiser:
    """The recipe's network, with weights that matter, and an autoencoder likewise if it has one."""
    autoencoder = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if settings.autoencoder is not None:
            own, shape = settings.autoencoder, settings.private
            autoencoder = make_autoencoder(own, channels=shape.channels, size=shape.size)
            std = settings.schedule.data_std
            measure_latents(autoencoder, public, LETTERS, seed=settings.seed, data_std=std)
            torch.manual_seed(settings.seed)
        denoiser = Denoiser(
            settings.network,
            channels=settings.private.channels,
            size=settings.private.size,
            num_classes=num_classes,
            data_std=settings.schedule.data_std,
            autoencoder=autoencoder,
        )
        # Untrained, the output layer is nearly zero, and so would all other gradients be.
        torch.nn.init.normal_(denoiser.unet.conv_out.weight, std=0.2)
    return denoiser
