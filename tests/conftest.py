"""What every test gets: a quiet, offline environment, and one Ray cluster for those that ask.

A file's tests stay on one worker of pytest-xdist (``--dist loadfile``), or each worker would make
its own of what they share. Not by groups: pytest 9.2 does not hear of the names that pytest-xdist
3.8 gives them.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Engine

# Set before torch, ray or mlflow is imported, and inherited by every process a test starts.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # However busy the machine is; Ray's own patience with its start is half a minute.
    "RAY_agent_register_timeout_ms": "900000",
    "RAY_raylet_start_wait_time_s": "240",
}
# What a developer's shell may point at a real server; a test must not find it.
FORGOTTEN = ["MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "RAY_ADDRESS", "AWS_ENDPOINT_URL"]


def pytest_configure() -> None:
    os.environ.update(ENVIRONMENT)
    for name in FORGOTTEN:
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def tables_made_once() -> Iterator[None]:
    """MLflow's tables in a new sqlite file: made by its sixty migrations once, then copied.

    The migrations take some seconds a file, and every run of a pipeline has two files of its own.
    """
    from mlflow.store.db import utils

    makes = utils._initialize_tables

    def copies(engine: "Engine") -> None:
        if engine.dialect.name != "sqlite":
            makes(engine)
            return
        made = master.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not made:
            makes(engine)
        with closing(engine.raw_connection()) as connection:
            file = connection.driver_connection
            assert isinstance(file, sqlite3.Connection)
            if made:
                master.backup(file)
            else:
                file.backup(master)

    tables = sqlite3.connect(":memory:", check_same_thread=False)
    with closing(tables) as master, pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", copies)
        yield


@pytest.fixture(scope="session")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """One local cluster of 6 logical CPUs for all tests of this process."""
    from ray import cloudpickle

    from rapid_dist.runtime.cluster import session
    from rapid_dist.runtime.needs import Needs

    # By value, for a worker that imports `tests` may find somebody else's in site-packages.
    asking = [item for item in request.session.items if "ray" in item.keywords]
    for module in {item.module for item in asking if isinstance(item, pytest.Function)}:
        cloudpickle.register_pickle_by_value(module)
    with session(Needs(cpus=6)):
        yield
