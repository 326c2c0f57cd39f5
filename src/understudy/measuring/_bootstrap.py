"""Figures under resampled rows: each figure is a function of the rows' weights, so that one draw serves every model.

A resample of n rows with replacement is a vector of n counts. Most figures depend on weighted sums over rows only (a
mean, a count of hits per class), and 1,000 resamples of them are one matrix product. All models and seeds are
evaluated on the same draws, which makes differences between them paired.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
import scipy.sparse

Array = np.ndarray[Any, Any]
Key = TypeVar("Key", bound=Hashable)
CELLS = 2_000_000
"""Weights held in memory at once."""
BUDGET = 200_000_000
"""Rows times resamples spent on one figure; beyond it fewer resamples are drawn, at least FEWEST."""
FEWEST = 200


@final
@dataclass(frozen=True)
class Sums:
    """A figure that depends on weighted sums of `contributions` [rows, k], dense or sparse: finish(sums [b, k], weight [b]) -> [b]."""

    contributions: Any
    finish: Callable[[Array, Array], Array]


@final
@dataclass(frozen=True)
class Ranked:
    """A figure that depends on the order of rows: value(weights [b, rows]) -> [b]; `work` is its cost per row."""

    value: Callable[[Array], Array]
    work: int = 1


Figure = Sums | Ranked


def mean(contributions: Array) -> Sums:
    """The figure that is a mean over rows."""
    return Sums(np.asarray(contributions, dtype=np.float64).reshape(len(contributions), 1), lambda sums, weight: sums[:, 0] / weight)


def r2(values: Array, labels: Array) -> Sums:
    """1 - residual / total sum of squares, both [rows]; for constant labels 1 when exact and 0 otherwise."""
    centred = np.asarray(labels, dtype=np.float64) - labels.mean()
    columns = np.stack([(labels - values) ** 2, centred, centred**2], axis=1)

    def finish(sums: Array, weight: Array) -> Array:
        residual, total = sums[:, 0], sums[:, 2] - sums[:, 1] ** 2 / weight
        return np.where(total > 0, 1 - residual / np.where(total > 0, total, 1.0), np.where(residual > 0, 0.0, 1.0))

    return Sums(columns, finish)


def observed(figure: Figure, rows: int) -> float:
    """The figure on the rows themselves, each counted once."""
    weights = np.ones((1, rows))
    if isinstance(figure, Ranked):
        return float(figure.value(weights)[0])
    return float(figure.finish(_sums(figure.contributions, weights), weights.sum(axis=1))[0])


def resample(figures: Mapping[Key, Figure], rows: int, *, resamples: int, seed: int) -> dict[Key, Array]:
    """Each figure on the same resamples of the rows: [resamples], fewer for a figure that would cost too much."""
    found: dict[Key, list[Array]] = {key: [] for key in figures}
    limits = {key: limit(rows * (figure.work if isinstance(figure, Ranked) else 1), resamples) for key, figure in figures.items()}
    sums = {key: figure for key, figure in figures.items() if isinstance(figure, Sums)}
    ranked = {key: figure for key, figure in figures.items() if isinstance(figure, Ranked)}
    sparse = {key for key, figure in sums.items() if scipy.sparse.issparse(figure.contributions)}
    stacks = [_stack({key: figure for key, figure in sums.items() if (key in sparse) is kind}, rows) for kind in (False, True)]
    drawn = 0
    for weights in draws(rows, max(limits.values(), default=0), seed=seed):
        weight = weights.sum(axis=1)
        for places, stacked in stacks:
            totals = _sums(stacked, weights)
            for key, place in places.items():
                found[key].append(sums[key].finish(totals[:, place], weight))
        for key, figure in ranked.items():
            left = limits[key] - drawn
            if left > 0:
                found[key].append(figure.value(weights[:left]))
        drawn += len(weights)
    return {key: np.concatenate(values)[: limits[key]] for key, values in found.items()}


def limit(work: int, resamples: int) -> int:
    """How many resamples a figure with this work per resample gets."""
    return min(resamples, max(FEWEST, BUDGET // max(work, 1)))


def draws(rows: int, resamples: int, *, seed: int) -> Iterator[Array]:
    """Counts of each row in resamples of all rows with replacement, float64 [some, rows] at a time."""
    generator = np.random.default_rng(seed)
    size = max(1, CELLS // max(rows, 1))
    for start in range(0, resamples, size):
        some = min(size, resamples - start)
        chosen = generator.integers(0, rows, size=(some, rows)) + rows * np.arange(some)[:, None]
        yield np.bincount(chosen.ravel(), minlength=some * rows).reshape(some, rows).astype(np.float64)


def pool_seeds(values: Array, *, seed: int) -> Array:
    """Mean over resampled seeds: values [resamples, seeds] -> [resamples].

    Resampling S seeds understates their variance by (S - 1) / S, much for S = 3: deviations from the plain mean are
    widened by its root (Davison & Hinkley 1997, Bootstrap Methods and their Application, section 3.8).
    """
    resamples, seeds = values.shape
    plain = values.mean(axis=1)
    if seeds < 2:
        return np.asarray(plain)
    chosen = np.random.default_rng(seed).integers(0, seeds, size=(resamples, seeds))
    resampled = np.take_along_axis(values, chosen, axis=1).mean(axis=1)
    return np.asarray(plain + np.sqrt(seeds / (seeds - 1)) * (resampled - plain))


def interval(values: Array) -> tuple[float, float]:
    """The middle 95 % of the resamples; NaN where no resample has the figure."""
    there = values[np.isfinite(values)]
    if not len(there):
        return float("nan"), float("nan")
    low, high = np.quantile(there, [0.025, 0.975])
    return float(low), float(high)


def _stack(figures: Mapping[Key, Sums], rows: int) -> tuple[dict[Key, slice], Any]:
    places: dict[Key, slice] = {}
    width = 0
    for key, figure in figures.items():
        places[key] = slice(width, width + figure.contributions.shape[1])
        width += figure.contributions.shape[1]
    parts = [figure.contributions for figure in figures.values()]
    if not parts:
        return places, np.zeros((rows, 0))
    return places, scipy.sparse.hstack(parts, format="csr") if scipy.sparse.issparse(parts[0]) else np.hstack(parts)


def _sums(contributions: Any, weights: Array) -> Array:
    if scipy.sparse.issparse(contributions):
        return np.asarray((contributions.T @ np.ascontiguousarray(weights.T)).T)
    return np.asarray(weights @ contributions)
