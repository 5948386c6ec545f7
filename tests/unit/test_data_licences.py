"""Every source has a licence, or it is known that it states none."""

import pytest

from rapid_dist.data.declaration import SOURCES, SOURCES_WITH_PATH, PublicSource
from rapid_dist.data.licences import LICENCES, UNRECORDED, recorded_licence
from rapid_dist.data.sources import load_public


def test_every_source_says_something_of_its_licence() -> None:
    assert LICENCES.keys() == set(SOURCES)
    assert set(SOURCES_WITH_PATH) <= set(UNRECORDED) < LICENCES.keys()


def test_what_is_printed_is_what_the_images_say_of_themselves() -> None:
    source = PublicSource(source="letters", count=4)
    images = load_public([source], size=8, channels=1)
    assert images.spec.licence == recorded_licence(source, {})


@pytest.mark.parametrize("source", ["folder", "cifar10"])
def test_a_source_that_states_none_has_one_only_if_somebody_gives_it(source: str) -> None:
    path = "x" if source == "folder" else None
    assert recorded_licence(PublicSource(source=source, path=path), {}) == ""
    assert recorded_licence(PublicSource(source=source, path=path, licence="  "), {}) == ""
    own = PublicSource(source=source, path=path, licence="CC0")
    assert recorded_licence(own, {}) == "CC0"
    assert recorded_licence(own, {source: "by contract 7"}) == "by contract 7"
