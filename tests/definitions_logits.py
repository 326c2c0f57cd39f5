"""Definitions of the losses on labels, logits, tokens and values: each by hand, one row at a time."""

from __future__ import annotations

import math

import torch
from definitions import BITS, LABELS, LOGITS, VALUES, Definition, first, log_sigmoid, log_softmax
from torch import Tensor
from torch.nn import functional


def soft_target(student: list[float], teacher: list[float]) -> float:
    p, q = (log_softmax(row, 3) for row in (student, teacher))
    return 9 * sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))


def binary_soft_target(student: list[float], teacher: list[float]) -> float:
    whole = 0.0
    for s, t in zip(student, teacher, strict=True):
        for sign in (1, -1):
            p, q = log_sigmoid(sign * s / 3), log_sigmoid(sign * t / 3)
            whole += math.exp(q) * (q - p)
    return 9 * whole / len(student)


def logit_mse(student: list[float], teacher: list[float]) -> float:
    differences = [s - t for s, t in zip(student, teacher, strict=True)]
    mean = sum(differences) / len(differences)
    return sum((difference - mean) ** 2 for difference in differences) / len(differences)


def cross_entropy(student: list[float], label: int) -> float:
    logs = log_softmax(student)
    wanted = [0.9 * (index == label) + 0.1 / len(logs) for index in range(len(logs))]
    return -sum(target * log for target, log in zip(wanted, logs, strict=True))


def binary_cross_entropy(student: list[float], labels: list[float]) -> float:
    wanted = [0.9 * label + 0.05 for label in labels]
    values = [t * log_sigmoid(s) + (1 - t) * log_sigmoid(-s) for s, t in zip(student, wanted, strict=True)]
    return -sum(values) / len(values)


def squared_error(student: list[float], other: list[float]) -> float:
    return sum(((s - o) / 2) ** 2 for s, o in zip(student, other, strict=True)) / len(student)


def teacher_bounded(student: list[float], teacher: list[float], labels: list[float]) -> float:
    mine, bound = (sum((v - y) ** 2 for v, y in zip(row, labels, strict=True)) for row in (student, teacher))
    return mine if mine + 0.25 > bound else 0.0


def smoothed_labels(labels: Tensor) -> Tensor:
    """The student whose softmax is the smoothed label."""
    return (functional.one_hot(labels, LOGITS.make(0, 1, torch.float64).shape[1]).double() * 0.9 + 0.1 / 5).log()


LABEL_DEFINITIONS = {
    "labels.cross_entropy": Definition(
        cross_entropy,
        (LABELS,),
        LOGITS,
        {"label_smoothing": 0.1},
        least_at=smoothed_labels,
        zero_at_least=False,
        shift_changes_nothing=True,
    ),
    "labels.binary_cross_entropy": Definition(
        binary_cross_entropy,
        (BITS,),
        LOGITS,
        {"label_smoothing": 0.1},
        least_at=lambda bits: (bits * 0.9 + 0.05).logit(),
        zero_at_least=False,
        shift_changes_nothing=False,
    ),
}

LOGIT_DEFINITIONS = {
    "logits.soft_target": Definition(soft_target, (LOGITS,), LOGITS, {"temperature": 3.0}, least_at=first, shift_changes_nothing=True),
    "logits.binary_soft_target": Definition(
        binary_soft_target, (LOGITS,), LOGITS, {"temperature": 3.0}, least_at=first, shift_changes_nothing=False
    ),
    "logits.logit_mse": Definition(logit_mse, (LOGITS,), LOGITS, least_at=first, shift_changes_nothing=True),
}

REGRESSION_DEFINITIONS = {
    "regression.squared_error": Definition(squared_error, (VALUES,), VALUES, {"scale": 2.0}, least_at=first, shift_changes_nothing=False),
    "regression.teacher_squared_error": Definition(
        squared_error, (VALUES,), VALUES, {"scale": 2.0}, least_at=first, shift_changes_nothing=False
    ),
    # the labels are the place to be, whatever the teacher says: see test_losses_logits.py
    "regression.teacher_bounded": Definition(teacher_bounded, (VALUES, VALUES), VALUES, {"margin": 0.25}, shift_changes_nothing=False),
}

DEFINITIONS = LABEL_DEFINITIONS | LOGIT_DEFINITIONS | REGRESSION_DEFINITIONS
"""Place of a loss -> its definition."""
