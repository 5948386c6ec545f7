"""What all tests here stand on: hosts, or the reason why there are none; one cluster for those that
want three hosts and a desk.
"""

from collections.abc import Iterator

import pytest

from rapid_dist.runtime.services import Services, running
from tests.cluster.hosts.machines import Machines, await_started
from tests.cluster.hosts.network import Network, network, why_not


@pytest.fixture(scope="session", autouse=True)
def _allowed() -> None:
    """Every test here is skipped, with the reason, where hosts are not to be had."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def net() -> Iterator[Network]:
    with network() as found:
        yield found


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machines, Services]]:
    """A head and two workers with a CPU each, a desk, and this machine's S3 and MLflow."""
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
