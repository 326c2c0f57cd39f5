"""Rows that were never seen but could have been: MUNGE (Bucila, Caruana & Niculescu-Mizil 2006, "Model Compression").

Each synthetic row starts as a training row and takes, cell by cell, values from around its nearest neighbour. A
teacher then labels it. Works on tables of numbers, categories and missing cells, and on float arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd
from sklearn.neighbors import NearestNeighbors

from understudy.errors import InputError

Array = np.ndarray[Any, Any]
MOST_COMPARED = 50_000
COMPARED_WITH = 20_000
ONE_HOT_LEVELS = 64
TRIES = 10


@final
@dataclass(frozen=True)
class _Cells:
    """Training rows as float64 [rows, columns]: numbers, category codes, NaN where missing; and what a column may hold."""

    values: Array
    number: Array
    whole: Array
    single: Array
    lowest: Array
    highest: Array


def munge(inputs: Any, *, multiple: int, swap: float, local_variance: float, seed: int) -> Any:
    """About `multiple` synthetic rows per row, of the type given: a DataFrame or a float array [rows, ...].

    Cells are taken with probability `swap`: a number is drawn from Normal(neighbour's, |difference| / `local_variance`)
    and kept in the training range, whole where the column is whole; a category or a missing cell is copied. No
    synthetic row equals a training row: such rows are drawn again, and left out when that keeps happening.
    """
    frame = isinstance(inputs, pd.DataFrame)
    cells = _frame_cells(inputs) if frame else _array_cells(inputs)
    rng = np.random.default_rng(seed)
    rows, neighbours = _neighbours(cells, rng)
    base, other, made, taken = _draw(cells, rows, neighbours, multiple=multiple, swap=swap, local_variance=local_variance, rng=rng)
    if frame:
        return _to_frame(inputs, cells, base, other, made, taken)
    return made.astype(inputs.dtype).reshape(len(made), *inputs.shape[1:])


def _array_cells(inputs: Any) -> _Cells:
    if not isinstance(inputs, np.ndarray) or inputs.dtype.kind != "f" or inputs.ndim < 2:
        said = f"{inputs.dtype} {list(inputs.shape)}" if isinstance(inputs, np.ndarray) else type(inputs).__name__
        raise InputError(
            f"synthetic rows are made of tables and float arrays [rows, ...], not of {said}. "
            "For images set teaching.views and train.augment instead",
            code="U061",
        )
    values = inputs.reshape(len(inputs), -1).astype(np.float64)
    return _with_ranges(values, np.ones(values.shape[1], dtype=bool), np.full(values.shape[1], inputs.dtype == np.float32))


def _frame_cells(frame: pd.DataFrame) -> _Cells:
    values = np.empty(frame.shape, dtype=np.float64)
    number, single = np.zeros(frame.shape[1], dtype=bool), np.zeros(frame.shape[1], dtype=bool)
    for at in range(frame.shape[1]):
        column = frame.iloc[:, at]
        number[at] = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
        single[at] = str(column.dtype).casefold() == "float32"
        if number[at]:
            values[:, at] = column.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            codes = pd.factorize(column)[0].astype(np.float64)
            values[:, at] = np.where(codes < 0, np.nan, codes)
    return _with_ranges(values, number, single)


def _with_ranges(values: Array, number: Array, single: Array) -> _Cells:
    finite = np.where(np.isfinite(values), values, np.nan)
    there = ~np.isnan(finite).all(axis=0)
    lowest = np.where(there, np.nanmin(np.where(there, finite, 0.0), axis=0), 0.0)
    highest = np.where(there, np.nanmax(np.where(there, finite, 0.0), axis=0), 0.0)
    whole = np.array([bool((column[~np.isnan(column)] % 1 == 0).all()) for column in finite.T])
    return _Cells(values, number, whole, single, lowest, highest)


# --- neighbours -----------------------------------------------------------------------------------------------------


def _space(cells: _Cells, values: Array) -> Array:
    """Where rows are near each other: numbers in units of their 90 % range, categories one apart, missing a level of its own."""
    parts = []
    for at in range(values.shape[1]):
        column = values[:, at]
        missing = ~np.isfinite(column)
        if cells.number[at]:
            low, middle, high = np.nanpercentile(cells.values[:, at], [5, 50, 95]) if not missing.all() else (0.0, 0.0, 1.0)
            unit = (high - low) or (cells.highest[at] - cells.lowest[at]) or 1.0
            parts.append(np.where(missing, 0.0, (column - middle) / unit)[:, None])
        else:
            codes, counts = np.unique(column[~missing], return_counts=True)
            common = codes[np.argsort(-counts, kind="stable")[:ONE_HOT_LEVELS]]
            parts.append((column[:, None] == common) * np.sqrt(0.5))
        if missing.any():
            parts.append(missing[:, None] * np.sqrt(0.5 if not cells.number[at] else 1.0))
    return np.hstack(parts).astype(np.float32)


def _neighbours(cells: _Cells, rng: np.random.Generator) -> tuple[Array, Array]:
    """For every row a row that stands for its content, and the row nearest to it among those of other content."""
    rows, inverse = np.unique(_keyed(cells.values), return_index=True, return_inverse=True)[1:]
    if len(rows) < 2:
        raise InputError("synthetic rows need at least two different training rows", code="U061")
    space = _space(cells, cells.values[rows])
    pool = np.arange(len(rows))
    if len(rows) > MOST_COMPARED:
        pool = np.sort(rng.choice(len(rows), COMPARED_WITH, replace=False))
    found = NearestNeighbors(n_neighbors=2).fit(space[pool])
    nearest = np.empty(len(rows), dtype=np.int64)
    for start in range(0, len(rows), 4096):
        itself = np.arange(start, min(start + 4096, len(rows)))
        two = pool[found.kneighbors(space[itself], return_distance=False)]
        nearest[itself] = np.where(two[:, 0] == itself, two[:, 1], two[:, 0])
    return np.arange(len(cells.values)), rows[nearest][inverse.ravel()]


def _keyed(values: Array) -> Array:
    """One comparable item per row: the bytes of its cells, NaN and zero each in one form."""
    plain = np.ascontiguousarray(np.where(np.isnan(values), np.nan, values + 0.0))
    return plain.view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()


# --- drawing --------------------------------------------------------------------------------------------------------


def _draw(
    cells: _Cells, rows: Array, neighbours: Array, *, multiple: int, swap: float, local_variance: float, rng: np.random.Generator
) -> tuple[Array, Array, Array, Array]:
    """Base rows, their neighbours, synthetic cells and which of them were taken from the neighbour."""
    seen = np.unique(_keyed(cells.values))
    first, second = np.tile(rows, multiple), np.tile(neighbours, multiple)
    turned = rng.random(len(first)) < 0.5  # as in the paper, both rows of a pair are moved towards each other
    base, other = np.where(turned, second, first), np.where(turned, first, second)
    made, taken = np.empty((len(base), cells.values.shape[1])), np.zeros((len(base), cells.values.shape[1]), dtype=bool)
    left = np.arange(len(base))
    for _ in range(TRIES):
        made[left], taken[left] = _cross(cells, base[left], other[left], swap, local_variance, rng)
        left = left[np.isin(_keyed(made[left]), seen)]
        if not len(left):
            break
    kept = np.setdiff1d(np.arange(len(base)), left)
    return base[kept], other[kept], made[kept], taken[kept]


def _cross(cells: _Cells, base: Array, other: Array, swap: float, local_variance: float, rng: np.random.Generator) -> tuple[Array, Array]:
    ours, theirs = cells.values[base], cells.values[other]
    differs = (ours != theirs) & ~(np.isnan(ours) & np.isnan(theirs))
    taken = rng.random(ours.shape) < swap
    # With few cells it is likely that none which differs is taken; one always is.
    idle = ~(taken & differs).any(axis=1)
    chosen = np.where(differs, rng.random(ours.shape), -1.0).argmax(axis=1)
    taken[idle, chosen[idle]] = True
    both = np.isfinite(ours) & np.isfinite(theirs) & cells.number
    spread = np.where(both, np.abs(np.where(both, ours, 0.0) - np.where(both, theirs, 0.0)), 0.0) / local_variance
    drawn = np.where(both, theirs, 0.0) + rng.standard_normal(ours.shape) * spread
    drawn = np.where(cells.single, drawn.astype(np.float32).astype(np.float64), drawn)
    drawn = np.clip(np.where(cells.whole, np.rint(drawn), drawn), cells.lowest, cells.highest)
    return np.where(taken, np.where(both, drawn, theirs), ours), taken


def _to_frame(frame: pd.DataFrame, cells: _Cells, base: Array, other: Array, made: Array, taken: Array) -> pd.DataFrame:
    """Columns in their own types: copied cells as they are, numbers drawn between the two rows written over them."""
    columns: list[pd.Series[Any]] = []
    for at in range(frame.shape[1]):
        column = frame.iloc[:, at].take(np.where(taken[:, at], other, base)).reset_index(drop=True)
        drawn = taken[:, at] & np.isfinite(made[:, at]) & cells.number[at] & np.isfinite(cells.values[base, at])
        moved = np.flatnonzero(drawn & (made[:, at] != cells.values[other, at]))
        if len(moved):
            column = column.copy()
            column.iloc[moved] = made[moved, at].astype(np.int64) if column.dtype.kind in "iu" else made[moved, at].astype(_plain(column))
        columns.append(column)
    done = pd.concat(columns, axis=1) if columns else frame.iloc[:0]
    done.columns = frame.columns
    return done


def _plain(column: pd.Series[Any]) -> str:
    return str(column.dtype).casefold() if str(column.dtype).casefold() in ("float32", "float64", "int64", "int32") else "float64"
