"""The gallery in a real browser: models, passports, samples by class, two versions side by side."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from rapid_dist.errors import ConfigError
from rapid_dist.release.bundle import write_bundle
from rapid_dist.release.checksums import write_checksums
from rapid_dist.release.generator import Generator
from rapid_dist.release.pull import Registry
from rapid_dist.release.registry import register_model
from rapid_dist.release.tiles import tiled_png
from rapid_dist.runtime.gallery import Gallery, served
from tests.browser import Browser, find_browser
from tests.bundles import tiny_bundle

pytestmark = pytest.mark.slow  # A real browser, and a registry behind HTTP.

NAME = "scans <b>& of a clinic"  # A name that a careless page would not survive.
TAGS = {
    "dp.epsilon": "9.97001",
    "dp.delta": "1e-05",
    "dp.relation": "zero_out",
    "dp.unit": "group",
    "dp.unit_name": "patient",
    "dp.dataset_epsilon": "9.97001",
    "dp.ledger_head": "ab" * 32,
    "method": "rapid",
    "internal.accuracy": "0.987",  # Nobody has said that it may be seen.
}
PASSPORT_PAGE = (
    "<!doctype html><h1>Passport of a test</h1><script>parent.document.title='x'</script>"
)

needs_browser = pytest.mark.skipif(find_browser() is None, reason="No Chromium is installed here.")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A gallery of one model: 1 with a passport, 2 other, 3 withdrawn, 4 tampered with."""

    address: str
    registry: Registry
    client: MlflowClient
    bundle: Path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("gallery")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    first, second = root / "first", root / "second"
    write_bundle(tiny_bundle(), first)
    (first / "passport.html").write_text(PASSPORT_PAGE)
    (first / "passport.json").write_text(json.dumps({"format": 1}))
    write_checksums(first)
    write_bundle(tiny_bundle(intervals=5), second)
    client.create_registered_model("somebody's else")  # Without a version that states a claim.
    for bundle, epsilon, alias in [
        (first, "9.97001", "released"),
        (second, "4.5", "candidate"),
        (second, "4.5", "third"),
        (second, "4.5", "fourth"),
    ]:
        register_model(
            bundle, run, NAME, {**TAGS, "dp.epsilon": epsilon}, tracking_uri=uri, alias=alias
        )
    client.set_model_version_tag(NAME, "3", "release.status", "withdrawn")
    client.set_model_version_tag(NAME, "3", "withdrawn.reason", "a label was wrong")
    client.set_model_version_tag(NAME, "4", "bundle.sha256", "0" * 64)
    registry = Registry(uri, cache=root / "cache")
    with served(Gallery(registry), port=0) as address:
        yield Site(address=address, registry=registry, client=client, bundle=first)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


def _get(address: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def _version(site: Site, number: int) -> str:
    return f"{site.address}/models/{urllib.parse.quote(NAME, safe='')}/{number}"


def _natural_size(browser: Browser) -> list[int]:
    found: list[int] = browser.js(
        "(() => { const i = document.querySelector('img.samples');"
        " return [i.naturalWidth, i.naturalHeight]; })()"
    )
    return found


@needs_browser
def test_from_the_list_to_a_model_its_passport_and_samples_of_one_class(
    site: Site, browser: Browser, tmp_path: Path
) -> None:
    browser.open(site.address)
    assert NAME in browser.text()
    assert "somebody's else" not in browser.text()
    for shown in ("9.9701", "released", "candidate", "withdrawn", "patient"):  # Rounded up.
        assert shown in browser.text()
    browser.click("a[href$='/1']")
    assert f"{NAME}, version 1" in browser.text()
    assert "(9.9701, 1e-05)-differentially private, for one patient replaced by nothing." in (
        browser.text()
    )
    assert browser.js("document.querySelectorAll('iframe.passport').length") == 1
    assert browser.js("document.title") != "x"  # The passport's script did not run.
    assert "0.987" not in browser.text()
    width, height = _natural_size(browser)
    assert height < width  # Two classes, a row each.
    browser.fill("select[name=class]", "1")
    browser.fill("input[name=seed]", "9")
    browser.fill("input[name=count]", "12")
    browser.click("section#samples button")
    assert browser.js("document.querySelector('select[name=class]').value") == "1"
    assert _natural_size(browser)[0] > 0
    source = browser.js("document.querySelector('img.samples').src")
    images = Generator.open(site.bundle).generate(np.full(12, 1), seed=9)
    assert _get(source)[1] == tiled_png([images[:10], images[10:]])
    browser.screenshot(tmp_path / "version.png")
    with Image.open(tmp_path / "version.png") as shot:
        assert shot.height > 600
    assert [line for line in browser.errors if "sandbox" not in line] == []


@needs_browser
def test_two_versions_are_compared_with_samples_of_one_seed(site: Site, browser: Browser) -> None:
    browser.open(site.address)
    browser.fill("select[name=a]", f"{NAME}/1")
    browser.fill("select[name=b]", f"{NAME}/2")
    browser.click("form button")
    differing = browser.js(
        "[...document.querySelectorAll('tr.differs th')].map(cell => cell.innerText)"
    )
    assert {"epsilon", "intervals", "bundle.sha256"} <= set(differing)
    assert "dp.delta" not in differing
    assert browser.js("[...document.images].every(one => one.naturalWidth > 0)")
    left, right = browser.js("[...document.images].map(one => one.src)")
    assert _get(left)[1] != _get(right)[1]
    browser.fill("input[name=seed]", "4")
    browser.click("section#samples button")
    assert browser.js("[...document.images].every(one => one.src.includes('seed=4'))")
    assert "Two versions" in browser.text()


@needs_browser
def test_a_withdrawn_and_a_tampered_version_say_so_and_draw_nothing(
    site: Site, browser: Browser
) -> None:
    for number, reason in [(3, "a label was wrong"), (4, "not what was registered")]:
        browser.open(_version(site, number))
        assert reason in browser.text()
        assert browser.js("document.images.length") == 0
        assert _get(f"{_version(site, number)}/samples.png")[0] == 400


def test_a_passport_is_served_in_a_box_that_runs_nothing(site: Site) -> None:
    status, body, headers = _get(f"{_version(site, 1)}/passport.html")
    assert (status, body.decode()) == (200, PASSPORT_PAGE)
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert json.loads(_get(f"{_version(site, 1)}/passport.json")[1]) == {"format": 1}
    assert _get(f"{_version(site, 2)}/passport.html")[0] == 404


def test_every_page_forbids_scripts_and_says_what_it_is(site: Site) -> None:
    for address in (site.address, _version(site, 1), f"{site.address}/nowhere"):
        _, _, headers = _get(address)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "script" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/models/other/1", 400),
        ("/models/../../etc/passwd", 404),
        ("/compare?a=x&b=y", 404),
    ],
)
def test_what_is_not_there_is_a_page_that_says_so(site: Site, path: str, status: int) -> None:
    assert _get(site.address + path)[0] == status


@pytest.mark.parametrize("query", ["class=7", "class=x", "count=65", "count=0", "seed=-1"])
def test_samples_that_cannot_be_had_are_refused(site: Site, query: str) -> None:
    assert _get(f"{_version(site, 1)}/samples.png?{query}")[0] == 400


def test_files_of_a_bundle_other_than_its_passport_are_not_served(site: Site) -> None:
    for name in ("model.json", "references.npz", "..%2fmodel.json"):
        assert _get(f"{_version(site, 1)}/{name}")[0] == 404


def test_who_calls_it_by_another_name_is_refused(site: Site) -> None:
    assert _get(site.address, Host="evil.example")[0] == 403
    assert _get(site.address, Host="localhost:1")[0] == 200


def test_a_taken_port_is_one_line(site: Site) -> None:
    port = int(site.address.rpartition(":")[2])
    with (
        pytest.raises(ConfigError, match="cannot be listened on"),
        served(Gallery(site.registry), port=port),
    ):
        pass
