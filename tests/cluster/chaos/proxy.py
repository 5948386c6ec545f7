"""A proxy before an S3 server that fails in chosen ways, at chosen requests.

    with FaultyProxy(endpoint) as proxy:
        proxy.plan(Fault("lost answer", method="PUT", key="000000000003"))

Each fault is used up by so many requests as it says; all others are handed on as they are. What a
fault does to the store is part of its name: before the request was handed on, or after.
"""

import contextlib
import http.client
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

FaultKind = Literal[
    "500", "503", "reset", "stall",  # The store has never heard of the request.
    "lost answer", "500 after", "late",  # The store has done it; its answer is lost, false, slow.
    "torn body", "half then reset",  # Of what it reads, a part arrives.
]  # fmt: skip
DONE_BY_STORE: frozenset[FaultKind] = frozenset({"lost answer", "500 after", "late"})
FOREVER = 10**9
_HOP = {"connection", "transfer-encoding", "content-length", "keep-alive"}


@dataclass(kw_only=True)
class Fault:
    """What happens to the next ``times`` requests that match."""

    kind: FaultKind
    method: str = ""  # "" = any.
    key: str = ""  # A part of the path or of the query.
    times: int = 1
    skip: int = 0  # Requests that match and pass before it.
    seconds: float = 0.5  # Of "stall" and "late".

    def takes(self, method: str, path: str) -> bool:
        """Whether this request is one of those; counts it."""
        if self.times < 1 or self.method not in ("", method) or self.key not in path:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class FaultyProxy:
    """Hands requests on to ``endpoint`` but for those that a fault takes."""

    def __init__(self, endpoint: str) -> None:
        self._target = urlsplit(endpoint).netloc
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.hits: list[tuple[str, str]] = []  # (kind, method) of every request that was hit.
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def plan(self, *faults: Fault) -> None:
        """Replaces what was planned; none at all makes it a plain proxy."""
        with self._lock:
            self._faults = list(faults)
            self.hits.clear()

    def _fault_of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            found = next((one for one in self._faults if one.takes(method, path)), None)
            if found is not None:
                self.hits.append((found.kind, method))
            return found

    def _handler(proxy) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *arguments: object) -> None:
                pass

            def _serve(self) -> None:
                self.close_connection = True
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy._fault_of(self.command, self.path)
                with contextlib.suppress(OSError):  # A client that has gone away.
                    if fault is None:
                        self._answer(*self._forward(body))
                    else:
                        self._fail(fault, body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _serve

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(proxy._target, timeout=60)
                try:
                    connection.putrequest(
                        self.command, self.path, skip_host=True, skip_accept_encoding=True
                    )
                    for name, value in self.headers.items():
                        if name.lower() not in ("connection", "expect"):
                            connection.putheader(name, value)
                    connection.endheaders(body)
                    found = connection.getresponse()
                    return found.status, found.getheaders(), found.read()
                finally:
                    connection.close()

            def _answer(
                self, status: int, headers: list[tuple[str, str]], body: bytes, sent: int = -1
            ) -> None:
                self.send_response(status)
                length = [v for n, v in headers if n.lower() == "content-length"]
                for name, value in headers:
                    if name.lower() not in _HOP | {"date", "server"}:
                        self.send_header(name, value)
                # Of HEAD the length is that of what is not sent.
                is_head = self.command == "HEAD" and length
                self.send_header("Content-Length", length[0] if is_head else str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write(body if sent < 0 else body[:sent])
                self.wfile.flush()

            def _fail(self, fault: Fault, body: bytes) -> None:
                if fault.kind in ("500", "503"):
                    self._answer(int(fault.kind), [], b"")
                elif fault.kind == "reset":
                    self._reset()
                elif fault.kind == "stall":
                    time.sleep(fault.seconds)
                    self._reset()
                elif fault.kind == "lost answer":
                    self._forward(body)
                    self._reset()
                elif fault.kind == "500 after":
                    self._forward(body)
                    self._answer(500, [], b"")
                elif fault.kind == "late":
                    answer = self._forward(body)
                    time.sleep(fault.seconds)
                    self._answer(*answer)
                else:
                    status, headers, content = self._forward(body)
                    self._answer(status, headers, content, sent=len(content) // 2)
                    if fault.kind == "half then reset":
                        self._reset()

            def _reset(self) -> None:
                """Closes without a word: the client sees a connection that was reset."""
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()

        return Handler
