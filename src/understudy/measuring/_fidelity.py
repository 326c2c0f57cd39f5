"""Fidelity: agreement with the teacher, which needs no label. Never to be sold as quality."""

from __future__ import annotations

import numpy as np

from understudy.measuring._answers import Array, decisions, directions, log_probabilities
from understudy.measuring._bootstrap import Figure, Sums, mean, r2
from understudy.measuring._transcripts import counted, word_errors, written
from understudy.tasks import Task

METRICS: dict[str, dict[str, bool]] = {
    "multiclass": {"agreement": True, "kl": False},
    "binary": {"agreement": True, "kl": False},
    "multilabel": {"agreement": True, "kl": False},
    "regression": {"agreement": True, "rmse_to_teacher": False},
    "recognition": {"agreement": True, "kl": False},
    "matching": {"agreement": True, "cosine_distance": False},
}
"""For each kind of task its figures, and whether larger is better."""


def figures(answers: Array, teacher: Array, task: Task) -> dict[str, Figure]:
    """Agreement and distance to the teacher's answers on the same rows.

    `agreement` is the share of equal decisions (multilabel: over rows and labels; regression: R2 against the
    teacher's values). `kl` is KL(teacher || model) in nats (multilabel: the mean over labels). Recognition: the share of
    rows whose words are all the same, and the mean over frames, which a teacher that writes text has none of.
    """
    if task.kind == "recognition":
        same = word_errors(decisions(answers, task), decisions(teacher, task)) == 0
        if written(teacher):
            return {"agreement": mean(same)}  # where the words lie is nothing the teacher said
        return {"agreement": mean(same), "kl": mean(distances(answers, teacher, task))}
    if task.kind == "matching":
        equal = decisions(answers, task) == decisions(teacher, task)
        return {"agreement": mean(equal), "cosine_distance": mean(distances(answers, teacher, task))}
    if task.kind != "regression":
        equal = decisions(answers, task) == decisions(teacher, task)
        return {"agreement": mean(equal.reshape(len(equal), -1).mean(axis=1)), "kl": mean(distances(answers, teacher, task))}
    squares = distances(answers, teacher, task) ** 2
    return {
        "agreement": r2(answers.ravel().astype(np.float64), teacher.ravel().astype(np.float64)),
        "rmse_to_teacher": Sums(squares[:, None], lambda sums, weight: np.sqrt(sums[:, 0] / weight)),
    }


def distances(answers: Array, teacher: Array, task: Task) -> Array:
    """How far each row is from the teacher: KL(teacher || model) in nats, or the absolute difference; float64 [rows]."""
    if task.kind == "matching":
        cosines = [(ours * theirs).sum(axis=1) for ours, theirs in zip(directions(answers), directions(teacher), strict=True)]
        return np.asarray(1 - np.mean(cosines, axis=0))
    if task.kind == "regression":
        return np.asarray(np.abs(answers - teacher).ravel(), dtype=np.float64)
    log_teacher, log_model = log_probabilities(teacher, task), log_probabilities(answers, task)
    divergence = np.exp(log_teacher) * (log_teacher - log_model)
    if task.kind == "recognition":
        frames = counted(teacher)
        return np.asarray(np.maximum((divergence.sum(axis=2) * frames).sum(axis=1) / np.maximum(frames.sum(axis=1), 1), 0.0))
    if task.single_label:
        return np.asarray(np.maximum(divergence.sum(axis=1), 0.0))
    log_teacher, log_model = log_probabilities(-teacher, task), log_probabilities(-answers, task)
    return np.asarray(np.maximum((divergence + np.exp(log_teacher) * (log_teacher - log_model)).mean(axis=1), 0.0))
