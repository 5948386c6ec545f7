"""Progress in a job's log: plain lines, honest rates."""

import io

from rich.console import Console

from rapid_dist.runtime.progress import LINE_SEC, Progress, clock_time


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _lines(progress_of: list[tuple[float, float]], total: float, terminal: bool = False) -> str:
    """Reports each (seconds passed, done), and returns what was printed."""
    clock, text = Clock(), io.StringIO()
    with Progress(Console(file=text, force_terminal=terminal, width=100), clock) as progress:
        for passed, done in progress_of:
            clock.now += passed
            progress.update("train", done, total)
    return text.getvalue()


def test_a_log_gets_a_line_with_rate_and_time_left() -> None:
    assert _lines([(0, 0), (10, 20)], 100).splitlines() == [
        "train          0/100   0%",
        "train          20/100  20%  2/s, 0:40 left",
    ]


def test_a_resumed_stage_counts_its_rate_from_where_it_began() -> None:
    assert _lines([(0, 50), (10, 60)], 100).splitlines()[-1].endswith("60%  1/s, 0:40 left")


def test_a_log_is_not_flooded_and_still_gets_the_last_line() -> None:
    many = [(LINE_SEC / 100, float(done)) for done in range(1, 301)]
    lines = _lines(many, 300).splitlines()
    assert 3 <= len(lines) <= 5
    assert lines[-1].startswith("train          300/300 100%")


def test_a_terminal_gets_a_bar_instead_of_lines() -> None:
    text = _lines([(0, 0), (10, 20)], 100, terminal=True)
    assert "20/100" in text
    assert "━" in text


def test_clock_times_read_like_clocks() -> None:
    assert [clock_time(s) for s in (0.4, 75.2, 3600, 3725)] == [
        "0:00",
        "1:15",
        "1:00:00",
        "1:02:05",
    ]
