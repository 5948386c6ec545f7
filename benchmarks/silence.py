"""What a run leaves behind is searched for what was planted: private values, secrets, keys.

    python benchmarks/silence.py --ray

Private values are those of `rapid-dist audit` (random images, labels, names, and the losses, norms
and batch sizes that the engine learns): in everything that the loop, a whole tiny run and one that
fails write and say, outside the run's own ``internal`` folder. Secrets are those of an environment,
and the keys of noise and batches: in everything that a whole tiny run says and leaves, without Ray
and, with ``--ray``, on it, Ray's session logs included. Exit code 1 where anything was found.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.modules["tests"] = ModuleType("tests")  # Another package may be called so in site-packages.
sys.modules["tests"].__path__ = [str(ROOT / "tests")]

from output import RESULTS, table, write_json  # noqa: E402

from rapid_dist.audit.silence import check_pipeline_silence, check_silence  # noqa: E402
from rapid_dist.config import load_recipe, method_settings  # noqa: E402
from rapid_dist.methods.audit_subject import audit_subject  # noqa: E402
from rapid_dist.methods.catalog import plan_of  # noqa: E402
from rapid_dist.runtime.audit import planted_pipeline  # noqa: E402
from tests.planted_secrets import planted_environment, planted_run  # noqa: E402

COLUMNS = ["question", "found", "searched"]


def private_values(recipe_name: str) -> list[dict[str, Any]]:
    """Returns a row for each of the audit's questions about silence."""
    recipe = load_recipe(recipe_name)
    settings = method_settings(recipe)
    with audit_subject(settings, plan_of(settings)) as subject:
        results = check_silence(subject, "quick")
        results += check_pipeline_silence(planted_pipeline(recipe), subject.engine)
    return [
        {
            "question": result.question,
            "found": result.statistic,
            "searched": result.detail,
            "passed": result.passed,
        }
        for result in results
    ]


def secrets(*, ray: bool) -> dict[str, Any]:
    """Returns the row of a whole run that had secrets in its environment."""
    place = "on Ray" if ray else "in one process"
    with tempfile.TemporaryDirectory(prefix="rd", dir="/tmp") as name:  # Short, for Ray's sockets.
        folder, session = Path(name), Path(name, "ray")
        run = planted_run(folder, planted_environment(), session=str(session) if ray else "")
        if run.done.returncode:
            raise SystemExit(run.done.stderr)
        found = run.searched(*([session] if ray else []))
    return {
        "question": f"Does a whole run {place} keep its environment's secrets and its keys?",
        "found": f"{found.bytes_found} bytes in {len(found.where)} of {found.places} files and "
        "texts",
        "searched": f"{found.bytes_searched / 2**20:.1f} MiB searched for {len(run.planted)} "
        f"secrets and {len(run.keys)} keys.",
        "where": list(found.where),
        "passed": found.bytes_found == 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="digits", help="of the audit's questions")
    parser.add_argument("--ray", action="store_true", help="a run on Ray as well")
    parser.add_argument("--out", type=Path, default=RESULTS / "silence.json")
    asked = parser.parse_args()
    rows = private_values(asked.recipe)
    rows += [secrets(ray=ray) for ray in ([False, True] if asked.ray else [False])]
    write_json(asked.out, {"recipe": asked.recipe, "rows": rows})
    print(table(rows, COLUMNS))
    sys.exit(0 if all(row["passed"] for row in rows) else 1)


if __name__ == "__main__":
    main()
