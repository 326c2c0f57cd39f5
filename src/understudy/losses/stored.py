"""Losses against what a transfer set keeps of an answer, without making the answer whole again; one value per row.

A top-k store keeps `ids` [batch, number], `top`, their log-probabilities at temperature 1, and `tail` [batch, 3]: the logarithm
of what the other classes have together, the sum of exp(log-probability / T), at T = 1, 2 and 4. To add one: write it here, name
it in `__all__`, and give it a line in tests/definitions_stored.py.

When it helps and hurts: Thousands of classes, where giving each answer its full width again costs more than the step. With few
classes `logits.soft_target` is as fast and reads any store.

Known problems: Between and beyond T = 1, 2 and 4 the tail is an estimate. Answers stored whole or asked in the loop have no such
columns, which is said before training.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from understudy.errors import InputError
from understudy.losses._divergences import LOWEST
from understudy.losses._shapes import positive, precise

__all__ = ["top_soft_target"]

TAIL_TEMPERATURES = (1.0, 2.0, 4.0)
"""Where the tail of a top-k answer is known exactly."""


def top_soft_target(
    student: Float[Tensor, "batch classes"],
    ids: Integer[Tensor, "batch number"],
    top: Float[Tensor, "batch number"],
    tail: Float[Tensor, "batch temperatures"],
    *,
    temperature: float | Float[Tensor, ""] = 4.0,
    rest: Literal["even", "together"] = "even",
) -> Float[Tensor, " batch"]:
    """T^2 * KL(teacher || student) of softened distributions, where the teacher is known at its largest classes alone.

    T^2 * [sum_k q_k (log q_k - log p_k) + R], where q_k = exp(top_k / T) / Z and r = exp(tail at T) / Z are what the largest and
    all n others have, Z is their sum, and p = softmax(student / T). rest = "even" shares r evenly, R = sum_c (r / n) (log(r / n)
    - log p_c) over the others: value and gradient are those of `logits.soft_target` with the answer that the store gives back
    whole. "together" compares r with all that the student gives them, R = r (log r - log sum_c p_c), and leaves their order to
    the student. The soft target is of Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2; Anshumann et al. 2025,
    arXiv:2503.16870, section 3, compare ways to keep a part of an answer. It helps where classes are many: nothing but the
    student's own answer has their number.

    >>> tail = torch.tensor([[0.5, 0.5, 0.5]]).log()
    >>> top_soft_target(torch.zeros(1, 2), torch.tensor([[1]]), torch.tensor([[0.5]]).log(), tail, temperature=1.0)
    tensor([0.])
    """
    if (student.ndim, ids.ndim, tail.ndim) != (2, 2, 2) or ids.shape != top.shape or len({len(student), len(ids), len(tail)}) > 1:
        raise InputError(
            f"student is [rows, classes], ids and top [rows, number], tail [rows, {len(TAIL_TEMPERATURES)}]: student is "
            f"{list(student.shape)}, ids are {list(ids.shape)}, top is {list(top.shape)}, tail is {list(tail.shape)}",
            code="U073",
        )
    positive("temperature", temperature)
    others = student.shape[1] - ids.shape[1]
    if others < 1 or tail.shape[1] != len(TAIL_TEMPERATURES):
        raise InputError(
            f"{ids.shape[1]} stored classes of {student.shape[1]} and tails {list(tail.shape)}: at least one class must be left, with its "
            f"tail at T = 1, 2 and 4 ({len(TAIL_TEMPERATURES)} numbers a row)",
            code="U501",
        )
    student, ids = precise(student) / temperature, ids.long()
    top, left = top.to(student.dtype) / temperature, tail_at(tail.to(student.dtype), others, temperature)
    whole = torch.logaddexp(top.logsumexp(1), left)
    log_q, log_r = top - whole[:, None], left - whole
    normaliser = student.logsumexp(1)
    log_p = student.gather(1, ids) - normaliser[:, None]
    value = (log_q.exp() * (log_q - log_p)).sum(1)
    if rest == "even":
        # the mean over the others of log p, from sums over all: nothing of the size of the answer is kept
        spread = (student.sum(1) - student.gather(1, ids).sum(1)) / others - normaliser
        return temperature**2 * (value + log_r.exp() * (log_r - math.log(others) - spread))
    mass = student.scatter(1, ids, LOWEST).logsumexp(1) - normaliser
    return temperature**2 * (value + log_r.exp() * (log_r - mass))


def tail_at(tail: Tensor, others: int, temperature: float | Tensor) -> Tensor:
    """log sum exp(z / T) over the tail's classes, from its values at TAIL_TEMPERATURES and at infinity, [rows].

    Between them it is read from the cubic through them and 1 / T = 0, where it is the logarithm of the number of classes.

    >>> tail_at(torch.tensor([[0.0, 1.0, 2.0]]), 9, 2.0)
    tensor([1.])
    """
    if isinstance(temperature, float | int) and temperature in TAIL_TEMPERATURES:
        return tail[:, TAIL_TEMPERATURES.index(temperature)]
    knots = [1 / each for each in TAIL_TEMPERATURES] + [0.0]
    values = [*tail.unbind(1), torch.full_like(tail[:, 0], math.log(others))]

    def cubic(at: float | Tensor) -> Tensor:
        weights = [math.prod((at - other) / (knot - other) for other in knots if other != knot) for knot in knots]
        return sum((weight * value for weight, value in zip(weights, values, strict=True)), torch.zeros_like(values[0]))

    at = 1 / temperature
    if at <= 1:
        return cubic(at)
    return values[0] + (at - 1) * (values[0] - cubic(0.99)) / 0.01
