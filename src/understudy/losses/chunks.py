"""A loss over a large vocabulary without its logits: from hidden states and the output matrix, some positions at a time.

For losses that look at one position at a time (those of `tokens` and `topk` but for `sorted_probabilities`). No loss itself, so
a recipe cannot name it as a term.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from understudy.errors import InputError
from understudy.losses._maps import masked_like

__all__ = ["in_chunks"]


def in_chunks(
    loss: Callable[..., Tensor],
    student: Float[Tensor, "batch time width"],
    head: Float[Tensor, "vocabulary width"],
    *evidence: Tensor,
    bias: Float[Tensor, " vocabulary"] | None = None,
    teacher_head: Float[Tensor, "teacher_vocabulary teacher_width"] | None = None,
    teacher_bias: Float[Tensor, " teacher_vocabulary"] | None = None,
    mask: Bool[Tensor, "batch time"] | None = None,
    chunk: int = 1024,
    **options: Any,
) -> Float[Tensor, "batch time"]:
    """What a loss gives on student @ head.T + bias, position by position, with the logits of one chunk in memory at a time.

    `evidence` is what the loss takes after the student, each [batch, time, ...]; with a `teacher_head` its first is the
    teacher's hidden states. Only positions of the mask are computed, and each chunk's logits are made anew on the way back:
    the peak is a few tensors [chunk, vocabulary] and the head's gradient, for one product with the head more. Value and
    gradient are those of the loss on whole logits; a recomputed chunk has no second derivative less than autograd's own.
    The recomputation is that of Chen, Xu, Zhang & Guestrin 2016, arXiv:1604.06174.

    >>> from understudy.losses.tokens import forward_kl
    >>> hidden, head = torch.eye(2)[None], torch.eye(2)
    >>> in_chunks(forward_kl, hidden, head, hidden, teacher_head=head, chunk=1)
    tensor([[0., 0.]])
    """
    _check(student, head, evidence, chunk)
    masked_like(mask, tuple(student.shape[:2]), "each position")
    positions = torch.arange(student.shape[0] * student.shape[1], device=student.device)
    places = positions if mask is None else positions[mask.flatten()]
    hidden = student.flatten(0, 1)
    hidden = hidden if mask is None else hidden[places]
    given = [each.flatten(0, 1) for each in evidence]

    def of_chunk(states: Tensor, head: Tensor, bias: Tensor | None, at: Tensor) -> Tensor:
        said = [each[at] for each in given]
        if teacher_head is not None:
            with torch.no_grad():
                said[0] = functional.linear(said[0], teacher_head, teacher_bias)
        return loss(functional.linear(states, head, bias)[None], *[each[None] for each in said], **options)[0]

    # split, not slices: the gradients of slices would each be as large as all hidden states
    pieces = zip(hidden.split(chunk), places.split(chunk), strict=True)
    parts = [checkpoint(of_chunk, states, head, bias, at, use_reentrant=False, preserve_rng_state=False) for states, at in pieces]
    values = torch.cat(parts)
    return values.new_zeros(len(positions)).index_copy(0, places, values).view(student.shape[:2])


def _check(student: Tensor, head: Tensor, evidence: tuple[Tensor, ...], chunk: int) -> None:
    """Refuse what does not fit, before any product."""
    if chunk < 1:
        raise InputError(f"chunk must be 1 position or more (got {chunk})", code="U301")
    if student.ndim != 3 or head.ndim != 2 or student.shape[-1] != head.shape[-1]:
        raise InputError(
            f"student is [batch, time, width] and head [vocabulary, width] of one width: student is {list(student.shape)}, "
            f"head is {list(head.shape)}",
            code="U304",
        )
    for each in evidence:
        if each.shape[:2] != student.shape[:2]:
            raise InputError(
                f"all that the loss takes must have the student's positions: student is {list(student.shape)}, "
                f"there is one of {list(each.shape)}",
                code="U304",
            )
