"""A passport as a release makes it: reached through the gallery by a reader, and printed."""

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rapid_dist.release.assemble import assemble
from rapid_dist.release.pull import Registry
from rapid_dist.release.registry import register_model
from rapid_dist.release.signing import fingerprint_of, raw_public_key
from rapid_dist.release.verify import Verified
from rapid_dist.runtime.gallery import Gallery, served
from tests.browser import Browser, find_browser
from tests.releases import new_key, tiny_parts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_browser() is None, reason="No Chromium is installed here."),
]
A4_WIDTH = 688  # Pixels that a page of report_style.py has between its margins.
TOO_WIDE = """
[...document.querySelectorAll('main *')].filter(e =>
  (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflowX !== 'visible')
  || e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))
"""


@dataclass(frozen=True, kw_only=True)
class Released:
    """A gallery of one released version."""

    address: str
    folder: Path
    verified: Verified


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Released]:
    root = tmp_path_factory.mktemp("released")
    key, folder = new_key(), root / "release"
    folder.mkdir()
    verified = assemble(tiny_parts(root, fingerprint_of(raw_public_key(key))), key, folder)
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    claim = verified.passport["claim"]
    tags = {f"dp.{name}": str(claim[name]) for name in ("epsilon", "delta", "relation", "unit")}
    tags["dp.ledger_head"] = verified.passport["ledger"]["head"]
    register_model(folder, run, "faces", tags, tracking_uri=uri, alias="released")
    with served(Gallery(Registry(uri, cache=root / "cache")), port=0) as address:
        yield Released(address=address, folder=folder, verified=verified)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path)
    yield opened
    opened.close()


def test_a_reader_comes_from_the_list_to_the_whole_passport(
    released: Released, browser: Browser
) -> None:
    browser.open(released.address)
    browser.click("a[href$='/1']")
    assert browser.js("document.querySelectorAll('iframe.passport').length") == 1
    browser.click("a[href$='passport.html']")
    text = browser.text()
    passport = released.verified.passport
    assert passport["claim"]["sentence"] in text.replace("\n", " ")
    for shown in (passport["ledger"]["head"], passport["signer"]["name"], "above 1.25", "OFL"):
        assert shown in text
    assert browser.errors == []


def test_the_passport_prints_on_a4_with_nothing_cut_off(
    released: Released, browser: Browser, tmp_path: Path
) -> None:
    browser.open((released.folder / "passport.html").as_uri())
    browser.call("Emulation.setEmulatedMedia", {"media": "print"})
    size = {"width": A4_WIDTH, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", size)
    assert browser.js(TOO_WIDE) == []
    assert browser.js("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.js("document.querySelector('pre').style.whiteSpace = 'pre'")
    browser.js("document.querySelector('pre').style.overflow = 'auto'")
    browser.js("document.querySelector('pre').textContent += 'x'.repeat(500)")
    assert len(browser.js(TOO_WIDE)) == 1  # It would be noticed.
    browser.open((released.folder / "passport.html").as_uri())
    printed = browser.call("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(printed["data"])
    (tmp_path / "passport.pdf").write_bytes(pdf)
    assert pdf.startswith(b"%PDF")
    sizes = [[float(n) for n in box.split()] for box in re.findall(rb"/MediaBox \[(.*?)\]", pdf)]
    assert 1 <= len(sizes) <= 5
    assert all(size == pytest.approx([0, 0, 595, 842], abs=2) for size in sizes)  # A4, in points.
