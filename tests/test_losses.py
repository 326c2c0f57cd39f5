"""Every loss in understudy.losses: one definition by hand, the invariants all of them keep, and published numbers.

Shapes and types are checked as the losses are called (conftest.py); `inspect.unwrap` takes that off to see our own errors.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from understudy import losses
from understudy.errors import InputError
from understudy.losses.labels import binary_cross_entropy, cross_entropy
from understudy.losses.logits import binary_soft_target, logit_mse, soft_target
from understudy.losses.regression import squared_error, teacher_bounded, teacher_squared_error

GOLDEN = Path(__file__).parent / "golden"
ROWS, CLASSES = 6, 5
Loss = Callable[..., Tensor]


@dataclass(frozen=True)
class Definition:
    """One row by hand (lists of numbers in, one number out), and what is true of the loss."""

    by_hand: Callable[..., float]
    evidence: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    zero_when_equal: bool = True
    shift_changes_nothing: bool = False


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    whole = top + math.log(sum(math.exp(value - top) for value in row))
    return [value - whole for value in row]


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value)) if value > 0 else value - math.log1p(math.exp(value))


def soft_target_by_hand(student: list[float], teacher: list[float]) -> float:
    p, q = (log_softmax([value / 3 for value in row]) for row in (student, teacher))
    return 9 * sum(math.exp(b) * (b - a) for a, b in zip(p, q, strict=True))


def binary_soft_target_by_hand(student: list[float], teacher: list[float]) -> float:
    whole = 0.0
    for s, t in zip(student, teacher, strict=True):
        for sign in (1, -1):
            p, q = log_sigmoid(sign * s / 3), log_sigmoid(sign * t / 3)
            whole += math.exp(q) * (q - p)
    return 9 * whole / len(student)


def logit_mse_by_hand(student: list[float], teacher: list[float]) -> float:
    differences = [s - t for s, t in zip(student, teacher, strict=True)]
    mean = sum(differences) / len(differences)
    return sum((difference - mean) ** 2 for difference in differences) / len(differences)


def cross_entropy_by_hand(student: list[float], label: int) -> float:
    logs = log_softmax(student)
    wanted = [0.9 * (index == label) + 0.1 / len(logs) for index in range(len(logs))]
    return -sum(target * log for target, log in zip(wanted, logs, strict=True))


def binary_cross_entropy_by_hand(student: list[float], labels: list[float]) -> float:
    wanted = [0.9 * label + 0.05 for label in labels]
    values = [t * log_sigmoid(s) + (1 - t) * log_sigmoid(-s) for s, t in zip(student, wanted, strict=True)]
    return -sum(values) / len(values)


def squared_error_by_hand(student: list[float], other: list[float]) -> float:
    return sum(((s - o) / 2) ** 2 for s, o in zip(student, other, strict=True)) / len(student)


def teacher_bounded_by_hand(student: list[float], teacher: list[float], labels: list[float]) -> float:
    mine, bound = (sum((v - y) ** 2 for v, y in zip(row, labels, strict=True)) for row in (student, teacher))
    return mine if mine + 0.25 > bound else 0.0


DEFINITIONS = {
    "labels.cross_entropy": Definition(
        cross_entropy_by_hand, ("classes",), {"label_smoothing": 0.1}, zero_when_equal=False, shift_changes_nothing=True
    ),
    "labels.binary_cross_entropy": Definition(binary_cross_entropy_by_hand, ("bits",), {"label_smoothing": 0.1}, zero_when_equal=False),
    "logits.soft_target": Definition(soft_target_by_hand, ("numbers",), {"temperature": 3.0}, shift_changes_nothing=True),
    "logits.binary_soft_target": Definition(binary_soft_target_by_hand, ("numbers",), {"temperature": 3.0}),
    "logits.logit_mse": Definition(logit_mse_by_hand, ("numbers",), shift_changes_nothing=True),
    "regression.squared_error": Definition(squared_error_by_hand, ("numbers",), {"scale": 2.0}),
    "regression.teacher_squared_error": Definition(squared_error_by_hand, ("numbers",), {"scale": 2.0}),
    "regression.teacher_bounded": Definition(teacher_bounded_by_hand, ("numbers", "numbers"), {"margin": 0.25}, zero_when_equal=False),
}
"""Place of a loss -> its definition; a loss that is not here fails the first test below."""

every_loss = pytest.mark.parametrize("place", DEFINITIONS)


def places() -> Iterator[str]:
    for module in pkgutil.iter_modules(losses.__path__):
        if not module.name.startswith("_"):
            yield from (f"{module.name}.{name}" for name in importlib.import_module(f"{losses.__name__}.{module.name}").__all__)


def loss_at(place: str) -> Loss:
    family, _, name = place.partition(".")
    return getattr(importlib.import_module(f"{losses.__name__}.{family}"), name)  # type: ignore[no-any-return]


def numbers(seed: int, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).to(dtype)


def evidence_for(definition: Definition, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = []
    for seed, kind in enumerate(definition.evidence, start=1):
        values = numbers(seed, rows, dtype)
        made.append(values.argmax(1) if kind == "classes" else (values > 0).to(dtype) if kind == "bits" else values)
    return made


def value_and_gradient(loss: Loss, student: Tensor, *evidence: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    values = loss(student, *evidence, **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def test_every_loss_has_a_definition() -> None:
    assert set(places()) == set(DEFINITIONS)


@every_loss
def test_definition_by_hand(place: str) -> None:
    definition = DEFINITIONS[place]
    student, evidence = numbers(0), evidence_for(definition)
    values = loss_at(place)(student, *evidence, **definition.options)
    expected = [definition.by_hand(*row) for row in zip(student.tolist(), *(each.tolist() for each in evidence), strict=True)]
    assert values.shape == (ROWS,)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@every_loss
def test_least_with_zero_gradient_when_student_says_the_same(place: str) -> None:
    definition = DEFINITIONS[place]
    loss = loss_at(place)
    if definition.zero_when_equal:
        evidence = evidence_for(definition)
        values, gradient = value_and_gradient(loss, evidence[0], *evidence, **definition.options)
        torch.testing.assert_close(values, torch.zeros(ROWS, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
        elsewhere = loss(evidence[0] + numbers(9) / 100, *evidence, **definition.options)
    elif definition.evidence == ("numbers", "numbers"):  # the labels are the place to be, whatever the teacher says
        teacher, labels = evidence_for(definition)
        values, gradient = value_and_gradient(loss, labels, labels, labels, **definition.options)
        assert not values.any()
        assert not gradient.any()
        elsewhere = loss(labels + numbers(9) / 100, labels, labels, **definition.options)
        assert not loss(labels + numbers(9) / 1000, teacher, labels, **definition.options).any()
    else:  # the student whose probabilities are the smoothed labels
        bits = definition.evidence == ("bits",)
        (labels,) = evidence_for(definition)
        wanted = labels * 0.9 + 0.05 if bits else functional.one_hot(labels, CLASSES).double() * 0.9 + 0.1 / CLASSES
        best = wanted.logit() if bits else wanted.log()
        values, gradient = value_and_gradient(loss, best, labels, **definition.options)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
        elsewhere = loss(best + numbers(9) / 100, labels, **definition.options)
    assert (elsewhere > values).all()


@every_loss
def test_a_row_does_not_know_its_neighbours(place: str) -> None:
    definition = DEFINITIONS[place]
    student, evidence = numbers(0), evidence_for(definition)
    whole = loss_at(place)(student, *evidence, **definition.options)
    alone = [loss_at(place)(student[i : i + 1], *(each[i : i + 1] for each in evidence), **definition.options) for i in range(ROWS)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-13, atol=1e-13)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    mixed = loss_at(place)(student[order], *(each[order] for each in evidence), **definition.options)
    torch.testing.assert_close(mixed, whole[order], rtol=1e-13, atol=1e-13)
    assert loss_at(place)(student[:0], *(each[:0] for each in evidence), **definition.options).shape == (0,)


@every_loss
def test_constant_shift_of_a_row(place: str) -> None:
    definition = DEFINITIONS[place]
    student, evidence = numbers(0), evidence_for(definition)
    shift = torch.arange(1.0, ROWS + 1, dtype=torch.float64)[:, None]
    before, gradient_before = value_and_gradient(loss_at(place), student, *evidence, **definition.options)
    after, gradient_after = value_and_gradient(loss_at(place), student + shift, *evidence, **definition.options)
    if definition.shift_changes_nothing:
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient_after, gradient_before, rtol=1e-10, atol=1e-10)
    else:
        assert not torch.allclose(after, before)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_ten_thousand(place: str, dtype: torch.dtype) -> None:
    definition = DEFINITIONS[place]
    student = numbers(0, dtype=dtype).sign() * 1e4
    evidence = [
        each.sign() * 1e4 if kind == "numbers" else each
        for kind, each in zip(definition.evidence, evidence_for(definition, dtype=dtype), strict=True)
    ]
    for teacher in (evidence, [-each if kind == "numbers" else each for kind, each in zip(definition.evidence, evidence, strict=True)]):
        values, gradient = value_and_gradient(loss_at(place), student, *teacher, **definition.options)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert (values >= 0).all()
        assert gradient.isfinite().all()


@every_loss
def test_low_precision_is_computed_in_float32(place: str) -> None:
    definition = DEFINITIONS[place]
    student, evidence = numbers(0, dtype=torch.bfloat16), evidence_for(definition, dtype=torch.bfloat16)
    wide = [each.float() if each.is_floating_point() else each for each in evidence]
    low, low_gradient = value_and_gradient(loss_at(place), student, *evidence, **definition.options)
    high, high_gradient = value_and_gradient(loss_at(place), student.float(), *wide, **definition.options)
    assert low.dtype == high.dtype == torch.float32
    assert torch.equal(low, high)
    assert torch.equal(low_gradient, high_gradient.bfloat16())
    assert loss_at(place)(numbers(0), *evidence_for(definition), **definition.options).dtype == torch.float64


@every_loss
def test_broadcasting_is_refused(place: str) -> None:
    definition = DEFINITIONS[place]
    plain = inspect.unwrap(loss_at(place))
    student, evidence = numbers(0), evidence_for(definition)
    for position, each in enumerate(evidence):
        for wrong in (each[:1], each[:-1], each[..., None]):
            given = [*evidence[:position], wrong, *evidence[position + 1 :]]
            with pytest.raises(InputError, match=r"\[6, 5\].*\[") as caught:
                plain(student, *given, **definition.options)
            assert caught.value.code == "U031"
            assert str(list(wrong.shape)) in str(caught.value)
            with pytest.raises(Exception, match=r"[Tt]ype"):  # the annotations refuse it too
                loss_at(place)(student, *given, **definition.options)


@every_loss
def test_docstring_says_formula_and_source(place: str) -> None:
    said = inspect.getdoc(loss_at(place)) or ""
    assert said.splitlines()[0].endswith(".")
    assert ">>>" in said
    assert "mean_" in said or "sum_" in said
    assert any(year in said for year in ("18", "19", "20"))
    options = [p for p in inspect.signature(loss_at(place)).parameters.values() if p.name not in ("student", "teacher", "labels")]
    assert all(option.kind is option.KEYWORD_ONLY for option in options)


# --- what single losses do --------------------------------------------------------------------------------------------


def test_rows_without_a_label_are_zero_without_gradient() -> None:
    student = numbers(0, 2)
    for loss, labels in (
        (cross_entropy, torch.tensor([-1, 2])),
        (binary_cross_entropy, torch.tensor([[1.0, 0, float("nan"), 0, 0], [0, 1, 0, 0, 0]]).double()),
        (squared_error, torch.tensor([[1.0, 0, 0, 0, float("nan")], [0, 1, 0, 0, 0]]).double()),
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


# --- published numbers ------------------------------------------------------------------------------------------------

Case = dict[str, Tensor]


def cases(name: str) -> list[Case]:
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as held:
        found: list[Case] = [{} for _ in range(int(held["n_cases"]))]
        for key in held.files:
            stem, _, number = key.rpartition("_")
            if number.isdigit() and held[key].dtype.kind in "fi":
                found[int(number)][stem] = torch.from_numpy(held[key])
    return found


def kd(s: Tensor, case: Case, hard: Loss = cross_entropy, soft: Loss = soft_target) -> Tensor:
    """One value per row of the classic mixture."""
    alpha, temperature = float(case["alpha"]), float(case["temperature"])
    return (1 - alpha) * hard(s, case["labels"]) + alpha * soft(s, case["teacher_logits"], temperature=temperature)


def over_tokens(s: Tensor, case: Case) -> Tensor:
    valid = case["labels"] != -100
    values = soft_target(s[valid], case["teacher_logits"][valid], temperature=float(case["temperature"]))
    return values.sum() / max(int(valid.sum()), 1)


def known_labels(s: Tensor, case: Case) -> Tensor:
    labels = case["labels"].clamp_min(-1)
    return cross_entropy(s, labels).sum() / (labels >= 0).sum()


def multilabel(s: Tensor, case: Case, soft: Loss = binary_soft_target) -> Tensor:
    alpha, temperature = float(case["alpha"]), float(case["temperature"])
    hard = binary_cross_entropy(s, case["targets"])
    return ((1 - alpha) * hard + alpha * soft(s, case["teacher_logits"], temperature=temperature)).mean()


def regression(s: Tensor, case: Case) -> Tensor:
    alpha = float(case["alpha"])
    return ((1 - alpha) * squared_error(s, case["targets"]) + alpha * teacher_squared_error(s, case["teacher_pred"])).mean()


def bounded(s: Tensor, case: Case) -> Tensor:
    return teacher_bounded(s, case["teacher_pred"], case["targets"], margin=float(case["margin"])).mean()


PUBLISHED: dict[str, tuple[str, Callable[[Tensor, Case], Tensor], str]] = {
    "cross_entropy": ("student_logits", known_labels, ""),
    "soft_target_ce": (
        "student_logits",
        lambda s, case: cross_entropy(s, case["labels"], label_smoothing=float(case["label_smoothing"])).mean(),
        "",
    ),
    "kd": ("student_logits", lambda s, case: kd(s, case).mean(), ""),
    "kd_weighted": ("student_logits", lambda s, case: (case["weights"] * kd(s, case)).mean(), ""),
    "multilabel_kd": ("student_logits", multilabel, ""),
    "forward_kl": ("student_logits", over_tokens, ""),
    "embedding_mse": ("student_features", lambda s, case: logit_mse(s, case["teacher_features"], centred=False).mean(), ""),
    "regression_kd": ("student_pred", regression, ""),
    "regression_teacher_bounded": ("student_pred", bounded, "_bounded"),
}
"""Golden file -> the student's input, the loss as computed here, the suffix of its value and gradient."""


def misses(name: str, compute: Callable[[Tensor, Case], Tensor]) -> list[str]:
    """What differs from the golden file by more than 1e-9 of the largest number."""
    key, _, suffix = PUBLISHED[name]
    found = []
    for number, case in enumerate(cases(name)):
        if name == "soft_target_ce" and "labels" not in case:
            continue  # targets that are distributions: no loss here takes them
        student = case[key].clone().requires_grad_()
        value = compute(student, case)
        (gradient,) = torch.autograd.grad(value, student)
        for what, here, there in (("value", value, case[f"loss{suffix}"]), ("gradient", gradient, case[f"grad_student{suffix}"])):
            scale = max(1.0, float(there.abs().max()))
            if not torch.allclose(here.detach(), there, rtol=1e-9, atol=1e-11 * scale):
                found.append(f"case {number}: {what}")
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    assert misses(name, PUBLISHED[name][1]) == []


def test_published_rows() -> None:
    for case in cases("kd"):
        torch.testing.assert_close(
            soft_target(case["student_logits"], case["teacher_logits"], temperature=float(case["temperature"])).mean(), case["loss_kd"]
        )
        torch.testing.assert_close(kd(case["student_logits"], case), case["per_sample"], rtol=1e-9, atol=1e-11)


FAULTS: dict[str, Loss] = {
    "no temperature squared": lambda s, t, temperature: soft_target(s, t, temperature=temperature) / temperature**2,
    "mean over classes": lambda s, t, temperature: soft_target(s, t, temperature=temperature) / s.shape[-1],
    "reversed": lambda s, t, temperature: soft_target(t, s, temperature=temperature),
    "softmax twice": lambda s, t, temperature: soft_target(s.softmax(-1), t.softmax(-1), temperature=temperature),
    "softmax twice for the teacher": lambda s, t, temperature: soft_target(s, t.softmax(-1), temperature=temperature),
    "temperature on the teacher only": lambda s, t, temperature: soft_target(s * temperature, t, temperature=temperature),
    "one row's teacher": lambda s, t, temperature: soft_target(s, t.roll(1, 0), temperature=temperature),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_soft_target_misses_the_published_numbers(fault: str) -> None:
    assert misses("kd", lambda s, case: kd(s, case, soft=FAULTS[fault]).mean())


@pytest.mark.parametrize("fault", ["no temperature squared", "sum over classes", "reversed", "softmax"])
def test_a_faulty_binary_soft_target_misses_the_published_numbers(fault: str) -> None:
    faulty: dict[str, Loss] = {
        "no temperature squared": lambda s, t, temperature: binary_soft_target(s, t, temperature=temperature) / temperature**2,
        "sum over classes": lambda s, t, temperature: binary_soft_target(s, t, temperature=temperature) * s.shape[-1],
        "reversed": lambda s, t, temperature: binary_soft_target(t, s, temperature=temperature),
        "softmax": lambda s, t, temperature: soft_target(s, t, temperature=temperature),
    }
    assert misses("multilabel_kd", lambda s, case: multilabel(s, case, soft=faulty[fault]))
