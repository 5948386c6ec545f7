"""MNIST on two cores: modes at epsilon 1, the best mode at epsilon 10 and 0.2, split steps.

    python benchmarks/mnist.py --set data.root=DIR

Resumable piece by piece: a finished run is read back. Prior and training are composed in one
epsilon at delta 1e-5. Public stages are made once and shared.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from common import arguments, figures, run_recipe, table, write

from rapid_dist.config import Recipe, method_settings
from rapid_dist.data.sources import load_private
from rapid_dist.evaluation.suite import evaluate, open_extractor
from rapid_dist.methods import artifacts, private_stages, sampling_stages
from rapid_dist.release.bundle import open_bundle
from rapid_dist.release.generator import Generator
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.storage import open_storage

# A small budget leaves training little to add, so the example enters at a lower noise level.
AT_1 = ["privacy.epsilon=1", "privacy.prior_share=0.7", "privacy.expected_batch=2048"]
AT_1 += ["privacy.steps=40", "train.ema_decay=0.95", "split.split_step=450"]
AT_1 += ["train.learning_rate=0.001", "train.log_level_mean=null"]
BUDGETS = {
    "10": ["privacy.epsilon=10", "privacy.prior_share=0.3"],
    # All for the prior: at so small a budget a few noisy steps only undo what it gives.
    "0.2": [
        "privacy.epsilon=0.2",
        "privacy.prior_share=1",
        "knowledge_base.clusters=5000",
        "prior.threshold=3.4",
        "split.split_step=250",
    ],
}
MODES = ("surrogate", "late", "full")
COUNT_WITHOUT_PRIOR = 2_000  # Images a mode; these cost several times as many evaluations.


def without_prior(recipe: Recipe, out: str, public: str) -> dict[str, Any]:
    """Samples the trained model of a run again, from pure noise or by query, and measures it."""
    settings = method_settings(recipe)
    source: Literal["noise", "query"] = "noise" if settings.train.mode == "full" else "query"
    sampling = replace(settings.sampling, source=source, count=COUNT_WITHOUT_PRIOR)
    settings = replace(settings, sampling=sampling)
    denoiser = artifacts.get_denoiser(f"{out}/{private_stages.PRIVATE}")
    labels = np.arange(settings.sampling.count) % 10
    if source == "noise":
        facts = sampling_stages.bundle_facts(settings, source, {}, {})
        generator = Generator(sampling_stages.make_bundle(settings, denoiser, facts, None, None))
        images = generator.generate(labels, seed=settings.sampling.seed)
        nfe = generator.evaluations_per_image
    else:
        base = open_storage(public).child(artifacts.knowledge_base_name(settings))
        path = sampling_stages.sample_by_query(
            settings,
            public,
            KnowledgeBase.open(base),
            denoiser,
            labels,
            seed=settings.sampling.seed,
        )
        images, nfe = path.sample, path.nfe
    return {**measured(recipe, images, labels), "nfe": nfe, "source": source}


def references_alone(recipe: Recipe, out: str) -> dict[str, Any]:
    """The jittered references that a run's samples start from, measured as they are."""
    generator = Generator(artifacts.with_folder(open_storage(f"{out}/bundle"), open_bundle))
    labels = np.arange(recipe.sampling.count) % 10
    images = generator.references(labels, seed=recipe.sampling.seed)
    name = "control: references from the prior, jittered"
    return {"set": name, **measured(recipe, images, labels), "nfe": 0.0}


def measured(recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores images that are no run's samples, as a run scores its own."""
    settings = method_settings(recipe)
    train, held_out = load_private(settings.private, settings.data_root)
    quality = evaluate(
        images,
        labels,
        {},
        train,
        held_out,
        settings.evaluation,
        settings.seed,
        extractor=open_extractor(settings.evaluation, Path(settings.data_root or ".")),
    )
    return figures(quality.samples.to_json())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--parts",
        default="surrogate,late,full,0.2,10",
        help="modes at epsilon 1, budgets of the best mode, splits",
    )
    parser.add_argument(
        "--best", default="surrogate", help="the mode that goes on to other budgets"
    )
    options = parser.parse_args()
    public = f"{options.out}/public"
    rows: list[dict[str, Any]] = []

    def run(name: str, overrides: list[str], *, controls: bool, bare: bool) -> None:
        out = f"{options.out}/mnist-{name}"
        recipe, summary, quality = run_recipe(
            "mnist",
            out,
            options,
            [
                f"runtime.public_dir={public}",
                f"evaluation.controls={str(controls).lower()}",
                *overrides,
            ],
        )
        about = {
            "run": name,
            "epsilon": summary["privacy"]["epsilon"],
            "training seconds": summary["seconds"]["train"],
        }
        rows.append(
            {
                **about,
                "set": "samples, from the prior",
                **figures(quality["samples"]),
                "nfe": summary["sampling"]["nfe"],
            }
        )
        for control, of_set in quality["controls"].items():
            rows.append({**about, "set": f"control: {control}", **figures(of_set)})
        if not controls:
            # What the prior's public references are worth by themselves; no network is asked.
            rows.append({**about, **references_alone(recipe, out)})
        if bare:
            found = without_prior(recipe, out, public)
            rows.append({**about, "set": f"samples, by {found.pop('source')}", **found})
        columns = ["run", "set", "epsilon", "training seconds", "cnn", "mean", "frechet", "nfe"]
        print(table(rows, columns), flush=True)
        write("mnist", {"rows": rows, "delta": 1e-5})

    parts = options.parts.split(",")
    for part in parts:
        if part in BUDGETS:
            mode = f"train.mode={options.best}"
            run(f"{options.best}-{part}", [*BUDGETS[part], mode], controls=False, bare=False)
        elif part in MODES:
            # All controls once: most of them do not depend on mode or budget.
            mode = f"train.mode={part}"
            run(f"{part}-1", [*AT_1, mode], controls=part == options.best, bare=True)
    if "splits" in parts:
        for split in (300, 600):
            run(
                f"{options.best}-1-split-{split}",
                [*AT_1, f"train.mode={options.best}", f"split.split_step={split}"],
                controls=False,
                bare=False,
            )


if __name__ == "__main__":
    main()
