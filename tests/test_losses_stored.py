"""What is learned from a store's columns is what would be learned from the answer that the store gives back whole."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from understudy.errors import InputError
from understudy.losses.logits import soft_target
from understudy.losses.stored import top_soft_target
from understudy.store.encodings import TopK

ROWS, CLASSES = 5, 40


def stored(seed: int = 0, top: int = 6) -> tuple[TopK, dict[str, Tensor]]:
    encoding = TopK(top)
    logits = 3 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(seed))
    return encoding, encoding.encode(logits, np.zeros((ROWS, 2), dtype=np.int64))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 3.0, 4.0, 20.0])
def test_value_and_gradient_are_those_of_the_whole_answer(temperature: float) -> None:
    encoding, columns = stored()
    student = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole = encoding.decode(columns, CLASSES, temperature=temperature)
    found = []
    for loss, given in ((soft_target, (whole.double(),)), (top_soft_target, tuple(columns.values()))):
        ours = student.clone().requires_grad_()
        values = loss(ours, *given, temperature=temperature)  # type: ignore[operator]
        values.sum().backward()
        assert ours.grad is not None
        found.append((values.detach(), ours.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_together_has_no_say_in_the_order_of_the_others() -> None:
    """By hand: the gradient of an other is its share of what all others have, times the difference of the two masses."""
    _, columns = stored()
    student = torch.randn(ROWS, CLASSES, dtype=torch.float64).requires_grad_()
    top_soft_target(student, *columns.values(), temperature=1.0, rest="together").sum().backward()
    assert student.grad is not None
    p = student.detach().softmax(1)
    others = torch.ones_like(p).scatter(1, columns["/ids"].long(), 0.0)
    wanted = (p * others).sum(1) - columns["/tail"][:, 0].double().exp()
    each = p * others / (p * others).sum(1, keepdim=True)
    torch.testing.assert_close(student.grad * others, each * wanted[:, None], rtol=1e-3, atol=1e-4)


def test_columns_that_do_not_belong_to_these_classes() -> None:
    plain = inspect.unwrap(top_soft_target)
    _, columns = stored()
    ids, top, tail = columns.values()
    with pytest.raises(InputError, match=r"U501 6 stored classes of 6 and tails \[5, 3\]: at least one class must be left"):
        plain(torch.zeros(ROWS, 6), ids, top, tail)
    with pytest.raises(InputError, match=r"U501 6 stored classes of 40 and tails \[5, 2\]"):
        plain(torch.zeros(ROWS, CLASSES), ids, top, tail[:, :2])
    with pytest.raises(InputError, match=r"U073 student is \[rows, classes\], .* ids are \[5, 5\], top is \[5, 6\]"):
        plain(torch.zeros(ROWS, CLASSES), ids[:, 1:], top, tail)


def test_nothing_of_the_size_of_an_answer_is_kept_beside_the_students() -> None:
    """What autograd holds on to, counted: one tensor [rows, classes], where whole answers need several."""
    _, columns = stored()
    large: set[int] = set()

    def note(saved: Tensor) -> Tensor:
        if saved.numel() >= ROWS * CLASSES:
            large.add(saved.data_ptr())
        return saved

    student = torch.zeros(ROWS, CLASSES, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        top_soft_target(student, *columns.values())
    assert len(large) == 1
    assert math.isfinite(float(top_soft_target(student.detach(), *columns.values()).sum()))
