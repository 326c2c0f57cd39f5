"""Definitions of the losses on labels, logits, tokens and values: each by hand, one row at a time."""

from __future__ import annotations

import math
from typing import Any

from definitions import (
    BITS,
    CLASSES,
    DISTRIBUTIONS,
    LABELS,
    LOGITS,
    TEACHERS,
    VALUES,
    Definition,
    cross,
    divergence,
    first,
    log_sigmoid,
    log_softmax,
    softmax,
)
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


def smooth_absolute_error(student: list[float], labels: list[float]) -> float:
    distances = [abs(s - y) / 2 for s, y in zip(student, labels, strict=True)]
    return sum(d * d / 2 if d < 1 else d - 0.5 for d in distances) / len(distances)


def teacher_bounded(student: list[float], teacher: list[float], labels: list[float]) -> float:
    mine, bound = (sum((v - y) ** 2 for v, y in zip(row, labels, strict=True)) for row in (student, teacher))
    return mine if mine + 0.25 > bound else 0.0


def soft_cross_entropy(student: list[float], labels: list[float]) -> float:
    return cross([0.9 * label + 0.1 / len(labels) for label in labels], softmax(student))


def virtual_teacher(student: list[float], label: int) -> float:
    rough = [0.9 if index == label else 0.1 / (len(student) - 1) for index in range(len(student))]
    powers = [value ** (1 / 5) for value in rough]
    return divergence([value / sum(powers) for value in powers], softmax(student))


def teacher_cross_entropy(student: list[float], teacher: list[float]) -> float:
    return cross(softmax(teacher, 2), softmax(student, 2))


def hard_target(student: list[float], teacher: list[float]) -> float:
    return -log_softmax(student)[teacher.index(max(teacher))]


def among_others(row: list[float], label: int) -> list[float]:
    others = [value for index, value in enumerate(row) if index != label]
    return [value / sum(others) for value in others]


def decoupled(student: list[float], teacher: list[float], label: int) -> float:
    p, q = softmax(student, 3), softmax(teacher, 3)
    first_part = divergence([q[label], 1 - q[label]], [p[label], 1 - p[label]])
    return 9 * (first_part + 8 * divergence(among_others(q, label), among_others(p, label)))


def normalized(student: list[float], teacher: list[float], label: int) -> float:
    others = cross(among_others(softmax(teacher, 2), label), among_others(softmax(student, 2), label))
    return -softmax(teacher)[label] * log_softmax(student)[label] + 1.5 * 4 * others


def standardized(student: list[float], teacher: list[float]) -> float:
    scaled = []
    for row in (student, teacher):
        mean = sum(row) / len(row)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
        scaled.append([(value - mean) / (deviation + 1e-7) for value in row])
    return 4 * divergence(softmax(scaled[1], 2), softmax(scaled[0], 2))


def transformed_teacher(student: list[float], teacher: list[float]) -> float:
    powers = [value**0.25 for value in softmax(teacher)]
    return divergence([value / sum(powers) for value in powers], softmax(student))


def weighted_transformed_teacher(student: list[float], teacher: list[float]) -> float:
    return sum(value**0.25 for value in softmax(teacher)) * transformed_teacher(student, teacher)


def weighted_soft_label(student: list[float], teacher: list[float], label: int) -> float:
    weight = 1 - math.exp(log_softmax(student)[label] / (-log_softmax(teacher)[label] + 1e-7))
    return 4 * weight * cross(softmax(teacher, 2), softmax(student, 2))


def ensemble_soft_target(student: list[float], teachers: list[list[float]]) -> float:
    return 16 * sum(divergence(softmax(each, 4), softmax(student, 4)) for each in teachers) / len(teachers)


def pearson(x: list[float], y: list[float]) -> float:
    x, y = ([value - sum(each) / len(each) for value in each] for each in (x, y))
    norms = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / (norms + 1e-8)


def correlation(student: list[list[float]], teacher: list[list[float]]) -> float:
    p, q = ([softmax(row, 2) for row in each] for each in (student, teacher))
    whole = 0.0
    for x, y in ((p, q), (list(zip(*p, strict=True)), list(zip(*q, strict=True)))):
        whole += 1 - sum(pearson(list(a), list(b)) for a, b in zip(x, y, strict=True)) / len(x)
    return 4 * whole


def gram_distance(p: list[Any], q: list[Any]) -> float:
    """The squared distance of the tables of inner products, per row of the table."""
    whole = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            here, there = (sum(a * b for a, b in zip(x[i], x[j], strict=True)) for x in (p, q))
            whole += (here - there) ** 2
    return whole / len(p)


def multi_level(student: list[list[float]], teacher: list[list[float]]) -> float:
    whole = 0.0
    for temperature in (2, 5):
        p, q = ([softmax(row, temperature) for row in each] for each in (student, teacher))
        whole += temperature**2 * sum(divergence(b, a) for a, b in zip(p, q, strict=True)) / len(p)
        whole += gram_distance(p, q) + gram_distance(list(zip(*p, strict=True)), list(zip(*q, strict=True)))
    return whole


def smoothed_labels(labels: Tensor) -> Tensor:
    """The student whose softmax is the smoothed label."""
    return (functional.one_hot(labels, CLASSES).double() * 0.9 + 0.1 / CLASSES).log()


def virtual_answers(labels: Tensor) -> Tensor:
    """The student who answers as the virtual teacher of the definition."""
    rough = functional.one_hot(labels, CLASSES).double() * (0.9 - 0.1 / (CLASSES - 1)) + 0.1 / (CLASSES - 1)
    return rough.log() / 5


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
    "labels.soft_cross_entropy": Definition(
        soft_cross_entropy,
        (DISTRIBUTIONS,),
        LOGITS,
        {"label_smoothing": 0.1},
        least_at=lambda labels: (labels * 0.9 + 0.1 / CLASSES).log(),
        zero_at_least=False,
        shift_changes_nothing=True,
    ),
    "labels.virtual_teacher": Definition(
        virtual_teacher,
        (LABELS,),
        LOGITS,
        {"correct": 0.9, "temperature": 5.0},
        least_at=virtual_answers,
        shift_changes_nothing=True,
    ),
}

LOGIT_DEFINITIONS = {
    "logits.soft_target": Definition(soft_target, (LOGITS,), LOGITS, {"temperature": 3.0}, least_at=first, shift_changes_nothing=True),
    "logits.binary_soft_target": Definition(
        binary_soft_target, (LOGITS,), LOGITS, {"temperature": 3.0}, least_at=first, shift_changes_nothing=False
    ),
    "logits.logit_mse": Definition(logit_mse, (LOGITS,), LOGITS, least_at=first, shift_changes_nothing=True),
    "logits.teacher_cross_entropy": Definition(
        teacher_cross_entropy, (LOGITS,), LOGITS, {"temperature": 2.0}, least_at=first, zero_at_least=False, shift_changes_nothing=True
    ),
    "logits.hard_target": Definition(hard_target, (LOGITS,), LOGITS, shift_changes_nothing=True),
    "logits.decoupled": Definition(decoupled, (LOGITS, LABELS), LOGITS, {"temperature": 3.0}, least_at=first, shift_changes_nothing=True),
    "logits.normalized": Definition(normalized, (LOGITS, LABELS), LOGITS, {"temperature": 2.0}, shift_changes_nothing=True),
    "logits.standardized": Definition(standardized, (LOGITS,), LOGITS, {"temperature": 2.0}, least_at=first, shift_changes_nothing=True),
    "logits.transformed_teacher": Definition(
        transformed_teacher, (LOGITS,), LOGITS, {"exponent": 0.25}, least_at=lambda teacher: teacher / 4, shift_changes_nothing=True
    ),
    "logits.weighted_transformed_teacher": Definition(
        weighted_transformed_teacher,
        (LOGITS,),
        LOGITS,
        {"exponent": 0.25},
        least_at=lambda teacher: teacher / 4,
        shift_changes_nothing=True,
    ),
    "logits.weighted_soft_label": Definition(
        weighted_soft_label, (LOGITS, LABELS), LOGITS, {"temperature": 2.0}, shift_changes_nothing=True
    ),
    "logits.ensemble_soft_target": Definition(ensemble_soft_target, (TEACHERS,), LOGITS, shift_changes_nothing=True),
}

BATCH_DEFINITIONS = {
    "correlations.correlation": Definition(
        correlation, (LOGITS,), LOGITS, {"temperature": 2.0}, shift_changes_nothing=True, coupled=True, negative=True
    ),
    "correlations.multi_level": Definition(
        multi_level,
        (LOGITS,),
        LOGITS,
        {"temperatures": (2.0, 5.0)},
        least_at=first,
        shift_changes_nothing=True,
        coupled=True,
    ),
}

REGRESSION_DEFINITIONS = {
    "regression.squared_error": Definition(squared_error, (VALUES,), VALUES, {"scale": 2.0}, least_at=first, shift_changes_nothing=False),
    "regression.smooth_absolute_error": Definition(
        smooth_absolute_error, (VALUES,), VALUES, {"scale": 2.0}, least_at=first, shift_changes_nothing=False
    ),
    "regression.teacher_squared_error": Definition(
        squared_error, (VALUES,), VALUES, {"scale": 2.0}, least_at=first, shift_changes_nothing=False
    ),
    # the labels are the place to be, whatever the teacher says: see test_losses_logits.py
    "regression.teacher_bounded": Definition(teacher_bounded, (VALUES, VALUES), VALUES, {"margin": 0.25}, shift_changes_nothing=False),
}

DEFINITIONS = LABEL_DEFINITIONS | LOGIT_DEFINITIONS | BATCH_DEFINITIONS | REGRESSION_DEFINITIONS
"""Place of a loss -> its definition."""
