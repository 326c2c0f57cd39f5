"""Near twins: held-out rows that a training row all but repeats, which content keys cannot see.

A picture saved twice, a row with one cell rounded, a sentence with another full stop. Texts are compared by their words; other
rows become vectors of unit variance (pixels in blocks, numbers, one random direction per text), and the nearest training row
of each held-out row is looked up.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd

from understudy.data.rows import Rows

Array = np.ndarray[Any, Any]

NEAR = 0.05
"""Near twins are no further apart than this part of what two pictures usually are, or a row and its nearest (but for a tenth) usually is.

Of rows in d dimensions, chance brings about 2.3 * 0.05^d so near: hence pictures by the one, rows of 3 or more features by the other.
"""
FEWEST = {"image": 16}
"""Fewer columns of many values than this say too little (3 for rows that are no pictures)."""
MANY = 20
"""Different values from which a column counts as one of many."""
LOOKED_AT = 2_000
"""Most held-out rows that are looked up, evenly spaced."""
COMPARED = 50_000
"""Most training rows they are looked up in, evenly spaced."""
_BYTES = 1 << 30
"""Most bytes of inputs that are read, because they may be a memory map."""
_SIDE = 16
_DIRECTIONS = 64
_PER_TEXT = 4
_MARKS = re.compile(r"[\W_]+")


@final
@dataclass(frozen=True)
class Twins:
    """`pairs`: positions [pairs, 2] of a training row and a held-out row; `looked_at`: how many held-out rows were looked up."""

    pairs: Array
    looked_at: int

    @property
    def share(self) -> float:
        """The part of the held-out rows that has a near twin in training."""
        return len(self.pairs) / max(self.looked_at, 1)


def near_twins(rows: Rows) -> Twins:
    """Validation and test rows with a training row that is nearly, but not to the byte, the same."""
    if rows.split is None:
        raise ValueError("these rows are not split yet")
    train, held_out = np.flatnonzero(rows.split == "train"), np.flatnonzero(rows.split != "train")
    if len(train) < 2 or not len(held_out) or rows.kind not in ("table", "array", "image", "audio", "text"):
        return Twins(np.empty((0, 2), dtype=np.int64), 0)
    if rows.kind == "text":
        return _same_words(rows, train, held_out)
    most = max(2, _BYTES // max(_row_bytes(rows), 1))
    train, held_out = _spaced(train, min(COMPARED, most)), _spaced(held_out, min(LOOKED_AT, most))
    there, asked = _vectors(rows, train, held_out)
    if _telling(rows, there) < FEWEST.get(rows.kind, 3):
        return Twins(np.empty((0, 2), dtype=np.int64), 0)
    nearest = _nearest(asked, there)
    apart = np.linalg.norm(asked - there[nearest], axis=1)
    if rows.kind == "image":
        usual = float(np.median(np.linalg.norm(asked - there[np.arange(len(asked)) % len(there)], axis=1)))
    else:
        usual = float(np.quantile(apart, 0.9))
    other = (rows.keys[held_out] != rows.keys[train[nearest]]).reshape(len(held_out), -1).any(axis=1)
    near = np.flatnonzero((apart <= NEAR * usual) & other)
    return Twins(np.stack([train[nearest[near]], held_out[near]], axis=1), len(held_out))


def _same_words(rows: Rows, train: Array, held_out: Array) -> Twins:
    """Texts of the same words, whatever their case and punctuation."""
    texts = np.asarray(rows.inputs).reshape(len(rows), -1)
    there = {tuple(map(_words, texts[position])): position for position in train[::-1]}
    found = [(there.get(tuple(map(_words, texts[position]))), position) for position in held_out]
    pairs = [(twin, position) for twin, position in found if twin is not None and (rows.keys[twin] != rows.keys[position]).any()]
    return Twins(np.array(pairs, dtype=np.int64).reshape(-1, 2), len(held_out))


def _words(text: Any) -> str:
    return _MARKS.sub(" ", str(text).casefold()).strip()


def _telling(rows: Rows, there: Array) -> int:
    if isinstance(rows.inputs, pd.DataFrame):
        return int((rows.inputs.nunique() > MANY).sum())
    return sum(len(np.unique(column[:1000])) > MANY for column in there.T)


def _row_bytes(rows: Rows) -> int:
    return int(rows.inputs.nbytes // max(len(rows), 1)) if isinstance(rows.inputs, np.ndarray) else 1


def _spaced(positions: Array, most: int) -> Array:
    return positions[np.linspace(0, len(positions) - 1, min(most, len(positions))).astype(np.int64)]


def _vectors(rows: Rows, train: Array, held_out: Array) -> tuple[Array, Array]:
    """Both sides as float32 [rows, features], scaled by the training rows."""
    if isinstance(rows.inputs, pd.DataFrame):
        parts = [_column(rows.inputs[name], train, held_out) for name in rows.inputs.columns]
        return np.concatenate([part[0] for part in parts], axis=1), np.concatenate([part[1] for part in parts], axis=1)
    sides = [_blocks(rows.inputs, each) if rows.kind == "image" else rows.inputs[each] for each in (train, held_out)]
    there, asked = (np.asarray(side, dtype=np.float32).reshape(len(side), -1) for side in sides)
    if rows.kind == "image":  # pixels are of one unit: scaled together, so that a margin's noise does not weigh as much as the thing
        middle, scale = there.mean(axis=0), np.float32(max(float(there.std()), 1e-6))
        return (there - middle) / scale, (asked - middle) / scale
    return _scaled(there, asked)


def _scaled(there: Array, asked: Array) -> tuple[Array, Array]:
    with np.errstate(invalid="ignore"):
        middle = np.nan_to_num(np.nanmean(there, axis=0)) if not np.isnan(there).all() else np.zeros(there.shape[1])
        spread = np.nan_to_num(np.nanstd(there, axis=0)) if not np.isnan(there).all() else np.ones(there.shape[1])
    spread = np.where(spread > 0, spread, 1.0)
    return tuple(np.nan_to_num((side - middle) / spread).astype(np.float32) for side in (there, asked))  # type: ignore[return-value]


def _column(column: pd.Series[Any], train: Array, held_out: Array) -> tuple[Array, Array]:
    if column.dtype.kind in "ifub":
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)[:, None]
        return _scaled(numbers[train], numbers[held_out])
    codes, words = pd.factorize(column.astype("str").fillna(""))
    table = np.stack([_direction(str(word)) for word in words])
    return table[codes[train]], table[codes[held_out]]


def _direction(word: str) -> Array:
    """A direction drawn from a text's letters and digits, as long as a number of unit variance."""
    seed = hashlib.blake2b(_words(word).encode(), digest_size=8).digest()
    drawn = np.random.default_rng(int.from_bytes(seed, "little")).standard_normal(_PER_TEXT)
    return (drawn / np.sqrt(_PER_TEXT)).astype(np.float32)


def _blocks(images: Array, positions: Array) -> Array:
    """The means over colours and over blocks of pixels, at most 16 x 16 of them; images are [rows, height, width, channels]."""
    height, width = images.shape[1:3]
    rows_at, columns_at = (np.unique(np.linspace(0, side, min(side, _SIDE) + 1).astype(np.int64)[:-1]) for side in (height, width))
    tall = np.diff(np.append(rows_at, height))[:, None].astype(np.float32)
    wide = np.diff(np.append(columns_at, width)).astype(np.float32)
    made = []
    for start in range(0, len(positions), 512):
        grey = images[positions[start : start + 512]].mean(axis=-1, dtype=np.float32)
        made.append(np.add.reduceat(np.add.reduceat(grey, rows_at, axis=1), columns_at, axis=2) / (tall * wide))
    return np.concatenate(made)


def _nearest(asked: Array, there: Array) -> Array:
    """For each asked row the nearest row, by distances in random directions when there are many features."""
    if there.shape[1] > _DIRECTIONS:
        turned = np.random.default_rng(0).standard_normal((there.shape[1], _DIRECTIONS)).astype(np.float32)
        asked, there = asked @ turned, there @ turned
    lengths = (there * there).sum(axis=1)
    chunks = [asked[start : start + 256] for start in range(0, len(asked), 256)]
    return np.concatenate([np.argmin(lengths - 2 * (chunk @ there.T), axis=1) for chunk in chunks])
