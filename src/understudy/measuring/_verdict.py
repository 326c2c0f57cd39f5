"""The verdict: whether distillation made a better model than the same training without the teacher.

Paired over test rows, pooled over seeds, both resampled. Four words: GAIN, NO GAIN, INCONCLUSIVE, UNKNOWN.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from understudy.measuring._bootstrap import interval, pool_seeds

Array = np.ndarray[Any, Any]
POINTS = frozenset(
    {"accuracy", "macro_f1", "micro_f1", "auroc", "mean_average_precision", "word_accuracy", "word_error_rate", "sentence_accuracy"}
    | {f"{way}_at_{most}" for way in ("recall", "there", "back") for most in (1, 5)}
)
"""Metrics whose differences are told in points, hundredths."""


@final
@dataclass(frozen=True)
class Verdict:
    """The word, the numbers behind it and the line to print."""

    word: str
    text: str
    metric: str
    margin: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    rows: int = 0
    needed_rows: int | None = None
    needed_seeds: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def unknown(metric: str, margin: float, why: str) -> Verdict:
    """The verdict of a run that cannot have one."""
    return Verdict("UNKNOWN", f"UNKNOWN gain unknown: {why}", metric, margin)


def judge(observed: Array, resampled: Array, *, metric: str, margin: float, rows: int, seed: int = 0) -> Verdict:
    """GAIN, NO GAIN or INCONCLUSIVE from metric(student) - metric(control), larger being better.

    `observed` [seeds] are the differences on the test rows, `resampled` [resamples, seeds] those on resampled rows.
    An interval inside +-margin is NO GAIN even when it is above 0: such a difference does not matter.
    """
    difference = float(observed.mean())
    low, high = interval(pool_seeds(resampled, seed=seed))
    if math.isnan(low) or math.isnan(difference):
        return unknown(metric, margin, f"{metric} is not defined on these {rows:,} test rows")
    seeds = len(observed)
    found: dict[str, Any] = {"metric": metric, "margin": margin, "seeds": seeds, "rows": rows}
    found.update(difference=difference, low=low, high=high)
    limits = f"[{_bare(low, metric)}, {_bare(high, metric)}]"
    told = f"{_told(difference, metric)} {limits} {metric} over the control ({_extent(seeds, rows)})"
    if high < 0 or (-margin <= low and high <= margin):
        why = "worse than the control" if high < 0 else f"within +-{_bare(margin, metric)}"
        return Verdict("NO GAIN", f"NO GAIN {told}: {why}; distillation did not help here; the control is the model to ship", **found)
    if low > 0:
        return Verdict("GAIN", f"GAIN {told}", **found)
    settles = _settles(observed, resampled, (high - low) / 2, margin, rows)
    found.update(settles)
    return Verdict("INCONCLUSIVE", f"INCONCLUSIVE {told}; {_advice(settles, seeds, rows)}", **found)


def _settles(observed: Array, resampled: Array, half: float, margin: float, rows: int) -> dict[str, int | None]:
    """How many rows or seeds would settle it if the difference stayed: n * (width / needed width) ** 2.

    Settled is an interval that leaves out 0, or lies inside the margin. Whichever of rows and seeds varies more is
    the one to add.
    """
    difference, seeds = abs(float(observed.mean())), len(observed)
    needed = max(difference, margin - difference)
    if needed <= 0:
        return {"needed_rows": None, "needed_seeds": None}
    factor = (half / needed) ** 2
    by_seeds = float(observed.var(ddof=1) / seeds) if seeds > 1 else 0.0
    by_rows = float(np.nanvar(resampled.mean(axis=1)))
    if by_seeds > by_rows:
        return {"needed_rows": None, "needed_seeds": max(seeds + 1, math.ceil(seeds * factor))}
    return {"needed_rows": _rounded_up(max(rows + 1, rows * factor)), "needed_seeds": None}


def _advice(settles: dict[str, int | None], seeds: int, rows: int) -> str:
    if settles["needed_seeds"] is not None:
        return f"about {settles['needed_seeds']} seeds would settle it (now {seeds})"
    if settles["needed_rows"] is not None:
        return f"about {settles['needed_rows']:,} test rows would settle it (now {rows:,})" + ("" if seeds > 1 else "; run 3 seeds too")
    return "no number of rows settles a difference of exactly 0 with margin 0: set measure.margin"


def _rounded_up(count: float) -> int:
    """Two figures, upwards.

    >>> _rounded_up(4321.0)
    4400
    """
    unit = int(10 ** max(0, math.floor(math.log10(count)) - 1))
    return math.ceil(count / unit) * unit


def _extent(seeds: int, rows: int) -> str:
    return f"{seeds} seed{'s' * (seeds != 1)}, {rows:,} test row{'s' * (rows != 1)}"


def _told(value: float, metric: str) -> str:
    return f"{100 * value + 0.0:+.1f} points" if metric in POINTS else f"{value + 0.0:+.4f}"


def _bare(value: float, metric: str) -> str:
    """Without the minus sign of a rounded zero."""
    text = f"{100 * value:.1f}" if metric in POINTS else f"{value:.4f}"
    return text.removeprefix("-") if float(text) == 0 else text
