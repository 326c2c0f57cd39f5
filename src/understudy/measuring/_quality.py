"""Quality: agreement with labels. Figures as scikit-learn defines them (the tests hold them to it), under row weights.

Adding a metric: one line in the function of its task, one in METRICS.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse

from understudy.measuring._answers import Array, decisions, directions, log_probabilities
from understudy.measuring._bootstrap import Figure, Ranked, Sums, mean, r2
from understudy.measuring._transcripts import transcripts, word_errors
from understudy.tasks import Task

METRICS: dict[str, dict[str, bool]] = {
    "multiclass": {"accuracy": True, "macro_f1": True, "log_loss": False},
    "binary": {"accuracy": True, "macro_f1": True, "auroc": True, "log_loss": False},
    "multilabel": {"macro_f1": True, "micro_f1": True, "mean_average_precision": True, "log_loss": False},
    "regression": {"r2": True, "spearman": True, "rmse": False, "mae": False},
    "recognition": {"word_accuracy": True, "word_error_rate": False, "sentence_accuracy": True},
    "matching": dict.fromkeys(("recall_at_1", "recall_at_5", "there_at_1", "there_at_5", "back_at_1", "back_at_5"), True),
}
"""For each kind of task its metrics, the headline first, and whether larger is better."""


def figures(answers: Array, labels: Array, task: Task) -> dict[str, Figure]:
    """The metrics of these answers; every row has a label."""
    if task.single_label:
        return _single_label(answers, labels, task)
    if task.kind == "multilabel":
        return _multilabel(answers, labels, task)
    if task.kind == "recognition":
        return _recognition(answers, labels)
    if task.kind == "matching":
        return _matching(answers)
    return _regression(answers.ravel(), labels.ravel())


def recalls(answers: Array, labels: Array, task: Task) -> Array:
    """Share of each class's rows that are answered with it, [classes]; NaN for a class without rows."""
    decided, true = _one_hot(decisions(answers, task), task), _one_hot(labels, task)
    rows = true.sum(axis=0)
    return _ratio((decided * true).sum(axis=0), rows)


def class_rows(labels: Array, task: Task) -> Array:
    """How many rows each class has, int64 [classes]."""
    return np.asarray(_one_hot(labels, task).sum(axis=0), dtype=np.int64)


def _single_label(answers: Array, labels: Array, task: Task) -> dict[str, Figure]:
    decided = decisions(answers, task)
    found: dict[str, Figure] = {
        "accuracy": mean(decided == labels),
        "macro_f1": _macro_f1(_one_hot(decided, task), _one_hot(labels, task)),
    }
    if task.kind == "binary":
        found["auroc"] = _auroc(np.asarray(answers[:, 1], dtype=np.float64) - answers[:, 0], labels == 1)
    found["log_loss"] = mean(-log_probabilities(answers, task)[np.arange(len(labels)), labels])
    return found


def _multilabel(answers: Array, labels: Array, task: Task) -> dict[str, Figure]:
    decided, true = decisions(answers, task), labels.astype(np.int64)
    hits = np.stack([(decided * true).sum(axis=1), decided.sum(axis=1), true.sum(axis=1)], axis=1).astype(np.float64)
    losses = np.where(true == 1, -log_probabilities(answers, task), -log_probabilities(-answers, task))
    return {
        "macro_f1": _macro_f1(decided, true),
        "micro_f1": Sums(hits, lambda sums, _: _ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2])),
        "mean_average_precision": _mean_average_precision(answers, true == 1),
        "log_loss": mean(losses.mean(axis=1)),
    }


def _recognition(answers: Array, labels: Array) -> dict[str, Figure]:
    """Words that are wrong, out of all words of all rows: a long row counts more than a short one."""
    errors = word_errors(transcripts(answers), labels)
    counts = np.stack([errors, (labels >= 0).sum(axis=1)], axis=1).astype(np.float64)
    return {
        "word_accuracy": Sums(counts, lambda sums, _: 1 - _ratio(sums[:, 0], sums[:, 1])),
        "word_error_rate": Sums(counts, lambda sums, _: _ratio(sums[:, 0], sums[:, 1])),
        "sentence_accuracy": mean(errors == 0),
    }


def _matching(answers: Array) -> dict[str, Figure]:
    """Shares of rows whose own partner is among the nearest 1 or 5 of all rows: `there` from the first input, `back` from the second.

    `recall` is the mean of both ways. What is exactly as near as the partner is not counted against it: it is the same text.
    """
    firsts, seconds = directions(answers)
    near = firsts @ seconds.T
    own = np.diagonal(near)
    ahead = {"there": (near > own[:, None] + 1e-9).sum(axis=1), "back": (near > own[None] + 1e-9).sum(axis=0)}
    found = {f"{way}_at_{most}": before < most for way, before in ahead.items() for most in (1, 5)}
    both = {f"recall_at_{most}": mean((found[f"there_at_{most}"].astype(float) + found[f"back_at_{most}"]) / 2) for most in (1, 5)}
    return {**both, **{name: mean(hits) for name, hits in found.items()}}


def _regression(values: Array, labels: Array) -> dict[str, Figure]:
    values, labels = values.astype(np.float64), labels.astype(np.float64)
    residuals = labels - values
    return {
        "r2": r2(values, labels),
        "spearman": _spearman(values, labels),
        "rmse": Sums((residuals**2)[:, None], lambda sums, weight: np.sqrt(sums[:, 0] / weight)),
        "mae": mean(np.abs(residuals)),
    }


def _one_hot(chosen: Array, task: Task) -> Array:
    return np.eye(len(task.classes), dtype=np.int64)[chosen] if chosen.ndim == 1 else chosen.astype(np.int64)


def _macro_f1(decided: Array, true: Array) -> Sums:
    """Mean F1 over the classes that are decided or true somewhere (zero_division=nan in scikit-learn)."""
    classes = true.shape[1]
    counts = scipy.sparse.csr_matrix(np.hstack([decided * true, decided, true]).astype(np.float64))

    def finish(sums: Array, _: Array) -> Array:
        hits, chosen, there = (sums[:, part * classes : (part + 1) * classes] for part in range(3))
        scores, defined = _ratio(2 * hits, chosen + there), (chosen + there) > 0
        return _ratio(np.where(defined, scores, 0.0).sum(axis=1), defined.sum(axis=1))

    return Sums(counts, finish)


def _auroc(scores: Array, positive: Array) -> Ranked:
    """Chance that a positive row scores above a negative one, ties counting half; NaN when a side is empty."""
    order, starts = _groups(scores)
    positive = positive[order]

    def value(weights: Array) -> Array:
        sorted_weights = weights[:, order]
        above = np.add.reduceat(sorted_weights * positive, starts, axis=1)
        below = np.add.reduceat(sorted_weights * ~positive, starts, axis=1)
        wins = (above * (below.cumsum(axis=1) - below / 2)).sum(axis=1)
        return _ratio(wins, above.sum(axis=1) * below.sum(axis=1))

    return Ranked(value)


def _spearman(values: Array, labels: Array) -> Ranked:
    """Correlation of the ranks of values and labels, ties in the middle of their ranks; NaN when one side is constant."""
    sides = []
    for side in (values, labels):
        order, starts = _groups(side)
        group = np.empty(len(side), dtype=np.int64)
        group[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(side))))
        sides.append((order, starts, group))

    def value(weights: Array) -> Array:
        ranks = []
        for order, starts, group in sides:
            inside = np.add.reduceat(weights[:, order], starts, axis=1)
            middle = (inside.cumsum(axis=1) - inside / 2)[:, group]
            ranks.append(middle - (weights * middle).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True))
        first, second = ranks
        spread = np.sqrt((weights * first**2).sum(axis=1) * (weights * second**2).sum(axis=1))
        return _ratio((weights * first * second).sum(axis=1), spread)

    return Ranked(value, work=4)


def _mean_average_precision(scores: Array, positive: Array) -> Ranked:
    """Mean over labels of the average precision; labels without a positive row are left out."""
    there = np.flatnonzero(positive.any(axis=0))
    columns = [(*_groups(-np.asarray(scores[:, label], dtype=np.float64)), positive[:, label]) for label in there]

    def value(weights: Array) -> Array:
        if not columns:
            return np.full(len(weights), np.nan)
        return _mean_defined(np.stack([_average_precision(weights[:, order], starts, true[order]) for order, starts, true in columns]))

    return Ranked(value, work=max(1, len(columns)))


def _average_precision(weights: Array, starts: Array, positive: Array) -> Array:
    hits = np.add.reduceat(weights * positive, starts, axis=1)
    chosen = np.add.reduceat(weights, starts, axis=1).cumsum(axis=1)
    precision = np.divide(hits.cumsum(axis=1), chosen, out=np.zeros_like(hits), where=chosen > 0)
    return _ratio((hits * precision).sum(axis=1), hits.sum(axis=1))


def _groups(scores: Array) -> tuple[Array, Array]:
    """Order of ascending scores, and where each run of equal scores starts in it."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    return order, np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))


def _ratio(above: Array, below: Any) -> Array:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0))


def _mean_defined(values: Array) -> Array:
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0))
