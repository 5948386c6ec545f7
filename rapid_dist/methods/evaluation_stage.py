"""The last stage: samples and their controls, measured against private records (internal, P13)."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rapid_dist.data.sources import load_private
from rapid_dist.diffusion.denoiser import Denoiser
from rapid_dist.evaluation.suite import Quality, evaluate, open_extractor
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import RunContext
from rapid_dist.methods.private_stages import (
    ADAPTED,
    num_classes,
    open_knowledge_base,
    open_prior,
    uniform_prior,
)
from rapid_dist.methods.sampling_stages import SAMPLES, bundle_facts, make_bundle
from rapid_dist.release.bundle import BundleFacts
from rapid_dist.release.generator import Generator
from rapid_dist.retrieval.prior import TrajectoryPrior

CONTROLS = "internal/controls"


def control_file(name: str) -> str:
    """Returns where the images of a control are stored, in the run directory."""
    return f"{CONTROLS}/{name.replace(' ', '-').replace(',', '')}.npz"


def controls_of(context: RunContext, labels: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """Returns what draws each control of design.md, section 3: one image a label.

    At no budget: the public model alone, references drawn uniformly, and the public model run from
    those. At the prior's budget: its references as they are, the public model run from them, and
    the adapted model without a step of DP-SGD.
    """
    settings = context.settings
    place = context.public.child(artifacts.pretrain_name(settings))
    public = artifacts.get_denoiser(place.uri).without_labels(num_classes(settings))
    base = open_knowledge_base(settings, context.public.uri)
    late = bundle_facts(settings, "prior", {}, {})
    seed = settings.sampling.seed

    def model(
        denoiser: Denoiser, facts: BundleFacts, prior: TrajectoryPrior | None
    ) -> Callable[[], np.ndarray]:
        def draw() -> np.ndarray:  # Here, so that one control's references are held at a time.
            generator = Generator(make_bundle(settings, denoiser, facts, prior, base))
            return generator.generate(labels, seed=seed)

        return draw

    def references(prior: TrajectoryPrior) -> Callable[[], np.ndarray]:
        return lambda: base.images(prior.draw(labels, seed, np.arange(len(labels))))

    uniform = uniform_prior(settings, base)
    controls = {
        "public model": model(public, bundle_facts(settings, "noise", {}, {}), None),
        "references, uniform": references(uniform),
        "public model from uniform references": model(public, late, uniform),
    }
    if context.plan.prior is not None:
        prior = open_prior(context.out.uri)
        adapted = artifacts.get_denoiser(context.out.child(ADAPTED).uri)
        controls["references from the prior"] = references(prior)
        if not settings.prior.jitter.is_off:
            controls["references from the prior, jittered"] = lambda: Generator(
                make_bundle(settings, public, late, prior, base)
            ).references(labels, seed=seed)
        controls["public model from the prior"] = model(public, late, prior)
        if context.plan.dp_sgd is not None:
            controls["adapted model from the prior"] = model(adapted, late, prior)
    return controls


def run_evaluate(context: RunContext) -> None:
    """Scores samples and controls against private records: an internal result (P13)."""
    settings = context.settings
    storage = context.internal
    if storage.exists("quality.json"):
        return
    images, labels = artifacts.get_images(context.out.child(SAMPLES), "samples.npz")
    wanted = settings.method == "rapid" and settings.evaluation.controls
    # Classes go round, also where a control cannot know them.
    control_labels = np.arange(settings.sampling.count) % num_classes(settings)
    controls = controls_of(context, control_labels) if wanted else {}
    done = 0

    def one_more() -> None:  # Every control is drawn once and measured once, the samples measured.
        nonlocal done
        done += 1
        context.report("evaluate", {"step": done, "steps": 2 * len(controls) + 1})

    drawn: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, draw in controls.items():
        drawn[name] = (draw(), control_labels)
        artifacts.put_images(context.out, control_file(name), *drawn[name])
        one_more()
    train, held_out = load_private(settings.private, settings.data_root)
    root = None if settings.data_root is None else Path(settings.data_root)
    quality: Quality = evaluate(
        images,
        labels,
        drawn,
        train,
        held_out,
        settings.evaluation,
        settings.seed,
        extractor=open_extractor(settings.evaluation, root),
        on_set=one_more,
    )
    storage.write("quality.json", json.dumps(quality.to_json(), indent=2).encode())
