"""Tells MLflow what came of a run: what may leave in one experiment, the rest in another (P13)."""

import json
from typing import Any

from rapid_dist.confined import private_folder, write_own
from rapid_dist.privacy.spend import Spend
from rapid_dist.runtime.figures import METRICS
from rapid_dist.runtime.lineage import LINEAGE, lineage_bytes, lineage_tags
from rapid_dist.runtime.results import SPEND
from rapid_dist.runtime.run_directory import RunDirectory
from rapid_dist.runtime.tracking import DatasetUsed, TrackedRun, Tracker


def record_results(
    directory: RunDirectory,
    tracked: TrackedRun,
    summary: dict[str, Any],
    spent: Spend,
    entries: list[dict[str, Any]],
) -> None:
    """Sends to MLflow what may leave; figures against private records stay behind."""
    curves = {"privacy.epsilon": list(enumerate(spent.reported, start=1))}
    for name in ("pld", "prv", "rdp"):
        points = [(count, getattr(asked, name)) for count, asked in spent.checked.items()]
        curves[f"privacy.epsilon.{name}"] = points
    tracked.log_series(curves)
    tracked.log_metrics({"privacy.dataset_epsilon": summary["privacy"]["dataset_epsilon"]})
    files: dict[str, bytes] = {
        name: directory.storage.read(name)
        for name in (SPEND, "samples.png", "report.html")
        if directory.storage.exists(name)
    }
    files["ledger.json"] = json.dumps(entries, indent=1).encode()
    _log_files(tracked, files)
    record_figures(directory, tracked, summary)


def record_figures(directory: RunDirectory, tracked: TrackedRun, summary: dict[str, Any]) -> None:
    """Sends what every run may tell: its recipe, how long it took and its public summary."""
    tracked.log_metrics(
        {
            "sampling.nfe": summary["sampling"]["nfe"],
            **{f"seconds.{name}": value for name, value in summary["seconds"].items()},
        }
    )
    public = {key: value for key, value in summary.items() if key not in ("quality", "controls")}
    files: dict[str, bytes] = {
        name: directory.storage.read(name)
        for name in ("config.yaml", METRICS)
        if directory.storage.exists(name)
    }
    files["summary.json"] = json.dumps(public, indent=2).encode()
    _log_files(tracked, files)


def record_lineage(
    directory: RunDirectory,
    tracked: TrackedRun,
    lineage: dict[str, Any],
    registry: dict[str, Any],
) -> None:
    """Links the run, and the model it has registered, to what they were made of."""
    content, tags = lineage_bytes(lineage), lineage_tags(lineage)
    directory.storage.write(LINEAGE, content)
    _log_files(tracked, {LINEAGE: content})
    tracked.set_tags(tags)
    inputs = [
        DatasetUsed(name=source["source"], digest=source["settings"], source=source, use="public")
        for source in lineage["public"]
    ]
    base = lineage["knowledge_base"]
    if base:
        told = {key: base[key] for key in ("folder", "images", "entries", "references")}
        inputs.append(
            DatasetUsed(
                name=base["folder"], digest=base["manifest"], source=told, use="knowledge base"
            )
        )
    # Of the private data its name, and no hash.
    name = lineage["private"]["name"]
    inputs.append(DatasetUsed(name=name, digest="none", source={}, use="private"))
    tracked.log_datasets(inputs)
    if registry:
        tracked.tag_model_version(registry["name"], str(registry["version"]), tags)


def record_internal(
    directory: RunDirectory, tracker: Tracker, name: str, *, pages: bool = True
) -> None:
    """Records figures against private records in an experiment of their own (P13).

    Args:
      pages: whether the report goes along, which shows samples; not those of a run without privacy.
    """
    names = ("quality.json", "contamination.json", *(("report.html",) if pages else ()))
    files = {n: directory.internal.read(n) for n in names if directory.internal.exists(n)}
    tags = {"internal": json.loads(files["quality.json"])["notice"]}
    out = directory.storage.uri
    with tracker.run(name, out=out, key=directory.run, tags=tags) as run:
        run.log_metrics(_numbers(json.loads(files["quality.json"])))
        _log_files(run, files, private=True)


def _log_files(run: TrackedRun, files: dict[str, bytes], *, private: bool = False) -> None:
    """Sends files; a local store keeps their mode, so that private ones are their owner's there."""
    with private_folder() as folder:
        for name, data in files.items():
            path = folder / name
            write_own(path, data)
            if not private:
                path.chmod(0o644)
            run.log_artifact(path)


def _numbers(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    found: dict[str, float] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}".replace(",", "")  # MLflow allows no comma in a metric's name.
        if isinstance(value, dict):
            found |= _numbers(value, f"{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = float(value)
    return found
