"""Views are pure functions of the row's key and the view's number."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.data.keys import content_keys
from understudy.data.views import augment_images
from understudy.errors import DataError

IMAGES = np.random.default_rng(0).integers(1, 256, (40, 6, 7, 3), dtype=np.uint8)
KEYS = content_keys(IMAGES, "image")


def test_view_zero_is_the_plain_row() -> None:
    assert (augment_images(IMAGES, KEYS, 0, shift=2, flip=True) == IMAGES).all()
    views = np.arange(40) % 2
    mixed = augment_images(IMAGES, KEYS, views, shift=2, flip=True)
    assert (mixed[views == 0] == IMAGES[views == 0]).all()
    assert (mixed[views == 1] == augment_images(IMAGES, KEYS, 1, shift=2, flip=True)[views == 1]).all()


def test_a_row_does_not_know_its_neighbours() -> None:
    whole = augment_images(IMAGES, KEYS, 3, shift=2, flip=True)
    order = np.random.default_rng(1).permutation(40)
    assert (augment_images(IMAGES[order], KEYS[order], 3, shift=2, flip=True) == whole[order]).all()
    alone = np.concatenate([augment_images(IMAGES[at : at + 1], KEYS[at : at + 1], 3, shift=2, flip=True) for at in range(40)])
    assert (alone == whole).all()
    assert whole.flags.c_contiguous


def test_every_view_is_a_shifted_maybe_mirrored_image_over_zeros() -> None:
    """Against all 5 x 5 x 2 outcomes made by hand; each of them occurs."""
    image = np.repeat(IMAGES[:1], 600, axis=0)
    views = augment_images(image, np.repeat(KEYS[:1], 600, axis=0), np.arange(1, 601), shift=2, flip=True)
    padded = np.pad(IMAGES[0], ((2, 2), (2, 2), (0, 0)))
    outcomes = {}
    for down in range(5):
        for right in range(5):
            window = padded[down : down + 6, right : right + 7]
            outcomes |= {window.tobytes(): (down, right, False), window[:, ::-1].tobytes(): (down, right, True)}
    seen = [outcomes[view.tobytes()] for view in views]
    assert len(set(seen)) == 50
    assert 250 < sum(mirrored for _, _, mirrored in seen) < 350


def test_rows_and_views_differ() -> None:
    one, other = (augment_images(IMAGES, KEYS, view, shift=2) for view in (1, 2))
    assert (one != other).any(axis=(1, 2, 3)).mean() > 0.8


def test_only_flip() -> None:
    views = augment_images(IMAGES, KEYS, 1, flip=True)
    same = (views == IMAGES).all(axis=(1, 2, 3))
    assert (views[~same] == IMAGES[~same][:, :, ::-1]).all()
    assert 8 < same.sum() < 32


def test_a_shift_beyond_the_image() -> None:
    with pytest.raises(DataError, match="U150 a shift of 6 pixels does not fit images of 6 x 7; use 0 to 5"):
        augment_images(IMAGES, KEYS, 1, shift=6)
