"""What a stage is given: settings, places to read and write, and whoever runs its loops.

A stage knows neither Ray nor MLflow. It asks a ``Backend`` to run a loop on workers, to build
shards or to search them; one backend is this process, the other is a cluster.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from rapid_dist.methods.settings import MethodSettings
from rapid_dist.methods.task import Report as Report
from rapid_dist.methods.task import Task as Task
from rapid_dist.privacy.accounting import PrivacyPlan
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.private.loop import Keeper as StepKeeper
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.step import ClippedSum
from rapid_dist.public.build import ShardPlan, ShardTask
from rapid_dist.retrieval.manifest import ShardRecord
from rapid_dist.storage import Storage


class Workers(Protocol):
    """Runs one loop on several workers at once."""

    def run(self, task: Task, *, name: str, num_workers: int, private: bool = True) -> None:
        """Returns when every worker has; a refusal of any of them is raised here.

        Args:
          private: whether the loop reads private records. If not, its processes may be given
            another loop afterwards.
        """


class Keeper(StepKeeper, Protocol):
    """The ledger's keeper, wherever it lives: of steps, and of queries as well."""

    def charge_query(self, event: GaussianEvent, purpose: str) -> None: ...

    def stopped(self) -> str:
        """How the run stopped short of its plan, in words; nothing if it did not."""


class Searcher(Protocol):
    """Exact search over the knowledge base, in one process or on several actors."""

    def search(
        self, queries: np.ndarray, k: int, labels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """float32 [Q, D], int64 [Q] -> squared L2 float32 [Q, k] ascending, ids int64 [Q, k]."""

    def images(self, ids: np.ndarray) -> np.ndarray:
        """Entries int64 [n] -> their reference images, uint8 [n, C, H, W]."""


class Backend(Protocol):
    """Where stages run."""

    workers: Workers
    num_workers: int

    def keeper(self) -> Keeper:
        """Returns the keeper of this run's ledger."""

    def build_shards(self, plans: Sequence[ShardPlan], task: ShardTask) -> list[ShardRecord]:
        """Returns the records of all planned shards, in the order of their plans."""

    def searcher(self, storage: Storage) -> Searcher:
        """Returns a searcher of the knowledge base in ``storage``; public queries only."""

    def private_searcher(self, storage: Storage) -> Searcher | None:
        """Returns one that may be sent to a worker, or None where each opens a copy of its own."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run of a method."""

    settings: MethodSettings
    plan: PrivacyPlan
    out: Storage
    internal: Storage  # What was measured against private records; never released (P13).
    public: Storage  # Artefacts of public stages, shared between runs, named by their settings.
    backend: Backend
    privacy: Callable[[], dict[str, Any]]  # What the ledger says now, as in summary.json.
    versions: dict[str, str]
    report: Callable[[str, dict[str, float]], None]  # (stage, how far it is), from this process.
    note: Callable[[str], None] = lambda line: None  # A line to show; nothing private.
    run: str = ""  # Its name in the ledger; what it stores says whose it is.
    device: str = "cpu"  # Where workers compute: cpu, or the CUDA device that each of them has.
    memory_gb: float = 1.0  # What one worker may take of the host's memory.
    engine: ClippedSum = clipped_sum  # The audit puts one that looks on around it.


# charged: what comes of private records goes through charged mechanisms. public: no private record
# is read before the evaluation. none: no privacy whatever, and nothing of it may leave.
Promise = Literal["charged", "public", "none"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a method; ``run`` does it, or finds that it is done."""

    name: str
    run: Callable[[RunContext], None]
    # The folder of its result in the public store, which is shared and may be cleared.
    artifact: Callable[[MethodSettings], str] | None = None
