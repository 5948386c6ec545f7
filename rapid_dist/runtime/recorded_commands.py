"""What MLflow is told of the commands that follow a finished run: its audit and its release.

Each is a child of the run's record, below which its stages stand, and is opened when there is
something to tell: a command that was killed on its way has left nothing open.
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rapid_dist.release.passport import lower_bound
from rapid_dist.release.registry import run_of
from rapid_dist.runtime.results import AUDIT
from rapid_dist.runtime.tracking import TrackedRun, child_run
from rapid_dist.secret import masked
from rapid_dist.storage import Storage, StorageMissing


@contextlib.contextmanager
def recorded_release(registry: Mapping[str, Any]) -> Iterator[TrackedRun]:
    """Opens the record of a release, below that of the run that registered this candidate."""
    uri = registry["tracking_uri"]
    parent = run_of(uri, registry["name"], int(registry["version"]))
    with child_run(uri, parent, "release") as child:
        yield child


def record_audit(out: Storage, content: Mapping[str, Any]) -> str:
    """Records an audit below the run that it is of; returns why it could not be, or nothing.

    An audit that was made before its run has no record to be below, and stands in audit.json alone.
    """
    try:
        registry = json.loads(out.read("registry.json"))
    except StorageMissing:
        return ""
    bound = lower_bound(content)
    figures = {
        "audit.questions": float(len(content["results"])),
        "audit.false_alarm": float(content["false_alarm"]),
        **({} if bound is None else {"audit.epsilon_lower_bound": bound}),
    }
    tags = {
        "audit.passed": str(content["passed"]).lower(),
        "audit.profile": content["profile"],
        "code.sha256": content["code_hash"],
        "recipe.sha256": content["recipe_hash"],
    }
    uri = registry["tracking_uri"]
    try:
        parent = run_of(uri, registry["name"], int(registry["version"]))
        with (
            child_run(uri, parent, "audit", tags=tags) as child,
            tempfile.TemporaryDirectory(prefix="rapid-") as folder,
        ):
            child.log_metrics(figures)
            path = Path(folder, AUDIT)
            path.write_text(json.dumps(content, indent=2))
            child.log_artifact(path)
    except Exception as error:  # The audit is made and written; a server may be away.
        return masked((str(error).splitlines() or [type(error).__name__])[0])
    return ""
