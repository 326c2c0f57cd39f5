"""What a test knows of a loss: its inputs by kind, its value by hand, and which invariants it keeps.

`definitions_*.py` hold a DEFINITIONS each, place of a loss -> Definition; test_losses.py runs the invariants over all of
them. A new kind of input is one Kind. To add a loss: one line in the file of its family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Loss = Callable[..., Tensor]

ROWS, TIME, CLASSES = 6, 3, 5


@dataclass(frozen=True)
class Kind:
    """A kind of input: how it is made from a seed, in which dtype, and whether its numbers may be anything.

    `make(seed, rows, dtype)` has the rows as its first axis, or as its second if `rows_axis` is 1. Numbers that may be
    anything are also tried at +-1e4; others (labels, masks, indices, probabilities) stay as they are made.
    """

    make: Callable[[int, int, torch.dtype], Tensor]
    anything: bool = True
    rows_axis: int = 0

    def rows(self, given: Tensor, chosen: Any) -> Tensor:
        """Some of the rows."""
        return given[chosen] if self.rows_axis == 0 else given[:, chosen]


@dataclass(frozen=True)
class Definition:
    """One row by hand (lists of numbers in, one number or a list of them out), and what is true of the loss.

    A loss whose rows know each other is `coupled`: its `by_hand` takes whole batches and gives the mean over rows.
    """

    by_hand: Callable[..., Any]
    evidence: tuple[Kind, ...]
    student: Kind
    options: Mapping[str, Any] = field(default_factory=dict)
    least_at: Callable[..., Tensor] | None = None
    """From the evidence, the student that has the least loss and no gradient; None when there is no such student."""
    zero_at_least: bool = True
    """Whether the least value is 0."""
    shift_changes_nothing: bool | None = None
    """Whether a constant added to a row of the student changes nothing; None when that is not asked."""
    coupled: bool = False
    negative: bool = False
    """Whether values of single rows may lie below 0."""
    steep: bool = False
    """Whether gradients of numbers at 1e4 are beyond float16's largest number."""
    call: Callable[[Loss], Loss] = lambda loss: loss
    """The loss as student and evidence in that order, where it takes pairs of tensors, or a mask as an option."""
    broadcast_refused: bool = True
    """Whether an evidence whose last axis is cut, or one axis more, is refused (not where lengths may differ)."""


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers of standard deviation 3, the same in every dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).to(dtype)


LOGITS = Kind(lambda seed, rows, dtype: normal(seed, rows, CLASSES, dtype=dtype))
VALUES = LOGITS
LABELS = Kind(lambda seed, rows, dtype: normal(seed, rows, CLASSES).argmax(1), anything=False)
BITS = Kind(lambda seed, rows, dtype: (normal(seed, rows, CLASSES) > 0).to(dtype), anything=False)
DISTRIBUTIONS = Kind(lambda seed, rows, dtype: normal(seed, rows, CLASSES).softmax(1).to(dtype), anything=False)
TEACHERS = Kind(lambda seed, rows, dtype: normal(seed, 3, rows, CLASSES, dtype=dtype), rows_axis=1)
TOKENS = Kind(lambda seed, rows, dtype: normal(seed, rows, TIME, CLASSES, dtype=dtype))


def first(*evidence: Tensor) -> Tensor:
    """The student that says what the teacher says."""
    return evidence[0]


# --- by hand ----------------------------------------------------------------------------------------------------------


def log_softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    row = [value / temperature for value in row]
    top = max(row)
    whole = top + math.log(sum(math.exp(value - top) for value in row))
    return [value - whole for value in row]


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    return [math.exp(value) for value in log_softmax(row, temperature)]


def log_sigmoid(value: float) -> float:
    return -math.log1p(math.exp(-value)) if value > 0 else value - math.log1p(math.exp(value))


def divergence(p: list[float], q: list[float]) -> float:
    """KL(p || q) of two lists of probabilities."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def cross(p: list[float], q: list[float]) -> float:
    """-sum p log q."""
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True))
