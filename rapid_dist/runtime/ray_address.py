"""Whether a Ray cluster answers at an address, asked before ``ray.init`` is.

Ray itself tries again for a quarter of an hour, and then may end the process. A mistyped address is
found in seconds here, by the question that Ray's own processes ask of the head node.
"""

import contextlib
import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import grpc

from rapid_dist.errors import ConfigError

TRIES = 4  # Counted and not timed: a process that was halted meanwhile tries again.
_TIMEOUT_SEC, _PAUSE_SEC = 5.0, 1.0
_ADDRESS = re.compile(r"(?P<client>ray://)?(?P<place>[^/\s]+:\d+)")
_CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
_TLS_FILES = ("RAY_TLS_CA_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT")
_LETS_NOBODY_IN = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
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


def is_own(host: str) -> bool:
    """Whether an address leads to this machine alone, whoever uses it."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def require_closed(
    gcs_address: str,
    nodes: Iterable[str],
    *,
    tries: int = TRIES,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Refuses a cluster that others than this machine reach and that asks nobody for a token.

    Whoever reaches such a cluster can run anything on it, and read what runs there. It is asked
    without a token, for to be told one proves nothing; and one that gives no answer has not said
    that it wants one.

    Args:
      gcs_address: host:port of the head node.
      nodes: addresses of the living nodes.

    Raises:
      ConfigError: it is open, or does not say.
    """
    beyond = sorted(node for node in nodes if not is_own(node))
    if not beyond:
        return
    told = (
        f"The Ray cluster at {gcs_address} is reachable from beyond this machine "
        f"({', '.join(beyond[:3])}) and"
    )
    for turn in range(tries):
        if turn:
            sleep(_PAUSE_SEC)
        answer = _asked(gcs_address)
        if answer in _LETS_NOBODY_IN:
            return
        if answer == grpc.StatusCode.OK:
            raise ConfigError(
                f"{told} asks for no token: whoever reaches it can run anything there. Start every "
                "node with RAY_AUTH_MODE=token and one token (`ray get-auth-token --generate`)."
            )
    raise ConfigError(
        f"{told} did not say whether it asks for a token ({answer.name}). Look whether its head "
        "node is well, then run the same command again."
    )


def _answers(place: str, *, is_client: bool) -> bool:
    """Whether a head node, or a server of Ray's client, is there; it need not let us in."""
    return _is_open(place) if is_client else _asked(place) not in _NOBODY


def _asked(place: str) -> grpc.StatusCode:
    """Asks a head node whether it is alive, without a token."""
    with _channel(place) as channel:
        ask = channel.unary_unary(_CHECK_ALIVE)
        try:
            ask(b"", timeout=_TIMEOUT_SEC)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def _channel(place: str) -> grpc.Channel:
    """Returns a way to a head node: by TLS where Ray is to use it, with Ray's own files."""
    options = [("grpc.enable_http_proxy", 0)]
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("", "0", "false"):
        return grpc.insecure_channel(place, options)
    missing = [name for name in _TLS_FILES if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"RAY_USE_TLS is set, and {', '.join(missing)} not. Name those files.")
    try:
        authority, key, certificate = (Path(os.environ[name]).read_bytes() for name in _TLS_FILES)
    except OSError as error:
        raise ConfigError(
            f"{error.filename} of RAY_USE_TLS cannot be read ({error.strerror}). Correct it."
        ) from None
    files = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.secure_channel(place, files, options)


def _is_open(place: str) -> bool:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_SEC):
            return True
    except OSError:
        return False
