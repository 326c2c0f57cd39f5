"""Targets and weights of several teachers: each by hand, constants, finite, and refused when shapes do not fit."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from definitions import CLASSES, ROWS, cross, log_softmax, normal, softmax
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses import ensembles
from understudy.losses.ensembles import (
    best_mixture_weights,
    best_of_teachers,
    confidence_weights,
    entropy_weights,
    least_margins,
    mean_of_logits,
    mean_of_probabilities,
)
from understudy.losses.logits import ensemble_soft_target, soft_target

TEACHERS = 3
Answers = list[list[float]]
"""What the teachers say of one row: [teachers][classes]."""


def said(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    return (normal(1, TEACHERS, ROWS, CLASSES) * scale).to(dtype)


def labels() -> Tensor:
    return normal(2, ROWS, CLASSES).argmax(1)


def shares() -> Tensor:
    return normal(3, TEACHERS, ROWS).softmax(0)


def columns(answers: Answers) -> list[tuple[float, ...]]:
    return list(zip(*answers, strict=True))


def mean_probabilities(answers: Answers, _: int) -> list[float]:
    softened = [softmax(row, 2) for row in answers]
    return [2 * math.log(sum(column) / TEACHERS) for column in columns(softened)]


def by_entropy(answers: Answers, _: int) -> list[float]:
    entropies = [cross(softmax(row), softmax(row)) for row in answers]
    return [(1 - each / sum(entropies)) / (TEACHERS - 1) for each in entropies]


def by_confidence(answers: Answers, label: int) -> list[float]:
    spread = softmax([-log_softmax(row)[label] for row in answers])
    return [(1 - each) / (TEACHERS - 1) for each in spread]


BY_HAND: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Answers, int], list[float]]]] = {
    "mean_of_logits": (lambda t, y: mean_of_logits(t), lambda t, y: [sum(column) / TEACHERS for column in columns(t)]),
    "mean_of_probabilities": (lambda t, y: mean_of_probabilities(t, temperature=2.0), mean_probabilities),
    "entropy_weights": (lambda t, y: entropy_weights(t).T, by_entropy),
    "confidence_weights": (lambda t, y: confidence_weights(t, y).T, by_confidence),
    "best_of_teachers": (best_of_teachers, lambda t, y: max(t, key=lambda row: log_softmax(row)[y])),
    "least_margins": (least_margins, lambda t, y: [min(row[c] - row[y] for row in t) for c in range(CLASSES)]),
}
"""Name -> (it as [rows, ...] of teachers and labels, it by hand for one row); the best mixture has tests of its own."""

every = pytest.mark.parametrize("name", BY_HAND)


def test_everything_public_is_here() -> None:
    assert {*BY_HAND, "best_mixture_weights"} == set(ensembles.__all__)


@every
def test_definition_by_hand(name: str) -> None:
    ours, by_hand = BY_HAND[name]
    wanted = [by_hand(said()[:, row].tolist(), int(labels()[row])) for row in range(ROWS)]
    torch.testing.assert_close(ours(said(), labels()), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*BY_HAND, "best_mixture_weights"])
def test_rows_teachers_and_precision(name: str) -> None:
    """The order of teachers and neighbours do not matter; constants; finite whatever is said; float32 for what is lower."""
    ours = BY_HAND[name][0] if name in BY_HAND else lambda t, y: best_mixture_weights(t, y).T
    whole, order = ours(said(), labels()), torch.tensor([2, 0, 1])
    torch.testing.assert_close(ours(said()[:, 2:3], labels()[2:3]), whole[2:3], rtol=1e-10, atol=1e-10)
    assert ours(said()[:, :0], labels()[:0]).shape == (0, whole.shape[1])
    turned = whole[:, order] if "weights" in name else whole
    torch.testing.assert_close(ours(said()[order], labels()), turned, rtol=1e-4, atol=1e-4)
    assert not ours(said().requires_grad_(), labels()).requires_grad
    assert ours(said(torch.bfloat16), labels()).dtype == torch.float32
    extreme = ours(said(torch.float32).sign() * 1e4, labels())
    assert extreme.isfinite().all()
    assert ours(said(), torch.full((ROWS,), -1)).isfinite().all()
    sure = functional.one_hot(labels().expand(TEACHERS, -1), CLASSES) * 1e4  # not the least entropy anywhere
    alone = ours(said()[:1], labels())
    if "weights" in name:
        for weights in (whole, extreme, ours(torch.zeros(3, ROWS, CLASSES), labels()), ours(sure, labels())):
            torch.testing.assert_close(weights.sum(1), torch.ones_like(weights[:, 0]))
            assert (weights >= 0).all()
        assert (alone == 1).all()
    elif name != "least_margins":
        torch.testing.assert_close(alone.log_softmax(-1), said()[0].log_softmax(-1))


def test_rows_without_a_label_take_the_mean() -> None:
    some = labels().index_fill(0, torch.tensor([1, 4]), -1)
    for weigh in (confidence_weights, best_mixture_weights):
        assert (weigh(said(), some)[:, [1, 4]] == 1 / TEACHERS).all()
        torch.testing.assert_close(weigh(said(), some)[:, 0], weigh(said(), labels())[:, 0])
    for target in (best_of_teachers, least_margins):
        torch.testing.assert_close(target(said(), some)[[1, 4]], said().mean(0)[[1, 4]])
        torch.testing.assert_close(target(said(), some)[0], target(said(), labels())[0])


def test_weights_per_row() -> None:
    weights, given = shares(), said()
    wanted = torch.einsum("kr,krc->rc", weights, given)
    torch.testing.assert_close(mean_of_logits(given, weights=weights), wanted)
    mixed = mean_of_probabilities(given, weights=weights, temperature=2.0)
    torch.testing.assert_close((mixed / 2).softmax(-1), torch.einsum("kr,krc->rc", weights, (given / 2).softmax(-1)))
    alone = torch.zeros_like(weights)
    alone[1] = 1
    torch.testing.assert_close(mean_of_probabilities(given, weights=alone), given[1].log_softmax(-1))


def test_the_mean_of_probabilities_teaches_what_the_teachers_teach_one_by_one() -> None:
    student = normal(0, ROWS, CLASSES).requires_grad_()
    values = [
        ensemble_soft_target(student, said(), weights=shares(), temperature=2.0),
        soft_target(student, mean_of_probabilities(said(), weights=shares(), temperature=2.0), temperature=2.0),
    ]
    assert (values[0] > values[1]).all()
    torch.testing.assert_close(*[torch.autograd.grad(value.sum(), student)[0] for value in values], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 3e3])
@pytest.mark.parametrize("teachers", [2, 3, 6])
def test_no_mixture_is_better_than_the_best(teachers: int, scale: float) -> None:
    given, wanted = normal(5, teachers, 20, CLASSES) * scale, normal(6, 20, CLASSES).argmax(1)

    def error(weights: Tensor) -> Tensor:
        return functional.cross_entropy(mean_of_logits(given, weights=weights), wanted, reduction="none")

    best = best_mixture_weights(given, wanted, tolerance=1e-8)
    others = [functional.one_hot(torch.tensor(k), teachers).double()[:, None].expand(-1, 20) for k in range(teachers)]
    others += [normal(seed, teachers, 20).softmax(0) for seed in range(20)]
    others += [0.99 * best + 0.01 * other for other in others]
    for other in others:
        assert (error(best) <= error(other) + 1e-7 * max(scale, 1) * 30).all()


def test_shapes_that_do_not_fit_are_refused() -> None:
    for function in (mean_of_logits, mean_of_probabilities, entropy_weights):
        for wrong in (said()[0], said()[:0]):
            with pytest.raises(InputError, match=r"several teachers are \[teachers, rows, classes\]"):
                inspect.unwrap(function)(wrong)
    for function in (confidence_weights, best_of_teachers, least_margins, best_mixture_weights):
        for wrong in (labels()[:1], labels().double(), labels()[:, None]):
            with pytest.raises(InputError, match=rf"teacher is \[3, {ROWS}, {CLASSES}\], labels are") as caught:
                inspect.unwrap(function)(said(), wrong)
            assert caught.value.code == "U073"
    for mean in (mean_of_logits, mean_of_probabilities):
        with pytest.raises(InputError, match=rf"weights are \[{ROWS}\]") as caught:
            inspect.unwrap(mean)(said(), weights=shares()[0])
        assert caught.value.code == "U303"
    with pytest.raises(InputError, match="temperature must be > 0"):
        mean_of_probabilities(said(), temperature=0.0)
