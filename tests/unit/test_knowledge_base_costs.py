"""The knowledge base's benchmark: rates and costs by hand, and their place in the document."""

from pathlib import Path
from types import ModuleType

import pytest

from tests.unit.test_benchmarks import ROOT, _benchmark

MEASURED = {
    "trajectories_per_core_second": 100.0,
    "scores_per_core_second": 1e9,
    "bytes_beside_keys": 500.0,
    "inverted_speed_up": 20.0,
    "dim": 250,
    "entries": 20_000,
    "cores": 2,
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return _benchmark("knowledge_base")


def test_costs_are_linear_in_entries_and_over_nodes(benchmark: ModuleType) -> None:
    small, _, large = benchmark.cost_model(MEASURED, 10)
    assert (small["entries"], large["entries"], large["nodes"]) == ("1,000,000", "100,000,000", 64)
    assert small["keys in memory, GB a node"] == pytest.approx(1.0)
    assert small["build, hours"] == pytest.approx(1000 / 3600)
    assert small["exact queries/s"] == pytest.approx(1e4)
    assert small["inverted lists, queries/s"] == pytest.approx(2e5)
    assert small["exact, node hours for 10^6 queries"] == pytest.approx(100 / 3600)
    assert large["stored, GB"] == pytest.approx(150)  # 1,000 bytes of a key and 500 more.
    assert large["build, node hours"] == pytest.approx(100 * small["build, node hours"])
    for way in ("exact", "inverted"):
        of_queries = f"{way}, node hours for 10^6 queries"
        assert large[of_queries] == pytest.approx(100 * small[of_queries])


def test_no_gain_is_told_where_none_was_measured(benchmark: ModuleType) -> None:
    exact = {name: value for name, value in MEASURED.items() if name != "inverted_speed_up"}
    assert not any("inverted" in name for name in benchmark.cost_model(exact, 10)[0])
    text = f"before\n{benchmark.BEGIN}{benchmark.END}after\n"
    assert "inverted" not in benchmark.documented(text, exact, 10)


def test_the_table_stands_between_its_marks_and_is_replaced(benchmark: ModuleType) -> None:
    text = Path(benchmark.DOCUMENT).read_text(encoding="utf-8")
    once = benchmark.documented(text, MEASURED, 10)
    assert "with 20,000 keys of 250 dimensions: T = 100 trajectories" in once
    assert "| 100,000,000 | 64 |" in once
    assert benchmark.documented(once, MEASURED, 10) == once
    assert once.startswith(text.partition(benchmark.BEGIN)[0])
    assert once.endswith(text.partition(benchmark.END)[2])


def test_a_steady_rate_leaves_out_who_is_starting_and_who_has_finished(
    benchmark: ModuleType,
) -> None:
    late = [10.0, 12.0, 14.0]  # One shard in two seconds, once it has started.
    early = [1.0, 5.0, 11.0, 12.0, 13.0]  # One a second, while the other is at work.
    assert benchmark.building.steady_rate([early, late]) == pytest.approx(0.5 + 1.0)
    assert benchmark.building.steady_rate([[0.0, 4.0, 5.0]]) == pytest.approx(2 / 5)
    assert benchmark.building.steady_rate([[0.0, 1.0], [2.0]]) == 0.0  # Nothing can be told.


def test_the_fastest_point_that_recalls_enough_is_the_figure(benchmark: ModuleType) -> None:
    curve = [
        {"kind": "ivf_flat", "probes": probes, "lists": 64, "entries": 1_000, "recall@10": recall,
         "speed_up": speed_up}
        for probes, recall, speed_up in ((1, 0.5, 90.0), (2, 0.95, 12.0), (4, 0.99, 8.0))
    ]  # fmt: skip
    found = benchmark.inverted.summary(curve)
    assert (found["value"], found["met"]) == (12.0, "yes")
    assert "2 of 64 lists" in found["detail"]
    assert benchmark.inverted.summary(curve[:1])["met"] == "no"
    assert benchmark.inverted.summary(curve[2:])["met"] == "no"
