"""Fit an estimator to a teacher: each row becomes one weighted copy per class, the weights being the target distribution.

For a decision tree this is the same tree as a regression on the probabilities (Gini on weighted copies has the splits of
mean squared error), and with entropy it minimises KL(target || leaf); `predict_proba` of a leaf is then the mean target of
its rows. Unlike a multi-output regression it keeps the estimator's own classification head, which exports everywhere.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from sklearn.base import clone, is_regressor
from sklearn.dummy import DummyClassifier

from understudy.errors import InputError, TrainingError
from understudy.students.trees import PerLabel
from understudy.tasks import Task

Array = np.ndarray[Any, Any]


def fit_estimator(
    estimator: Any,
    features: Array,
    *,
    task: Task,
    labels: Array | None,
    teacher: Array | None,
    alpha: float = 1.0,
    temperature: float = 1.0,
    target: Literal["soft", "hard"] = "soft",
    drop: float = 1e-3,
    answered: Array | None = None,
) -> Any:
    """The estimator, fitted to `alpha` parts of the teacher and 1 - alpha parts of the labels where a row has one.

    `features` float32 [rows, features]; `labels` follow understudy.tasks, fewer than rows when the last rows (synthetic
    ones) have none; `teacher` logits or values [rows, outputs], None for the control, which learns from labelled rows
    alone. `answered` bool [rows] marks the rows that the teacher has an answer to (None: all); the others have their label
    alone, or are left out when they have none. Shares of a row smaller than `drop` are left out. For a multilabel task the
    estimator given back holds one per label.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    _check(estimator, task, labels, teacher)
    labels = _padded(labels, len(features), task)
    if teacher is None:
        assert labels is not None
        known = task.labelled(labels)
        if not known.any():
            raise TrainingError("no row has a label, so nothing can be learnt without a teacher", code="U070")
        features, labels = features[known], labels[known]
    if teacher is not None and answered is not None:
        kept = answered if labels is None else answered | task.labelled(labels)
        features, teacher, answered = features[kept], np.asarray(teacher)[kept], answered[kept]
        labels = None if labels is None else labels[kept]
    if task.kind == "regression":
        return estimator.fit(
            features, _blended(labels, None if teacher is None else np.asarray(teacher, np.float64), alpha, task, answered).ravel()
        )
    if teacher is None and task.single_label:
        return _fit(estimator, features, np.asarray(labels, np.int64), None)
    distribution = _blended(labels, None if teacher is None else _probabilities(teacher, task, temperature), alpha, task, answered)
    if task.kind == "multilabel":
        return _fit_per_label(estimator, features, distribution, target=target, drop=drop)
    rows, codes, weights = weighted_copies(distribution, target=target, drop=drop)
    return _fit(estimator, features[rows], codes, weights if target == "soft" else None)


def weighted_copies(distribution: Array, *, target: Literal["soft", "hard"] = "soft", drop: float = 1e-3) -> tuple[Array, Array, Array]:
    """Rows, class codes and weights of the copies; the weights of each row sum to one.

    >>> rows, codes, weights = weighted_copies(np.array([[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]))
    >>> rows.tolist(), codes.tolist(), weights.tolist()
    ([0, 0, 1], [0, 1, 2], [0.75, 0.25, 1.0])
    """
    if target == "hard":
        codes = distribution.argmax(axis=1)
        return np.arange(len(distribution)), codes, np.ones(len(codes))
    kept = np.where(distribution >= min(drop, 1 / distribution.shape[1]), distribution, 0.0)
    kept = kept / kept.sum(axis=1, keepdims=True)
    rows, codes = np.nonzero(kept)
    return rows, codes, kept[rows, codes]


def _fit(estimator: Any, features: Array, codes: Array, weights: Array | None) -> Any:
    if codes.min() == codes.max():
        raise TrainingError(f"every row has the same class (number {codes[0]}) as its target, so there is nothing to learn", code="U071")
    return estimator.fit(features, codes) if weights is None else estimator.fit(features, codes, sample_weight=weights)


def _fit_per_label(estimator: Any, features: Array, probabilities: Array, *, target: Literal["soft", "hard"], drop: float) -> PerLabel:
    count = probabilities.shape[1]
    model = estimator if isinstance(estimator, PerLabel) else PerLabel([clone(estimator) for _ in range(count)])
    hard = target == "hard" or bool(np.isin(probabilities, (0.0, 1.0)).all())
    for label, (one, positive) in enumerate(zip(tuple(model.estimators), probabilities.T, strict=True)):
        pair = np.stack([1 - positive, positive], axis=1)
        rows, codes, weights = weighted_copies(pair, target="hard" if hard else "soft", drop=drop)
        if codes.min() == codes.max():  # a label that is never or always there: an estimator of one class
            model.estimators[label] = DummyClassifier(strategy="most_frequent").fit(features[:1], codes[:1])
        elif hard:
            one.fit(features[rows], codes)
        else:
            one.fit(features[rows], codes, sample_weight=weights)
    return model


def _probabilities(logits: Array, task: Task, temperature: float) -> Array:
    softened = np.asarray(logits, dtype=np.float64) / temperature
    if task.kind == "multilabel":
        return np.asarray(0.5 * (1 + np.tanh(softened / 2)))
    powers = np.exp(softened - softened.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _blended(labels: Array | None, said: Array | None, alpha: float, task: Task, answered: Array | None = None) -> Array:
    """The target of each row: alpha * teacher + (1 - alpha) * label where there are both, else the one there is."""
    if labels is None:
        assert said is not None
        return said
    known = task.labelled(labels)
    wanted = (
        np.eye(task.outputs)[np.where(known, labels, 0)] if task.single_label else np.where(known[:, None], labels, 0).astype(np.float64)
    )
    if said is None:
        return wanted
    both = np.where(known[:, None], alpha * said + (1 - alpha) * wanted, said)
    return both if answered is None else np.where(answered[:, None], both, wanted)


def _padded(labels: Array | None, rows: int, task: Task) -> Array | None:
    if labels is None or len(labels) == rows:
        return labels
    missing = np.full((rows - len(labels), *labels.shape[1:]), -1 if task.single_label else np.nan, dtype=labels.dtype)
    return np.concatenate([labels, missing])


def _check(estimator: Any, task: Task, labels: Array | None, teacher: Array | None) -> None:
    if labels is None and teacher is None:
        raise TrainingError("there are neither labels nor a teacher's answers to learn from", code="U070")
    name = type(estimator).__name__
    if isinstance(estimator, PerLabel):
        return
    if task.kind == "regression" and not is_regressor(estimator):
        raise InputError(f"{name} gives classes, but the task is a regression. Use a regressor", code="U064")
    if task.kind != "regression" and not callable(getattr(estimator, "predict_proba", None)):
        raise InputError(
            f"{name} gives no probabilities (predict_proba), but the task is {task.kind}. Use a classifier that does", code="U064"
        )
