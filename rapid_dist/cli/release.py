"""`rapid-dist release` and its commands: keygen, verify, list, withdraw.

`verify` and `keygen` load nothing of the training and ask no network.
"""

import json
import math
import os
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rapid_dist.cli.options import DebugOption, JsonOption, OutOption, SetOption, load, out_of
from rapid_dist.errors import ConfigError

if TYPE_CHECKING:
    from rapid_dist.release.registry import Released
    from rapid_dist.release.verify import Verified

LOCAL_REGISTRY = Path("runs/mlflow.db")  # Of runs that were recorded without a server.

RegistryOption = Annotated[
    str,
    typer.Option(
        "--tracking-uri", help="The registry; default MLFLOW_TRACKING_URI, else runs/mlflow.db."
    ),
]


def add_release(app: typer.Typer) -> None:
    """Adds `release`, which is a command by itself and has commands below it."""
    group = typer.Typer(invoke_without_command=True, help="Release a finished run, or refuse it.")
    group.callback()(release)
    group.command("keygen", help="Make the key that signs releases.")(keygen)
    group.command("verify", help="Check a released bundle, offline.")(verify)
    group.command("list", help="Print what was released, and what became of it.")(list_released)
    group.command("withdraw", help="Take a released version back.")(withdraw)
    app.add_typer(group, name="release")


def release(
    context: typer.Context,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="A recipe's name, or a file.")] = "",
    overrides: SetOption = None,
    out: OutOption = "",
    key: Annotated[
        Path | None, typer.Option("--key", help="Private key; see `release keygen`.")
    ] = None,
    signer: Annotated[str, typer.Option("--signer", help="Who signs, in the passport.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask the gate, say every reason, and stop.")
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    if not recipe:
        raise ConfigError(
            "release needs --recipe, the run's own config.yaml, or a command: keygen, verify, "
            "list, withdraw."
        )
    if not dry_run and (key is None or not signer):
        raise ConfigError(
            f"{'--key' if key is None else '--signer'} is missing: a release is signed. Make a key "
            "with `rapid-dist release keygen`, or ask the gate alone with --dry-run."
        )
    from rapid_dist.release.signing import PASSPHRASE, read_private_key
    from rapid_dist.runtime import releasing

    loaded = load(recipe, overrides)
    where = out_of(loaded, out)
    try:
        if dry_run:
            passed = releasing.check(loaded, where, date.today())
            print(f"gate       {len(passed)} questions passed; nothing was done")
            told = {"released": False, "reasons": {}, "passed": passed}
        else:
            assert key is not None
            opened = read_private_key(key, os.environ.get(PASSPHRASE, ""))
            who = releasing.Signer(name=signer, key=opened)
            facts = releasing.release(loaded, where, who, date.today())
            print(f"released   models:/{facts['name']}@released (version {facts['version']})")
            print(f"bundle     {facts['bundle']}")
            print(f"passport   {facts['bundle']}/passport.html")
            print(f"signed by  {facts['signer']}, key {facts['key']}")
            print(f"verify     rapid-dist release verify {facts['bundle']} --key {key}.pub")
            told = {"released": True, **facts}
    except releasing.Refused as error:
        if as_json:
            print(json.dumps({"released": False, "reasons": error.reasons}))
        raise
    if as_json:
        print(json.dumps(told))


def keygen(
    key: Annotated[Path, typer.Option("--key", help="File of the private key; .pub beside it.")],
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.release.signing import PASSPHRASE, public_path, write_key_pair

    passphrase = os.environ.get(PASSPHRASE, "")
    fingerprint = write_key_pair(key, passphrase)
    how = "encrypted" if passphrase else f"not encrypted; set {PASSPHRASE} for one that is"
    print(f"key        {key} ({how}). Who has it can sign; it goes into no run and no bundle")
    print(f"public     {public_path(key)}. Give it to whoever will verify, by another way")
    print(f"SHA-256    {fingerprint}")
    if as_json:
        print(json.dumps({"key": str(key), "fingerprint": fingerprint}))


def verify(
    bundle: Annotated[Path, typer.Argument(help="Folder of a released bundle.")],
    key: Annotated[
        Path | None, typer.Option("--key", help="The signer's public key, from elsewhere.")
    ] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.release.verify import verify_release

    found = verify_release(bundle, key)
    print(_verified_lines(found))
    if as_json:
        facts = {
            "verified": True, "key_checked": found.key_checked, "sha256": found.checksums,
            "signer": found.signature.signer, "key": found.signature.fingerprint,
            "epsilon": found.passport["claim"]["epsilon"],
            "delta": found.passport["claim"]["delta"],
            "ledger_head": found.passport["ledger"]["head"],
        }  # fmt: skip
        print(json.dumps(facts))


def list_released(
    name: Annotated[str, typer.Option("--name", help="One model; default all.")] = "",
    tracking_uri: RegistryOption = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rapid_dist.release.registry import released_versions

    found = released_versions(_registry(tracking_uri), name or None)
    table = Table("model", "version", "status", "epsilon", "released", "by", "aliases")
    for one in found:
        row = (one.name, str(one.version), _status(one), _epsilon(one))
        more = (one.tags.get("release.date", "?"), one.tags.get("release.signer", "?"))
        table.add_row(*map(escape, (*row, *more, ", ".join(one.aliases))))
    Console().print(table)
    if as_json:
        print(json.dumps([_plain(one) for one in found]))


def withdraw(
    name: Annotated[str, typer.Option("--name", help="The model.")],
    version: Annotated[int, typer.Option("--version", help="Its version.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the version.")],
    tracking_uri: RegistryOption = "",
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    from rapid_dist.release.registry import withdraw as take_back

    uri = _registry(tracking_uri)
    found = take_back(uri, name, version, reason=reason, on=date.today().isoformat())
    print(f"withdrawn  {found.name} version {found.version}: {found.tags['withdrawn.reason']}")
    print("           Nothing was deleted, and bundles that were fetched cannot be called back.")
    if as_json:
        print(json.dumps(_plain(found)))


def _verified_lines(found: "Verified") -> str:
    claim = found.passport["claim"]
    by = f"{found.signature.signer}, key {found.signature.fingerprint}"
    trust = (
        f"signed by  {by}, which is the key that was given"
        if found.key_checked
        else f"signed by  {by}: NOT CHECKED, anybody may have made this key. Give the signer's "
        "with --key"
    )
    return "\n".join(
        (
            f"whole      every file is as it was signed on {found.signature.created}",
            trust,
            f"claim      {claim['sentence']}",
            f"ledger     head {found.passport['ledger']['head']}",
        )
    )


def _registry(tracking_uri: str) -> str:
    named = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    return named or f"sqlite:///{LOCAL_REGISTRY.resolve()}"


def _status(one: "Released") -> str:
    reason = one.tags.get("withdrawn.reason")
    return f"{one.status}: {reason}" if reason else one.status


def _epsilon(one: "Released") -> str:
    try:
        return f"{math.ceil(float(one.tags['dp.epsilon']) * 1e4) / 1e4:.4f}"  # Never down.
    except (KeyError, ValueError):
        return "?"


def _plain(one: "Released") -> dict[str, object]:
    return {
        "name": one.name, "version": one.version, "status": one.status,
        "aliases": list(one.aliases), "tags": dict(one.tags),
    }  # fmt: skip
