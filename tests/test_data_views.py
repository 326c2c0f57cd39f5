"""Views are pure functions of the row's key and the view's number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from understudy.data.encoding import TableEncoding
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.data.views import WITHOUT_END, Partners, Views, augment_images, enumerate_images
from understudy.errors import DataError
from understudy.teachers import take

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


# --- all views, counted ---------------------------------------------------------------------------------------------


def test_counted_views_are_every_outcome_of_a_random_crop_and_mirror_once() -> None:
    """Against padding and cutting by hand; padding 4 and a mirror make 162."""
    image = np.random.default_rng(3).integers(1, 256, (1, 9, 8, 3), dtype=np.uint8)
    padded = np.pad(image[0], ((4, 4), (4, 4), (0, 0)))
    windows = [padded[down : down + 9, right : right + 8] for down in range(9) for right in range(9)]
    wanted = {side.tobytes() for window in windows for side in (window, window[:, ::-1])}
    seen = Views("image", shift=4, flip=True, enumerated=True)
    made = seen(np.repeat(image, 162, axis=0), np.zeros((162, 2), np.int64), np.arange(162))
    assert seen.count == 162 and {view.tobytes() for view in made} == wanted and len(wanted) == 162
    assert (made[0] == image[0]).all()
    with pytest.raises(DataError, match="U320 there are 162 views of these images, number 162 was asked"):
        enumerate_images(image, 162, shift=4, flip=True)


# --- drawn views ----------------------------------------------------------------------------------------------------

ARRAYS = np.random.default_rng(5).normal(size=(40, 12)).astype(np.float32)
TABLE = pd.DataFrame({"a": np.arange(40), "b": np.where(np.arange(40) % 7 == 0, np.nan, np.arange(40) / 10), "c": ["x", "y"] * 20})
DRAWN = {
    "crop": (Views("image", crop=0.3), IMAGES),
    "colour": (Views("image", colour=0.4), IMAGES),
    "noise on images": (Views("image", noise=20), IMAGES),
    "noise on arrays": (Views("array", noise=0.5), ARRAYS),
    "noise on a table": (Views("table", noise=0.5, columns=(("a", 0, 10.0), ("b", 1, 1.0))), TABLE),
    "mixup of images": (Views("image", mixup=0.5, partners=Partners.of(Rows("image", IMAGES, KEYS))), IMAGES),
    "mixup of arrays": (Views("array", mixup=0.5, partners=Partners.of(Rows("array", ARRAYS, KEYS))), ARRAYS),
    "everything": (Views("image", shift=1, flip=True, crop=0.5, colour=0.2, noise=3), IMAGES),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, pd.DataFrame):  # a whole column becomes numbers with a fraction as soon as one of its cells does
        return bool(one.astype({"a": float}).equals(other.astype({"a": float})))
    return bool((one == other).all())


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_view_knows_only_its_row_and_its_number(name: str) -> None:
    views, inputs = DRAWN[name]
    numbers = np.arange(40) % 4
    whole = views(inputs, KEYS, numbers)
    order = np.random.default_rng(1).permutation(40)
    assert same(views(take(inputs, order), KEYS[order], numbers[order]), take(whole, order))
    for at in range(0, 40, 7):
        one = slice(at, at + 1)
        assert same(views(take(inputs, one), KEYS[one], numbers[one]), take(whole, one))
    plain = np.flatnonzero(numbers == 0)
    assert same(take(whole, plain), take(inputs, plain))
    assert not same(views(inputs, KEYS, 1), views(inputs, KEYS, 2)) and type(whole) is type(inputs)
    assert views.count == WITHOUT_END and not views.finite


def test_noise_has_its_size_and_leaves_missing_and_words_alone() -> None:
    rows = np.zeros((500, 40), dtype=np.float32)
    drawn = Views("array", noise=0.5)(rows, content_keys(np.random.default_rng(0).normal(size=(500, 2)), "array"), 3)
    assert abs(drawn.mean()) < 0.02 and abs(drawn.std() - 0.5) < 0.01
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.15
    views = DRAWN["noise on a table"][0]
    moved = views(TABLE, KEYS, 1)
    assert (moved["b"].isna() == TABLE["b"].isna()).all() and (moved["c"] == TABLE["c"]).all()
    encoding = TableEncoding.fit(TABLE, 8)
    np.testing.assert_allclose(views(encoding.encode(TABLE), KEYS, 1), encoding.encode(moved), rtol=1e-5, atol=1e-5)


def test_mixup_is_a_mean_of_the_row_and_another_with_the_row_as_the_larger_part() -> None:
    views = DRAWN["mixup of arrays"][0]
    drawn = views(ARRAYS, KEYS, 1)
    shares = []
    for row, blend in zip(ARRAYS, drawn, strict=True):
        found = [np.linalg.lstsq((row - other)[:, None], blend - other, rcond=None)[0][0] for other in ARRAYS]
        off = [np.abs(share * row + (1 - share) * other - blend).max() for share, other in zip(found, ARRAYS, strict=True)]
        shares.append(found[int(np.argmin(off))] if min(off) < 1e-5 else np.nan)
    known = np.array(shares)
    assert np.isfinite(known).all() and (known >= 0.4999).all() and known.std() > 0.05
    turned = np.random.default_rng(2).permutation(40)
    other = Views("array", mixup=0.5, partners=Partners.of(Rows("array", ARRAYS[turned], KEYS[turned])))
    assert (other(ARRAYS, KEYS, 1) == drawn).all() and other.spec == views.spec


def test_a_crop_is_a_window_of_the_image_at_its_size() -> None:
    """A ramp stays a ramp: its slope says how wide the window is, its ends where it lies."""
    ramp = np.broadcast_to(np.linspace(0, 248, 32)[None, None, :, None], (200, 32, 32, 1)).astype(np.uint8)
    found = Views("image", crop=0.25)(ramp, content_keys(np.arange(400).reshape(200, 2), "array"), 1)[:, 16, :, 0].astype(float)
    slopes = (found[:, 24] - found[:, 8]) / 16 / 8
    assert 0.4 < slopes.min() < 0.6 and 0.9 < slopes.max() <= 1.01
    assert found[:, 0].std() > 20


def test_views_that_a_kind_of_row_cannot_have() -> None:
    with pytest.raises(DataError, match=r"U320 augment.shift is for images and sound, the rows are of kind 'table'; use augment.noise"):
        Views("table", shift=2)
    with pytest.raises(DataError, match=r"U320 augment.flip is for images, the rows are of kind 'array'"):
        Views("array", flip=True)
