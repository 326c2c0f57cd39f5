"""Content keys: a 128-bit hash of each raw input, so that rows are found by what they are and not by where they stand.

A key depends on nothing but the row: not on its neighbours, the index, the order of columns, or whether a number came as an
integer or a float. A text that is a plain number ('7') has the key of the number, because the same CSV column can be read as
either, depending on its other rows.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pandas as pd

from understudy.data.rows import Kind, Paired

Array = np.ndarray[Any, Any]
Keys = np.ndarray[Any, np.dtype[np.int64]]

_CHUNK = 65536
_EXACT = 2**53
"""Integers up to here are whole in float64."""


def content_keys(inputs: Any, kind: Kind) -> Keys:
    """The keys of a table, texts, an array, images or pairs, int64 [rows, 2]: blake2b with 16 bytes over canonical bytes.

    >>> a = content_keys(pd.DataFrame({"x": [1, 2], "y": ["a", None]}), "table")
    >>> b = content_keys(pd.DataFrame({"y": [None, "a"], "x": [2.0, 1.0]}, index=[7, 8]), "table")
    >>> bool((a == b[::-1]).all())
    True
    """
    if isinstance(inputs, Paired):
        return _pair_keys(inputs)
    if kind == "text":
        # keyed as a table of one column, or of two
        return _table_keys(pd.DataFrame(np.asarray(inputs, dtype=object).reshape(len(inputs), -1)))
    return _table_keys(inputs) if kind == "table" else _array_keys(inputs, kind)


def _pair_keys(paired: Paired) -> Keys:
    """Over the keys of all inputs, in the order of their names."""
    names = sorted(paired.parts)
    salt = hashlib.blake2b("\x1f".join(names).encode(), digest_size=16).digest()
    return _digest(np.concatenate([content_keys(paired[name], paired.kinds[name]) for name in names], axis=1), salt)


def _table_keys(frame: pd.DataFrame) -> Keys:
    columns = sorted(range(frame.shape[1]), key=lambda position: str(frame.columns[position]))
    salt = hashlib.blake2b("\x1f".join(str(frame.columns[c]) for c in columns).encode(), digest_size=16).digest()
    keys = np.empty((len(frame), 2), dtype=np.int64)
    cells = [_cells(frame.iloc[:, c]) for c in columns]
    for start in range(0, len(frame), _CHUNK):
        part = np.stack([cell[start : start + _CHUNK] for cell in cells], axis=1) if cells else np.empty((0, 0, 2), np.uint64)
        keys[start : start + len(part)] = _digest(part, salt)
    return keys


def _array_keys(inputs: Array, kind: Kind) -> Keys:
    salt = hashlib.blake2b(repr((kind, inputs.shape[1:])).encode(), digest_size=16).digest()
    keys = np.empty((len(inputs), 2), dtype=np.int64)
    rows = max(1, min(_CHUNK, 2**26 // max(1, int(np.prod(inputs.shape[1:])))))
    for start in range(0, len(inputs), rows):
        part = np.asarray(inputs[start : start + rows])
        if kind == "array":
            part = part.astype(np.float32) + np.float32(0.0)
            part[np.isnan(part)] = np.nan
        keys[start : start + rows] = _digest(part, salt)
    return keys


def _digest(rows: Array, salt: bytes) -> Keys:
    """One hash per row of bytes."""
    said = np.ascontiguousarray(rows)
    width = int(said[0].nbytes)
    view, blake = memoryview(said.reshape(-1).view(np.uint8).data), hashlib.blake2b
    digests = [blake(view[at : at + width], digest_size=16, salt=salt).digest() for at in range(0, width * len(said), width)]
    return np.frombuffer(b"".join(digests), dtype="<i8").reshape(-1, 2).astype(np.int64)


def _cells(column: pd.Series[Any]) -> Array:
    """Each cell as two words, uint64 [rows, 2]: the bits of a number and 0, or the hash of a text."""
    values = column.dtype
    if pd.api.types.is_bool_dtype(values) or pd.api.types.is_numeric_dtype(values):
        return _numbers(column)
    if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        words = np.zeros((len(column), 2), dtype=np.uint64)
        words[:, 0] = column.to_numpy().astype("M8[ns]" if values.kind == "M" else "m8[ns]").view(np.int64).view(np.uint64)
        words[:, 1] = 1
        return words
    codes, levels = pd.factorize(column, use_na_sentinel=True)
    table = np.frombuffer(b"".join(map(_text, levels)) + _number(np.nan), dtype="<u8").reshape(-1, 2)
    return np.asarray(table[codes]).astype(np.uint64)


def _numbers(column: pd.Series[Any]) -> Array:
    values = column.to_numpy(dtype=np.float64, na_value=np.nan) + 0.0
    values[np.isnan(values)] = np.nan
    words = np.zeros((len(values), 2), dtype=np.uint64)
    words[:, 0] = values.view(np.uint64)
    if column.dtype.kind in "iu":
        large = np.flatnonzero(np.abs(values) > _EXACT)
        if len(large):
            words[large, 0] = column.iloc[large].to_numpy().astype(np.uint64)
            words[large, 1] = 2
    return words


def _number(value: float) -> bytes:
    return np.array([value + 0.0], dtype="<f8").tobytes() + bytes(8)


def _text(value: Any) -> bytes:
    """The 16 bytes of one cell that is not missing."""
    if isinstance(value, bool | int | float | np.bool_ | np.number):
        return _number(float(value))
    text = str(value)
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if np.isfinite(number) and abs(number) <= _EXACT and text == repr(number).removesuffix(".0") and text != "-0":
        return _number(number)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
