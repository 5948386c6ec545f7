"""The stage that looks for private images among the public ones: what it writes, asks and obeys."""

import json
import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rapid_dist.audit.contained import contained
from rapid_dist.audit.markers import Markers, random_markers
from rapid_dist.collective import SingleProcess
from rapid_dist.data.declaration import PrivateSource, PublicSource
from rapid_dist.data.images import content_hashes, hash_share
from rapid_dist.errors import BudgetError, ReleaseError
from rapid_dist.methods import artifacts, contamination_stage
from rapid_dist.methods.contamination_stage import ContaminationTask, effective, run_contamination
from rapid_dist.methods.context import RunContext
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.private.contamination import ContaminationConfig
from rapid_dist.storage import LocalStorage
from tests.fakes import ThreadWorkers
from tests.untrained import UntrainedRun

# Of 1,432 and of no near-duplicates; that it crosses a bound of these tests has chance 1e-11.
NOISE = 10.0


class _Books:
    """A keeper that writes down what it is asked for, or refuses."""

    def __init__(self, *, broke: bool = False) -> None:
        self.asked: list[str] = []
        self.broke = broke

    def begin_attempt(self) -> Any:
        self.asked.append("attempt")
        return type("Attempt", (), {"number": len(self.asked)})()

    def charge_query(self, event: GaussianEvent, purpose: str) -> None:
        if self.broke:
            raise BudgetError("nothing left")
        self.asked.append(purpose)


class _Here:
    """Workers and keeper of one process."""

    num_workers = 1

    def __init__(self, books: _Books, said: list[dict[str, float]]) -> None:
        self.workers, self._books, self._said = self, books, said

    def keeper(self) -> Any:
        return self._books

    def run(self, task: ContaminationTask, *, name: str, num_workers: int) -> None:
        task(SingleProcess(), self._said.append)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    return UntrainedRun(tmp_path_factory.mktemp("run"))


SOURCES = (PublicSource(source="letters", count=60), PublicSource(source="digits"))


def _context(
    untrained: UntrainedRun, out: Path, policy: str, books: _Books
) -> tuple[RunContext, list[str], list[dict[str, float]]]:
    """A run on digits, of which one public source is the private data themselves."""
    notes: list[str] = []
    said: list[dict[str, float]] = []
    own = untrained.context([])
    priced = policy != "accept"
    settings = replace(
        own.settings,
        # Of features of an untrained extractor nothing is to be expected.
        contamination=ContaminationConfig(policy=policy, feature_distance=None),  # type: ignore[arg-type]
        more_references=SOURCES[1:],
    )
    query = GaussianEvent(noise_multiplier=NOISE) if priced else None
    context = replace(
        own,
        settings=settings,
        plan=replace(own.plan, contamination=query),
        out=LocalStorage(out),
        internal=LocalStorage(out, private=True).child("internal"),
        backend=_Here(books, said),
        note=notes.append,
    )
    return context, notes, said


def test_accepting_looks_writes_inside_and_charges_nothing(
    untrained: UntrainedRun, tmp_path: Path
) -> None:
    books = _Books()
    context, notes, said = _context(untrained, tmp_path, "accept", books)
    run_contamination(context)
    file = tmp_path / "internal" / "contamination.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = json.loads(file.read_text())
    letters, digits = found["train"]["sources"]
    assert (letters["equal"], digits["equal"]) == (0, 1432)
    assert digits["near"] == found["units"]["near"][1] == 1432
    assert found["held_out"]["sources"][1]["equal"] == found["held_out"]["images"] == 365
    assert found["votes"][1] > 1000
    assert books.asked == []
    assert not (tmp_path / "contamination").exists()
    assert len(notes) == 1
    assert said[-1]["step"] == said[-1]["steps"] == 60 + 1797
    assert not any(character.isdigit() for character in notes[0])


def test_refusing_charges_once_and_refuses_again_without_asking(
    untrained: UntrainedRun, tmp_path: Path
) -> None:
    books = _Books()
    context, _, _ = _context(untrained, tmp_path, "refuse", books)
    for _ in range(2):
        with pytest.raises(ReleaseError, match=r"digits 1[34]\d\d\.\d.*most_units=100"):
            run_contamination(context)
    assert books.asked == ["attempt", "near-duplicates by public source"]
    decision = json.loads((tmp_path / contamination_stage.DECISION).read_text())
    assert decision["condemned"] == [1]
    votes = json.loads((tmp_path / "internal" / "contamination.json").read_text())["votes"]
    assert all(noised != vote for noised, vote in zip(decision["noised"], votes, strict=True))


def test_nothing_is_released_that_the_keeper_refuses_to_charge(
    untrained: UntrainedRun, tmp_path: Path
) -> None:
    context, notes, _ = _context(untrained, tmp_path, "refuse", _Books(broke=True))
    with pytest.raises(BudgetError):
        run_contamination(context)
    assert not (tmp_path / "contamination").exists()
    assert notes == []


def test_a_dropped_source_is_gone_for_all_that_follows(
    untrained: UntrainedRun, tmp_path: Path
) -> None:
    context, notes, _ = _context(untrained, tmp_path, "drop", _Books())
    name = artifacts.knowledge_base_name(untrained.settings)
    artifacts.mark_done(untrained.public.child(name))
    run_contamination(context)
    kept = effective(context).settings
    assert (kept.public, kept.more_references) == (context.settings.public, ())
    assert artifacts.knowledge_base_name(kept) == name
    assert "without them" in notes[-1]


def test_a_run_of_which_every_source_is_condemned_is_refused(
    untrained: UntrainedRun, tmp_path: Path
) -> None:
    context, _, _ = _context(untrained, tmp_path, "drop", _Books())
    settings = replace(context.settings, more_references=())
    context.internal.write("contamination.json", json.dumps({"votes": [900.0]}).encode())
    with pytest.raises(ReleaseError, match=r"above contamination\.most_units"):
        run_contamination(replace(context, settings=settings))


def _planted(untrained: UntrainedRun, folder: Path, markers: Markers) -> ContaminationTask:
    """A pass over planted images, some of which are public as well."""
    np.savez(folder / "private.npz", images=markers.images, labels=markers.labels)
    np.savez(folder / "public.npz", images=np.full((50, 1, 8, 8), 7, np.uint8))
    private = PrivateSource(
        source="npz", name="planted", path=str(folder / "private.npz"), num_records=48,
        num_classes=4, size=8, held_out_share=0.2,
    )  # fmt: skip
    settings = replace(
        untrained.settings,
        private=private,
        more_references=(PublicSource(source="npz", path=str(folder / "public.npz")),),
    )
    return ContaminationTask(
        settings=settings, public_uri=untrained.public.uri, out_uri=str(folder / "out")
    )


def _kinds_left(untrained: UntrainedRun, folder: Path, leak: str = "") -> set[str]:
    """Looks for planted images in all that a pass wrote or said, internal files included."""
    markers = random_markers(60, (1, 8, 8), 4, np.random.default_rng(3))
    with contained(folder) as said:
        task = _planted(untrained, folder, markers)
        reports: list[dict[str, float]] = []
        task = replace(task, settings=replace(task.settings, private=_declared(task)))
        task(SingleProcess(), reports.append)
        if leak == "file":
            (folder / "pairs.json").write_text(json.dumps(markers.images[:3].tolist()))
        elif leak == "log":
            logging.getLogger("pass").warning("near: %s", markers.images[0].ravel().tolist())
    texts = [str(reports), said.printed, *said.lines]
    files = said.files(exempt=("private.npz",))
    assert any(name.endswith("internal/contamination.json") for name in files)
    data = [*(text.encode() for text in texts), *(path.read_bytes() for path in files.values())]
    return {kind for one in data for kind in markers.found_in(one)}


def _declared(task: ContaminationTask) -> PrivateSource:
    """The source with the number of records that its split by content gives."""
    with np.load(str(task.settings.private.path)) as arrays:
        shares = [hash_share(d, "held-out") for d in content_hashes(arrays["images"])]
    held_out = sum(share < task.settings.private.held_out_share for share in shares)
    return replace(task.settings.private, num_records=len(shares) - held_out)


def test_a_pass_leaves_no_trace_of_an_image_not_even_inside(
    untrained: UntrainedRun, tmp_path: Path
) -> None:
    assert _kinds_left(untrained, tmp_path) == set()


@pytest.mark.parametrize("leak", ["file", "log"])
def test_the_search_for_traces_would_notice_a_pair_that_was_kept(
    untrained: UntrainedRun, tmp_path: Path, leak: str
) -> None:
    assert "pixels" in _kinds_left(untrained, tmp_path, leak)


def test_workers_write_the_same_counts_as_one_process(
    untrained: UntrainedRun, tmp_path: Path
) -> None:
    written = []
    for workers in (1, 3):
        out = tmp_path / str(workers)
        context, _, _ = _context(untrained, out, "accept", _Books())
        task = ContaminationTask(
            settings=context.settings, public_uri=untrained.public.uri, out_uri=str(out)
        )
        threads = torch.get_num_threads()
        ThreadWorkers(workers).run(lambda c, task=task: task(c, lambda figures: None))  # type: ignore[misc]
        torch.set_num_threads(threads)
        found = json.loads((out / "internal" / "contamination.json").read_text())
        counts = [
            {key: value for key, value in source.items() if "quantiles" not in key}
            for part in ("train", "held_out")
            for source in found[part]["sources"]
        ]
        written.append((counts, found["votes"], found["units"]))
    assert written[0] == written[1]
