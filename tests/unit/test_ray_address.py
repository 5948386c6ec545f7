"""An address at which no Ray cluster answers is refused in seconds, in one line."""

import socket
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
import ray

from rapid_dist.errors import ConfigError
from rapid_dist.runtime.cluster import session
from rapid_dist.runtime.needs import Needs
from rapid_dist.runtime.ray_address import TRIES, check_answers, is_own, require_closed


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which nobody listens, nor can begin to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


class _HeadNode(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers every question by one status."""

    def __init__(self, status: grpc.StatusCode) -> None:
        self._status = status

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self._status is not grpc.StatusCode.OK:
                context.abort(self._status, "")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest.fixture
def head_node(request: pytest.FixtureRequest) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(1), [_HeadNode(request.param)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def _refusal(address: str) -> tuple[str, list[float]]:
    pauses: list[float] = []
    with pytest.raises(ConfigError) as caught:
        check_answers(address, sleep=pauses.append)
    assert "\n" not in str(caught.value)
    return str(caught.value), pauses


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_after_a_few_tries(
    scheme: str, nobody: str
) -> None:
    address = f"{scheme}{nobody}"
    said, pauses = _refusal(address)
    assert said.startswith(f"RAY_ADDRESS={address} names no Ray cluster that answers.")
    assert len(pauses) == TRIES - 1
    assert sum(pauses) < 10


@pytest.mark.parametrize(
    "head_node", [grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED], indirect=True
)
def test_a_head_node_that_answers_passes_whether_or_not_it_lets_us_in(head_node: str) -> None:
    check_answers(head_node)


@pytest.mark.parametrize("head_node", [grpc.StatusCode.UNIMPLEMENTED], indirect=True)
def test_a_server_of_another_kind_is_no_head_node(head_node: str) -> None:
    assert "names no Ray cluster" in _refusal(head_node)[0]
    check_answers(f"ray://{head_node}")  # Of Ray's client it is only asked that somebody listens.


@pytest.mark.parametrize("address", ["http://10.0.0.5:8265", "10.0.0.5", "head:port", "a b:1"])
def test_what_is_no_address_of_a_head_node_is_refused_at_once(address: str) -> None:
    said, pauses = _refusal(address)
    assert "is not host:port" in said
    assert pauses == []


def test_a_run_is_refused_before_ray_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://10.0.0.5:8265")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # Another test may have begun one.
    with pytest.raises(ConfigError, match="is not host:port"), session(Needs(cpus=1)):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_a_loopback_address_is_this_machines_own(host: str) -> None:
    assert is_own(host)


@pytest.mark.parametrize("host", ["10.0.0.5", "0.0.0.0", "::", "head", "192.168.1.2", ""])
def test_any_other_address_may_lead_from_elsewhere(host: str) -> None:
    assert not is_own(host)


@pytest.mark.parametrize("head_node", [grpc.StatusCode.OK], indirect=True)
def test_a_cluster_that_others_reach_and_that_asks_for_no_token_is_refused(head_node: str) -> None:
    require_closed(head_node, ["127.0.0.1"])  # Nobody else gets there.
    with pytest.raises(ConfigError, match=r"10\.0\.0\.5.*asks for no token") as refused:
        require_closed(head_node, ["127.0.0.1", "10.0.0.5"])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("head_node", [grpc.StatusCode.UNAUTHENTICATED], indirect=True)
def test_a_cluster_that_asks_for_a_token_may_be_reached_from_anywhere(head_node: str) -> None:
    require_closed(head_node, ["10.0.0.5", "10.0.0.6"])


@pytest.mark.parametrize("head_node", [grpc.StatusCode.UNAVAILABLE], indirect=True)
def test_a_cluster_that_does_not_say_whether_it_asks_for_a_token_is_refused(head_node: str) -> None:
    pauses: list[float] = []
    with pytest.raises(ConfigError, match=r"did not say whether it asks.*UNAVAILABLE") as refused:
        require_closed(head_node, ["10.0.0.5"], sleep=pauses.append)
    assert "\n" not in str(refused.value)
    assert len(pauses) == TRIES - 1
    require_closed(head_node, ["127.0.0.1"])  # Nobody else gets there.


def test_tls_without_its_files_is_refused_by_their_names(monkeypatch, tmp_path, nobody) -> None:
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(tmp_path / "key.pem"))
    with pytest.raises(ConfigError, match="RAY_TLS_CA_CERT, RAY_TLS_SERVER_CERT not"):
        check_answers(nobody)
    for name in ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_CERT"):
        monkeypatch.setenv(name, str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match=r"none\.pem of RAY_USE_TLS cannot be read"):
        check_answers(nobody)
