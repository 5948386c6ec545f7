"""A registry's server that refuses, or is not there: one line, at once."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.release.registry import released_versions, run_of
from rapid_dist.release.server import connect


class _Refuses(BaseHTTPRequestHandler):
    """As a server with accounts does that does not know this one."""

    def do_GET(self) -> None:
        known = self.path == "/health"
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(b"OK" if known else b"You are not authenticated.")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_with_a_password_is_asked_and_told_without_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = address.replace("://", "://reader:correct-horse@")
    stored = address.replace("://", "://***@")
    with pytest.raises(RapidError) as refused:
        run_of(whole, "m", 1)
    assert "correct-horse" not in str(refused.value)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=r"\*\*\*@.* Set MLFLOW_TRACKING_URI"):
        connect(stored)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert connect(stored).tracking_uri == whole
    with pytest.raises(ConfigError, match="without its credentials"):
        connect(stored.replace("127.0.0.1", "127.0.0.2"))


def test_a_wrong_account_is_one_line_that_names_where_it_is_set(address: str) -> None:
    for ask in (lambda: released_versions(address), lambda: run_of(address, "m", 1)):
        with pytest.raises(RapidError, match=r"not authenticated.*TRACKING_PASSWORD") as said:
            ask()
        assert "\n" not in str(said.value)


def test_nobody_at_an_address_is_said_at_once() -> None:
    with pytest.raises(RapidError, match=r"127\.0\.0\.1:9 does not answer.*--tracking-uri"):
        connect("http://127.0.0.1:9")


def test_a_registrys_file_is_read_and_never_made(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(ConfigError, match="no registry at sqlite"):
        connect(uri, existing=True)
    assert list(tmp_path.iterdir()) == []
    assert connect(uri) is not None
