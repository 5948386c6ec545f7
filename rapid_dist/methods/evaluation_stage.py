"""The last stage: samples and their controls, measured against private records (internal, P13).

Controls are drawn as samples are: on all workers, each image by its own seed. Then the workers
share out the sets and measure them. Each worker reads the private records from their source, as in
training; what it finds goes to the run's ``internal/`` folder, past everything that reports.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from rapid_dist.collective import Collective
from rapid_dist.data.sources import load_private
from rapid_dist.evaluation.fidelity import Extractor
from rapid_dist.evaluation.public_classes import open_public_classifier, train_public_classifier
from rapid_dist.evaluation.suite import SetQuality, Yardstick, open_extractor
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import Report, RunContext
from rapid_dist.methods.drawing import GenerateTask, ImageSet, drawing_of
from rapid_dist.methods.private_stages import (
    ADAPTED,
    num_classes,
    open_knowledge_base,
    open_prior,
    uniform_prior,
)
from rapid_dist.methods.sampling_stages import SAMPLES, SAMPLES_FILE, bundle_facts, make_bundle
from rapid_dist.methods.seal import read_sealed
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.release.bundle import Bundle
from rapid_dist.retrieval.jitter import JitterConfig
from rapid_dist.storage import Storage, open_storage

CONTROLS = "internal/controls"
PUBLIC_CLASSIFIER = "classifier.npz"
QUALITY = "quality.json"  # In internal/, as are the parts of it while there are not all.


def evaluation_seed(settings: MethodSettings) -> int:
    """Returns what decides the classifiers' weights and which images are measured."""
    own = settings.evaluation.seed
    return settings.seed if own is None else own


def public_classes_name(settings: MethodSettings) -> str:
    """Returns the name of the features of public classes, in results and in the public store."""
    identity = artifacts.fingerprint(
        artifacts.public_data_identity(settings), settings.evaluation.classifiers
    )
    return f"public-classes-{identity}"


def control_file(name: str) -> str:
    """Returns where the images of a control are stored, in the run directory."""
    return f"{CONTROLS}/{_in_file_names(name)}.npz"


def _in_file_names(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


@dataclass(frozen=True, kw_only=True)
class ControlSource:
    """What a control is drawn from, put together on the worker that draws."""

    settings: MethodSettings
    public_uri: str
    out_uri: str
    model: Literal["public", "adapted"] = "public"
    source: Literal["noise", "uniform", "prior"]
    jitter: bool = True  # Of the references, as the settings say.

    def __call__(self) -> Bundle:
        settings = self.settings
        facts = bundle_facts(settings, self.source, {}, {})
        if not self.jitter:
            facts = replace(facts, jitter=JitterConfig())
        if self.model == "adapted":
            denoiser = artifacts.get_denoiser(open_storage(self.out_uri).child(ADAPTED).uri)
        else:
            place = open_storage(self.public_uri).child(artifacts.pretrain_name(settings))
            denoiser = artifacts.get_denoiser(place.uri).without_labels(num_classes(settings))
        if self.source == "noise":
            return Bundle(facts=facts, denoiser=denoiser)
        base = open_knowledge_base(settings, self.public_uri)
        prior = (
            uniform_prior(settings, base) if self.source == "uniform" else open_prior(self.out_uri)
        )
        return make_bundle(settings, denoiser, facts, prior, base)


def require_features(settings: MethodSettings) -> None:
    """Opens the features that sets are measured by, and lets go of them again.

    Asked before anything has started: evaluation comes last, when training has cost what it costs.

    Raises:
      ConfigError: their weights are not where the settings say.
    """
    if settings.evaluation.features != "public_classes":  # Those are made on the way.
        open_extractor(settings.evaluation, settings.data_root)


def no_controls(context: RunContext) -> dict[str, ImageSet]:
    """Returns the controls of a method that is one, or that has nothing public to compare with."""
    return {}


def public_control(context: RunContext) -> dict[str, ImageSet]:
    """Returns the public model alone, if controls are asked for: of a method without references."""
    settings = context.settings
    if not settings.evaluation.controls:
        return {}
    at = ControlSource(
        settings=settings, public_uri=context.public.uri, out_uri=context.out.uri, source="noise"
    )
    return {"public model": ImageSet(file=control_file("public model"), open_bundle=at)}


def controls_of(context: RunContext) -> dict[str, ImageSet]:
    """Returns the controls of design.md, section 3, by name.

    At no budget: the public model alone, references drawn uniformly, and the public model run from
    those. At the prior's budget: its references as they are, the public model run from them, and
    the adapted model without a step of DP-SGD.
    """
    settings = context.settings
    controls = public_control(context)
    if not controls:
        return {}
    at = ControlSource(
        settings=settings, public_uri=context.public.uri, out_uri=context.out.uri, source="noise"
    )
    uniform, prior = replace(at, source="uniform"), replace(at, source="prior")

    def add(name: str, source: ControlSource, *, references: bool = False) -> None:
        controls[name] = ImageSet(
            file=control_file(name), open_bundle=source, references=references
        )

    add("references, uniform", replace(uniform, jitter=False), references=True)
    add("public model from uniform references", uniform)
    if context.plan.prior is not None:
        add("references from the prior", replace(prior, jitter=False), references=True)
        if not settings.prior.jitter.is_off:
            add("references from the prior, jittered", prior, references=True)
        add("public model from the prior", prior)
        if context.plan.dp_sgd is not None:
            add("adapted model from the prior", replace(prior, model="adapted"))
    return controls


@dataclass(frozen=True, kw_only=True)
class EvaluateTask:
    """Draws the controls on all workers, then measures every set on one of them.

    The figures are what one process alone would find. Rank 0 puts them together.
    """

    settings: MethodSettings
    drawing: GenerateTask  # Of the controls; its device is where sets are measured, too.
    files: Mapping[str, str]  # Of every set, samples and controls, by its name.
    out_uri: str
    internal_uri: str
    public_uri: str

    def __call__(self, collective: Collective, report: Report) -> None:
        settings = self.settings
        extractor = self._extractor(collective)  # Refused before anything is drawn.
        self.drawing(collective, lambda figures, part="": report(figures, "controls"))
        train, held_out = load_private(settings.private, settings.data_root)
        yardstick = Yardstick(
            train,
            held_out,
            settings.evaluation,
            evaluation_seed(settings),
            smallest_set=self.drawing.count,
            extractor=extractor,
            device=self.drawing.device,
        )
        internal = open_storage(self.internal_uri, private=True)
        mine = list(self.files)[collective.rank :: collective.world_size]
        for place, name in enumerate(mine, start=1):
            self._measure(name, yardstick, internal)
            report({"step": place, "steps": len(mine)})
        collective.barrier()
        if collective.rank == 0:
            self._join(yardstick, internal)

    def _extractor(self, collective: Collective) -> Extractor:
        settings = self.settings
        if settings.evaluation.features != "public_classes":
            return open_extractor(settings.evaluation, settings.data_root, self.drawing.device)
        name = public_classes_name(settings)
        storage = open_storage(self.public_uri).child(name)
        if collective.rank == 0 and not artifacts.is_done(storage):
            images, _ = artifacts.load_plain_split(settings)
            config = settings.evaluation.classifiers
            content = train_public_classifier(images, config, settings.seed)
            storage.write(PUBLIC_CLASSIFIER, content)
            artifacts.mark_done(storage, names=(PUBLIC_CLASSIFIER,))
        collective.barrier()
        content = read_sealed(storage, PUBLIC_CLASSIFIER)
        return open_public_classifier(content, name, self.drawing.device)

    def _measure(self, name: str, yardstick: Yardstick, internal: Storage) -> None:
        """Stores the figures of one set, unless a worker that died later has done so."""
        if not internal.exists(_part(name)):
            images = artifacts.get_images(open_storage(self.out_uri), self.files[name])
            found = yardstick.measure(*images).to_json()
            internal.write(_part(name), json.dumps(found).encode())

    def _join(self, yardstick: Yardstick, internal: Storage) -> None:
        found = {
            name: SetQuality.from_json(json.loads(internal.read(_part(name))))
            for name in self.files
        }
        quality = yardstick.quality(found.pop(SAMPLES), found)
        internal.write(QUALITY, json.dumps(quality.to_json(), indent=2).encode())
        for name in self.files:
            internal.delete(_part(name))


def _part(name: str) -> str:
    return f"quality/{_in_file_names(name)}.json"


def evaluation_of(
    context: RunContext, make_controls: Callable[[RunContext], dict[str, ImageSet]] = controls_of
) -> EvaluateTask:
    """Returns what draws and measures all that the settings ask for."""
    controls = make_controls(context)
    return EvaluateTask(
        settings=context.settings,
        drawing=drawing_of(context, tuple(controls.values())),
        files={SAMPLES: SAMPLES_FILE, **{name: one.file for name, one in controls.items()}},
        out_uri=context.out.uri,
        internal_uri=context.internal.uri,
        public_uri=context.public.uri,
    )


def run_evaluate(
    context: RunContext, make_controls: Callable[[RunContext], dict[str, ImageSet]] = controls_of
) -> None:
    """Scores samples and controls against private records: an internal result (P13).

    Args:
      make_controls: of a method that has other controls than one that draws references.
    """
    if not context.internal.exists(QUALITY):
        workers, count = context.backend.workers, context.backend.num_workers
        task = evaluation_of(context, make_controls)
        workers.run(task, name="evaluate", num_workers=count)
