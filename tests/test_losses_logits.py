"""What single losses on labels, logits and values do, beyond the invariants of test_losses.py."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from definitions import CLASSES, ROWS, normal
from torch import Tensor

from understudy.errors import InputError
from understudy.losses.labels import binary_cross_entropy, cross_entropy
from understudy.losses.logits import binary_soft_target, logit_mse, soft_target, weighted_soft_label
from understudy.losses.regression import smooth_absolute_error, squared_error, teacher_bounded, teacher_squared_error

Loss = Callable[..., Tensor]


def numbers(seed: int, rows: int = ROWS) -> Tensor:
    return normal(seed, rows, CLASSES)


def value_and_gradient(loss: Loss, student: Tensor, *evidence: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    values = loss(student, *evidence, **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def test_rows_without_a_label_are_zero_without_gradient() -> None:
    student = numbers(0, 2)
    for loss, labels in (
        (cross_entropy, torch.tensor([-1, 2])),
        (binary_cross_entropy, torch.tensor([[1.0, 0, float("nan"), 0, 0], [0, 1, 0, 0, 0]]).double()),
        (squared_error, torch.tensor([[1.0, 0, 0, 0, float("nan")], [0, 1, 0, 0, 0]]).double()),
        (smooth_absolute_error, torch.tensor([[1.0, 0, 0, 0, float("nan")], [0, 1, 0, 0, 0]]).double()),
    ):
        values, gradient = value_and_gradient(loss, student, labels)
        assert values[0] == 0
        assert values[1] > 0
        assert not gradient[0].any()
        assert gradient[1].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_weights(smoothing: float) -> None:
    student, labels = numbers(0), numbers(1).argmax(1)
    weights = torch.tensor([1.0, 2, 3, 4, 5])
    ones = torch.ones(CLASSES)
    plain = cross_entropy(student, labels)
    torch.testing.assert_close(cross_entropy(student, labels, class_weights=weights), weights[labels] * plain)
    same = cross_entropy(student, labels, class_weights=ones, label_smoothing=smoothing)
    torch.testing.assert_close(same, cross_entropy(student, labels, label_smoothing=smoothing))
    bits = (numbers(1) > 0).double()
    single = torch.stack([binary_cross_entropy(student[:, [i]], bits[:, [i]], label_smoothing=smoothing) for i in range(CLASSES)], 1)
    weighted = binary_cross_entropy(student, bits, class_weights=weights, label_smoothing=smoothing)
    torch.testing.assert_close(weighted, (single * weights).mean(1))
    for loss, given in ((cross_entropy, labels), (binary_cross_entropy, bits)):
        with pytest.raises(InputError, match=r"one weight per class: student has 5 classes, class_weights is \[1\]"):
            inspect.unwrap(loss)(student, given, class_weights=torch.ones(1))


def test_cross_entropy_names_the_other_loss_for_bits() -> None:
    with pytest.raises(InputError, match=r"labels\.binary_cross_entropy"):
        inspect.unwrap(cross_entropy)(numbers(0), numbers(1))


def test_a_teacher_may_give_probability_zero() -> None:
    teacher = torch.tensor([[0.0, -math.inf, 1.0]])
    student = torch.tensor([[0.0, 2.0, 1.0]])
    for loss in (soft_target, binary_soft_target):
        values, gradient = value_and_gradient(loss, student, teacher, temperature=2.0)
        near, near_gradient = value_and_gradient(loss, student, teacher.clamp_min(-1e3), temperature=2.0)
        torch.testing.assert_close(values, near)
        torch.testing.assert_close(gradient, near_gradient)
    assert soft_target(torch.tensor([[0.0, -1e4, 1.0]]), teacher).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan])
def test_temperature_and_scale_are_above_zero(wrong: float) -> None:
    for loss in (soft_target, binary_soft_target):
        with pytest.raises(InputError, match="temperature must be > 0"):
            loss(numbers(0), numbers(1), temperature=wrong)
    for loss in (squared_error, teacher_squared_error):
        with pytest.raises(InputError, match="scale must be > 0"):
            loss(numbers(0), numbers(1), scale=wrong)


def test_gradient_keeps_its_size_whatever_the_temperature() -> None:
    student, teacher = numbers(0) / 30, numbers(1) / 30
    sizes = [value_and_gradient(soft_target, student, teacher, temperature=t)[1].norm().item() for t in (4.0, 40.0)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_two_logits_are_one_sigmoid() -> None:
    """What makes a binary teacher with a single logit exact: softmax([0, z]) is sigmoid(z)."""
    student, teacher = numbers(0)[:, :1], numbers(1)[:, :1]
    pair = [torch.cat([torch.zeros_like(each), each], 1) for each in (student, teacher)]
    torch.testing.assert_close(soft_target(*pair, temperature=3.0), binary_soft_target(student, teacher, temperature=3.0))


def test_uncentred_logit_mse_is_the_mean_square() -> None:
    student, teacher = numbers(0), numbers(1)
    torch.testing.assert_close(logit_mse(student, teacher, centred=False), (student - teacher).square().mean(1))


def test_the_label_is_the_place_to_be_whatever_the_teacher_says() -> None:
    teacher, labels = numbers(1), numbers(2)
    values, gradient = value_and_gradient(teacher_bounded, labels, labels, labels, margin=0.25)
    assert not values.any()
    assert not gradient.any()
    assert (teacher_bounded(labels + numbers(9) / 100, labels, labels, margin=0.25) > 0).all()
    assert not teacher_bounded(labels + numbers(9) / 1000, teacher, labels, margin=0.25).any()


def test_the_weight_of_a_soft_label_has_no_gradient() -> None:
    """Then the student that says what the teacher says stays there."""
    teacher = numbers(1)
    values, gradient = value_and_gradient(weighted_soft_label, teacher, teacher, numbers(2).argmax(1), temperature=2.0)
    assert (values > 0).all()
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
