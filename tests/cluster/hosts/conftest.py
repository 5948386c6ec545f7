"""One cluster of three hosts and a desk, for all tests here that want one."""

from collections.abc import Iterator

import pytest

from rapid_dist.runtime.services import Services, running
from tests.cluster.hosts.machines import Machines, await_started
from tests.cluster.hosts.network import network, why_not


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machines, Services]]:
    """A head and two workers with a CPU each, a desk, and this machine's S3 and MLflow."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("services")
    with (
        pytest.MonkeyPatch.context() as patch,
        network() as net,
        running(folder, host=net.services) as services,
    ):
        for name, value in services.environment.items():
            patch.setenv(name, value)
        machines = Machines(net, services.environment)
        machines.start_head()
        await_started(machines.head)
        await_started(machines.start_worker("one"), machines.start_worker("two"))
        yield machines, services
