"""The cost model of large knowledge bases: arithmetic by hand, and its place in the document."""

import argparse
from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.test_benchmarks import ROOT, _benchmark

MEASURED = {
    "trajectories_per_core_second": 100.0,
    "scores_per_core_second": 1e9,
    "stored_bytes_per_entry": 500.0,
    "inverted_speed_up": 20.0,
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return _benchmark("knowledge_base")


def test_costs_are_linear_in_entries_and_over_nodes(benchmark: ModuleType) -> None:
    options = argparse.Namespace(node_cores=10, dim=250)
    small, _, large = benchmark.cost_model(MEASURED, options)
    assert (small["entries"], large["entries"], large["nodes"]) == ("1,000,000", "100,000,000", 64)
    assert small["vectors GB a node"] == pytest.approx(1.0)
    assert small["build hours"] == pytest.approx(1000 / 3600)
    assert small["exact queries/s"] == pytest.approx(1e4)
    assert small["by inverted lists, queries/s"] == pytest.approx(2e5)
    assert small["node hours / 1e6 queries"] == pytest.approx(100 / 3600)
    assert large["stored GB"] == pytest.approx(50)
    assert large["build node hours"] == pytest.approx(100 * small["build node hours"])
    assert large["node hours / 1e6 queries"] == pytest.approx(
        100 * small["node hours / 1e6 queries"]
    )


def test_the_table_stands_between_its_marks_and_is_replaced(benchmark: ModuleType) -> None:
    text = Path(benchmark.DOCUMENT).read_text(encoding="utf-8")
    costs = benchmark.cost_model(MEASURED, argparse.Namespace(node_cores=10, dim=250))
    once = benchmark.documented(text, costs, 20_000, 64)
    assert "From 20,000 entries of 64 dimensions" in once
    assert "| 100,000,000 | 64 |" in once
    assert benchmark.documented(once, costs, 20_000, 64) == once
    assert once.startswith(text.partition(benchmark.BEGIN)[0])
    assert once.endswith(text.partition(benchmark.END)[2])
