"""Check 6: nothing that is written or said holds a private value that was not noised (P9, P13).

Random images stand in for the private ones, under file names that cannot be met by chance, and
what the engine learns of them (losses, norms, batch sizes) is written down while it works. After
the run, every file below its folder is searched (run directory, ledger, checkpoints, MLflow's
database and artefacts, temporary files, what was removed or replaced on the way), and every word
that was logged or printed, and the text of a refusal.

Twice: on the product's loop with the parts under test, and on a whole run of a tiny recipe, with
its evaluation, its report and its registered model. The run's own ``internal`` folder is exempt:
what was measured against private records may be there. Its files are counted.
"""

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rapid_dist.audit.accountants import pld_epsilon
from rapid_dist.audit.contained import Contained, contained
from rapid_dist.audit.markers import Markers, random_markers
from rapid_dist.audit.observed import observe
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.subject import Subject
from rapid_dist.data.images import PrivateImages
from rapid_dist.errors import RapidError
from rapid_dist.privacy.settings import Budget
from rapid_dist.private.step import ClippedSum

CHECK = "silence"
FALSE_ALARM = 1e-4  # At most, that a value of the markers stands somewhere by chance.
_UNITS = 40  # Labels in random order are told by 32 of them.
_STEPS = 5
# Of the recipe's own share, batches may hold nobody, of whom nothing can be looked for, or one and
# none, which numbers of any text are by chance. What a loop says does not depend on it.
LEAST_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A whole run of a tiny recipe on planted images."""

    markers: Markers
    run: Callable[[Path, ClippedSum], None]  # In this folder, with this engine.
    run_broken: Callable[[Path], None]  # On a source of which one file cannot be read.
    source: str  # The folder, below that of the run, that holds the planted images themselves.
    internal: str  # And the one in which the run keeps what it measured against them.


def check_silence(subject: Subject, profile: Profile) -> list[CheckResult]:
    """Searches what the product's loop leaves behind with the parts under test."""
    rng = subject.new_key().generator("markers")
    spec = replace(subject.images.spec, num_records=_UNITS, num_groups=None)
    shape = (spec.channels, spec.size, spec.size)
    markers = random_markers(_UNITS, shape, spec.num_classes, rng)
    images = PrivateImages(images=markers.images, labels=markers.labels, spec=spec)
    own = subject.on(images)
    own = replace(
        own,
        engine=markers.watching(subject.engine),
        config=replace(own.config, images_per_group=1, micro_batch=_UNITS, checkpoint_every=2),
        mechanism=replace(
            own.mechanism,
            steps=_STEPS,
            expected_batch=max(own.mechanism.expected_batch, LEAST_SHARE * _UNITS),
        ),
    )
    event, delta = own.mechanism.event(_STEPS), own.budget.delta
    budget = Budget(epsilon=2 * pld_epsilon([event], delta, 1e-3) + 1, delta=delta)
    with tempfile.TemporaryDirectory() as folder:
        seen = observe(own, Path(folder), budget)
        assert seen.said is not None
        words = {"figures": str(seen.figures), "refusal": seen.refusal}
        return [
            searched(
                "Does the loop of private training write and say nothing private?",
                markers,
                seen.said,
                words,
            )
        ]


def check_pipeline_silence(pipeline: Pipeline, engine: ClippedSum) -> list[CheckResult]:
    """Searches what a whole run leaves behind, and what a refused one says."""
    markers = pipeline.markers
    with tempfile.TemporaryDirectory() as folder:
        with contained(Path(folder)) as said:
            pipeline.run(Path(folder), markers.watching(engine))
        whole = searched(
            "Does a whole run leave nothing private outside its internal folder?",
            markers,
            said,
            exempt=(pipeline.internal, pipeline.source),
        )
    refusal = ""
    with tempfile.TemporaryDirectory() as folder:
        with contained(Path(folder)) as said:
            try:
                pipeline.run_broken(Path(folder))
            except RapidError as error:
                refusal = str(error)
        broken = searched(
            "Does a run that fails on a private file not name it?",
            markers,
            said,
            {"refusal": refusal},
            exempt=(pipeline.internal, pipeline.source),
        )
    return [whole, replace(broken, passed=broken.passed and bool(refusal))]


def searched(
    question: str,
    markers: Markers,
    said: Contained,
    words: dict[str, str] | None = None,
    *,
    exempt: tuple[str, ...] = (),
) -> CheckResult:
    """Looks for the markers in every file and word, but for files in the folders ``exempt``."""
    spoken = {"log": "\n".join(said.lines), "terminal": said.printed, **(words or {})}
    contents: dict[str, bytes] = {name: text.encode() for name, text in spoken.items()}
    files = said.files(exempt=exempt)
    size, found = 0, {}
    for name, path in files.items():
        contents[name] = path.read_bytes()
    known: dict[bytes, set[str]] = {}  # Many files are copies of one another.
    for name, data in contents.items():
        size += len(data)
        digest = hashlib.sha256(data).digest()
        if digest not in known:
            known[digest] = markers.found_in(data)
        kinds = known[digest] | markers.found_in(name.encode())
        if kinds:
            found[name] = sorted(kinds)
    left_out = len(said.files()) - len(files)
    listed = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in sorted(found.items())[:8])
    calls = len(markers.sizes)
    return CheckResult(
        check=CHECK,
        question=question,
        statistic=f"{len(found)} of {len(contents)} files and texts hold a private value",
        bound="none",
        false_alarm=FALSE_ALARM,
        passed=not found,
        detail=(f"{listed}. " if listed else "")
        + f"{size / 2**20:.1f} MiB searched for pixels, labels, names, embeddings, and losses, "
        f"norms and sizes of {calls} batches; {left_out} files exempt.",
    )
