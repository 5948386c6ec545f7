"""The report stands alone, escapes what it is given, and says when it is internal."""

import io
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rapid_dist.errors import ConfigError
from rapid_dist.release.plots import EpsilonCurve, ImageSet, epsilon_svg, samples_png, strip
from rapid_dist.release.report import ReportInputs, Strips, render_report
from rapid_dist.release.report_figures import duration
from rapid_dist.release.report_privacy import true_positive_bound, up
from rapid_dist.release.report_style import STYLE

VOID = {"meta", "img", "line", "polyline"}


class Page(HTMLParser):
    """Collects tags with their attributes and the text, and insists that tags are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _set_quality(mean: float) -> dict[str, Any]:
    return {
        "num_images": 40,
        "classifiers": {"logistic": mean, "mlp": mean, "cnn": mean, "mean": mean},
        "fidelity": {
            "frechet_distance": 1.5,
            "precision": 0.9,
            "recall": 0.8,
            "density": 1.1,
            "coverage": 0.7,
        },
        "memorisation": {
            "median_ratio": 1.0,
            "close_share": 0.01,
            "closer_chance": 0.5,
            "closer_p_value": 0.5,
            "exact_copies": 0,
        },
    }


def _quality(mean: float, control: float, **nearness: float) -> dict[str, Any]:
    samples = _set_quality(mean)
    samples["memorisation"].update(nearness)
    return {
        "notice": "Internal: not for release.",
        "extractor": "pixels",
        "fidelity_images": 40,
        "samples": samples,
        "controls": {"weak": _set_quality(0.1), "references": _set_quality(control)},
        "lead_over_best_control": mean - control,
    }


def _images(seed: int, channels: int = 1) -> ImageSet:
    images = np.random.default_rng(seed).integers(0, 256, (12, channels, 8, 8), dtype=np.uint8)
    return ImageSet(images=images, labels=np.arange(12) % 2)


def _inputs() -> ReportInputs:
    strips = _images(9).images[:3]
    return ReportInputs(
        summary={
            "method": "rapid",
            "recipe": "digits",
            "dataset": "digits",
            "seconds": {"pretrain": 60.0, "train": 120.4, "total": 180.4},
            "privacy": {
                "epsilon": 0.98761,
                "delta": 1e-4,
                "relation": "zero_out",
                "unit": "record",
                "accountants": {"pld": 0.98761, "prv": 0.98, "rdp": 1.1},
                "steps": 300,
                "sample_rate": 0.1,
                "noise_multiplier": 2.0,
                "max_grad_norm": 1.0,
                "ledger_head": "f00d" * 16,
                "dataset_epsilon": 2.5,
            },
            "sampling": {"nfe": 16, "images_per_second": 80.0},
            "registry": {"name": "digits", "version": 3, "aliases": ["candidate"]},
            "versions": {"torch": "2.12.1"},
        },
        claim=("It is (0.9877, 1e-04)-DP.", "It rests on a ledger."),
        created="1 May 2026",
        class_names=("nought", "one"),
        samples=_images(0),
        controls={"references": _images(1)},
        strips=Strips(
            queries=strips, surrogates=strips, samples=strips, labels=np.array([0, 1, 1])
        ),
        curve=EpsilonCurve(
            lines={
                "reported": [(1, 0.2), (2, 0.3), (150, 0.7), (301, 0.98)],
                "rdp": [(1, 0.3), (301, 1.1)],
            },
            budget=1.0,
        ),
    )


def test_the_page_requests_nothing_from_anywhere() -> None:
    page = Page(render_report(replace(_inputs(), quality=_quality(0.9, 0.5))))
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form"} == set()
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.of("img"))
    assert all(link["href"].startswith("#") for link in page.of("a"))
    policy = next(m["content"] for m in page.of("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'")
    assert "url(" not in STYLE
    assert "@import" not in STYLE


def test_the_page_can_be_read_without_seeing_it() -> None:
    page = Page(render_report(replace(_inputs(), quality=_quality(0.9, 0.5))))
    assert page.of("html") == [{"lang": "en"}]
    assert len(page.of("img")) == 2 * 2 + 3 * 3
    assert all(image["alt"] and image["width"] and image["height"] for image in page.of("img"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.of("a")} <= set(ids)
    assert all(header["scope"] in {"row", "col"} for header in page.of("th"))


def test_what_an_officer_looks_for_is_on_the_page() -> None:
    text = Page(render_report(_inputs())).text
    for wanted in (
        "It is (0.9877, 1e-04)-DP.",
        "0.99",  # Epsilon, rounded up.
        "2.50",  # Of the data set.
        "PLD",
        "PRV",
        "RDP",
        "f00d" * 16,
        "candidate",
        "2 min 00 s",
        "DP-SGD, every step charged",
        "2.12.1",
        "16 evaluations",
        "nought",
        "references",
    ):
        assert wanted in text, wanted


def test_the_officer_is_told_a_check_that_notices_entries_cut_off_the_ledger() -> None:
    page = render_report(_inputs())
    this = "--recipe config.yaml --out ."  # Wherever the run was, and whatever it was told.
    assert f"ledger verify {this} --head {'f00d' * 16}" in page  # Alone it does not.
    assert f"ledger show {this}" in page  # Verify computes no epsilon.


def test_a_run_of_the_prior_alone_has_a_report_and_states_the_noise_of_its_prior() -> None:
    inputs = _inputs()
    alone = {"steps": 0, "sample_rate": None, "noise_multiplier": None}
    privacy = {**inputs.summary["privacy"], **alone, "prior_noise_multiplier": 1.25}
    text = Page(render_report(replace(inputs, summary={**inputs.summary, "privacy": privacy}))).text
    assert "noise multiplier of the prior" in text
    assert "1.25" in text
    assert "sample rate" not in text


def test_the_page_speaks_of_the_unit_and_says_what_has_to_be_said_of_it() -> None:
    inputs = _inputs()
    note = "The groups are made up."
    named = {"unit": "group", "unit_name": "synthetic patient", "unit_note": note}
    privacy = {**inputs.summary["privacy"], **named}
    summary = {**inputs.summary, "privacy": privacy}
    text = Page(render_report(replace(inputs, summary=summary))).text
    for said in ("synthetic patient, with all its images", "every other synthetic patient", note):
        assert said in text
    plain = Page(render_report(inputs)).text
    assert "every other record" in plain
    assert note not in plain


def test_text_from_outside_is_escaped_everywhere() -> None:
    evil = "<script>alert('x')</script>&"
    inputs = _inputs()
    privacy = {**inputs.summary["privacy"], "unit": evil, "relation": evil, "ledger_head": evil}
    privacy |= {"unit_name": evil, "unit_note": evil}
    quality = _quality(0.9, 0.5)
    quality["controls"][evil] = _set_quality(0.2)
    changed = replace(
        inputs,
        summary={
            **inputs.summary,
            **dict.fromkeys(("method", "recipe", "dataset"), evil),
            "privacy": privacy,
            "seconds": {evil: 1.0},
            "versions": {evil: evil},
            "registry": {"name": evil, "version": evil, "aliases": [evil]},
        },
        claim=(evil + " 1e-05", evil),
        created=evil,
        class_names=(evil, evil),
        controls={evil: _images(1)},
        curve=EpsilonCurve(lines={evil: [(1, 0.1), (2, 0.2)]}, budget=1.0),
        quality=quality | {"notice": evil, "extractor": evil},
    )
    written = render_report(changed)
    assert "<script" not in written
    assert Page(written).text.count(evil) > 15


def test_the_page_is_internal_exactly_if_it_holds_quality() -> None:
    public = render_report(_inputs())
    internal = render_report(replace(_inputs(), quality=_quality(0.9, 0.5)))
    assert "Internal document" not in public
    assert "Accuracy on held-out real images" not in public
    assert "Internal document" in internal
    assert "Accuracy on held-out real images" in internal


def test_a_generator_that_loses_to_a_control_is_reported_as_such() -> None:
    wins = Page(render_report(replace(_inputs(), quality=_quality(0.9, 0.5)))).text
    loses = Page(render_report(replace(_inputs(), quality=_quality(0.5, 0.9)))).text
    assert "beats every control" in wins
    assert 'the best of them, "references", by 40.0 points' in wins
    assert 'does not beat its controls: "references" has a mean accuracy that is 40.0' in loses


def test_a_report_without_controls_says_so_wherever_it_would_have_shown_them() -> None:
    inputs, quality = _inputs(), _quality(0.9, 0.5)
    said = "No controls were drawn in this run"
    assert said not in Page(render_report(replace(inputs, quality=quality))).text
    without = {**quality, "controls": {}, "lead_over_best_control": None}
    public = Page(render_report(replace(inputs, controls={}))).text
    internal = Page(render_report(replace(inputs, controls={}, quality=without))).text
    assert (public.count(said), internal.count(said)) == (1, 2)


@pytest.mark.parametrize("nearness", [{"exact_copies": 2}, {"closer_p_value": 1e-5}])
def test_signs_of_memorisation_are_said_aloud(nearness: dict[str, float]) -> None:
    quiet = Page(render_report(replace(_inputs(), quality=_quality(0.9, 0.5)))).text
    loud = Page(render_report(replace(_inputs(), quality=_quality(0.9, 0.5, **nearness)))).text
    assert "There is no sign" in quiet
    assert "Samples lie closer to training records" in loud


def test_images_without_classes_and_parts_that_are_missing_make_a_page_too() -> None:
    inputs = replace(_inputs(), class_names=(), strips=None, curve=None, controls={})
    inputs = replace(inputs, samples=replace(inputs.samples, labels=np.zeros(12, np.int64)))
    quality = _quality(0.9, 0.5)
    for figures in (quality["samples"], *quality["controls"].values()):
        figures["classifiers"] = None
    quality["lead_over_best_control"] = None
    page = Page(render_report(replace(inputs, quality=quality)))
    assert len(page.of("img")) == 1
    assert "Usefulness" not in page.text


def test_a_price_gives_every_stage_a_cost() -> None:
    text = Page(render_report(replace(_inputs(), price_per_hour=30.0))).text
    assert "1.00" in text  # 120.4 seconds at 30 an hour.
    assert "cost" in text


def test_no_attacker_beats_randomised_response_at_its_own_bound() -> None:
    epsilon = 1.3
    false_positive = 1 / (1 + math.exp(epsilon))
    found = true_positive_bound(false_positive, epsilon, 0.0)
    assert found == pytest.approx(1 - false_positive)  # It is attained: the bound is tight.


def test_the_bound_on_an_attacker_is_what_the_definition_gives() -> None:
    assert true_positive_bound(0.01, 0.0, 0.0) == pytest.approx(0.01)
    assert true_positive_bound(0.01, 1.0, 1e-3) == pytest.approx(math.e * 0.01 + 1e-3)
    assert true_positive_bound(0.01, 5.0, 0.0) == pytest.approx(1 - math.exp(-5) * 0.99)
    assert true_positive_bound(0.01, 1e4, 0.0) == 1


def test_epsilon_is_never_rounded_down() -> None:
    assert up(0.981) == "0.99"
    assert up(0.98) == "0.98"
    assert up(9.70001, 4) == "9.7001"


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.06, "4.1 s"), (125, "2 min 05 s"), (7325, "2 h 02 min")]
)
def test_times_are_said_as_a_reader_would(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_curve_rises_as_epsilon_does_and_keeps_inside_its_frame() -> None:
    curve = EpsilonCurve(lines={"reported": [(0, 0.0), (50, 3.0), (100, 4.0)]}, budget=3.5)
    drawn = ET.fromstring(epsilon_svg(curve))
    points = next(drawn.iter("polyline")).attrib["points"].split()
    x, y = zip(*(map(float, point.split(",")) for point in points), strict=True)
    assert list(x) == sorted(x)
    assert list(y) == sorted(y, reverse=True)
    assert (y[0] - y[1]) / (y[1] - y[2]) == pytest.approx(3, rel=0.01)  # A linear axis from 0.
    assert min(y) > 0
    assert max(y) < 320
    budget = float(next(e for e in drawn.iter("line") if e.get("class") == "budget").attrib["y1"])
    assert y[2] < budget < y[1]


@pytest.mark.parametrize("points", [[], [(2, 0.1), (1, 0.2)], [(1, 0.1), (1, 0.2)]])
def test_a_curve_without_points_or_out_of_order_is_refused(points: list[tuple[int, float]]) -> None:
    with pytest.raises(ConfigError, match=r"The curve of rdp is over \["):
        EpsilonCurve(lines={"reported": [(1, 0.1)], "rdp": points}, budget=1.0)


@pytest.mark.parametrize("releases", [1, 2, 13, 71, 404, 12_345])
def test_releases_are_counted_in_whole_numbers(releases: int) -> None:
    curve = EpsilonCurve(lines={"reported": [(releases, 1.0)]}, budget=1.0)
    drawn = ET.fromstring(epsilon_svg(curve)).iter("text")
    middle = [e.text or "" for e in drawn if e.get("text-anchor") == "middle"]
    ticks = [text.replace(",", "") for text in middle if "releases" not in text]
    assert 2 <= len(ticks) <= 9
    assert [tick for tick in ticks if not tick.isdigit()] == []
    assert len(set(ticks)) == len(ticks)


def test_a_curve_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no line"):
        EpsilonCurve(lines={}, budget=1.0)


def test_the_report_names_every_line_of_the_curve() -> None:
    text = Page(render_report(_inputs())).text
    assert "claimed" in text
    assert "RDP" in text.partition("releases charged")[2].partition("Constants")[0]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_the_first_images_of_each_class_as_they_are(channels: int) -> None:
    samples = _images(0, channels)
    written = samples_png(samples, ("a", "b"), per_class=3)
    pixels = np.array(Image.open(io.BytesIO(written)).convert("RGB"))
    wanted = samples.images[[1, 3, 5]].transpose(0, 2, 3, 1)  # Class "b", in order.
    right = pixels.shape[1] - 6 - 3 * 80 - 2 * 6
    row = pixels[6 + 86 : 6 + 86 + 80, right:]
    for index, image in enumerate(np.broadcast_to(wanted, (3, 8, 8, 3))):
        tile = row[:, index * 86 : index * 86 + 80]
        np.testing.assert_array_equal(tile[5::10, 5::10], image)


def test_a_grid_without_classes_has_plain_rows() -> None:
    written = samples_png(_images(0), (), per_class=4)
    assert Image.open(io.BytesIO(written)).size == (4 * 86 - 6, 3 * 86 - 6)


@pytest.mark.parametrize(("size", "shown"), [(8, 40), (28, 42), (32, 48), (64, 64)])
def test_a_tile_is_a_whole_multiple_shown_at_half_size(size: int, shown: int) -> None:
    picture = strip(np.zeros((2, 1, size, size), np.uint8))
    assert (picture.width, picture.height) == (2 * shown + 3, shown)
