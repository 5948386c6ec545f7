"""What a run tells Prometheus and its JSON log, and that nothing private is among it."""

import io
import json
import re
from pathlib import Path

import pytest

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.accounting import epsilons
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.runtime.figures import Figures
from rapid_dist.runtime.metrics import GAUGES, EpsilonWatch, StageMeter
from rapid_dist.runtime.metrics_log import JsonProgress, event, wants_json
from rapid_dist.runtime.search_pool import SearchPool
from tests.fakes import FakeClock, MemoryStorage

GRAFANA = Path(__file__).resolve().parents[2] / "cluster" / "grafana.json"


class Heard:
    """A meter that remembers."""

    def __init__(self) -> None:
        self.now: dict[tuple[str, str], float] = {}
        self.timed: list[float] = []

    def set(self, name: str, value: float, tags: dict[str, str]) -> None:
        assert name in GAUGES
        self.now[name, tags.get("stage", "")] = value

    def observe(self, name: str, value: float, tags: dict[str, str]) -> None:
        self.timed.append(value)


def test_pace_is_the_mean_since_the_stage_began_here():
    heard = Heard()
    meter = StageMeter(meter=heard, clock=FakeClock())  # A second a look.
    for step in (11, 12, 13):
        meter.on_report("pretrain", {"step": step, "steps": 20, "rows": 64})
    assert heard.now["rapid_dist_step", "pretrain"] == 13
    assert heard.now["rapid_dist_step_seconds", "pretrain"] == 1.0
    assert heard.now["rapid_dist_rows_per_second", "pretrain"] == 64.0
    meter.on_report("pretrain", {"step": 5, "steps": 20, "rows": 64})  # Began again.
    meter.on_report("pretrain", {"step": 9, "steps": 20, "rows": 64})
    assert heard.now["rapid_dist_step_seconds", "pretrain"] == 0.25


def test_shards_and_pieces_that_wait_are_counted():
    heard = Heard()
    meter = StageMeter(meter=heard)
    meter.on_report("index", {"step": 1, "steps": 4})
    meter.on_search(0.02, 3)
    assert heard.now["rapid_dist_queue_depth", ""] == 3
    assert heard.now["rapid_dist_search_waiting", ""] == 3
    assert heard.timed == [0.02]


def test_of_a_private_stage_the_meter_hears_how_far_it_is_and_nothing_else():
    heard: list[tuple[str, dict[str, float]]] = []
    log = JsonProgress("run", file=io.StringIO())
    figures = Figures(MemoryStorage(), log, observe=lambda *report: heard.append(report))
    figures.on_report("train", {"step": 1, "steps": 2, "rows": 32, "loss": 0.5, "norm": 7.0})
    figures.on_report("pretrain", {"step": 1, "steps": 2, "loss": 0.5})
    assert heard[0] == ("train", {"step": 1, "steps": 2, "rows": 32})
    assert heard[1][1]["loss"] == 0.5


def test_private_queries_cannot_be_timed():
    with pytest.raises(ConfigError, match="not observed"):
        SearchPool("nowhere", private=True, observe=lambda seconds, waiting: None)


def test_epsilon_is_the_ledgers_and_is_computed_only_when_something_was_charged(tmp_path):
    heard = Heard()
    opened = []

    def open_ledger() -> Ledger:
        opened.append(1)
        return Ledger.open(tmp_path, "digits")

    ledger = Ledger.open(tmp_path, "digits")
    attempt = ledger.begin_attempt("one")
    watch = EpsilonWatch(heard, open_ledger, "one", 1e-4)
    watch.look()
    assert heard.now == {}
    events = [GaussianEvent(noise_multiplier=8.0)]
    ledger.append("query", run="one", attempt=attempt, event=events[0])
    other = ledger.begin_attempt("two")
    ledger.append("query", run="two", attempt=other, event=events[0])
    watch.look()
    expected = epsilons(events, 1e-4).reported
    assert heard.now["rapid_dist_epsilon", ""] == expected  # Of this run, not of the other.
    heard.now.clear()
    watch.look()
    assert heard.now == {}
    assert len(opened) == 1


def test_a_run_shorter_than_a_look_tells_its_epsilon_and_one_that_fails_looks_no_more(tmp_path):
    heard = Heard()
    ledger = Ledger.open(tmp_path, "digits")
    attempt = ledger.begin_attempt("one")
    event = GaussianEvent(noise_multiplier=8.0)
    ledger.append("query", run="one", attempt=attempt, event=event)

    def watch() -> EpsilonWatch:
        return EpsilonWatch(heard, lambda: Ledger.open(tmp_path, "digits"), "one", 1e-4)

    with pytest.raises(KeyboardInterrupt), watch():
        raise KeyboardInterrupt
    assert heard.now == {}
    with watch():
        pass
    assert heard.now["rapid_dist_epsilon", ""] == epsilons([event], 1e-4).reported


def test_every_number_of_the_dashboard_is_one_that_is_told():
    dashboard = json.loads(GRAFANA.read_text())
    expressions = " ".join(
        target["expr"] for panel in dashboard["panels"] for target in panel["targets"]
    )
    shown = set(re.findall(r"ray_(rapid_dist_\w+)", expressions))
    assert shown == {*GAUGES, "rapid_dist_search_seconds_bucket"}


def test_a_line_of_the_log_names_run_rank_and_host():
    file = io.StringIO()
    event("digits-1", 3, "begins", file=file, clock=lambda: 12.3456, stage="train")
    line = json.loads(file.getvalue())
    assert line.pop("host")
    assert line == {
        "time": 12.346, "run": "digits-1", "rank": 3, "event": "begins", "stage": "train"
    }  # fmt: skip


def test_the_json_log_says_a_stages_steps_now_and_then_and_its_last_one_always():
    file = io.StringIO()
    log = JsonProgress("run", file=file, clock=FakeClock(), every_sec=5)
    for step in range(1, 13):
        log.update("train", step, 12)
    log.note("done")
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 6, 11, 12]
    assert lines[-1]["line"] == "done"


def test_json_is_written_where_it_is_asked_for_alone():
    assert wants_json({"RAPID_DIST_LOG": "json"})
    assert not wants_json({})
