"""Every loss in understudy.losses: one definition by hand, and the invariants all of them keep.

Shapes and types are checked as the losses are called (conftest.py); `inspect.unwrap` takes that off to see our own errors.
What is known of each loss stands in definitions_*.py; published numbers are in test_golden_*.py.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from definitions import ROWS, Definition, Loss
from torch import Tensor

from understudy import losses
from understudy.errors import InputError

NO_LOSSES = {"chunks", "ensembles", "schedules"}
"""Modules whose functions make what a loss takes (targets, weights, masks); they have tests of their own."""

DEFINITIONS: dict[str, Definition] = {}
for path in sorted(Path(__file__).parent.glob("definitions_*.py")):
    DEFINITIONS |= importlib.import_module(path.stem).DEFINITIONS


def places(chosen: Callable[[Definition], bool] = lambda _: True) -> list[str]:
    """The losses of which something is true."""
    return [place for place, definition in DEFINITIONS.items() if chosen(definition)]


def public() -> Iterator[str]:
    for module in pkgutil.iter_modules(losses.__path__):
        if not module.name.startswith("_") and module.name not in NO_LOSSES:
            yield from (f"{module.name}.{name}" for name in importlib.import_module(f"{losses.__name__}.{module.name}").__all__)


every_loss = pytest.mark.parametrize("place", places())


def loss_at(place: str) -> Loss:
    family, _, name = place.partition(".")
    return getattr(importlib.import_module(f"{losses.__name__}.{family}"), name)  # type: ignore[no-any-return]


def called(place: str) -> Loss:
    """The loss, taking student and evidence in the definition's order."""
    return DEFINITIONS[place].call(loss_at(place))


def inputs(definition: Definition, rows: int = ROWS, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The student's input and the evidence, each of its own seed."""
    return [kind.make(seed, rows, dtype) for seed, kind in enumerate((definition.student, *definition.evidence))]


def some_rows(definition: Definition, given: list[Tensor], chosen: Any) -> list[Tensor]:
    return [kind.rows(each, chosen) for kind, each in zip((definition.student, *definition.evidence), given, strict=True)]


def value_and_gradient(loss: Loss, student: Tensor, *evidence: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    values = loss(student, *evidence, **options)
    (gradient,) = torch.autograd.grad(values.sum(), student)
    return values.detach(), gradient


def test_every_loss_has_a_definition() -> None:
    assert set(public()) == set(DEFINITIONS)


@every_loss
def test_definition_by_hand(place: str) -> None:
    definition = DEFINITIONS[place]
    student, *evidence = inputs(definition)
    values = called(place)(student, *evidence, **definition.options)
    assert values.shape[:1] == (ROWS,)
    if definition.coupled:
        expected = definition.by_hand(student.tolist(), *(each.tolist() for each in evidence))
        values = values.mean()
    else:
        one_by_one = (some_rows(definition, [student, *evidence], row) for row in range(ROWS))
        expected = [definition.by_hand(*(each.tolist() for each in row)) for row in one_by_one]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", places(lambda definition: definition.least_at is not None))
def test_least_with_zero_gradient_where_it_should_be(place: str) -> None:
    definition = DEFINITIONS[place]
    loss = called(place)
    assert definition.least_at is not None
    _, *evidence = inputs(definition)
    best = definition.least_at(*evidence)
    values, gradient = value_and_gradient(loss, best, *evidence, **definition.options)
    if definition.zero_at_least:
        torch.testing.assert_close(values, torch.zeros_like(values), rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)
    elsewhere = loss(best + definition.student.make(9, ROWS, torch.float64) / 100, *evidence, **definition.options)
    assert elsewhere.mean() > values.mean() if definition.coupled else (elsewhere > values).all()


@pytest.mark.parametrize("place", places(lambda definition: not definition.coupled))
def test_a_row_does_not_know_its_neighbours(place: str) -> None:
    definition = DEFINITIONS[place]
    loss = called(place)
    given = inputs(definition)
    whole = loss(*given, **definition.options)
    alone = [loss(*some_rows(definition, given, slice(row, row + 1)), **definition.options) for row in range(ROWS)]
    torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-13, atol=1e-13)
    assert loss(*some_rows(definition, given, slice(0)), **definition.options).shape == (0, *whole.shape[1:])


@every_loss
def test_the_order_of_rows_does_not_matter(place: str) -> None:
    definition = DEFINITIONS[place]
    given = inputs(definition)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    whole = called(place)(*given, **definition.options)
    mixed = called(place)(*some_rows(definition, given, order), **definition.options)
    torch.testing.assert_close(mixed, whole[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("place", places(lambda definition: definition.shift_changes_nothing is not None))
def test_constant_shift_of_a_row(place: str) -> None:
    definition = DEFINITIONS[place]
    student, *evidence = inputs(definition)
    shift = torch.arange(1.0, ROWS + 1, dtype=torch.float64).reshape(-1, *[1] * (student.ndim - 1))
    before, gradient_before = value_and_gradient(called(place), student, *evidence, **definition.options)
    after, gradient_after = value_and_gradient(called(place), student + shift, *evidence, **definition.options)
    if definition.shift_changes_nothing:
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient_after, gradient_before, rtol=1e-10, atol=1e-10)
    else:
        assert not torch.allclose(after, before)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_finite_at_ten_thousand(place: str, dtype: torch.dtype) -> None:
    definition = DEFINITIONS[place]
    kinds = definition.evidence
    student, *evidence = inputs(definition, dtype=dtype)
    student = student.sign() * 1e4 if definition.student.anything else student
    for sign in (1, -1):
        given = [each.sign() * sign * 1e4 if kind.anything else each for kind, each in zip(kinds, evidence, strict=True)]
        values, gradient = value_and_gradient(called(place), student, *given, **definition.options)
        assert values.dtype == torch.float32
        assert values.isfinite().all()
        assert definition.negative or (values >= 0).all()
        assert gradient.isfinite().all() or (definition.steep and dtype == torch.float16)


@every_loss
def test_low_precision_is_computed_in_float32(place: str) -> None:
    definition = DEFINITIONS[place]
    given = inputs(definition, dtype=torch.bfloat16)
    wide = [each.float() if each.is_floating_point() else each for each in given]
    low, low_gradient = value_and_gradient(called(place), *given, **definition.options)
    high, high_gradient = value_and_gradient(called(place), *wide, **definition.options)
    assert low.dtype == high.dtype == torch.float32
    assert torch.equal(low, high)
    assert torch.equal(low_gradient, high_gradient.bfloat16())
    assert called(place)(*inputs(definition), **definition.options).dtype == torch.float64


@pytest.mark.parametrize("place", places(lambda definition: definition.broadcast_refused))
def test_broadcasting_is_refused(place: str) -> None:
    definition = DEFINITIONS[place]
    plain = DEFINITIONS[place].call(inspect.unwrap(loss_at(place)))
    student, *evidence = inputs(definition)
    said = str(list(student.shape))
    for position, (kind, each) in enumerate(zip(definition.evidence, evidence, strict=True)):
        for wrong in (kind.rows(each, slice(1)), kind.rows(each, slice(-1)), each[..., None]):
            given = [*evidence[:position], wrong, *evidence[position + 1 :]]
            with pytest.raises(InputError) as caught:
                plain(student, *given, **definition.options)
            assert caught.value.code == "U073"
            assert said in str(caught.value)
            assert str(list(wrong.shape)) in str(caught.value)
            with pytest.raises(Exception, match=r"[Tt]ype"):  # the annotations refuse it too
                called(place)(student, *given, **definition.options)


@pytest.mark.parametrize("place", [place for place in places() if "temperature" in inspect.signature(loss_at(place)).parameters])
def test_a_temperature_may_be_learned(place: str) -> None:
    """A tensor gives what its number gives, and its gradient is the slope; a hand-made teacher's temperature is no evidence."""
    if place == "labels.virtual_teacher":
        return
    definition = DEFINITIONS[place]
    given = inputs(definition)
    options = {name: value for name, value in definition.options.items() if name != "temperature"}

    def at(temperature: Any) -> Tensor:
        return called(place)(*given, **options, temperature=temperature).sum()

    learned = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(at(learned), at(2.0), rtol=1e-12, atol=1e-12)
    (slope,) = torch.autograd.grad(at(learned), learned)
    torch.testing.assert_close(slope, (at(2.0 + 1e-5) - at(2.0 - 1e-5)) / 2e-5, rtol=1e-5, atol=1e-6)


@every_loss
def test_docstring_says_formula_and_source(place: str) -> None:
    said = inspect.getdoc(loss_at(place)) or ""
    assert said.splitlines()[0].endswith(".")
    assert ">>>" in said
    assert any(word in said for word in ("mean_", "sum_", "sum over", "norm"))
    assert any(year in said for year in ("18", "19", "20"))
    given = list(inspect.signature(loss_at(place)).parameters.values())
    evidence = [parameter for parameter in given if parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY]
    options = given[len(evidence) :]
    assert evidence[0].name == "student"
    assert all(parameter.default is parameter.empty for parameter in evidence)
    assert all(option.kind is option.KEYWORD_ONLY for option in options)
