"""Views: augmented versions of an image that teacher and student see alike. Pure functions of (key, view).

View 0 is the plain row. The random numbers of a view are a hash of the row's content key and the view's number, so that a
transfer set can say what the teacher saw, whatever batch the row stands in.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from understudy.errors import DataError

Array = np.ndarray[Any, Any]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def augment_images(images: Array, keys: Array, view: int | Array, *, shift: int = 0, flip: bool = False) -> Array:
    """The view of each image, uint8 [batch, height, width, channels]: shifted by up to `shift` pixels over zeros, maybe mirrored.

    `keys` int64 [batch, 2]; `view` is one number or one per row. The shift is uniform in -shift..shift on both axes; a mirror has
    probability one half.

    >>> image = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    >>> augment_images(image, np.zeros((1, 2), np.int64), 0, shift=1, flip=True).tolist() == image.tolist()
    True
    """
    batch, height, width, channels = images.shape
    if not 0 <= shift < min(height, width):
        most = min(height, width) - 1
        raise DataError(f"a shift of {shift} pixels does not fit images of {height} x {width}; use 0 to {most}", code="U150")
    views = np.broadcast_to(np.asarray(view, dtype=np.int64), (batch,))
    plain = views == 0
    if plain.all() or not (shift or flip):
        return images
    state = _mix(keys[:, 0].astype(np.uint64) ^ _mix(keys[:, 1].astype(np.uint64) ^ _mix(views.astype(np.uint64))))
    given = images
    if shift:
        steps = np.uint64(2 * shift + 1)
        down = np.where(plain, shift, (_mix(state + np.uint64(1)) % steps).astype(np.int64))
        right = np.where(plain, shift, (_mix(state + np.uint64(2)) % steps).astype(np.int64))
        padded = np.zeros((batch, height + 2 * shift, width + 2 * shift, channels), dtype=images.dtype)
        padded[:, shift : shift + height, shift : shift + width] = images
        row, line, pixel, channel = padded.strides
        # Every window of every padded image, as a view; one indexed copy then takes the right one of each.
        windows = np.lib.stride_tricks.as_strided(
            padded,
            (batch, 2 * shift + 1, 2 * shift + 1, height, width, channels),
            (row, line, pixel, line, pixel, channel),
            writeable=False,
        )
        given = windows[np.arange(batch), down, right]
    if flip:
        mirrored = ~plain & ((_mix(state + np.uint64(3)) >> np.uint64(63)) == 1)
        given = np.where(mirrored[:, None, None, None], given[:, :, ::-1], given)
    return np.ascontiguousarray(given)


def _mix(words: Array) -> Array:
    """splitmix64 (Steele, Lea & Flood 2014) of each word, uint64."""
    mixed = words + _GOLDEN
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
