"""Calibration: whether a stated 80 % comes true in 80 % of the rows. Regression has none here."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from understudy.measuring._answers import Array, decisions, log_probabilities, probabilities
from understudy.measuring._bootstrap import Figure, Sums, mean
from understudy.tasks import Task

METRICS: dict[str, bool] = {"ece": False, "nll": False, "brier": False}
"""The figures of a classification, and whether larger is better."""
BINS = 15


def figures(answers: Array, labels: Array, task: Task) -> dict[str, Figure]:
    """Calibration error, negative log-likelihood in nats and Brier score; every row has a label.

    `ece` has 15 equal-width bins on the confidence in the decision (Guo et al. 2017, arXiv:1706.04599, section 2). `brier` is
    the sum over classes of squared differences, halved for two classes as scikit-learn does. Multilabel figures are
    means over labels, each decision with its own confidence.
    """
    if task.kind in ("regression", "recognition", "matching"):
        return {}
    said, rows = probabilities(answers, task), np.arange(len(labels))
    if task.single_label:
        true = np.eye(len(task.classes))[labels]
        confidence, correct = said.max(axis=1)[:, None], (decisions(answers, task) == labels)[:, None]
        likelihood = -log_probabilities(answers, task)[rows, labels]
        squares = ((said - true) ** 2).sum(axis=1) / (2 if task.kind == "binary" else 1)
    else:
        confidence, correct = np.maximum(said, 1 - said), decisions(answers, task) == labels
        likelihood = np.where(labels == 1, -log_probabilities(answers, task), -log_probabilities(-answers, task)).mean(axis=1)
        squares = ((said - labels) ** 2).mean(axis=1)
    return {"ece": _ece(confidence, correct), "nll": mean(likelihood), "brier": mean(squares)}


def _ece(confidence: Array, correct: Array) -> Sums:
    """Weighted mean over bins of |confidence - accuracy|, which is the sum of |excess| over the number of answers."""
    rows, columns = confidence.shape
    bins = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    place = (np.repeat(np.arange(rows), columns), bins.ravel())
    excess = scipy.sparse.csr_matrix(((confidence - correct).ravel(), place), shape=(rows, BINS))
    return Sums(excess, lambda sums, weight: np.abs(sums).sum(axis=1) / (weight * columns))
