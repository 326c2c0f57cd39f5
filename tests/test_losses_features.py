"""What single losses on features, relations and attention do, and the inputs they refuse."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from definitions import ROWS, normal
from definitions_features import DEFINITIONS
from test_losses import inputs, loss_at, value_and_gradient

from understudy.errors import InputError
from understudy.losses.attentions import self_relation
from understudy.losses.channels import neuron_selectivity
from understudy.losses.dense import pixel_soft_target
from understudy.losses.embeddings import hidden_cosine, hidden_mse
from understudy.losses.layers import variational_information
from understudy.losses.relations import probabilistic_transfer, relational_angle, relational_distance

CODES = {"U073", "U310", "U311", "U312", "U313"}


@pytest.mark.parametrize("place", DEFINITIONS)
def test_other_rows_are_refused(place: str) -> None:
    definition = DEFINITIONS[place]
    plain = definition.call(inspect.unwrap(loss_at(place)))
    student, *evidence = inputs(definition)
    for position, each in enumerate(evidence):
        for wrong in (each[:1], each[:-1]):
            given: list[Any] = [*evidence[:position], wrong, *evidence[position + 1 :]]
            with pytest.raises(InputError) as caught:
                plain(student, *given, **definition.options)
            assert caught.value.code in CODES


def test_heads_that_do_not_divide_and_wrong_variances_are_refused() -> None:
    states = normal(0, 2, 3, 6)
    with pytest.raises(InputError, match="U314 4 heads do not divide a width of 6"):
        self_relation(states, states, heads=4)
    with pytest.raises(InputError, match="U311 raw_variances must hold one number per channel: student has 3 channels"):
        inspect.unwrap(variational_information)(normal(0, 2, 3, 2, 2), normal(1, 2, 3, 2, 2), raw_variances=torch.zeros(1))
    with pytest.raises(InputError, match="U312 mask must be true or false for each token"):
        inspect.unwrap(hidden_mse)(states, states, mask=torch.ones(2, 3))


def test_whatever_stands_at_padding_reaches_nothing() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    student, teacher = normal(0, 3, 3, 4), normal(1, 3, 3, 4)
    for loss, options in ((hidden_mse, {}), (hidden_cosine, {}), (self_relation, {"heads": 2})):
        values, gradient = value_and_gradient(loss, student, teacher, mask=mask, **options)
        spoilt = [each.masked_fill(~mask[..., None], torch.nan) for each in (student, teacher)]
        same, same_gradient = value_and_gradient(loss, *spoilt, mask=mask, **options)
        torch.testing.assert_close(same, values)
        torch.testing.assert_close(same_gradient, gradient)
        assert values[2] == 0
    pixels = [each.mT[..., None].clone() for each in (student, teacher)]
    values, gradient = value_and_gradient(pixel_soft_target, *pixels, mask=mask[..., None])
    spoilt = [each.masked_fill(~mask[:, None, :, None], torch.nan) for each in pixels]
    same, same_gradient = value_and_gradient(pixel_soft_target, *spoilt, mask=mask[..., None])
    torch.testing.assert_close(same, values)
    torch.testing.assert_close(same_gradient, gradient)


def test_selectivity_is_the_same_from_channels_and_from_positions() -> None:
    few, many = normal(0, 2, 3, 4, 4), normal(1, 2, 40, 4, 4)
    x, y = (torch.nn.functional.normalize(each.flatten(2), dim=2) for each in (few, many))
    kernels = [torch.einsum("bcp,bdp->bcd", a, b).square().mean((1, 2)) for a, b in ((x, x), (y, y), (x, y))]
    torch.testing.assert_close(neuron_selectivity(few, many), kernels[0] + kernels[1] - 2 * kernels[2])


def test_rows_that_coincide_or_stand_alone_have_finite_relations() -> None:
    rows = normal(0, ROWS, 8, dtype=torch.float32)
    rows[3] = rows[1]
    rows[4] = rows[1] * (1 + 1e-6)
    for student in (rows, torch.zeros_like(rows), rows[:1]):
        for loss in (relational_distance, relational_angle, probabilistic_transfer):
            values, gradient = value_and_gradient(loss, student, normal(1, len(student), 5, dtype=torch.float32))
            assert values.isfinite().all() and gradient.isfinite().all()


def test_angles_are_the_same_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = normal(0, 7, 8), normal(1, 7, 5)
    whole = value_and_gradient(relational_angle, student, teacher)
    monkeypatch.setattr("understudy.losses.relations._AT_ONCE", 100)
    torch.testing.assert_close(value_and_gradient(relational_angle, student, teacher), whole)


def test_equal_neighbourhoods_are_the_least() -> None:
    rows = normal(0, ROWS, 8)
    values, gradient = value_and_gradient(probabilistic_transfer, rows, rows)
    assert not values.any()
    assert gradient.abs().max() < 1e-7  # the 1e-7 inside the logarithms
    assert probabilistic_transfer(rows + normal(9, ROWS, 8) / 100, rows).mean() > 0
