"""What the report says of private images among the public ones, and what the internal one adds."""

from dataclasses import replace

from rapid_dist.release.report import render_report
from tests.unit.test_release_report import Page, _inputs, _quality


def test_near_duplicates_are_counted_on_the_internal_page_alone() -> None:
    inputs = _inputs()
    accepted = {**inputs.summary, "contamination": {"policy": "accept"}}
    counts = {"equal": 3, "by_hash": 4_321, "by_features": None, "near": 4_567}
    part = {"images": 60_000, "sources": [{"source": "omniglot", "images": 32_460, **counts}]}
    found = {"train": part, "held_out": part}
    public = replace(inputs, summary=accepted)
    internal = replace(public, quality={**_quality(0.9, 0.5), "contamination": found})
    plain, full = (Page(render_report(one)).text for one in (public, internal))
    for said in ("4,321", "4,567", "omniglot"):
        assert said in full
        assert said not in plain
    assert "policy accept. What was found is internal" in plain
    assert "Private images in public data" not in Page(render_report(inputs)).text


def test_counts_that_were_paid_for_are_on_the_page_with_what_followed() -> None:
    inputs = _inputs()
    decision = {
        "policy": "drop", "most_units": 100.0, "noise_multiplier": 20.0, "condemned": [1],
        "sources": ["letters", "npz"], "noised": [-3.25, 1431.5],
    }  # fmt: skip
    summary = {**inputs.summary, "contamination": decision}
    text = Page(render_report(replace(inputs, summary=summary))).text
    assert "letters -3.2, npz 1431.5. Above 100, and left out: npz." in text
