"""The keeper on a cluster charges the ledger as it does in one process."""

from functools import partial
from pathlib import Path

import pytest

from rapid_dist.errors import BudgetError, LedgerError
from rapid_dist.privacy.keeper import LedgerKeeper
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import DpSgdEvent
from rapid_dist.privacy.settings import Budget
from rapid_dist.runtime.keeper_client import keep_beside_driver

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def _keeper(root: Path) -> LedgerKeeper:
    return LedgerKeeper(
        Ledger.open(root, "digits"),
        "run",
        Budget(epsilon=10.0, delta=1e-4),
        DpSgdEvent(sample_rate=0.1, noise_multiplier=2.0, steps=1),
        planned_steps=3,
    )


def test_a_charge_is_in_the_ledger_when_the_client_returns(tmp_path: Path) -> None:
    client = keep_beside_driver(partial(_keeper, tmp_path))
    attempt = client.begin_attempt()
    assert attempt.number == 1
    assert attempt.affordable_steps == client.affordable_steps() == 3
    for step in range(3):
        client.charge(step)
        assert Ledger.open(tmp_path, "digits").entries()[-1].step == step
    assert client.spent().reported < 10.0


def test_a_refusal_arrives_as_it_was_said(tmp_path: Path) -> None:
    client = keep_beside_driver(partial(_keeper, tmp_path))
    client.begin_attempt()
    with pytest.raises(BudgetError, match="Step 3 of run 'run' is not among the 3 planned") as e:
        client.charge(3)
    assert type(e.value) is BudgetError
    assert "\n" not in str(e.value)


def test_a_torn_ledger_is_an_error_and_not_a_dead_actor(tmp_path: Path) -> None:
    keeper = _keeper(tmp_path)
    keeper.begin_attempt()
    entry = next((tmp_path / "digits").iterdir())
    entry.write_bytes(entry.read_bytes()[:-9])
    with pytest.raises(LedgerError, match=entry.name):
        keep_beside_driver(partial(_keeper, tmp_path)).begin_attempt()
