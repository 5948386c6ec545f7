"""A passport is complete, says no more than it may, and reads the same to people and programs."""

import json
import re
from typing import Any, get_args, get_type_hints

import pytest

from rapid_dist.audit.result import EMPIRICAL
from rapid_dist.errors import ReleaseError
from rapid_dist.release.bundle import BundleFacts
from rapid_dist.release.model_card import model_card, plain
from rapid_dist.release.passport import lower_bound, read_schema, schema_faults, to_bytes
from rapid_dist.release.passport_content import passport_of
from rapid_dist.release.passport_page import render_passport
from tests.releases import over_budget, tiny_audit, tiny_claim, tiny_inputs, tiny_source

KEY = "4a" * 32
SECRET = {
    "promise": "repeat_and_select", "sentence": "The best of a secret number of runs.",
    "epsilon": 9.5, "delta": 1e-4,
}  # fmt: skip


def _passport(**changes: Any) -> dict[str, Any]:
    return passport_of(tiny_inputs(KEY, **changes))


_PASSPORT = _passport()


def _paths(schema: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field that the schema demands, at any depth of objects."""
    found = []
    for name in schema.get("required", []):
        if "properties" in schema:
            found += [(*prefix, name), *_paths(schema["properties"][name], (*prefix, name))]
    return found


def _without(content: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    copy = json.loads(json.dumps(content))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return copy


@pytest.mark.parametrize("path", _paths(read_schema()), ids=".".join)
def test_a_passport_without_one_field_is_not_complete(path: tuple[str, ...]) -> None:
    assert schema_faults(_without(_PASSPORT, path)) != []


def test_a_passport_meets_its_schema_and_comes_back_as_it_was_stored() -> None:
    assert schema_faults(_PASSPORT) == []
    assert json.loads(to_bytes(_PASSPORT)) == _PASSPORT


@pytest.mark.parametrize("field", ["quality", "memorised"])
def test_there_is_no_field_for_what_was_measured_on_private_records(field: str) -> None:
    assert schema_faults({**_PASSPORT, field: 0.9}) != []
    inner = {**_PASSPORT["memorisation"], field: True}
    assert schema_faults({**_PASSPORT, "memorisation": inner}) != []
    told = {**_PASSPORT["memorisation"], "status": "passed"}  # A verdict is a release as well.
    assert schema_faults({**_PASSPORT, "memorisation": told}) != []


def test_a_passport_that_lacks_a_licence_is_not_made() -> None:
    with pytest.raises(ReleaseError, match=r"public_data\[0\]\.licence"):
        _passport(public_data=[tiny_source(licence="")])


def test_the_lower_bound_is_the_one_that_the_audit_states() -> None:
    assert _PASSPORT["audit"]["epsilon_lower_bound"] == 1.25
    assert lower_bound(tiny_audit(results=[])) is None


def test_the_lower_bound_is_a_field_and_no_sentence() -> None:
    audit = tiny_audit()
    for line in audit["results"]:
        line["statistic"] = "epsilon > 7.5, somebody wrote"
    assert lower_bound(audit) == 1.25
    for line in audit["results"]:  # As audits were written before they had the field.
        line.pop("value", None)
    assert lower_bound(audit) is None
    assert {line["check"] for line in audit["results"]} >= {EMPIRICAL}


def test_a_model_that_a_sweep_chose_claims_what_the_choice_cost() -> None:
    chosen = {**SECRET, "promise": "per_trial", "sentence": "All trials, composed."}
    passport = _passport(selection=chosen)
    assert passport["claim"]["epsilon"] == 9.5
    assert passport["claim"]["run_epsilon"] == tiny_claim().spent.reported
    assert passport["claim"]["sentence"] == "All trials, composed."
    assert passport["ledger"]["entries"] == 23


def test_a_secret_number_of_runs_cannot_be_told_from_the_passport() -> None:
    few = tiny_claim()
    many = tiny_claim(dataset_spent=over_budget().spent)
    told = [
        _passport(selection=SECRET, claim=claim, ledger_entries=entries)
        for claim, entries in ((few, 23), (many, 230))
    ]
    assert told[0] == told[1]
    assert model_card(told[0]) == model_card(told[1])
    page = render_passport(told[0], "0" * 64)
    assert page == render_passport(told[1], "0" * 64)
    assert page.count("<dt>epsilon of the data set, all runs</dt><dd>secret</dd>") == 2


def test_the_twin_without_a_secret_the_passport_tells_the_whole_ledger() -> None:
    few, many = _passport(), _passport(claim=tiny_claim(dataset_spent=over_budget().spent))
    assert few["ledger"]["dataset_epsilon"] != many["ledger"]["dataset_epsilon"]


def test_a_public_proxy_costs_the_model_nothing() -> None:
    proxy = {**SECRET, "promise": "public_proxy", "sentence": "Choosing cost nothing."}
    passport = _passport(selection=proxy)
    assert passport["claim"]["epsilon"] == tiny_claim().spent.reported
    assert passport["claim"]["sentence"] == tiny_claim().sentence


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    page = render_passport(_PASSPORT, "5b" * 32)
    assert "default-src &#x27;none&#x27;" in page
    assert re.findall(r"<script|https?://|<link|@import|url\(", page) == []
    for value in (KEY, "5b" * 32, _PASSPORT["ledger"]["head"], "A. Officer", "OFL"):
        assert value in page


def test_names_are_text_on_the_page_and_in_the_card() -> None:
    harm = '<img src=x onerror="1">[a](javascript:1)|`'
    passport = _passport(public_data=[tiny_source(licence=harm)], signer=harm)
    page = render_passport(passport, "0" * 64)
    assert "<img src=x" not in page
    card = model_card(passport)
    assert harm not in card
    assert plain("a\n# b") == "a \\# b"


def test_the_schema_knows_every_way_in_which_a_bundle_may_begin_a_sample() -> None:
    model = read_schema()["properties"]["model"]["properties"]
    assert set(model["starts_from"]["enum"]) == set(get_args(get_type_hints(BundleFacts)["source"]))
