"""``rapid-dist release``: gate, then bundle, then registry; a refusal changes nothing.

    <out>/release/        the bundle that leaves, signed
    <out>/release.json    which version of which model it is

The same command again, after a crash, begins with the gate and makes the bundle anew; what is
already in the registry under this bundle's run stays a candidate that nobody released. After
success it finds the release and says so.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

from rapid_dist import __version__
from rapid_dist.config import Recipe, RuntimeConfig
from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.errors import CheckpointError, ConfigError, ReleaseError
from rapid_dist.methods import artifacts
from rapid_dist.release.assemble import Parts, assemble
from rapid_dist.release.checksums import verify_checksums
from rapid_dist.release.gate import QUESTIONS, refused
from rapid_dist.release.passport import PAGE, PASSPORT
from rapid_dist.release.passport_content import PassportInputs
from rapid_dist.release.registry import (
    CANDIDATE,
    RELEASED,
    STATUS,
    candidate_of,
    promote,
    register_model,
    run_of,
    tags_of,
)
from rapid_dist.release.signing import PrivateKey, fingerprint_of, raw_public_key
from rapid_dist.release.verify import Verified
from rapid_dist.runtime.drawing import draw
from rapid_dist.runtime.drawing_workers import CHUNK, Drawing
from rapid_dist.runtime.lock import locked
from rapid_dist.runtime.recorded_commands import recorded_release
from rapid_dist.runtime.release_evidence import Finished, opened, require_run, told_settings
from rapid_dist.runtime.run_directory import places

RELEASE = "release"  # Folder of the run directory.
FACTS = "release.json"


class Refused(ReleaseError):
    """The gate's reasons, all of them."""

    def __init__(self, run: str, reasons: Mapping[str, str]) -> None:
        self.reasons = dict(reasons)
        lines = [f"  {name}: {text}" for name, text in self.reasons.items()]
        count = f"{len(lines)} reason{'s' if len(lines) > 1 else ''}"
        super().__init__("\n".join([f"Run {run!r} is not released, for {count}:", *lines]))


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Who signs, and with what."""

    name: str
    key: PrivateKey

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.name.isprintable() or len(self.name) > 120:
            raise ConfigError(
                f"The signer's name is {self.name!r}. Give one of 1 to 120 printable characters."
            )


def check(recipe: Recipe, out: str, today: date) -> list[str]:
    """Asks the gate and does nothing else; returns the questions that were passed.

    Raises:
      Refused: with every reason.
    """
    with opened(recipe, out, today) as finished:
        _require_passed(finished)
    return list(QUESTIONS)


def release(
    recipe: Recipe,
    out: str,
    signer: Signer,
    today: date,
) -> dict[str, Any]:
    """Releases a finished run and returns release.json.

    Raises:
      Refused: with every reason; nothing was written and nothing registered.
    """
    where = places(recipe, out).out
    require_run(where)  # Before a lock is left in a folder that is none of ours.
    with locked(where), opened(recipe, out, today) as finished:
        _require_passed(finished)
        before = _released_before(finished)
        if before is not None:
            return before
        with tempfile.TemporaryDirectory(prefix="rapid-") as folder:
            target = Path(folder, "bundle")
            target.mkdir()
            verified = assemble(_parts(finished, signer, today), signer.key, target)
            store = finished.out.child(RELEASE)
            for name in store.list():
                store.delete(name)
            artifacts.put_folder(store, lambda copy: _copy_into(target, copy), mark=False)
            with recorded_release(finished.registry) as record:
                name, version = _register(finished, target, verified)
                record.set_tags(_told(name, version, verified))
                for file in (PASSPORT, PAGE):
                    record.log_artifact(target / file)
        facts = {
            "name": name,
            "version": version,
            "candidate": finished.registry["version"],
            "tracking_uri": finished.registry["tracking_uri"],
            "bundle": f"{where}/{RELEASE}",
            "sha256": verified.checksums,
            "created": verified.signature.created,
            "signer": verified.signature.signer,
            "key": verified.signature.fingerprint,
            "epsilon": verified.passport["claim"]["epsilon"],
            "ledger_head": verified.passport["ledger"]["head"],
        }
        finished.out.write(FACTS, json.dumps(facts, indent=2).encode() + b"\n")
        return facts


def _require_passed(finished: Finished) -> None:
    reasons = refused(finished.evidence)
    if reasons:
        raise Refused(finished.evidence.run, reasons)


def _parts(finished: Finished, signer: Signer, today: date) -> Parts:
    recipe, evidence = finished.recipe, finished.evidence
    assert evidence.claim is not None, "The gate has asked for it."
    assert evidence.audit is not None, "The gate has asked for it."
    private = recipe.data.private
    return Parts(
        bundle=finished.bundle,
        public_network=finished.public_network(),
        internal=finished.internal,
        synthetic=recipe.release.synthetic,
        synthetic_seed=recipe.release.synthetic_seed,
        draw=partial(_drawn, recipe.runtime),
        passport=PassportInputs(
            created=today.isoformat(),
            facts=finished.facts(),
            shape=(private.channels, private.size),
            claim=evidence.claim,
            plan=evidence.plan,
            noise=recipe.privacy.noise,
            max_grad_norm=recipe.privacy.max_grad_norm,
            ledger_entries=finished.ledger_entries,
            dataset_budget=evidence.dataset_budget,
            audit=evidence.audit,
            contamination=evidence.contamination or {"policy": recipe.contamination.policy},
            public_data=evidence.public_data,
            code_version=__version__,
            code_hash=evidence.code_hash,
            recipe=recipe.name,
            recipe_hash=evidence.recipe_hash,
            settings=told_settings(finished.recipe),
            environment=finished.environment(),
            signer=signer.name,
            key=fingerprint_of(raw_public_key(signer.key)),
            selection=evidence.selection,
            checked=tuple(QUESTIONS),
        ),
    )


def _drawn(runtime: RuntimeConfig, bundle: Path, labels: Int64Array, seed: int) -> UInt8Array:
    """Draws the synthetic data set, on the run's workers if it is more than one has to do."""
    asked = Drawing(bundle=bundle, labels=labels, seed=seed)
    on_ray = runtime.backend == "ray" and len(labels) > CHUNK
    return draw(asked, runtime.workers if on_ray else 1, "ray" if on_ray else "process")


def _register(finished: Finished, target: Path, verified: Verified) -> tuple[str, int]:
    """Registers the bundle as a candidate, then makes it the released version."""
    registry, passport = finished.registry, verified.passport
    uri, model = registry["tracking_uri"], registry["name"]
    claim, ledger = passport["claim"], passport["ledger"]
    tags = {
        **{f"dp.{name}": str(claim[name]) for name in ("epsilon", "delta", "relation", "unit")},
        "dp.unit_name": claim["unit_name"],
        "dp.ledger_head": ledger["head"],
        "dp.dataset": ledger["dataset"],
        "dp.dataset_epsilon": str(ledger["dataset_epsilon"] or "secret"),
        "dp.run": ledger["run"],
        "method": passport["model"]["method"],
        "code.sha256": passport["code"]["sha256"],
        "recipe.sha256": passport["recipe"]["sha256"],
        "audit.date": passport["audit"]["created"],
        "audit.profile": passport["audit"]["profile"],
        "release.date": passport["created"],
        "release.signer": passport["signer"]["name"],
        "release.key": passport["signer"]["key"],
        STATUS: CANDIDATE,
    }
    waiting = candidate_of(uri, model)
    name, version = register_model(
        target,
        run_of(uri, model, int(registry["version"])),
        model,
        tags,
        tracking_uri=uri,
        alias=CANDIDATE,
        description=(
            f"{claim['sentence']} Released {passport['created']} by {passport['signer']['name']}; "
            "passport.html in its bundle says what that means and how to check it."
        ),
    )
    promote(uri, name, version, None if waiting == int(registry["version"]) else waiting)
    return name, version


def _told(name: str, version: int, verified: Verified) -> dict[str, str]:
    return {
        "release.model": name,
        "release.version": str(version),
        "release.signer": verified.signature.signer,
        "release.key": verified.signature.fingerprint,
        "bundle.sha256": verified.checksums,
        "dp.epsilon": str(verified.passport["claim"]["epsilon"]),
    }


def _released_before(finished: Finished) -> dict[str, Any] | None:
    """The release that this run has already had, unless it was withdrawn or is not whole."""
    if not finished.out.exists(FACTS):
        return None
    facts: dict[str, Any] = json.loads(finished.out.read(FACTS))
    if facts["candidate"] != finished.registry["version"]:
        return None  # Samples were made anew since, and with them the bundle.
    status = tags_of(facts["tracking_uri"], facts["name"], facts["version"]).get(STATUS)
    if status == "withdrawn":
        raise ReleaseError(
            f"Run {finished.evidence.run!r} was released as version {facts['version']} of "
            f"{facts['name']} and withdrawn. What was wrong with it is wrong with its run; begin "
            "another."
        )
    try:
        digest = artifacts.with_folder(finished.out.child(RELEASE), verify_checksums)
    except CheckpointError:
        return None  # Not whole: it is made again.
    return facts if status == RELEASED and digest == facts["sha256"] else None


def _copy_into(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
