"""What a model's answers say: probabilities and decisions, in float64. The part that the other files here share.

`answers` are a model's signal of a task (understudy.tasks): logits [rows, classes], or values [rows, 1].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from understudy.measuring._transcripts import transcripts
from understudy.tasks import Task

Array = np.ndarray[Any, Any]
FLOOR = float(np.log(np.finfo(np.float64).eps))
"""The smallest log-probability that counts, as in scikit-learn's log_loss: a tree may say exactly 0."""


def log_probabilities(answers: Array, task: Task) -> Array:
    """Log-softmax [rows, classes]; for multilabel the log of each sigmoid. Never below FLOOR."""
    logits = np.asarray(answers, dtype=np.float64)
    if task.single_label or task.kind == "recognition":
        shifted = logits - logits.max(axis=-1, keepdims=True)
        return np.asarray(np.maximum(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), FLOOR))
    return np.asarray(np.maximum(-np.logaddexp(0.0, -logits), FLOOR))


def probabilities(answers: Array, task: Task) -> Array:
    """Softmax [rows, classes]; for multilabel each sigmoid.

    >>> probabilities(np.array([[0.0, 0.0]]), Task("binary", ("no", "yes")))
    array([[0.5, 0.5]])
    """
    return np.asarray(np.exp(log_probabilities(answers, task)))


def directions(answers: Array) -> tuple[Array, Array]:
    """The two vectors of each row of a matching, of length one, float64 [rows, width] each."""
    firsts, seconds = np.split(np.asarray(answers, dtype=np.float64), 2, axis=1)
    return tuple(side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (firsts, seconds))


def decisions(answers: Array, task: Task) -> Array:
    """The class of each row, int64 [rows]; for multilabel 0 or 1 per label, [rows, classes]; for regression the values [rows]; for
    recognition the words [rows, most], -1 after the end; for matching the row whose second input is nearest to each first one."""
    if task.kind == "matching":
        firsts, seconds = directions(answers)
        return np.asarray((firsts @ seconds.T).argmax(axis=1))
    if task.single_label:
        return np.asarray(answers.argmax(axis=1))
    if task.kind == "recognition":
        return transcripts(answers)
    if task.kind == "multilabel":
        return np.asarray(answers > 0, dtype=np.int64)
    return np.asarray(answers, dtype=np.float64).ravel()
