"""The table of damages to a run's files, by what they hit; damage.py says what is done with it."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from rapid_dist.config import method_settings
from rapid_dist.diffusion.checkpoint import Checkpoints
from rapid_dist.methods import artifacts
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.release.checksums import write_checksums
from rapid_dist.runtime import pipeline
from rapid_dist.storage import open_storage
from tests.cluster.chaos.damage import (
    PLANNED,
    Damage,
    Moment,
    Place,
    Row,
    all_of,
    empty,
    flipped,
    gone,
    replaced,
    torn,
)

_RUN = "digits-0badcafe-000000000000"  # Another run's name.
_WAYS: tuple[tuple[str, Callable[..., Damage]], ...] = (
    ("torn", torn), ("flipped", flipped), ("empty", empty), ("no", gone),
)  # fmt: skip
_CHECKPOINT = "run/checkpoints/train/step-*.safetensors"


def _foreign_checkpoint(place: Place) -> None:
    """The same network's, of more steps, from another run."""
    storage = open_storage(place.out / "checkpoints" / "train")
    own = Checkpoints(storage, of=_run_of(place)).latest()
    assert own is not None
    Checkpoints(storage, of=_RUN).save(PLANNED, own.tensors, own.facts)


def _unbound_checkpoint(place: Place) -> None:
    """A checkpoint that does not say whose it is."""
    storage = open_storage(place.out / "checkpoints" / "train")
    own = Checkpoints(storage, of=_run_of(place)).latest()
    assert own is not None
    Checkpoints(storage).save(PLANNED, own.tensors, own.facts)


def _unpaid_checkpoint(place: Place) -> None:
    """The run's own name, and more steps than the ledger has charged."""
    storage = open_storage(place.out / "checkpoints" / "train")
    checkpoints = Checkpoints(storage, of=_run_of(place))
    own = checkpoints.latest()
    assert own is not None
    checkpoints.save(PLANNED, own.tensors, {**own.facts, "attempt": 9})


def _older_by_newer_name(place: Place) -> None:
    older = min((place.out / "checkpoints" / "train").iterdir())
    digest = older.stem.split("-")[-1]
    older.rename(older.with_name(f"step-{9:09d}-{digest}.safetensors"))


def _only_older(place: Place) -> None:
    sorted((place.out / "checkpoints" / "train").iterdir())[-1].unlink()


def _run_of(place: Place) -> str:
    name: str = json.loads((place.out / "run.json").read_text())["run"]
    return name


def _foreign_denoiser(folder: str) -> Damage:
    """Another run's network in place of this one's, whole in itself."""

    def damage(place: Place) -> None:
        storage = open_storage(place.out / folder)
        denoiser = artifacts.get_denoiser(storage.uri)
        with torch.no_grad():
            next(denoiser.parameters()).add_(1.0)
        artifacts.put_denoiser(storage, denoiser, of=_RUN)

    return damage


def _foreign_public(place: Place) -> None:
    """The public network of other settings, in this one's folder."""
    own = artifacts.pretrain_name(method_settings(place.recipe))
    other = f"denoiser-{'0' * 16}"
    public = open_storage(place.public)
    artifacts.put_denoiser(public.child(other), artifacts.get_denoiser(public.child(own).uri))
    shutil.rmtree(place.public / own)
    shutil.move(place.public / other, place.public / own)


def _foreign_json(pattern: str, *keys: str) -> Damage:
    """Another run's name, wherever this one's is written."""

    def damage(place: Place) -> None:
        path = place.found(pattern)
        content = json.loads(path.read_text())
        for key in keys:
            content[key] = _RUN
        path.write_text(json.dumps(content))

    return damage


def _foreign_entry(place: Place) -> None:
    """The entry of that number of another data set's ledger."""
    other = Ledger.open(place.root / "other", "faces")
    attempt = other.begin_attempt("run")
    path = place.found("ledger/digits/*.json")
    for _ in range(int(path.stem)):
        other.append("note", "run", attempt=attempt)
    path.write_bytes((place.root / "other" / "faces" / path.name).read_bytes())


def _ledger_of_before(place: Place) -> None:
    """A copy of the ledger from before the steps: attempt and query alone."""
    for entry in sorted(place.ledger.iterdir()):
        if b'"kind":"step"' in entry.read_bytes():
            entry.unlink()
    names = sorted(entry.name for entry in place.ledger.iterdir())
    for name in names:  # Of the attempt that took the steps, too: whole, and older.
        if int(Path(name).stem) >= 2:
            (place.ledger / name).unlink()


def _foreign_bundle(place: Place) -> None:
    """Another run's bundle: every file of it agrees with its own checksums."""
    bundle = place.out / "bundle"
    model = json.loads((bundle / "model.json").read_text())
    model["name"] = "another"
    (bundle / "model.json").write_text(json.dumps(model))
    write_checksums(bundle)


def _foreign_summary(place: Place) -> None:
    content = {"privacy": {"run": _RUN}}
    (place.out / "summary.json").write_text(json.dumps(content))


def _foreign_manifest(place: Place) -> None:
    """The manifest of another knowledge base of the same form: its shards in another order."""
    path = place.found("public/knowledge-base-*/manifest.json")
    content = json.loads(path.read_text())
    content["shards"] = content["shards"][::-1]
    path.write_text(json.dumps(content))


def rows() -> list[Row]:
    """Returns the table."""
    return [*_of_checkpoints(), *_of_ledgers(), *_of_public(), *_of_the_run(), *_of_results()]


def _row(kind: str, point: str, moment: Moment, damage: Damage, **more: Any) -> Row:
    return Row(kind=kind, point=point, moment=moment, damage=damage, **more)


def _of_checkpoints() -> Iterable[Row]:
    at: Moment = "training"
    for kind, damage in (
        ("torn", torn(_CHECKPOINT)),
        ("flipped", flipped(_CHECKPOINT)),
        ("flipped in its header", flipped(_CHECKPOINT, 0.01)),
        ("empty", empty(_CHECKPOINT)),
        ("older put back for the", _only_older),
    ):
        yield _row(kind, "newest checkpoint", at, damage, repeats=1)
    yield _row("older by the name of a newer", "checkpoint", at, _older_by_newer_name)
    names = {"stops": "checkpoints/train/step-"}
    yield _row("of another run the", "newest checkpoint", at, _foreign_checkpoint, **names)
    yield _row("saying nobody's the", "newest checkpoint", at, _unbound_checkpoint, **names)
    yield _row(
        "not paid for the", "newest checkpoint", at, _unpaid_checkpoint, stops="lacks step 3"
    )
    both = all_of(*(torn(f"run/checkpoints/train/step-{n:09d}-*") for n in (2, 3)))
    yield _row("torn both", "checkpoints", at, both, stops="checkpoints/train is whole")
    # As far as the budget pays: two steps, and a note in the ledger that it ended there.
    yield _row("no", "checkpoints", at, gone("run/checkpoints/train"), repeats=1)


def _of_ledgers() -> Iterable[Row]:
    at: Moment = "training"
    last, first = "ledger/digits/*.json", "ledger/digits/000000000000.json"
    for kind, damage, named in (
        ("torn", torn(last), "000000000006.json"),
        ("flipped", flipped(last, old=b'"step":3', new=b'"step":0'), "000000000006.json"),
        ("empty", empty(last), "000000000006.json"),
        ("of another data set the", _foreign_entry, "belongs to the data set 'faces'"),
        ("older by the name of the", replaced(last, by=first), "000000000006.json"),
        (
            "cut off with the one before, the",
            gone("ledger/digits/000000000005.json", "ledger/digits/000000000006.json"),
            "lacks step 2",
        ),
    ):
        yield _row(kind, "last entry", at, damage, stops=named)
    yield _row("torn", "first entry", at, torn(first), stops="000000000000.json")
    yield _row("missing", "middle entry", at, gone("ledger/digits/000000000002.json"),
               stops="000000000002.json")  # fmt: skip
    yield _row("older copy of the", "ledger", at, _ledger_of_before, stops="Bring that one back")
    yield _row("no", "ledger", at, gone("ledger/digits"), stops="Bring that one back")


def _of_public() -> Iterable[Row]:
    at: Moment = "public"
    weights = "public/denoiser-*/unet/*.safetensors"
    for kind, make in _WAYS:
        yield _row(kind, "public weights", at, make(weights), stops="unet/diffusion")
        yield _row(
            kind, "shard", at, make("public/knowledge-base-*/shards/*"), stops="Shard shards/"
        )
    yield _row("another's", "shard", at, replaced("public/knowledge-base-*/shards/*",
               by="public/knowledge-base-*/shards/*"), stops="Shard shards/")  # fmt: skip
    for kind, make in _WAYS[:2]:
        yield _row(kind, "public denoiser.json", at, make("public/denoiser-*/denoiser.json"),
                   stops="denoiser.json")  # fmt: skip
        yield _row(kind, "extractor", at, make("public/extractor-*/*.safetensors"),
                   stops="extractor-")  # fmt: skip
    manifest = "public/knowledge-base-*/manifest.json"
    yield _row("torn", "manifest", at, torn(manifest), stops="manifest.json")
    yield _row("flipped", "manifest", at, flipped(manifest, old=b'"num_images": ',
               new=b'"num_images": 1'), stops="manifest.json")  # fmt: skip
    yield _row("of other shards the", "manifest", at, _foreign_manifest, stops="manifest.json")
    yield _row("no", "manifest", at, gone(manifest), stops="manifest.json")
    for folder in ("denoiser", "knowledge-base"):
        seal = f"public/{folder}-*/done.json"
        yield _row("torn", f"seal of the {folder}", at, torn(seal), stops="done.json is torn",
                   remedy=gone(f"public/{folder}-*/done.json"))  # fmt: skip
        yield _row("of other settings the", f"seal of the {folder}", at, _foreign_json(seal, "of"),
                   stops="made from other data or settings")  # fmt: skip
    yield _row("of other settings the", "public network", at, _foreign_public,
               stops="made from other data or settings")  # fmt: skip
    # The remedies that the lines name are true.
    again = gone("public/knowledge-base-*/done.json")
    yield _row("torn, then built again, the", "shard", at, torn("public/knowledge-base-*/shards/*"),
               stops="Delete", remedy=all_of(again, _index))  # fmt: skip
    yield _row("torn, then trained again, the", "public weights", at, torn(weights),
               stops="Delete",
               remedy=all_of(gone("public/denoiser-*/done.json"), _pretrain))  # fmt: skip


def _index(place: Place) -> None:
    pipeline.run(place.recipe, str(place.out), command="index")


def _pretrain(place: Place) -> None:
    pipeline.run(place.recipe, str(place.out), command="pretrain")


def _of_the_run() -> Iterable[Row]:
    at: Moment = "training"
    for kind, make in _WAYS[:3:2]:
        yield _row(kind, "run.json", at, make("run/run.json"), stops="run.json is torn")
        yield _row(kind, "stage marker", at, make("run/stages/prior.json"),
                   stops="stages/prior.json is torn",
                   remedy=gone("run/stages/prior.json"))  # fmt: skip
    yield _row("of another run the", "run.json", at, _foreign_json("run/run.json", "run"),
               stops="run.json says")  # fmt: skip
    yield _row("no", "run.json", at, gone("run/run.json"), stops="run.json says")
    yield _row("of another run the", "stage marker", at,
               _foreign_json("run/stages/prior.json", "run"), stops="stages/prior.json",
               remedy=gone("run/stages/prior.json"))  # fmt: skip
    config = "run/config.yaml"
    yield _row("torn", "config.yaml", at, torn(config), stops="config.yaml")
    yield _row("flipped", "config.yaml", at, flipped(config, old=b"epsilon: 10.0",
               new=b"epsilon: 11.0"), stops="begun with privacy.epsilon=11.0")  # fmt: skip
    yield _row("no", "config.yaml", at, gone(config), stops="config.yaml")
    yield _row("empty", "config.yaml", at, empty(config), stops="config.yaml")
    weights = "run/adapted/unet/*.safetensors"
    for kind, make in _WAYS:
        yield _row(kind, "adapted weights", at, make(weights), stops="adapted/unet/")
    yield _row("of another run the", "adapted network", at, _foreign_denoiser("adapted"),
               stops="run.json says")  # fmt: skip
    yield _row("torn, then made again, the", "adapted network", at, torn(weights), stops="Restore",
               remedy=gone("run/adapted/done.json", "run/stages/adapt.json"))  # fmt: skip
    for folder in ("prior", "adapted"):
        seal = f"run/{folder}/done.json"
        yield _row("torn", f"seal of {folder}", at, torn(seal), stops="done.json is torn")
        yield _row("of another run the", f"seal of {folder}", at, _foreign_json(seal, "of"),
                   stops="run.json says")  # fmt: skip


def _of_results() -> Iterable[Row]:
    at: Moment = "drawn"
    repeats = {"repeats": 0}
    samples, prior = "run/samples/samples.npz", "run/prior/prior.npz"
    for kind, make in _WAYS:
        yield _row(kind, "samples", at, make(samples), stops="samples/samples.npz", **repeats)
        yield _row(kind, "prior", at, make(prior), stops="prior/prior.npz", **repeats)
    drawn_again = gone("run/samples", "run/stages/generate.json")
    yield _row("torn, then drawn again, the", "samples", at, torn(samples), stops="Restore",
               remedy=drawn_again)  # fmt: skip
    yield _row("of another run the", "samples", at, _foreign_json("run/samples/done.json", "of"),
               stops="run.json says")  # fmt: skip
    yield _row(
        "of another run the", "bundle", at, _foreign_bundle, stops="bundle is not the bundle"
    )
    yield _row("of another run the", "private network", at, _foreign_denoiser("private"),
               stops="run.json says")  # fmt: skip
    yield _row("torn", "seal of private", at, torn("run/private/done.json"),
               stops="private/done.json is torn",
               remedy=gone("run/private/done.json", "run/stages/train.json"))  # fmt: skip
    yield _row("of another run the", "summary.json", at, _foreign_summary, stops="summary.json",
               remedy=gone("run/summary.json"))  # fmt: skip
    yield _row("torn", "summary.json", at, all_of(_foreign_summary, torn("run/summary.json")),
               stops="summary.json", remedy=gone("run/summary.json"))  # fmt: skip
