"""What a run of a recipe costs: core hours by stage, memory of a worker, bytes to keep.

    python benchmarks/sizing.py                        # digits, mnist and cifar10
    python benchmarks/sizing.py --document             # and puts the table into docs/operations.md

Measured are rows of chance in the recipe's own networks, by one thread and the processor's clock,
the fastest of several: a plain row (forward, backward), a private row (forward, backward, clip,
sum), an evaluation (forward). Then

    core seconds = plain rows p + private rows r + images x evaluations f

of pretraining and adaptation, of private training (steps x records x draws), and of sampling. Hours
on W workers are those of private training, by the model of benchmarks/scaling.py with the link,
noise and ledger that were fitted there; the others divide as well or better. Left out are contrast,
prior and evaluation. Memory is the highest of a worker's process, at the recipe's micro-batch.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from networks import Network
from output import RESULTS, in_document, table, write_json
from scaling import Costs
from step_parts import Setting, run_worker
from step_ways import Case, ours, plain

from rapid_dist.collective import SingleProcess
from rapid_dist.config import Recipe, load_recipe
from rapid_dist.diffusion.loss import Rows

RECIPES = ("digits", "mnist", "cifar10")
OPERATIONS = Path(__file__).resolve().parents[1] / "docs" / "operations.md"
ROWS, REPEATS = 32, 8
NODES = (1, 4, 16)  # Of eight workers each.
HOUR = 3600.0


def network_of(recipe: Recipe) -> Network:
    private = recipe.data.private
    return Network(
        config=recipe.network,
        channels=private.channels,
        size=private.size,
        num_classes=private.num_classes,
        trainable=recipe.train.trainable,
    )


def rows_of(network: Network, count: int) -> Rows:
    shape = (count, network.channels, network.size, network.size)
    return Rows(
        noised=torch.randn(shape),
        noise_level=torch.full((count,), 0.7),
        labels=torch.arange(count) % network.num_classes,
        clean=torch.rand(shape) * 2 - 1,
    )


def processor_of(call: Any) -> float:
    """Returns the least processor seconds of several calls, after one that warms up.

    The least, because other work on the machine makes a call slower and never faster.
    """
    took = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        call()
        took.append(time.process_time() - start)
    return min(took[1:])


def measure(name: str) -> dict[str, float]:
    """Measures one recipe in this process, whose memory is then that of a worker."""
    torch.set_num_threads(1)
    recipe = load_recipe(name)
    network = network_of(recipe)
    draws, micro_batch = recipe.train.multiplicity, recipe.train.micro_batch or 64
    setting = Setting(
        network=name, batch=micro_batch, draws=draws, micro_batch=micro_batch, steps=1
    )
    with tempfile.TemporaryDirectory() as folder:
        found = run_worker(setting, SingleProcess(), Path(folder), network=network)
        kept = {
            part: sum(path.stat().st_size for path in Path(folder, part).rglob("*.*"))
            for part in ("checkpoints", "ledger")
        }
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = rows_of(network, ROWS)
    subset, whole = network.open(), replace(network, trainable="all").open()
    forward = torch.no_grad()(lambda: whole(rows.noised, rows.noise_level, rows.labels))
    private = processor_of(ours(Case(denoiser=subset, rows=rows, draws=draws)))
    return {
        "private row": private / ROWS,
        "plain row": processor_of(plain(Case(denoiser=whole, rows=rows, draws=1))) / ROWS,
        "evaluation": processor_of(forward) / ROWS,
        "values": found["values"],
        "worker bytes": memory,
        "checkpoint bytes": kept["checkpoints"],
        "ledger bytes a step": kept["ledger"] / (setting.steps + 2),
    }


def cost_of(name: str, found: dict[str, float], link: dict[str, float]) -> dict[str, Any]:
    """Returns a recipe's core hours by stage, and its hours of private training on many workers."""
    recipe = load_recipe(name)
    public = recipe.pretrain.steps * recipe.pretrain.batch_size
    public += recipe.adapt.steps * recipe.adapt.batch_size
    privacy, train = recipe.privacy, recipe.train
    assert privacy.steps is not None
    assert privacy.expected_batch is not None
    batch = round(privacy.expected_batch)
    private = privacy.steps * privacy.expected_batch * train.multiplicity
    evaluations = recipe.sampling.count * recipe.sampling.late_intervals
    costs = Costs(row=found["private row"], values=found["values"], **link)
    hours = {}
    for nodes in NODES:
        step = costs.step(8 * nodes, batch, train.multiplicity, train.micro_batch or 64)
        hours[f"hours on {nodes} x 8"] = privacy.steps * sum(step.values()) / HOUR
    return {
        "recipe": name,
        "public core hours": public * found["plain row"] / HOUR,
        "private core hours": private * found["private row"] / HOUR,
        "sampling core hours": evaluations * found["evaluation"] / HOUR,
        **hours,
        "GB a worker": found["worker bytes"] / 2**30,
        "checkpoint, MB": found["checkpoint bytes"] / 1e6,
        "ledger, MB": privacy.steps * found["ledger bytes a step"] / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--document", action="store_true", help="from the last results")
    parser.add_argument("--one", help="measure this recipe in this process; prints JSON")
    parser.add_argument("--out", type=Path, default=RESULTS / "sizing.json")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one)))
        return
    if asked.document:
        kept = json.loads(asked.out.read_text())
        lines = table(kept["rows"], kept["columns"])
        OPERATIONS.write_text(in_document(OPERATIONS.read_text(), "sizing", lines))
        return
    measured = {}
    for name in asked.recipes:
        done = subprocess.run(
            [sys.executable, __file__, "--one", name],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        measured[name] = json.loads(done.stdout.splitlines()[-1])
    fitted = json.loads((RESULTS / "scaling.json").read_text())["costs"]
    link = {part: fitted[part] for part in ("append", "bandwidth", "latency", "noise")}
    rows = [cost_of(name, found, link) for name, found in measured.items()]
    facts = {"measured": measured, "link": link, "load": os.getloadavg()[0]}
    write_json(asked.out, {"rows": rows, "columns": list(rows[0]), **facts})
    print(table(rows, list(rows[0])))


if __name__ == "__main__":
    main()
