"""The sizing benchmark: costs by hand, and its table in the document."""

import json
from types import ModuleType

import pytest

from tests.unit.test_benchmarks import ROOT, _benchmark

# Of recipe digits: 140 steps of 512 records, 400 and 250 public steps of 128, 2,000 images of 12.
MEASURED = {
    "private row": 0.001,
    "plain row": 0.0005,
    "evaluation": 0.0001,
    "values": 2.5e5,
    "worker bytes": 2.0**30,
    "checkpoint bytes": 4e6,
    "ledger bytes a step": 500.0,
}
LINK = {"append": 0.0, "bandwidth": 1e12, "latency": 0.0, "noise": 0.0}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return _benchmark("sizing")


def test_core_hours_are_rows_times_what_a_row_takes(benchmark: ModuleType) -> None:
    cost = benchmark.cost_of("digits", MEASURED, LINK)
    assert cost["private core hours"] == pytest.approx(140 * 512 * 0.001 / 3600)
    assert cost["public core hours"] == pytest.approx((400 + 250) * 128 * 0.0005 / 3600)
    assert cost["sampling core hours"] == pytest.approx(2000 * 12 * 0.0001 / 3600)
    assert cost["ledger, MB"] == pytest.approx(140 * 500 / 1e6)
    assert cost["GB a worker"] == 1.0


def test_many_workers_pay_for_rows_that_pad_and_for_the_link(benchmark: ModuleType) -> None:
    cost = benchmark.cost_of("digits", MEASURED, LINK)
    eight = cost["hours on 1 x 8"]
    assert eight * 8 >= cost["private core hours"]  # A slice is padded to whole micro-batches.
    slow = benchmark.cost_of("digits", MEASURED, {**LINK, "bandwidth": 1e6, "latency": 0.01})
    ring = 2 * 7 / 8 * 4 * 2.5e5 / 1e6 + 7 * 0.01
    assert slow["hours on 1 x 8"] - eight == pytest.approx(140 * ring / 3600)


def test_the_documents_table_is_that_of_the_results(benchmark: ModuleType) -> None:
    text = benchmark.OPERATIONS.read_text(encoding="utf-8")
    results = ROOT / "benchmarks" / "results" / "sizing.json"
    found = json.loads(results.read_text())
    assert {row["recipe"] for row in found["rows"]} == set(benchmark.RECIPES)
    lines = benchmark.table(found["rows"], found["columns"])
    assert benchmark.in_document(text, "sizing", lines) == text
    for row in found["rows"]:
        again = benchmark.cost_of(row["recipe"], found["measured"][row["recipe"]], found["link"])
        del again["recipe"]
        assert {name: row[name] for name in again} == pytest.approx(again)
