"""Losses between a transformer's attention and the teacher's: `loss(student, teacher, *, options)`, one value per row.

Queries, keys and values are [rows, length, width] with their heads side by side, as projections give them; widths may
differ, since what is compared are relations between tokens. A mask [rows, length] is true at tokens that count. To add a
loss: write it here, name it in `__all__`, and give it a line in tests/definitions_features.py.

When it helps and hurts: A student transformer that reads the same tokens as its teacher, best before fine-tuning and on much
unlabelled text. It cannot be used between tokenizers, nor where an attention that is computed in one piece (flash, sdpa) gives
no scores.

Known problems: Queries, keys and values are outputs of projections, which `taps` can read by path where they are modules of
their own; a fused projection must be cut first. Padding that is not masked counts.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._maps import masked_like, pair
from understudy.losses._shapes import same_shape

__all__ = ["attention_distribution", "attention_scores", "self_relation"]

_LOWEST = -1e30
"""Stands for the logarithm of zero where 0 * -inf would be NaN."""


def attention_distribution(
    student: tuple[Float[Tensor, "batch length student_width"], Float[Tensor, "batch length student_width"]],
    teacher: tuple[Float[Tensor, "batch length teacher_width"], Float[Tensor, "batch length teacher_width"]],
    *,
    heads: int,
    mask: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, " batch"]:
    """KL(teacher || student) of where each token looks, mean over heads and tokens (MiniLM's attention part).

    mean_ht sum_u q_htu log(q_htu / p_htu) over heads h and tokens t, where p_ht = softmax_u(query_ht . key_hu / sqrt(width of a
    head)) in the student and q the same in the teacher. `student` and `teacher` are (queries, keys) of one layer, the last in the
    publication, with equally many heads. MiniLM adds `self_relation` of the values with the same heads, both with weight
    1: 12 layers of 384 reach 85.7 on MNLI-m (BERT-base 84.5). Wang et al. 2020, arXiv:2002.10957, section 3.

    >>> states = torch.randn(1, 3, 8)
    >>> attention_distribution((states, states), (states, states), heads=2)
    tensor([0.])
    """
    for queries, keys in (student, teacher):
        same_shape(queries, keys, "keys")
    _same_tokens(student[0], teacher[0])
    masked_like(mask, student[0].shape[:2], "each token")
    queries, teacher_queries = pair(student[0], teacher[0])
    keys, teacher_keys = (each.to(queries.dtype) for each in (student[1], teacher[1]))
    return _divergence(_logits(queries, keys, heads, mask), _logits(teacher_queries, teacher_keys, heads, mask), mask)


def self_relation(
    student: Float[Tensor, "batch length student_width"],
    teacher: Float[Tensor, "batch length teacher_width"],
    *,
    heads: int,
    mask: Bool[Tensor, "batch length"] | None = None,
) -> Float[Tensor, " batch"]:
    """KL(teacher || student) of how each token relates to the others among queries, keys or values (MiniLMv2; MiniLM's values).

    mean_ht sum_u q_htu log(q_htu / p_htu) over relation heads h and tokens t, where p_ht = softmax_u(x_ht . x_hu / sqrt(width of a
    head)) for the student's x and q the same for the teacher's. MiniLMv2 takes three such terms, for queries, keys and
    values, each with weight 1, and 48 relation heads for base teachers or 64 for large ones, from the last or an
    upper-middle layer: heads are cut anew, so student and teacher need not have equally many. 6 layers of 768 from
    RoBERTa-large: 87.0 on MNLI-m. Wang et al. 2021, arXiv:2012.15828, section 3.

    >>> states = torch.randn(1, 3, 8)
    >>> self_relation(states, states, heads=4)
    tensor([0.])
    """
    _same_tokens(student, teacher)
    masked_like(mask, student.shape[:2], "each token")
    student, teacher = pair(student, teacher)
    return _divergence(_logits(student, student, heads, mask), _logits(teacher, teacher, heads, mask), mask)


def attention_scores(
    student: Float[Tensor, "batch heads length keys"],
    teacher: Float[Tensor, "batch heads length keys"],
    *,
    masked_below: float = -100.0,
) -> Float[Tensor, " batch"]:
    """Mean squared difference of attention scores before the softmax, masked scores taken as 0 (TinyBERT).

    mean_htu (a_htu - b_htu)^2 over heads, tokens and keys, where scores at or below `masked_below` (what an additive mask
    leaves) count as 0 in either network and stay in the mean. Layers are added by the objective, with weight 1. TinyBERT
    with 4 layers keeps 96.8 % of its teacher's GLUE score, hidden states and predictions included. Jiao et al. 2020,
    arXiv:1909.10351, section 3.

    >>> attention_scores(torch.tensor([[[[3.0, -9e3]]]]), torch.tensor([[[[1.0, -1e4]]]]))
    tensor([2.])
    """
    same_shape(student, teacher, "teacher")
    student, teacher = (each.masked_fill(each <= masked_below, 0) for each in pair(student, teacher))
    return functional.mse_loss(student, teacher, reduction="none").mean((1, 2, 3))


def _same_tokens(student: Tensor, teacher: Tensor) -> None:
    if student.shape[:2] != teacher.shape[:2]:
        raise InputError(
            f"student and teacher must have the same rows and tokens: student is {list(student.shape)}, teacher is {list(teacher.shape)}. "
            "Give both networks the same tokens of one tokenizer",
            code="U310",
        )


def _split(states: Tensor, heads: int) -> Tensor:
    """[rows, heads, length, width of a head]."""
    width = states.shape[2]
    if heads < 1 or width % heads:
        raise InputError(
            f"{heads} heads do not divide a width of {width}. Take a number of heads that divides the widths of student and teacher",
            code="U314",
        )
    return states.unflatten(2, (heads, width // heads)).transpose(1, 2)


def _logits(queries: Tensor, keys: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Log-probabilities of keys for each head and query; absent keys have none, absent queries anything finite."""
    if mask is not None:
        absent = ~mask[..., None]
        queries, keys = queries.masked_fill(absent, 0), keys.masked_fill(absent, 0)
    first = _split(queries, heads)
    scores = first / math.sqrt(first.shape[3]) @ _split(keys, heads).mT
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None, :], _LOWEST)
    return torch.log_softmax(scores, dim=-1)


def _divergence(ours: Tensor, theirs: Tensor, mask: Tensor | None) -> Tensor:
    values = (theirs.exp() * (theirs - ours)).sum(-1)
    if mask is None:
        return values.mean((1, 2))
    return values.masked_fill(~mask[:, None, :], 0).sum((1, 2)) / (values.shape[1] * mask.sum(1).clamp_min(1))
