"""Where the stages of a method run: on a Ray cluster, or in this process.

Both give the same result. Neither holds anything of a run but the actors it has started. Ray is
imported by whoever asks for it alone: a run in one process starts faster, and where Ray is not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rapid_dist.config import RuntimeConfig
from rapid_dist.diffusion.compute import device_named
from rapid_dist.methods.context import Keeper, Searcher, Workers
from rapid_dist.privacy.accounting import PrivacyPlan
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent
from rapid_dist.public.build import ShardPlan, ShardTask
from rapid_dist.retrieval.knowledge_base import KnowledgeBase
from rapid_dist.retrieval.manifest import ShardRecord
from rapid_dist.runtime.process_workers import ProcessWorkers
from rapid_dist.runtime.signals import Notice
from rapid_dist.storage import Storage

if TYPE_CHECKING:
    from rapid_dist.runtime.ray_backend import RayBackend

OnReport = Callable[[str, dict[str, float]], None]  # (stage, its figures)
OnNote = Callable[[str], None]  # A line for whoever looks on.


@dataclass(frozen=True, kw_only=True)
class KeeperMaker:
    """Opens the keeper of one run's ledger where it is called; may be sent to an actor."""

    ledger_uri: str
    dataset: str
    run: str
    plan: PrivacyPlan
    unit: str

    def __call__(self) -> LedgerKeeper:
        plan = self.plan
        if plan.stepped is not None:
            event, steps = plan.stepped.event(1), plan.stepped.steps
        else:  # A run of the prior alone: no step is planned, so none can be charged.
            event, steps = DpSgdEvent(sample_rate=1.0, noise_multiplier=1.0, steps=1), 0
        return LedgerKeeper(
            Ledger.open(self.ledger_uri, self.dataset),
            self.run,
            plan.budget,
            event,
            planned_steps=steps,
            reserve_steps=plan.reserve_steps,
            unit=self.unit,
        )


class ProcessBackend:
    """Everything in this process, one after the other."""

    def __init__(
        self,
        runtime: RuntimeConfig,
        make_keeper: KeeperMaker,
        on_report: OnReport,
        on_note: OnNote = lambda line: None,
        notice: Notice | None = None,
    ) -> None:
        self.workers: Workers = ProcessWorkers(
            threads=runtime.threads_per_worker, on_report=on_report, notice=notice
        )
        self.num_workers = 1
        self.device = device_named(runtime.device).type
        self._make_keeper = make_keeper
        self._on_report = on_report

    def keeper(self) -> Keeper:
        return self._make_keeper()

    def build_shards(self, plans: Sequence[ShardPlan], task: ShardTask) -> list[ShardRecord]:
        records = []
        for plan in plans:
            records.append(task.build(plan))
            self._on_report("index", {"step": len(records), "steps": len(plans)})
        return records

    def searcher(self, storage: Storage) -> Searcher:
        return KnowledgeBase.open(storage)

    def private_searcher(self, storage: Storage) -> None:
        return None

    def close(self) -> None:
        pass


def open_backend(
    runtime: RuntimeConfig,
    make_keeper: KeeperMaker,
    on_report: OnReport,
    on_note: OnNote = lambda line: None,
    notice: Notice | None = None,
) -> "ProcessBackend | RayBackend":
    """Returns the backend that is set; one on Ray works on the cluster that is connected."""
    if runtime.backend == "process":
        return ProcessBackend(runtime, make_keeper, on_report, on_note, notice)
    from rapid_dist.runtime.ray_backend import RayBackend

    return RayBackend(runtime, make_keeper, on_report, on_note, notice)


def open_keeper(runtime: RuntimeConfig, make_keeper: KeeperMaker) -> Keeper:
    """Returns a keeper: on Ray an actor beside the driver, which outlives workers."""
    if runtime.backend == "process":
        return make_keeper()
    from rapid_dist.runtime.keeper_client import keep_beside_driver

    return keep_beside_driver(make_keeper)
