"""`rapid-dist generate`: the stage of a run, or images from a released model."""

import json
import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from rapid_dist.cli.options import DebugOption, DryRunOption, JsonOption, OutOption, SetOption
from rapid_dist.cli.stages import run_stage
from rapid_dist.errors import ConfigError

LOCAL_REGISTRY = Path("runs/mlflow.db")  # Of runs that were recorded without a server.

TrackingOption = Annotated[
    str, typer.Option("--tracking-uri", help="The registry; default MLFLOW_TRACKING_URI.")
]


class Backend(StrEnum):
    """Who draws."""

    PROCESS = "process"
    RAY = "ray"


class Device(StrEnum):
    """Where the network computes."""

    CPU = "cpu"
    CUDA = "cuda"


def add_generate(app: typer.Typer) -> None:
    """Adds `generate`."""
    help_text = "Draw images from a released --model; or, of a --recipe, write bundle and samples."
    app.command("generate", help=help_text)(generate)


def generate(
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A recipe: its stage.")] = "",
    model: Annotated[
        str, typer.Option("--model", "-m", help="models:/NAME@released, or a bundle's folder.")
    ] = "",
    count: Annotated[int, typer.Option("--count", "-n", help="Images of the model.")] = 100,
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="Name or number; repeatable; default all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same images.")] = 0,
    first_id: Annotated[int, typer.Option("--first-id", help="Go on with a series here.")] = 0,
    workers: Annotated[int, typer.Option("--workers", help="Processes that draw.")] = 1,
    backend: Annotated[
        Backend, typer.Option("--backend", help="Processes of this machine, or a Ray cluster's.")
    ] = Backend.PROCESS,
    device: Annotated[Device, typer.Option("--device")] = Device.CPU,
    files: Annotated[bool, typer.Option("--png", help="Each image as a file as well.")] = False,
    tracking_uri: TrackingOption = "",
    overrides: SetOption = None,
    out: OutOption = "",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    if bool(recipe) == bool(model):
        raise ConfigError(
            "generate needs --model, to draw from a released model, or --recipe, for the stage of "
            f"a run: got {'both' if recipe else 'neither'}."
        )
    if recipe:
        summary = run_stage("generate", recipe, overrides, out, dry_run, as_json)
        if as_json and summary is not None:
            print(json.dumps(summary))
        return
    if overrides or dry_run:
        raise ConfigError("--set and --dry-run belong to --recipe; a --model is what it is.")
    told = _from_model(
        model,
        {"count": count, "seed": seed, "first_id": first_id, "classes": tuple(classes or ())},
        out,
        tracking_uri,
        {"workers": workers, "backend": backend.value, "device": device.value, "files": files},
    )
    if as_json:
        print(json.dumps(told))


def registry_address(tracking_uri: str) -> str | None:
    """Returns the registry that is asked for, or the file that runs on this machine are kept in."""
    if tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or not LOCAL_REGISTRY.exists():
        return tracking_uri or None
    return f"sqlite:///{LOCAL_REGISTRY.resolve()}"


def _from_model(
    model: str, asked: dict[str, Any], out: str, tracking_uri: str, options: dict[str, Any]
) -> dict[str, Any]:
    from rapid_dist.runtime.drawing import Model, Request, generate_images

    request = Request(**asked)
    if "://" in out:
        raise ConfigError(f"Images of a model go to a folder, got --out {out}.")
    found = Model.find(model, registry_address(tracking_uri))
    place = Path(out or f"generated/{found.name}").expanduser()
    told = generate_images(found, request, place, **options)
    print(f"model      {found.name}, bundle {found.digest[:16]}")
    print(f"images     {place}/images.npz: {told['count']}, seed {told['seed']}")
    print(f"sheet      {place}/samples.png")
    print(f"seconds    {told['seconds']:.1f}, the first after {told['seconds_to_first_image']:.1f}")
    return told
