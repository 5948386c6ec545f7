"""Pieces of quality on a GPU: `rapid` and its controls at one epsilon, some minutes at a time.

A piece is `rapid-dist compare` with few rows, in one process on one device. It needs what the whole
pipeline needs: pydantic, Opacus, dp-accounting, FAISS, MLflow, typer, scikit-learn; Ray it never
asks for. Where they are not installed, bring their wheels:

    pip install --no-index --find-links WHEELS 'rapid-dist[train]'

After ``--minutes`` the piece is stopped, as by Ctrl-C, and the same command goes on from its last
checkpoint; so what is in ``--runs`` has to stay on the machine until a piece is whole. Training
goes on from its checkpoints, public and private; clusters, samples and classifiers begin anew, so
each of them has to fit one call. Figures are then in ``DIR/<piece>.json``, with the minutes of all
attempts in them.
"""

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import output

MINUTES = 8.5
STOPPING = 60.0  # Seconds that a piece has to close what it has open.
NEEDED = (
    "pydantic", "opacus", "dp_accounting", "faiss", "mlflow", "typer", "sklearn", "yaml", "boto3",
    "cryptography",
)  # fmt: skip
Piece = Callable[[Path, bool], None]  # (file of the result, whether it is a rehearsal)

# Larger than the recipes' own, which are for two cores; K and batches are what minutes allow, where
# DPDM has K = 32 on mnist and PrivImage batches of 19,384 on cifar10.
LARGE: dict[str, tuple[str, ...]] = {
    "mnist": (
        "network.widths=[64, 128, 128]", "network.attention=[false, true, true]", "network.patch=1",
        "pretrain.steps=20000", "pretrain.batch_size=512", "adapt.steps=2000",
        "adapt.batch_size=512", "privacy.expected_batch=4096", "privacy.steps=600",
        "train.multiplicity=8", "train.micro_batch=null", "sampling.count=60000",
    ),
    "fashion_mnist": (
        "network.widths=[64, 128, 128]", "network.attention=[false, true, true]", "network.patch=1",
        "pretrain.steps=20000", "pretrain.batch_size=512", "adapt.steps=2000",
        "adapt.batch_size=512", "knowledge_base.clusters=4000", "privacy.expected_batch=4096",
        "privacy.steps=600", "train.multiplicity=8", "train.micro_batch=null",
        "sampling.count=60000",
    ),
    "cifar10": (
        "network.widths=[128, 256, 256]", "network.attention=[false, true, true]",
        "network.patch=1", "pretrain.steps=30000", "pretrain.batch_size=256",
        "privacy.expected_batch=4096", "privacy.steps=600", "train.multiplicity=16",
        "train.micro_batch=null", "sampling.count=50000",
    ),
}  # fmt: skip
# What a budget changes in a recipe that was chosen at epsilon 10 (docs/results.md); on the other
# two data sets nothing was sought.
SMALL_BUDGET: dict[tuple[str, float], tuple[str, ...]] = {
    ("mnist", 1.0): (
        "privacy.prior_share=0.7", "split.split_step=450", "train.learning_rate=0.002",
        "train.log_level_mean=null",
    ),
}  # fmt: skip
# Of the controls those that take seconds: references, and the model that training begins with.
ROWS = ("rapid", "references", "adapted")
VARIANTS = {"adapted": {"method": "rapid", "privacy.prior_share": 1}}
# Paid for in case a piece is killed: stopped, it leaves a checkpoint and repeats nothing.
SAFE = ("privacy.reserve_steps=10",)
CLASSIFIERS = ("evaluation.classifiers.steps=6000", "evaluation.classifiers.batch_size=256")
# On the CPU, on data that come with the package: whether a piece runs, stops and goes on.
REHEARSAL = (
    "data={private: {source: digits, name: rehearsal, num_records: 1432, num_classes: 10, size: 8},"
    " public: [{source: letters, count: 300}]}",
    "network.widths=[16]", "network.attention=[false]", "pretrain.steps=2", "contrast.steps=2",
    "adapt.steps=2", "knowledge_base.clusters=20", "knowledge_base.kmeans_images=100",
    "privacy.steps=2", "privacy.expected_batch=8", "train.multiplicity=1", "sampling.count=100",
    "evaluation.classifiers.steps=3", "evaluation.fidelity_images=100", "runtime.device=cpu",
    "train.micro_batch=8", "evaluation.classifiers.logistic_iterations=2",
    "evaluation.features=pixels", "evaluation.memorisation_images=50", "train.trainable=all",
    "sampling.late_intervals=2", "sampling.early_intervals=2", "pretrain.batch_size=16",
    "contrast.batch_size=16", "adapt.batch_size=16",
)  # fmt: skip


def quality(recipe: str, epsilon: float, data_root: Path, runs: Path, most: float) -> Piece:
    """Method rapid and its controls at one epsilon; goes on where the last call stopped.

    Args:
      most: minutes of one call.
    """

    def run(out: Path, rehearse: bool) -> None:
        lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
        if lacking:
            sys.exit(f"{', '.join(lacking)} not installed; see benchmarks/gpu/quality.py.")
        folder = runs / f"{'rehearsal-' if rehearse else ''}quality-{recipe}-{epsilon:g}"
        settings = [
            f"data.root={data_root}",
            "runtime.backend=process",
            "runtime.device=cuda",
            f"compare.methods={json.dumps(list(ROWS))}",
            f"compare.variants={json.dumps(VARIANTS)}",
            f"compare.epsilons=[{epsilon:g}]",
            "compare.seeds=1",
            "compare.class_balance=false",
            *LARGE[recipe],
            *SMALL_BUDGET.get((recipe, epsilon), ()),
            *SAFE,
            *CLASSIFIERS,
            *(REHEARSAL if rehearse else ()),
        ]
        command = [sys.executable, "-m", "rapid_dist.cli", "compare", "--recipe", recipe]
        for setting in settings:
            command += ["--set", setting]
        minutes = _minutes_before(folder)
        start = time.monotonic()
        ended = _for_a_while([*command, "--out", str(folder / "compare")], 60 * most)
        minutes += (time.monotonic() - start) / 60
        (folder / "minutes.json").write_text(json.dumps({"minutes": minutes}))
        if not ended:
            print(f"{out.stem}: not whole after {minutes:.1f} minutes; the same command goes on")
            return
        found: dict[str, Any] = json.loads((folder / "compare/compare.json").read_text())
        rows = [
            {"row": row["row"], "epsilon": row["epsilon"], **row["mean"]} for row in found["rows"]
        ]
        facts = {"rows": rows, "minutes": minutes, "settings": settings, "recipe": recipe}
        output.write_json(out, facts)
        print(
            output.table(
                rows, ["row", "epsilon", "mean", "best", "cnn", "frechet", "nfe", "seconds"]
            )
        )

    return run


def pieces(data_root: Path, runs: Path, most: float = MINUTES) -> dict[str, Piece]:
    """Returns all pieces by name."""
    return {
        f"quality-{recipe}-{epsilon:g}": quality(recipe, epsilon, data_root, runs, most)
        for recipe in LARGE
        for epsilon in (1.0, 10.0)
    }


def _for_a_while(command: list[str], seconds: float) -> bool:
    """Runs a command for at most so long; says whether it ended well by itself."""
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(command, cwd=root)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=STOPPING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return False
    if process.returncode:
        sys.exit(f"The piece ended with {process.returncode}.")
    return True


def _minutes_before(folder: Path) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "minutes.json"
    return float(json.loads(path.read_text())["minutes"]) if path.is_file() else 0.0
