"""What every test gets: a quiet, offline environment, and one Ray cluster for those that ask.

Tests marked ``ray`` go to one worker of pytest-xdist (``--dist loadgroup``): two clusters on one
small machine would only wait for each other. The whole runs of one file in ``e2e/`` stay together
as well, or each worker would make its own of what they share.
"""

import os
from collections.abc import Iterator

import pytest

# Set before torch, ray or mlflow is imported, and inherited by every process a test starts.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# What a developer's shell may point at a real server; a test must not find it.
FORGOTTEN = ["MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "RAY_ADDRESS", "AWS_ENDPOINT_URL"]


def pytest_configure() -> None:
    os.environ.update(ENVIRONMENT)
    for name in FORGOTTEN:
        os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)  # Or pytest-xdist has looked for groups before they are here.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif item.path.parent.name == "e2e" and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """One local cluster of 6 logical CPUs for all tests of this process."""
    from ray import cloudpickle

    from rapid_dist.runtime.cluster import Needs, session

    # By value, for a worker that imports `tests` may find somebody else's in site-packages.
    asking = [item for item in request.session.items if "ray" in item.keywords]
    for module in {item.module for item in asking if isinstance(item, pytest.Function)}:
        cloudpickle.register_pickle_by_value(module)
    with session(Needs(cpus=6)):
        yield
