"""Views of sound, for whole batches of int16 [rows, samples] with zeros after each clip's end. Driven by numbers drawn elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def sounds(waves: Array, changed: Array, drawn: Sequence[Array], *, shift: int, speed: float, gain: float) -> Array:
    """Each clip faster or slower, later or earlier, louder or softer, by numbers in (0, 1) drawn for its view; int16, same shape.

    Tempo and pitch change together, within 1 - speed to 1 + speed, by linear interpolation (Ko, Povey, Peddinti & Khudanpur
    2015, "Audio augmentation for speech recognition", do so at three fixed speeds). What moves past an end is lost.
    """
    tempo = np.where(changed, 1 + speed * (2 * drawn[0] - 1), 1.0)
    moved = np.where(changed, np.rint((2 * drawn[1] - 1) * shift), 0.0)
    louder = np.where(changed, 10 ** ((2 * drawn[2] - 1) * gain / 20), 1.0)
    length = waves.shape[1]
    places = (np.arange(length, dtype=np.float64) - moved[:, None]) * tempo[:, None]
    before = np.floor(places)
    part = (places - before).astype(np.float32)
    at = before.astype(np.int64)
    padded = np.pad(waves, ((0, 0), (1, 2)))  # one zero before, two after: what is beyond an end reads zero
    left = np.take_along_axis(padded, (at + 1).clip(0, length + 1), axis=1).astype(np.float32)
    right = np.take_along_axis(padded, (at + 2).clip(0, length + 2), axis=1).astype(np.float32)
    return to_samples((left + (right - left) * part) * louder[:, None].astype(np.float32))


def ends(waves: Array) -> Array:
    """One past the last sample of each clip that is not zero, int64 [rows]."""
    return np.where(waves != 0, np.arange(1, waves.shape[1] + 1), 0).max(axis=1)


def levels(waves: Array) -> Array:
    """Root of the mean square of each clip's samples up to its end, float32 [rows]."""
    squares = np.square(waves.astype(np.float32)).sum(axis=1, dtype=np.float64)
    return np.sqrt(squares / np.maximum(ends(waves), 1)).astype(np.float32)


def to_samples(values: Array) -> Array:
    """Rounded to int16, cut at full scale."""
    return np.rint(values).clip(-32768, 32767).astype(np.int16)
