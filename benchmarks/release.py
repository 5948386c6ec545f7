"""From a finished run to a verified bundle: how long it takes, and how large the bundle is.

    python benchmarks/release.py                    # digits: runs and audits it first, if need be

The run and its audit are kept in --out and are no part of the figures. Each release is one of its
own: the one before is put aside. `verify` is a process of its own, as on another machine.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from common import arguments, run_recipe, table, write

from rapid_dist.config import load_recipe
from rapid_dist.release.gate import QUESTIONS
from rapid_dist.release.passport import read_schema, schema_faults
from rapid_dist.release.signing import public_path, read_private_key, write_key_pair
from rapid_dist.runtime import releasing
from rapid_dist.storage import open_storage


def parts_of(bundle: Path) -> dict[str, int]:
    """Bytes of a bundle, by what they are for."""
    names = {"code": "code", "public": "public network", "synthetic": "synthetic data set"}
    sizes: dict[str, int] = {}
    for path in bundle.rglob("*"):
        if path.is_file():
            first = path.relative_to(bundle).parts[0]
            said = first.startswith("passport") or first in ("README.md", "signature.json")
            kind = names.get(first, "passport, card, signature" if said else "model")
            sizes[kind] = sizes.get(kind, 0) + path.stat().st_size
    return sizes


def filled(schema: dict[str, Any], content: Any) -> tuple[int, int]:
    """(fields with a value, fields that the schema names), at any depth of objects."""
    have = total = 0
    for name, rule in schema.get("properties", {}).items():
        total += 1
        value = content.get(name) if isinstance(content, dict) else None
        have += value not in (None, "", [], {})
        inner = filled(rule, value)
        have, total = have + inner[0], total + inner[1]
    return have, total


def measure(options: argparse.Namespace) -> dict[str, Any]:
    out = Path(options.out, options.recipe).resolve()
    recipe, summary, _ = run_recipe(options.recipe, str(out), options, [])
    recipe = load_recipe(out / "config.yaml", [f"release.synthetic={options.synthetic}"])
    if not open_storage(out).exists("audit.json") or options.audit:
        # By its command, as a user would: in a process that has trained nothing.
        audit = [sys.executable, "-m", "rapid_dist.cli", "audit", "--recipe"]
        subprocess.run([*audit, str(out / "config.yaml"), "--out", str(out)], check=True)
    with tempfile.TemporaryDirectory() as folder:
        key = Path(folder, "key")
        write_key_pair(key)
        start = time.monotonic()
        releasing.check(recipe, str(out), date.today())
        gate = time.monotonic() - start
        for name in ("release.json", "release"):  # Of a release before.
            path = out / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        signer = releasing.Signer(name="benchmark", key=read_private_key(key))
        start = time.monotonic()
        facts = releasing.release(recipe, str(out), signer, date.today())
        released = time.monotonic() - start
        bundle = Path(facts["bundle"])
        command = [sys.executable, "-m", "rapid_dist.cli", "release", "verify", str(bundle)]
        start = time.monotonic()
        subprocess.run(
            [*command, "--key", str(public_path(key))], check=True, stdout=subprocess.DEVNULL
        )
        verified = time.monotonic() - start
    passport = json.loads((bundle / "passport.json").read_text())
    have, total = filled(read_schema(), passport)
    sizes = parts_of(bundle)
    return {
        "recipe": options.recipe,
        "epsilon": summary["privacy"]["epsilon"],
        "synthetic images": options.synthetic,
        "gate alone, s": round(gate, 2),
        "finished run to registered release, s": round(released, 2),
        "verify in a process of its own, s": round(verified, 2),
        "finished run to verified bundle, s": round(released + verified, 2),
        "bundle, bytes": sum(sizes.values()),
        "files": sum(1 for path in bundle.rglob("*") if path.is_file()),
        "bytes by part": sizes,
        "passport faults by schema": schema_faults(passport),
        "passport fields filled": f"{have} of {total}",
        "questions of the gate": len(QUESTIONS),
    }


def report(options: argparse.Namespace) -> None:
    found = measure(options)
    write("release", found)
    rows = [
        {"figure": name, "value": value}
        for name, value in found.items()
        if name not in ("bytes by part", "passport faults by schema")
    ]
    rows += [
        {"figure": f"bytes of {kind}", "value": size}
        for kind, size in found["bytes by part"].items()
    ]
    print(table(rows, ["figure", "value"]))


if __name__ == "__main__":
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--synthetic", type=int, default=1000)
    parser.add_argument("--audit", action="store_true", help="audit again")
    report(parser.parse_args())
