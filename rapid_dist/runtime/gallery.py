"""``rapid-dist gallery``: a web page over a model registry, for this machine unless told otherwise.

It reads registered versions and their bundles, and nothing else: no run, no run directory, no
ledger. Requests change nothing. Who asks under another name than this machine's is refused, so that
a page elsewhere cannot make a reader's browser read this one.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.release import gallery_pages as pages
from rapid_dist.release.bundle import verify_bundle
from rapid_dist.release.pull import Registry, Version
from rapid_dist.release.tiles import tiled_png
from rapid_dist.runtime.drawing_workers import DrawingWorker
from rapid_dist.secret import masked

HOST, PORT = "127.0.0.1", 8800
LOCAL = ("127.0.0.1", "localhost", "::1")
PASSPORT = "passport"  # .json and .html, in a bundle that went through a release.
MOST_MODELS, MOST_SHEETS = 4, 100  # Kept in memory.
ACROSS = 10  # Images in a row, where all are of one class.
HTML, JSON, PNG = "text/html; charset=utf-8", "application/json", "image/png"
_PASSPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Value = TypeVar("Value")


class NotFound(RapidError):
    """There is no such page."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a request gets."""

    body: bytes
    kind: str = HTML
    status: HTTPStatus = HTTPStatus.OK
    policy: str = pages.POLICY


class Gallery:
    """Answers addresses; knows nothing of sockets."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._workers: OrderedDict[str, DrawingWorker] = OrderedDict()
        self._sheets: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._drawing = threading.Lock()  # One at a time: a machine has so many cores.

    def answer(self, address: str) -> Answer:
        """Returns the answer to a path with its query; whatever is wrong with it is a page."""
        parts = urlsplit(address)
        words = [unquote(word) for word in parts.path.split("/") if word]
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            return self._routed(words, query)
        except NotFound as error:
            return _page(pages.error_page("Not found", str(error)), HTTPStatus.NOT_FOUND)
        except ConfigError as error:
            return _page(pages.error_page("Not possible", str(error)), HTTPStatus.BAD_REQUEST)
        except RapidError as error:
            return _page(pages.error_page("It failed", str(error)), HTTPStatus.BAD_GATEWAY)
        except Exception as error:  # A registry's or a network's: the next request may do better.
            line = f"The registry answered with {type(error).__name__}. Try again."
            return _page(pages.error_page("It failed", line), HTTPStatus.BAD_GATEWAY)

    def _routed(self, words: list[str], query: dict[str, str]) -> Answer:
        match words:
            case []:
                return self._index()
            case ["compare"]:
                left, right = (self._named(query.get(name, "")) for name in ("a", "b"))
                shown = [self._shown(one) for one in (left, right)]
                return _page(pages.compare_page(shown[0], shown[1], _ask(query)))
            case ["models", name, number]:
                return self._version(self._find(name, number), _ask(query))
            case ["models", name, number, "samples.png"]:
                return self._samples(self._find(name, number), _ask(query))
            case ["models", name, number, ("passport.html" | "passport.json") as file]:
                return self._passport(self._find(name, number), file)
        raise NotFound("There is no such page here. Begin at the list of models.")

    def _index(self) -> Answer:
        found = {name: self._registry.versions(name) for name in self._registry.names()}
        shown = {
            name: [_plain(one) for one in versions] for name, versions in found.items() if versions
        }
        return _page(pages.index_page(shown, masked(self._registry.uri)))

    def _version(self, version: Version, ask: pages.Ask) -> Answer:
        others = [one for one in self._registry.versions(version.name) if one != version]
        shown = self._shown(version)
        return _page(pages.version_page(shown, [_plain(one) for one in others], ask))

    def _shown(self, version: Version) -> pages.Shown:
        """Returns a version with what its bundle says, or why that cannot be had."""
        plain = _plain(version)
        if plain.withdrawn:
            return _plain(version, fault="No samples are drawn from a version that was withdrawn.")
        try:
            bundle = self._registry.fetch(version)
            facts = json.loads((bundle / "model.json").read_text())
        except (RapidError, OSError, ValueError) as error:
            return _plain(version, fault=f"Its bundle cannot be opened: {error}")
        return _plain(
            version,
            class_names=tuple(str(name) for name in facts["class_names"]),
            facts=facts,
            has_passport=(bundle / f"{PASSPORT}.html").is_file(),
        )

    def _samples(self, version: Version, ask: pages.Ask) -> Answer:
        shown = self._shown(version)
        if shown.fault:
            raise ConfigError(shown.fault)
        labels = _labels(shown, ask)
        digest = version.tags["bundle.sha256"]
        with self._drawing:
            body = _kept(
                self._sheets,
                (digest, ask.query()),
                MOST_SHEETS,
                lambda: _sheet(self._worker(version, digest), labels, ask),
            )
        return Answer(body=body, kind=PNG)

    def _worker(self, version: Version, digest: str) -> DrawingWorker:
        return _kept(
            self._workers,
            digest,
            MOST_MODELS,
            lambda: DrawingWorker(self._registry.fetch(version)),
        )

    def _passport(self, version: Version, file: str) -> Answer:
        bundle: Path = self._registry.fetch(version)
        verify_bundle(bundle)
        path = bundle / file
        if not path.is_file():
            raise NotFound(f"{version.label} was registered without a passport.")
        # It comes from a registry: shown in a box of its own, that may run and load nothing.
        kind = HTML if file.endswith(".html") else JSON
        return Answer(body=path.read_bytes(), kind=kind, policy=_PASSPORT_POLICY)

    def _named(self, key: str) -> Version:
        name, _, number = key.rpartition("/")
        return self._find(name, number)

    def _find(self, name: str, number: str) -> Version:
        if number.isdecimal() and name:
            for one in self._registry.versions(name):
                if one.version == int(number):
                    return one
        raise NotFound(f"There is no version {number!r} of a model {name!r} that states a claim.")


@contextmanager
def served(gallery: Gallery, host: str = HOST, port: int = PORT) -> Iterator[str]:
    """Serves a gallery while the block runs, and gives its address; port 0 takes a free one."""
    try:
        server = ThreadingHTTPServer((host, port), _handler(gallery, host))
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror}). Use another --port, or 0."
        ) from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="gallery", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(gallery: Gallery, host: str) -> type[BaseHTTPRequestHandler]:
    local = host in LOCAL

    class Handler(BaseHTTPRequestHandler):
        server_version = "rapid-dist"
        sys_version = ""

        def do_GET(self) -> None:
            if local and _name_of(self.headers["Host"]) not in LOCAL:
                self._send(
                    _page(
                        pages.error_page("Refused", "This gallery answers to localhost alone."),
                        HTTPStatus.FORBIDDEN,
                    )
                )
                return
            self._send(gallery.answer(self.path))

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.send_header("Content-Security-Policy", answer.policy)
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("Referrer-Policy", "no-referrer")
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: whoever looks on wants no line a picture."""

    return Handler


def _name_of(asked: str | None) -> str:
    """Returns a Host header without its port."""
    return urlsplit(f"//{asked or ''}").hostname or ""


def _plain(version: Version, **more: object) -> pages.Shown:
    return pages.Shown(
        name=version.name,
        version=version.version,
        aliases=version.aliases,
        tags=version.tags,
        description=version.description,
        created_ms=version.created_ms,
        **more,  # type: ignore[arg-type]
    )


def _ask(query: dict[str, str]) -> pages.Ask:
    label = query.get("class", "")
    try:
        seed, count = int(query.get("seed", "0")), int(query.get("count", "40"))
        if label:
            int(label)
    except ValueError:
        raise ConfigError(f"class, seed and count are numbers, got {query}.") from None
    if not (0 <= seed < 2**63 and 1 <= count <= pages.MOST_IMAGES) or label.startswith("-"):
        raise ConfigError(
            f"seed must be at least 0 and count in 1..{pages.MOST_IMAGES}, got {seed} and {count}."
        )
    return pages.Ask(label=label, seed=seed, count=count)


def _labels(shown: pages.Shown, ask: pages.Ask) -> np.ndarray:
    """Returns the class of every image: the one asked for, or as many of each as there is room."""
    classes = max(1, len(shown.class_names))
    if not ask.label:
        return np.arange(ask.count, dtype=np.int64) % classes
    if not 0 <= int(ask.label) < classes:
        raise ConfigError(f"There is no class {ask.label}. {shown.title} has {classes}.")
    return np.full(ask.count, int(ask.label), np.int64)


def _sheet(worker: DrawingWorker, labels: np.ndarray, ask: pages.Ask) -> bytes:
    images = worker.draw(labels, ask.seed, 0)
    if len(np.unique(labels)) > 1:
        return tiled_png([images[labels == label] for label in np.unique(labels)])
    return tiled_png([images[start : start + ACROSS] for start in range(0, len(images), ACROSS)])


def _kept(
    kept: OrderedDict[object, Value]
    | OrderedDict[str, Value]
    | OrderedDict[tuple[str, str], Value],
    key: object,
    most: int,
    make: Callable[[], Value],
) -> Value:
    """Returns what is kept under a key, made if it is not there; the longest unused goes."""
    store: OrderedDict[object, Value] = kept  # type: ignore[assignment]
    if key not in store:
        store[key] = make()
    store.move_to_end(key)
    while len(store) > most:
        store.popitem(last=False)
    return store[key]


def _page(text: str, status: HTTPStatus = HTTPStatus.OK) -> Answer:
    return Answer(body=text.encode(), status=status)
