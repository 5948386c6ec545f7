"""Check 5: what can be seen of a run besides its releases does not depend on the data.

Two questions. With the same secret key, do data sets that differ in one record, or in all, give the
same steps, the same exchanges between two workers, the same questions to the keeper, the same
words, and files of the same names and sizes? And if the releases are put in by hand, the same for
both, is everything else the same to the byte: final weights, averages, checkpoints, figures, words?
Then whatever a run leaves is a function of its releases and of nothing else.

How many micro-batches a step has, and so how long it takes, depends on the size of its Poisson
batch. That is drawn from the secret key without a look at the data, so it is the same for both; it
is secret nevertheless (P9), and no message or file tells it.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rapid_dist.audit.accountants import pld_epsilon
from rapid_dist.audit.contribution import extreme_images
from rapid_dist.audit.observed import Observed, observe
from rapid_dist.audit.result import CheckResult, Profile
from rapid_dist.audit.subject import Subject
from rapid_dist.audit.workers import ThreadWorkers
from rapid_dist.data.images import PrivateImages
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.settings import Budget

CHECK = "control flow"
_UNITS = 8
_STEPS: dict[Profile, int] = {"quick": 8, "full": 24}
_WORKERS = 2
_HASH = re.compile(r"[0-9a-f]{8,}")  # A content's hash in a file's name.
Run = Callable[[PrivateImages, Path], Observed]  # (data, folder) -> what was seen.
_OWN = {"time", "writer", "hash", "previous"}  # Of an entry: clock, process and chain.


def check_control_flow(subject: Subject, profile: Profile) -> list[CheckResult]:
    """Runs the loop on neighbouring data sets and compares all that shows."""
    small = subject.on(extreme_images(subject.images, min(_UNITS, subject.images.spec.num_units)))
    secret = subject.new_key().reveal()
    small = replace(
        small,
        new_key=lambda: SecretKey.from_bytes(secret),
        config=replace(small.config, checkpoint_every=2),
        mechanism=replace(small.mechanism, steps=_STEPS[profile]),
    )

    def canned(released: torch.Tensor, step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        stddev = small.mechanism.noise_stddev / small.mechanism.expected_batch
        return stddev * torch.randn(released.shape, generator=generator)

    def on_workers(images: PrivateImages, folder: Path) -> Observed:
        workers, own = ThreadWorkers(_WORKERS), replace(small, images=images)
        return observe(own, folder, _ample(small), workers=workers)

    def by_hand(images: PrivateImages, folder: Path) -> Observed:
        return observe(replace(small, images=images), folder, _ample(small), canned=canned)

    return [
        same_course(
            small.images,
            on_workers,
            f"On {_WORKERS} workers; micro-batches are as many as the key, not the data, says.",
        ),
        same_bytes(small.images, by_hand),
    ]


def neighbours(images: PrivateImages) -> dict[str, PrivateImages]:
    """Returns data sets that differ from ``images`` in one record, and in all, by name."""
    one_black, one_noisy, all_other = (images.images.copy() for _ in range(3))
    one_black[-1] = 0
    one_noisy[-1] = 255 * (np.indices(one_noisy.shape[1:]).sum(0) % 2)
    all_other = 255 - all_other[::-1]
    other_labels = images.labels.copy()
    other_labels[-1] = (other_labels[-1] + 1) % max(1, images.spec.num_classes)
    return {
        "one record black": replace(images, images=one_black),
        "one record a chessboard, of another class": replace(
            images, images=one_noisy, labels=other_labels
        ),
        "every record another": replace(images, images=np.ascontiguousarray(all_other)),
        "every record black": replace(images, images=np.zeros_like(images.images)),
    }


def same_course(images: PrivateImages, run: Run, detail: str = "") -> CheckResult:
    """Runs on neighbouring data sets, and compares what shows of each but its content."""
    own = _course(images, run)
    found = {
        name: _differences(own, _course(other, run)) for name, other in neighbours(images).items()
    }
    return CheckResult(
        check=CHECK,
        question="Do neighbouring data sets give the same steps, messages, words and files?",
        statistic=_listed(found),
        bound="no difference",
        false_alarm=0.0,
        passed=not any(found.values()),
        detail=(
            f"{own['steps']} steps, {sum(len(one) for one in own['messages'])} exchanges between "
            f"workers, {len(own['keeper'])} questions to the keeper, {len(own['files'])} files; "
            f"the key is the same. {detail}"
        ).rstrip(),
    )


def same_bytes(images: PrivateImages, run: Run) -> CheckResult:
    """Runs on neighbouring data sets whose releases are put in by hand, and compares all bytes."""
    own = _content(images, run)
    found = {
        name: _differences(own, _content(other, run)) for name, other in neighbours(images).items()
    }
    return CheckResult(
        check=CHECK,
        question="Given the same releases, is all that a run leaves the same to the byte?",
        statistic=_listed(found),
        bound="no difference",
        false_alarm=0.0,
        passed=not any(found.values()),
        detail=(
            f"{len(own['files'])} files, the final weights, the figures and the words of a run "
            "whose releases were put in by hand."
        ),
    )


def _course(images: PrivateImages, run: Run) -> dict[str, Any]:
    """What shows of a run on these images, as values that can be compared."""
    with tempfile.TemporaryDirectory() as folder:
        seen = run(images, Path(folder))
        return {**_plain(seen), "files": _files(seen, lambda path: path.stat().st_size)}


def _content(images: PrivateImages, run: Run) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        seen = run(images, Path(folder))
        weights = b"".join(tensor.cpu().numpy().tobytes() for tensor in seen.weights)
        digest = hashlib.sha256(weights).hexdigest()
        return {**_plain(seen), "weights": digest, "files": _files(seen, _bytes_of)}


def _plain(seen: Observed) -> dict[str, Any]:
    assert seen.said is not None
    return {
        "steps": len(seen.released),
        "updates": seen.updates,
        "messages": seen.messages,
        "keeper": seen.asked,
        "figures": seen.figures,
        "refusal": seen.refusal,
        "lines": seen.said.lines,
        "printed": seen.said.printed,
    }


def _files(seen: Observed, of: Callable[[Path], Any]) -> list[tuple[str, Any]]:
    """Every file's name, hashes in it left out, with what ``of`` says; entries by their content."""
    assert seen.said is not None
    return [
        (_HASH.sub("#", name), _entry(path) if name.startswith("ledger/") else of(path))
        for name, path in seen.said.files().items()
        if "kept-aside/" not in name or not _is_half_written(name)
    ]


def _is_half_written(name: str) -> bool:
    """Storage writes under a random name first; the same bytes are there under their own."""
    return name.rpartition("/")[2].startswith(".tmp-")


def _entry(path: Path) -> Any:
    content = json.loads(path.read_bytes())
    return {key: value for key, value in content.items() if key not in _OWN}


def _bytes_of(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        # Its writer puts the keys of the header in an order of its own, another every time.
        end = 8 + int.from_bytes(data[:8], "little")
        data = json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]
    return hashlib.sha256(data).hexdigest()


def _ample(subject: Subject) -> Budget:
    mechanism, delta = subject.mechanism, subject.budget.delta
    spent = pld_epsilon([mechanism.event(mechanism.steps)], delta, 1e-3)
    return Budget(epsilon=2 * spent + 1, delta=delta)


def _differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in one if one[name] != other[name]]


def _listed(found: dict[str, list[str]]) -> str:
    parts = [f"{name}: {', '.join(parts)} differ" for name, parts in found.items() if parts]
    return "; ".join(parts) or f"{len(found)} data sets, no difference"
