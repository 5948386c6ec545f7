"""What the noise of a private step costs, as a share of the step.

    python benchmarks/noise.py

A step is a whole one of the recipe: its network, expected batch, multiplicity and micro-batch, on
random images, without retrieval. ``none`` stops before the noise; ``fast`` and ``secure`` release.
The three are interleaved; shares are of medians of one run: of time, in which a thread draws secure
noise beside the step if a core is free, and of processor time, in which nothing is hidden.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import torch
from common import table, write
from networks import open_denoiser

from rapid_dist.collective import SingleProcess
from rapid_dist.config import load_recipe
from rapid_dist.data.images import ImageSpec, PrivateImages
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import DpSgdConfig, NoiseKind
from rapid_dist.privacy.poisson import PoissonSampler
from rapid_dist.private.draws import DrawMaker
from rapid_dist.private.per_example import flat_size
from rapid_dist.private.step import PrivateStep

NOISE_MULTIPLIER = 1.0  # The cost does not depend on it.


class EveryRecord(PoissonSampler):
    """A batch of the expected size, in every step."""

    def batch(self, step: int) -> np.ndarray:
        return np.arange(self._num_records)


def open_step(name: str, kind: NoiseKind, key: SecretKey) -> PrivateStep:
    recipe = load_recipe(name)
    source, batch = recipe.data.private, int(recipe.privacy.expected_batch or 0)
    spec = ImageSpec(
        name="random", num_records=batch, channels=source.channels, size=source.size,
        num_classes=source.num_classes, licence="none",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    shape = (batch, source.channels, source.size, source.size)
    images = PrivateImages(
        images=rng.integers(0, 256, shape, dtype=np.uint8),
        labels=rng.integers(0, source.num_classes, batch),
        groups=None,
        spec=spec,
    )
    return PrivateStep(
        mechanism=DpSgdConfig(
            num_records=batch, expected_batch=batch, steps=10_000, max_grad_norm=1.0,
            noise_multiplier=NOISE_MULTIPLIER, noise=kind,
        ),
        draws=DrawMaker(
            images=images,
            config=replace(recipe.train, mode="late"),
            schedule=recipe.schedule,
            split_step=recipe.split.split_step,
            no_label=source.num_classes,
            label_drop=0.1,
            find_references=None,
        ),
        sampler=EveryRecord(key, batch, 1.0, attempt=1),
        key=key,
        attempt=1,
        collective=SingleProcess(),
        charge=lambda step: None,
    )  # fmt: skip


def measure(name: str, repeats: int) -> list[dict[str, object]]:
    """Returns a table row for each kind of noise, from interleaved steps."""
    key, denoiser = SecretKey.generate(), open_denoiser(name)
    fast, secure = open_step(name, "fast", key), open_step(name, "secure", key)
    ways: dict[str, Callable[[int], object]] = {
        "none": lambda step: fast._local_sum(denoiser, step),
        "fast": lambda step: fast.noised_gradient(denoiser, step),
        "secure": lambda step: secure.noised_gradient(denoiser, step),
    }
    spent: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for step in range(repeats):
        for way, call in ways.items():
            start = time.perf_counter(), time.process_time()
            call(step)
            spent[way].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    wall, cpu = (
        {way: median(pair[part] for pair in pairs) for way, pairs in spent.items()}
        for part in (0, 1)
    )
    return [
        {
            "recipe": name,
            "values": flat_size(denoiser),
            "noise": way,
            "step seconds": round(wall[way], 2),
            "share of time": wall[way] / wall["none"] - 1,
            "share of processor": cpu[way] / cpu["none"] - 1,
        }
        for way in ways
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", default="digits,mnist")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = [row for name in options.recipes.split(",") for row in measure(name, options.repeats)]
    columns = ["recipe", "values", "noise", "step seconds", "share of time", "share of processor"]
    print(table(found, columns))
    write("noise", {"rows": found, "threads": options.threads, "repeats": options.repeats})


if __name__ == "__main__":
    main()
