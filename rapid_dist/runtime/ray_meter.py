"""Ray's gauges and histograms of a run. Made on first use, for Ray wants to be connected."""

from ray.util.metrics import Gauge, Histogram

from rapid_dist.runtime.metrics import GAUGES

SEARCH_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]


class RayMeter:
    """Ray's metrics of this process, tagged with the run they are of."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}

    def set(self, name: str, value: float, tags: dict[str, str]) -> None:
        if name not in self._gauges:
            keys = ("run", *tags)
            self._gauges[name] = Gauge(name, description=GAUGES[name], tag_keys=keys)
        self._gauges[name].set(value, tags={"run": self._run, **tags})

    def observe(self, name: str, value: float, tags: dict[str, str]) -> None:
        if name not in self._histograms:
            self._histograms[name] = Histogram(
                name,
                description="Seconds from asking to the answer of one piece of public queries",
                boundaries=SEARCH_SECONDS,
                tag_keys=("run", *tags),
            )
        self._histograms[name].observe(value, tags={"run": self._run, **tags})
