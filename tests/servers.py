"""A real MLflow server with its files on a real S3 server, for the tests that talk HTTP.

On ports of its own and in a temporary folder; one stack a test process, ended by its process ids.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rapid_dist.runtime.services import Services, running


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """A running stack, shared by the tests of this process: use an experiment of your own."""
    with running(tmp_path_factory.mktemp("services")) as found:
        yield found


@pytest.fixture
def on_services(services: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The stack, with this process's environment pointing to it."""
    for name, value in services.environment.items():
        monkeypatch.setenv(name, value)
    return services


def client_of(services: Services) -> MlflowClient:
    """Returns a client of the stack's MLflow server."""
    return MlflowClient(tracking_uri=services.tracking_uri, registry_uri=services.tracking_uri)


def log_of(services: Services, name: str) -> str:
    """Returns what a server of the stack has written so far."""
    return Path(services.folder, f"{name}.log").read_text(errors="replace")
