"""The ledger's keeper on a cluster: one actor beside the driver, and its clients on the workers.

Workers come and go; the one who writes the ledger stays where the driver is, and there is one of
it. It is never restarted: a keeper without its memory could not tell what is still affordable.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError, RayTaskError

from rapid_dist.errors import LedgerError
from rapid_dist.privacy.accounting import Epsilons
from rapid_dist.privacy.keeper import Attempt, LedgerKeeper
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.runtime.beside_driver import place_beside_driver

T = TypeVar("T")


class KeeperClient:
    """A ``LedgerKeeper`` that lives elsewhere; may be sent to workers."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Attempt:
        return _asked(self._actor.begin_attempt.remote(after), Attempt)

    def charge(self, step: int, attempt: int | None = None) -> None:
        """Returns when the entry is durable; raises what the keeper raised."""
        _asked(self._actor.charge.remote(step, attempt), type(None))

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        _asked(self._actor.stop_short.remote(step, attempt), type(None))

    def stopped(self) -> str:
        return _asked(self._actor.stopped.remote(), str)

    def charge_query(self, event: GaussianEvent, purpose: str) -> None:
        _asked(self._actor.charge_query.remote(event, purpose), type(None))

    def affordable_steps(self) -> int:
        return _asked(self._actor.affordable_steps.remote(), int)

    def spent(self) -> Epsilons:
        return _asked(self._actor.spent.remote(), Epsilons)


def keep_beside_driver(make_keeper: Callable[[], LedgerKeeper]) -> KeeperClient:
    """Starts the keeper on the driver's node and returns a client of it."""
    return KeeperClient(place_beside_driver(_Keeper, make_keeper))


class _Keeper:
    """The actor. Opens the ledger when first asked: a torn one is then an error, not a death."""

    def __init__(self, make_keeper: Callable[[], LedgerKeeper]) -> None:
        self._make = make_keeper
        self._made: LedgerKeeper | None = None

    def _keeper(self) -> LedgerKeeper:
        if self._made is None:
            self._made = self._make()
        return self._made

    def begin_attempt(self, after: tuple[int, int] | None = None) -> Attempt:
        return self._keeper().begin_attempt(after)

    def charge(self, step: int, attempt: int | None = None) -> None:
        self._keeper().charge(step, attempt)

    def stop_short(self, step: int, attempt: int | None = None) -> None:
        self._keeper().stop_short(step, attempt)

    def stopped(self) -> str:
        return self._keeper().stopped()

    def charge_query(self, event: GaussianEvent, purpose: str) -> None:
        self._keeper().charge_query(event, purpose)

    def affordable_steps(self) -> int:
        return self._keeper().affordable_steps()

    def spent(self) -> Epsilons:
        return self._keeper().spent()


def _asked(reference: Any, kind: type[T]) -> T:
    try:
        answer = ray.get(reference)
    except RayTaskError as error:
        raise error.cause from None  # Our own error, without Ray's page of traceback in its text.
    except RayActorError:  # Final: no start of the workers brings it back.
        raise LedgerError(
            "The ledger's keeper beside the driver has ended, so nothing can be charged any more. "
            "Look why at the driver's node, then run the same command again to go on."
        ) from None
    assert isinstance(answer, kind)
    return answer
