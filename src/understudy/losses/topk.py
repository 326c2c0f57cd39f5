"""Losses against a part of a teacher's distribution: its largest tokens, or some drawn from it; values [batch, time].

Student logits are [batch, time, vocabulary], and the teacher says `ids` [batch, time, number] and a number for each. `mask`
[batch, time] is true where the answer to be predicted counts, as in `tokens`; elsewhere the value is 0 and whatever stands there
reaches neither value nor gradient. The teacher's part is at temperature 1: it cannot be softened later, for the rest of its
distribution is not known. To add one: write it here, name it in `__all__`, and give it a line in tests/definitions_tokens.py.

When it helps and hurts: Large vocabularies, and services that give their first few answers only. Some tens of tokens with the
mass of the rest lose little near temperature 1.

Known problems: `sampled_cross_entropy` has no term: what teaching.encoding = "sampled" stores comes back as logits, for
`logits.teacher_cross_entropy`. What is stored cannot be softened later. Leaving out the rest, or scaling the largest to add to
1, teaches too much confidence.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from understudy.errors import InputError
from understudy.losses._divergences import LOWEST, log_probabilities
from understudy.losses._maps import masked_like
from understudy.losses._shapes import precise

__all__ = ["sampled_cross_entropy", "topk_tail_kl"]


def topk_tail_kl(
    student: Float[Tensor, "batch time vocabulary"],
    ids: Int[Tensor, "batch time number"],
    log_probabilities: Float[Tensor, "batch time number"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """KL(teacher || student) over the teacher's largest tokens and one more class for all others together.

    sum_k p_k (log p_k - log q_k) + r (log r - log(sum of q over the others)), where p_k are the teacher's probabilities of the
    tokens `ids` in its whole vocabulary, r = 1 - sum_k p_k, and q = softmax(student). Anshumann et al. 2025, arXiv:2503.16870,
    section 3, compare ways to keep a part of the logits. Without the rest, or with the largest made to add to 1, the student
    learns too much confidence; with it what is lost is which of the other tokens.

    >>> topk_tail_kl(torch.zeros(1, 1, 4), torch.tensor([[[2]]]), torch.tensor([[[0.5]]]).log())
    tensor([[0.1438]])
    """
    log_q, ids, log_p = _read(student, ids, log_probabilities, mask)
    values = (log_p.exp() * (log_p - log_q.gather(-1, ids))).sum(-1)
    if ids.shape[-1] < log_q.shape[-1]:
        # a mass that was rounded to 1 or above leaves nothing for the others
        rest = -torch.expm1(log_p.logsumexp(-1).clamp_max(0))
        others = log_q.scatter(-1, ids, LOWEST).logsumexp(-1)
        values = values + torch.where(rest > 0, rest * (rest.clamp_min(1e-30).log() - others), 0.0)
    return values if mask is None else torch.where(mask, values, 0.0)


def sampled_cross_entropy(
    student: Float[Tensor, "batch time vocabulary"],
    ids: Int[Tensor, "batch time number"],
    counts: Int[Tensor, "batch time number"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Cross-entropy of the student with tokens drawn from the teacher's distribution (RS-KD).

    -sum_k (count_k / draws) log q_k, where the token `ids`_k was drawn count_k times, with replacement and at temperature 1,
    draws is the sum of the counts, and q = softmax(student). Unused places hold a count of 0 and any id, -1 for one.
    Anshumann et al. 2025, arXiv:2503.16870, section 4, with some 12 different tokens per position. On average over draws it is
    the cross-entropy with the whole distribution, so nothing pulls the student aside, but single draws are noisy.

    >>> sampled_cross_entropy(torch.zeros(1, 1, 4), torch.tensor([[[2, -1]]]), torch.tensor([[[5, 0]]]))
    tensor([[1.3863]])
    """
    log_q, ids, counts = _read(student, ids.masked_fill(counts == 0, 0) if ids.shape == counts.shape else ids, counts, mask)
    draws = counts.sum(-1, keepdim=True).clamp_min(1)
    values = -(counts / draws * log_q.gather(-1, ids)).sum(-1)
    return values if mask is None else torch.where(mask, values, 0.0)


def _read(student: Tensor, ids: Tensor, numbers: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The student's log-probabilities, the ids, and what the teacher says of them, harmless where the mask says no."""
    if student.ndim != 3 or ids.shape[:2] != student.shape[:2] or ids.ndim != 3 or ids.is_floating_point() or numbers.shape != ids.shape:
        raise InputError(
            f"student is [batch, time, vocabulary], and ids and their numbers are [batch, time, number]: student is "
            f"{list(student.shape)}, ids are {ids.dtype} {list(ids.shape)}, their numbers are {list(numbers.shape)}",
            code="U073",
        )
    masked_like(mask, tuple(student.shape[:2]), "each position")
    student, ids = precise(student), ids.long()
    numbers = numbers.to(student.dtype)
    if mask is not None:
        inside = mask[..., None]
        student, ids, numbers = torch.where(inside, student, 0.0), torch.where(inside, ids, 0), torch.where(inside, numbers, 0.0)
    return log_probabilities(student), ids, numbers
