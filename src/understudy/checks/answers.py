"""Whether a teacher's answers are worth learning: better than chance, soft, and not only about rows it has seen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from understudy import answers as teacher_answers
from understudy.data.rows import Rows
from understudy.errors import Problem
from understudy.tasks import Task

Array = np.ndarray[Any, Any]


def check_answers(
    answers: Array, task: Task, rows: Rows, *, score: float | None = None, expect: float | None = None, accept_score: bool = False
) -> list[Problem]:
    """What the teacher's answers [rows, outputs] to validation rows show; `score` is the task's metric on them."""
    if (answers.shape[0], answers.shape[-1]) != (len(rows), task.outputs) or answers.ndim != (3 if task.kind == "recognition" else 2):
        told = f"the teacher answered {list(answers.shape)} for {len(rows):,} rows and {task.outputs} outputs"
        return [Problem("U246", f"{told}; check teacher.classes and the task")]
    problems = teacher_answers.check_answers(torch.from_numpy(np.ascontiguousarray(answers)), rows.name)
    if any(problem.level == "error" for problem in problems) or not len(rows):
        return problems
    level: Literal["error", "warning"] = "warning" if accept_score else "error"
    accepted = "; accepted (teacher.accept_score)" if accept_score else "; check its weights, preprocessing and class order"
    if task.kind == "recognition" and score is not None and score < 0.05:
        told = f"the teacher's word error rate is {1 - score:.1%}, and one that says nothing has 100.0%"
        problems.append(Problem("U240", f"{told}: it has nothing to teach here{accepted}", level))
    if task.kind != "recognition" and rows.labels is not None and task.labelled(rows.labels).any():
        known = task.labelled(rows.labels)
        chance = _near_chance(answers[known].astype(np.float64), rows.labels[known], task)
        problems += [Problem("U240", f"{chance}: it has nothing to teach here{accepted}", level)] * (chance is not None)
        problems += _check_mass(answers[known].astype(np.float64), rows.labels[known], task, level, accepted)
    if expect is not None and score is not None and score < expect - 0.05:
        told = f"the teacher's validation {task.metric} is {score:.4f}, teacher.expect = {expect:g}"
        problems.append(Problem("U241", f"{told}: it is not the model it is thought to be{accepted}", level))
    return [*problems, *_check_softness(answers.astype(np.float64), task)]


def _check_mass(answers: Array, labels: Array, task: Task, level: Literal["error", "warning"], accepted: str) -> Iterator[Problem]:
    """Classes that labelled rows have and the teacher never thinks of."""
    if not task.single_label:
        return
    highest = np.exp(answers - np.logaddexp.reduce(answers, axis=1, keepdims=True)).max(axis=0)
    for index in np.flatnonzero((highest < 1e-6) & (np.bincount(labels, minlength=len(task.classes)) > 0)):
        count = int((labels == index).sum())
        told = (
            f"the teacher gives the class {task.classes[index]!r} no probability in any row, and {count:,} labelled validation rows have it"
        )
        yield Problem("U371", f"{told}: the student would unlearn it{accepted}", level)


def check_gain(teacher: float | None, control: float | None, metric: str) -> list[Problem]:
    """Whether there is anything to gain from a teacher that is worse than the student trained without it, on validation rows."""
    if teacher is None or control is None or teacher >= control:
        return []
    told = f"teacher {metric} is {teacher:.1%} on the validation rows, the control's {control:.1%}"
    return [Problem("U372", f"{told}: the teacher can only hurt {metric}; train a better teacher, or use the control", "warning")]


def check_in_sample(train: float, validation: float, metric: str) -> list[Problem]:
    """Whether the teacher knows its training rows by heart, from its metric on them and on held-out rows."""
    if train - validation <= 0.05:
        return []
    told = f"teacher {metric} is {train:.1%} on the training rows, {validation:.1%} held-out"
    why = "its answers to rows it learned by heart are little more than their labels"
    fix = "fresh rows (rows.unlabelled), fewer epochs for it, or of an estimator out-of-fold answers (teaching.out_of_fold = 5)"
    return [Problem("U245", f"{told}: {why}; take {fix}", "warning")]


def _near_chance(answers: Array, labels: Array, task: Task) -> str | None:
    """The sentence for a teacher no better than chance, by its decisions and by its ranking; None for one that is."""
    if task.kind == "matching":
        firsts, seconds = (side / np.linalg.norm(side, axis=1, keepdims=True).clip(1e-12) for side in np.split(answers, 2, axis=1))
        near = firsts @ seconds.T
        nearer = float((near > np.diagonal(near)[:, None]).mean())
        # the mean of as many uniform numbers, less twice its standard error
        near_half = nearer >= 0.5 - 2 / np.sqrt(12 * len(firsts))
        return (
            f"the teacher finds {nearer:.0%} of all rows nearer than a row's own partner, at random it would be half" if near_half else None
        )
    if task.kind == "regression":
        values, true = answers.ravel(), labels.ravel().astype(np.float64)
        spread = float(((true - true.mean()) ** 2).sum())
        r2 = 1 - float(((true - values) ** 2).sum()) / spread if spread > 0 else 1.0
        return f"the teacher's R2 is {r2:.3f}, the mean of the labels scores 0" if r2 <= 0.02 else None
    positive = labels == 1 if task.kind == "multilabel" else np.eye(len(task.classes), dtype=bool)[labels]
    scores = answers if task.kind == "multilabel" else answers - np.logaddexp.reduce(answers, axis=1, keepdims=True)
    mixed = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    counts = positive.sum(axis=0)[mixed]
    # of few rows a good rank proves little: twice its standard error (Hanley & McNeil 1982), yet no more than a quarter
    error = np.sqrt((len(labels) + 1) / (12.0 * counts * (len(labels) - counts))).mean() if len(mixed) else 0.0
    ranking = float(np.mean([roc_auc_score(positive[:, index], scores[:, index]) for index in mixed])) if len(mixed) else 1.0
    if ranking >= 0.5 + min(max(0.05, 2 * float(error)), 0.25):
        return None
    if task.kind == "multilabel":
        return f"the teacher ranks rows with an area under the curve of {ranking:.3f}, chance is 0.5"
    decided = answers.argmax(axis=1)
    right = float((decided == labels).mean())
    shares = [np.bincount(column, minlength=len(task.classes)) / len(labels) for column in (decided, labels)]
    chance = float((shares[0] * shares[1]).sum())
    near = right - chance < 2 * np.sqrt(chance * (1 - chance) / len(labels)) + 1e-9
    return f"the teacher scores {100 * right:.1f} %, chance is {100 * chance:.1f} %" if near else None


def _check_softness(answers: Array, task: Task) -> Iterator[Problem]:
    """Warnings where soft labels carry little: saturated, uniform, or flat below the best class."""
    if task.kind in ("regression", "recognition", "matching") or len(answers) < 2:
        return
    if task.kind == "multilabel":
        saturated, surest = float((np.abs(answers) > 13).mean()), 0.0
    else:
        said = np.exp(answers - np.logaddexp.reduce(answers, axis=1, keepdims=True))
        ordered = np.sort(said, axis=1)
        saturated, surest = float((ordered[:, -1] > 1 - 2e-6).mean()), float(ordered[:, -1].mean())
    if saturated > 0.9:
        told = f"{saturated:.0%} of the teacher's scores are 0 or 1 to six digits: decisions, soft labels carry nothing more"
        fix = "give probabilities or logits, or an over-confident teacher a higher objective.temperature"
        yield Problem("U243", f"{told}; {fix}", "warning")
    elif task.single_label:
        yield from _check_runners_up(said, ordered, surest)


def _check_runners_up(said: Array, ordered: Array, surest: float) -> Iterator[Problem]:
    classes = said.shape[1]
    entropy = float(-(said * np.log(np.maximum(said, 1e-300))).sum(axis=1).mean() / np.log(classes))
    if entropy > 0.98:
        told = f"the teacher's answers are nearly uniform ({entropy:.1%} of the largest entropy): over-tempered?"
        yield Problem("U244", f"{told}; give its logits before any temperature", "warning")
        return
    rest = ordered[:, :-1] / np.maximum(ordered[:, :-1].sum(axis=1, keepdims=True), 1e-300)
    flat = float(-(rest * np.log(np.maximum(rest, 1e-300))).sum(axis=1).mean() / np.log(max(classes - 1, 2)))
    if classes > 2 and flat > 0.99:
        told = f"the teacher's runner-up probabilities are flat (label smoothing? mean confidence {surest:.1%})"
        yield Problem("U242", f"{told}: soft labels say little beyond the best class; use a teacher trained without smoothing", "warning")
