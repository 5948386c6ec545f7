"""How long stages took: in the run's directory, and beside public artefacts, which runs share.

Whoever finds a public artefact there has spent no time on it. A comparison counts the time of
making it for every method that uses it, so it is noted where all of them find it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from rapid_dist.methods.context import RunContext, Stage
from rapid_dist.methods.seal import is_done, read_table
from rapid_dist.runtime.run_directory import RunDirectory
from rapid_dist.storage import Storage

MADE = "made.json"  # In a public artefact's folder, not sealed: it is no content of it.


@contextmanager
def timed(directory: RunDirectory, stage: Stage, context: RunContext) -> Iterator[None]:
    """Times a stage; if it makes a public artefact, notes beside that how long it took."""
    made = None
    if stage.artifact is not None:
        place = context.public.child(stage.artifact(context.settings))
        made = None if is_done(place) else place
    with directory.stage(stage.name):
        yield
    if made is not None:
        took = {"seconds": directory.seconds([stage.name])[stage.name]}
        made.write(MADE, json.dumps(took).encode())


def seconds_of_making(artifact: Storage) -> float | None:
    """Returns how long a public artefact took; None if it is older than such notes.

    Raises:
      CheckpointError: the note is torn.
    """
    if not artifact.exists(MADE):
        return None
    return float(read_table(artifact, MADE, "Delete it: it is a note of seconds.")["seconds"])
