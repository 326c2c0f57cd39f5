"""The encoding of a table: what a student reads of it, learned from the training rows and carried in the artifact.

Numbers stay as they are, categories become their position among the known levels; -1 means unknown, NaN missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import pandas as pd

from understudy.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]


@final
@dataclass(frozen=True)
class Column:
    """One input column; `levels` are the known texts of a category, in order."""

    name: str
    type: Literal["number", "category"]
    levels: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class TableEncoding:
    """DataFrame -> float32 [rows, columns].

    >>> encoding = TableEncoding.fit(pd.DataFrame({"age": [3, 4], "colour": ["red", "blue"]}), max_levels=8)
    >>> encoding.encode(pd.DataFrame({"colour": ["red", "green", None], "age": [1, None, 2]})).tolist()
    [[1.0, 1.0], [nan, -1.0], [2.0, nan]]
    """

    columns: tuple[Column, ...]

    @staticmethod
    def fit(frame: pd.DataFrame, max_levels: int) -> TableEncoding:
        """Learn the columns' types and at most `max_levels` most frequent levels each, ordered by name. DataError U140-U141."""
        columns = [_fit(str(name), frame.iloc[:, at], max_levels) for at, name in enumerate(frame.columns)]
        if not columns:
            raise DataError("the table has no input columns", code="U108")
        return TableEncoding(tuple(columns))

    def encode(self, frame: pd.DataFrame, names: Array | None = None) -> Array:
        """float32 [rows, columns]. Other columns are ignored; DataError U142 for missing ones, U143 for a text among numbers."""
        there = [str(name) for name in frame.columns]
        absent = [column.name for column in self.columns if column.name not in there]
        if absent:
            lines = [f"no column {name!r}; {did_you_mean(name, there)}" for name in absent[:8]]
            more = [f"and {len(absent) - 8} more"] if len(absent) > 8 else []
            raise DataError("\n  ".join(["columns are missing:", *lines, *more]), code="U142")
        encoded = np.empty((len(frame), len(self.columns)), dtype=np.float32)
        for at, column in enumerate(self.columns):
            given = frame.iloc[:, there.index(column.name)]
            encoded[:, at] = _numbers(column.name, given, names) if column.type == "number" else _codes(column.levels, given)
        return encoded

    def to_json(self) -> dict[str, Any]:
        return {
            "columns": [
                {"name": c.name, "type": c.type, **({"levels": list(c.levels)} if c.type == "category" else {})} for c in self.columns
            ]
        }

    @staticmethod
    def from_json(said: dict[str, Any]) -> TableEncoding:
        return TableEncoding(tuple(Column(c["name"], c["type"], tuple(c.get("levels", ()))) for c in said["columns"]))


def _fit(name: str, column: pd.Series[Any], max_levels: int) -> Column:
    dtype = column.dtype
    if pd.api.types.is_datetime64_any_dtype(dtype) or pd.api.types.is_timedelta64_dtype(dtype):
        raise DataError(
            f"column {name!r} holds dates. Turn it into numbers that mean something (year, month, days since), or name it in data.ignore",
            code="U140",
        )
    categorical = isinstance(dtype, pd.CategoricalDtype)
    if not categorical and (pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_numeric_dtype(dtype)):
        return Column(name, "number")
    known = column.dropna()
    odd = next((type(value) for value in known if not isinstance(value, str | bool | int | float | np.bool_ | np.number)), None)
    if odd is not None and not categorical:
        raise DataError(f"column {name!r} holds {odd.__name__} values; cells are numbers or texts. Or name it in data.ignore", code="U141")
    if not categorical and all(not isinstance(value, str) for value in known):
        return Column(name, "number")
    counts = _texts(known).value_counts()
    kept = sorted(counts.index, key=lambda level: (-int(counts[level]), level))[:max_levels]
    return Column(name, "category", tuple(sorted(kept)))


def _numbers(name: str, column: pd.Series[Any], names: Array | None) -> Array:
    if pd.api.types.is_bool_dtype(column.dtype) or pd.api.types.is_numeric_dtype(column.dtype):
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    plain = column.astype(object)
    values = pd.to_numeric(plain, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(np.isnan(values) & plain.notna().to_numpy())
    if len(bad):
        where = f"row {bad[0]}" if names is None else str(names[bad[0]])
        raise DataError(
            f"column {name!r} held numbers in the training rows; {where} holds {str(plain.iloc[bad[0]])!r} ({len(bad)} such cells)."
            " Leave the cell empty if the number is missing, or name the text in data.missing",
            code="U143",
        )
    return values


def _codes(levels: Sequence[str], column: pd.Series[Any]) -> Array:
    missing = column.isna().to_numpy()
    codes = pd.Index(list(levels), dtype=object).get_indexer(pd.Index(_texts(column), dtype=object)).astype(np.float64)
    codes[missing] = np.nan
    return np.asarray(codes)


def _texts(column: pd.Series[Any]) -> pd.Series[Any]:
    """Cells as texts; a number that came as a float is named as the integer it equals."""
    if pd.api.types.is_string_dtype(column.dtype) and not pd.api.types.is_object_dtype(column.dtype):
        return column.astype(object)
    return column.astype(object).map(_text, na_action="ignore")


def _text(value: Any) -> str:
    return repr(float(value)).removesuffix(".0") if isinstance(value, float | np.floating) else str(value)
