"""Rendered letters: only letters, balanced, and each a function of (seed, index)."""

import numpy as np
import pytest

from rapid_dist.data.letters import FONTS, LETTERS, draw_masters, render_letters
from rapid_dist.data.sources import PublicSource, load_public

INDICES = np.arange(260, dtype=np.int64)


def test_the_alphabet_holds_no_digit() -> None:
    assert len(LETTERS) == len(set(LETTERS)) == 52
    assert LETTERS.isalpha()
    assert LETTERS.isascii()


def test_every_font_draws_52_different_letters() -> None:
    masters = draw_masters()
    assert masters.shape[:2] == (len(FONTS) + 1, 52)
    for font in masters:
        assert font.reshape(52, -1).max(1).min() > 0.5
        # A symbol font shows one box for every letter, or the same sign for several.
        assert len({letter.tobytes() for letter in font}) == 52


def test_a_letter_depends_on_its_seed_and_index_alone() -> None:
    whole, labels = render_letters(7, INDICES, 8)
    some = np.array([200, 3, 77])
    np.testing.assert_array_equal(render_letters(7, some, 8)[0], whole[some])
    np.testing.assert_array_equal(labels, INDICES % 52)


def test_another_seed_gives_other_letters() -> None:
    first, second = (render_letters(seed, INDICES, 8)[0] for seed in (0, 1))
    assert not (first == second).all(axis=(1, 2, 3)).any()


def test_repeated_letters_are_drawn_differently() -> None:
    images, _ = render_letters(0, 52 * np.arange(50, dtype=np.int64), 16)
    assert len({image.tobytes() for image in images}) == 50


@pytest.mark.parametrize("size", [8, 13, 28, 64])
def test_strokes_are_bright_on_black_at_every_size(size: int) -> None:
    images, _ = render_letters(0, INDICES, size)
    assert images.shape == (260, 1, size, size)
    assert images.max() == 255
    assert np.median(images) < 128
    assert (images.max(axis=(1, 2, 3)) > 100).all()


def _share_touching_the_border(margin: float) -> float:
    images, _ = render_letters(0, INDICES, 28, margin=margin)
    border = np.concatenate([images[:, 0, [0, -1]], images[:, 0, :, [0, -1]].transpose(1, 0, 2)], 1)
    return float((border.max(axis=(1, 2)) > 127).mean())


def test_a_margin_keeps_letters_off_the_border() -> None:
    # At 0.3 even the largest, widest, most slanted and shifted letter fits; at 0.2 not quite all.
    assert _share_touching_the_border(0.3) == 0
    assert _share_touching_the_border(0.0) > 0.5


@pytest.mark.parametrize(("labels", "num_classes"), [("fine", 52), ("coarse", 26), ("none", 1)])
def test_cases_can_be_told_apart_merged_or_forgotten(labels: str, num_classes: int) -> None:
    source = PublicSource(source="letters", count=104, labels=labels)
    images = load_public([source], size=8, channels=3)
    assert images.spec.num_classes == num_classes
    assert np.bincount(images.labels).tolist() == [104 // num_classes] * num_classes
    assert images.images.shape == (104, 3, 8, 8)
