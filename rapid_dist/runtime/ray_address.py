"""Whether a Ray cluster answers at an address, asked before ``ray.init`` is.

Ray itself tries again for a quarter of an hour, and then may end the process. A mistyped address is
found in seconds here, by the question that Ray's own processes ask of the head node.
"""

import os
import re
import socket
import time
from collections.abc import Callable

import grpc

from rapid_dist.errors import ConfigError

TRIES = 4  # Counted and not timed: a process that was halted meanwhile tries again.
_TIMEOUT_SEC, _PAUSE_SEC = 5.0, 1.0
_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<place>[^/\s]+:\d+)")
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
# By these the network, or a server of another kind, says that there is no head node.
_NOBODY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
)


def check_answers(
    address: str, *, tries: int = TRIES, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Refuses an address, as of RAY_ADDRESS, at which no cluster answers.

    Raises:
      ConfigError: it is not host:port, or nobody there speaks for a Ray cluster.
    """
    if address == "auto":  # Ray looks for a cluster on this machine, and says so if there is none.
        return
    parts = _ADDRESS.fullmatch(address)
    if parts is None:
        raise ConfigError(
            f"RAY_ADDRESS={address} is not host:port of a Ray cluster's head node, such as "
            "10.0.0.5:6379 (http:// is where jobs are sent to). Correct it, or unset it to start "
            "a cluster here."
        )
    for turn in range(tries):
        if turn:
            sleep(_PAUSE_SEC)
        if _answers(parts["place"], is_client=parts["client"] is not None):
            return
    raise ConfigError(
        f"RAY_ADDRESS={address} names no Ray cluster that answers. "
        "Correct it, or unset it to start one here."
    )


def _answers(place: str, *, is_client: bool) -> bool:
    """Whether a head node, or a server of Ray's client, is there; it need not let us in."""
    if is_client or os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return _is_open(place)
    with grpc.insecure_channel(place, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_CHECK_ALIVE)
        try:
            ask(b"", timeout=_TIMEOUT_SEC)
        except grpc.RpcError as error:
            return error.code() not in _NOBODY
    return True


def _is_open(place: str) -> bool:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_SEC):
            return True
    except OSError:
        return False
