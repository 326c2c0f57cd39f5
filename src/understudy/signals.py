"""The vocabulary of signals: what a model can say of a row, and a batch of rows with what was said of them.

`logits` are kept before any temperature; probabilities are stored as log-probabilities, which are logits. `values` are
the answers of a regression in the label's own unit. Further names: `embedding`, `features/<layer>`, `tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

LOGITS = "logits"
VALUES = "values"
VECTORS = "vectors"

Signals = dict[str, Tensor]
"""Name of the signal -> tensor [rows, ...], on the CPU and float32 where a teacher gives it."""


@final
@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as the training loop sees them.

    `inputs` is what the student's network reads; `labels` follow understudy.tasks, None when no row has one;
    `labelled` marks the rows that have one, None when all do; `teacher` holds the teacher's signals, aligned;
    `answered` marks the rows that the teacher answered, None when it answered all (the others hold zeros); `keys` are
    the rows' content keys, int64 [rows, 2], where a term asks for them. In mixed rows (mixup) `partner` holds the labels
    of the rows that they are mixed with and `share`, float [rows], how much of each is its own; None where none is mixed.
    """

    inputs: Tensor
    labels: Tensor | None
    labelled: Tensor | None
    teacher: Signals
    answered: Tensor | None = None
    keys: Tensor | None = None
    partner: Tensor | None = None
    share: Tensor | None = None


CERTAIN = 100.0
"""The blank's logit in frames after a row's end, where every other logit is 0: the blank has all probability, in any dtype."""


def frame_lengths(logits: Tensor) -> Tensor:
    """How many frames of each row [rows, frames, classes + 1] lie before its end, int64 [rows].

    >>> frame_lengths(torch.tensor([[[1.0, 2.0], [0.0, 3.0], [0.0, CERTAIN]]]))
    tensor([2])
    """
    return (~ended(logits)).sum(dim=1)


def ended(logits: Tensor) -> Tensor:
    """Which frames [..., classes + 1] lie after a row's end, bool [...]."""
    return (logits[..., -1] == CERTAIN) & (logits[..., :-1] == 0).all(dim=-1)


def ending_alike(mean: Tensor, said: Tensor) -> Tensor:
    """A mean of recognisers' answers [members, rows, frames, classes + 1] that has ended where all of them have.

    >>> said = torch.tensor([[[[0.0, CERTAIN]]], [[[0.0, CERTAIN]]]])
    >>> frame_lengths(said.log_softmax(-1).mean(0)), frame_lengths(ending_alike(said.log_softmax(-1).mean(0), said))
    (tensor([1]), tensor([0]))
    """
    return torch.where(ended(said).all(dim=0)[..., None], said[0].to(mean.dtype), mean)


def is_written(logits: Tensor) -> bool:
    """Whether a recogniser's answers [rows, frames, classes + 1] are texts laid along the frames: its words are known, their times not.

    Such answers hold 0 for what is said in a frame and -CERTAIN for the rest, which no network gives; a row that nothing is said
    of has ended from its first frame.

    >>> is_written(torch.tensor([[[-CERTAIN, 0.0], [0.0, CERTAIN]]])), is_written(torch.tensor([[[0.5, 2.0]]]))
    (True, False)
    """
    return logits.ndim == 3 and bool(((logits == 0) | (logits.abs() == CERTAIN)).all()) and bool((logits == -CERTAIN).any())


def is_answered(said: Tensor) -> Tensor:
    """Which rows have an answer, bool [rows]: a teacher that has none gives NaN in every column."""
    return ~said.isnan().flatten(1).all(dim=1)
