"""Losses between two language models' logits, position by position: `loss(student, teacher, *, options)` -> [batch, time].

Logits are [batch, time, vocabulary], aligned: what stands at a place in one stands there in the other, and nothing is shifted
here. `mask` [batch, time] is true where the answer to be predicted counts (for a causal model: where the *next* token does); at
other places the value is 0, and whatever the logits hold there, NaN included, reaches neither value nor gradient. Divide the
sum by the number of places that count, over all batches of one step and all processes; a mean of means weighs short batches
more. Forward is KL(teacher || student), reverse KL(student || teacher); every mixture is told by `teacher_weight`. For large
vocabularies see the module `chunks`. To add one: write it here, name it in `__all__`, and give it a line in
tests/definitions_tokens.py.

When it helps and hurts: Language models, encoders with a head for every token, taggers. Forward divergence covers all that the
teacher might say, reverse stays where it is sure; a small student of a large teacher begins with a skewed or interpolated one.

Known problems: Vocabularies must agree token by token. A mean of the means of batches weighs short texts more. In 16 bits the
mass of a large vocabulary does not add to 1: the losses go to 32 bits.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._divergences import divergence, log_probabilities
from understudy.losses._maps import masked_like
from understudy.losses._shapes import positive, precise, same_shape

__all__ = [
    "forward_kl",
    "interpolated_teacher",
    "jensen_shannon",
    "reverse_kl",
    "skewed_forward_kl",
    "skewed_reverse_kl",
    "sorted_probabilities",
    "total_variation",
]


def forward_kl(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    temperature: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "batch time"]:
    """KL(teacher || student) of the next token, times temperature squared.

    T^2 * sum_v p_v (log p_v - log q_v), where p = softmax(teacher / T) and q = softmax(student / T). Kim & Rush 2016,
    arXiv:1606.07947, section 3.1 (word-level distillation). The student must put some mass wherever the teacher does, so a
    small one spreads out: it helps where variety counts, less where one right answer does.

    >>> forward_kl(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1e4, 0.0]]]))
    tensor([[0.6931]])
    """
    positive("temperature", temperature)
    log_q, log_p = _both(student, teacher, mask, temperature)
    return divergence(log_p, log_q) * temperature**2


def reverse_kl(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    temperature: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "batch time"]:
    """KL(student || teacher) of the next token, times temperature squared.

    T^2 * sum_v q_v (log q_v - log p_v), where p = softmax(teacher / T) and q = softmax(student / T). The objective of Gu, Dong,
    Wei & Huang 2024, arXiv:2306.08543 (MiniLLM), section 2.1, in its exact form over the vocabulary. The student stays where
    the teacher is likely and may leave out the rest; it needs the teacher's whole distribution, finite at every token.

    >>> reverse_kl(torch.tensor([[[1e4, 0.0]]]), torch.tensor([[[0.0, 0.0]]]))
    tensor([[0.6931]])
    """
    positive("temperature", temperature)
    log_q, log_p = _both(student, teacher, mask, temperature)
    return divergence(log_q, log_p) * temperature**2


def skewed_forward_kl(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    teacher_weight: float = 0.1,
) -> Float[Tensor, "batch time"]:
    """KL(teacher || mixture), where a little of the teacher is mixed into the student (SKL).

    sum_v p_v (log p_v - log m_v), where m = teacher_weight * p + (1 - teacher_weight) * q, p = softmax(teacher) and q =
    softmax(student); the gradient goes through m. Ko, Kim, Chen & Yun 2024, arXiv:2402.03898 (DistiLLM), section 3.1. It never
    exceeds -log(teacher_weight), so tokens that the student has never thought of do not drown the others.

    >>> skewed_forward_kl(torch.tensor([[[0.0, 1e4]]]), torch.tensor([[[1e4, 0.0]]]))
    tensor([[2.3026]])
    """
    log_q, log_p = _both(student, teacher, mask)
    return divergence(log_p, _mixture(log_p, log_q, teacher_weight))


def skewed_reverse_kl(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    teacher_weight: float = 0.9,
) -> Float[Tensor, "batch time"]:
    """KL(student || mixture), where a little of the student is mixed into the teacher (SRKL).

    sum_v q_v (log q_v - log m_v), where m = teacher_weight * p + (1 - teacher_weight) * q, p = softmax(teacher) and q =
    softmax(student); the gradient goes through m. Ko, Kim, Chen & Yun 2024, arXiv:2402.03898 (DistiLLM), section 3.1, where
    the student's share 0.1 is called alpha. It never exceeds -log(1 - teacher_weight).

    >>> skewed_reverse_kl(torch.tensor([[[0.0, 1e4]]]), torch.tensor([[[1e4, 0.0]]]))
    tensor([[2.3026]])
    """
    log_q, log_p = _both(student, teacher, mask)
    return divergence(log_q, _mixture(log_p, log_q, teacher_weight))


def jensen_shannon(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    teacher_weight: float = 0.5,
    temperature: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "batch time"]:
    """The weighted divergences of teacher and student from their mixture (generalised JSD).

    w KL(p || m) + (1 - w) KL(q || m), each a sum over the vocabulary, where m = w p + (1 - w) q, w = teacher_weight, p =
    softmax(teacher / T) and q = softmax(student / T); there is no factor T^2. At w = 0 it is defined as KL(p || q), at w = 1
    as KL(q || p), although the formula goes to 0 there: near the ends the value is small, so tune the weight of the term.
    Agarwal et al. 2024, arXiv:2306.13649 (GKD), section 3. At 0.5 it is at most log 2 and treats both alike.

    >>> jensen_shannon(torch.tensor([[[0.0, 1e4]]]), torch.tensor([[[1e4, 0.0]]]))
    tensor([[0.6931]])
    """
    positive("temperature", temperature)
    log_q, log_p = _both(student, teacher, mask, temperature)
    if teacher_weight == 0:
        return divergence(log_p, log_q)
    if teacher_weight == 1:
        return divergence(log_q, log_p)
    log_m = _mixture(log_p, log_q, teacher_weight)
    return teacher_weight * divergence(log_p, log_m) + (1 - teacher_weight) * divergence(log_q, log_m)


def total_variation(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
) -> Float[Tensor, "batch time"]:
    """Half the sum of the absolute differences of probabilities: the mass that would have to move.

    sum_v |p_v - q_v| / 2, where p = softmax(teacher) and q = softmax(student). Wen, Li, Du & Mou 2023, arXiv:2307.15190,
    section 3.2. It is at most 1 and treats both alike; where the two have nothing in common there is hardly a gradient, so it
    suits a student that is near already.

    >>> total_variation(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1e4, 0.0]]]))
    tensor([[0.5000]])
    """
    log_q, log_p = _both(student, teacher, mask)
    return (log_p.exp() - log_q.exp()).abs().sum(-1) / 2


def interpolated_teacher(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch time vocabulary"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    teacher_weight: float = 0.4,
) -> Float[Tensor, "batch time"]:
    """KL(target || student), where the target lies between the student's own logits and the teacher's (TAID).

    sum_v r_v (log r_v - log q_v), where q = softmax(student) and r = softmax((1 - w) * student + w * teacher), w =
    teacher_weight, is a constant. Shing et al. 2025, arXiv:2501.16937, section 3, where w goes from 0.4 to 1 in training: see
    `schedules.adaptive_interpolation`. It helps where the teacher is far above the student; at w = 1 it is `forward_kl`.

    >>> interpolated_teacher(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1e4, 0.0]]]))
    tensor([[0.6931]])
    """
    _within("teacher_weight", teacher_weight)
    student, teacher = _counted(student, teacher, mask)
    log_r = log_probabilities(torch.lerp(student.detach(), teacher, teacher_weight))
    return divergence(log_r, log_probabilities(student))


def sorted_probabilities(
    student: Float[Tensor, "batch time vocabulary"],
    teacher: Float[Tensor, "batch teacher_time teacher_vocabulary"],
    *,
    mask: Bool[Tensor, "batch time"] | None = None,
    teacher_mask: Bool[Tensor, "batch teacher_time"] | None = None,
    temperature: float | Float[Tensor, ""] = 1.0,
) -> Float[Tensor, "batch time"]:
    """Distance of the two lists of probabilities, largest first: no matter which tokens they belong to (ULD).

    sum_v |p_v - q_v|, where p, q are softmax(teacher / T) and softmax(student / T) in falling order, the shorter filled up
    with zeros: tokenizers and vocabularies may differ. The student's n-th place that counts is compared with the teacher's
    n-th, as far as both have one; others get 0. Boizard et al. 2025, arXiv:2402.12030, section 3 (1.5 times it beside the
    cross-entropy). It learns how sure to be, not of what, so the labels must say that; the publication counts from one place
    before the answer's first token.

    >>> sorted_probabilities(torch.tensor([[[0.0, 1e4]]]), torch.tensor([[[1e4, 0.0, 0.0], [0.0, 0.0, 0.0]]]))
    tensor([[0.]])
    """
    positive("temperature", temperature)
    if student.ndim != 3 or teacher.ndim != 3 or len(student) != len(teacher):
        raise InputError(
            f"student and teacher are [batch, time, vocabulary] of the same rows: student is {list(student.shape)}, "
            f"teacher is {list(teacher.shape)}",
            code="U073",
        )
    masked_like(mask, tuple(student.shape[:2]), "each position of the student")
    masked_like(teacher_mask, tuple(teacher.shape[:2]), "each position of the teacher")
    student = precise(student)
    shared = min(student.shape[1], teacher.shape[1])
    places, counts = _places(student, mask)
    teacher_places, teacher_counts = _places(teacher, teacher_mask)
    both = torch.arange(shared, device=student.device) < torch.minimum(counts, teacher_counts)[:, None]
    ours = _falling(student, places[:, :shared], both, temperature)
    theirs = _falling(teacher.to(student.dtype), teacher_places[:, :shared], both, temperature)
    short = ours.shape[-1] - theirs.shape[-1]
    distances = (functional.pad(theirs, (0, max(short, 0))) - functional.pad(ours, (0, max(-short, 0)))).abs().sum(-1)
    return student.new_zeros(student.shape[:2]).scatter(1, places[:, :shared], torch.where(both, distances, 0.0))


def _places(logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The positions that count, in their order and before the others, and how many they are."""
    if mask is None:
        mask = logits.new_ones(logits.shape[:2], dtype=torch.bool)
    return (~mask).int().argsort(dim=1, stable=True), mask.sum(1)


def _falling(logits: Tensor, places: Tensor, counted: Tensor, temperature: float | Tensor) -> Tensor:
    """The probabilities at some places, largest first."""
    chosen = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
    chosen = torch.where(counted[..., None], chosen, 0.0) / temperature
    return torch.softmax(chosen, -1).sort(-1, descending=True).values


def _counted(student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both in the student's precise dtype, 0 where the mask says no."""
    same_shape(student, teacher, "teacher")
    masked_like(mask, tuple(student.shape[:-1]), "each position")
    student = precise(student)
    teacher = teacher.to(student.dtype)
    if mask is None:
        return student, teacher
    return torch.where(mask[..., None], student, 0.0), torch.where(mask[..., None], teacher, 0.0)


def _both(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities of student and teacher, alike where the mask says no."""
    student, teacher = _counted(student, teacher, mask)
    return log_probabilities(student, temperature), log_probabilities(teacher, temperature)


def _mixture(log_p: Tensor, log_q: Tensor, teacher_weight: float) -> Tensor:
    """log(w p + (1 - w) q), without leaving the logarithm."""
    _within("teacher_weight", teacher_weight)
    if teacher_weight in (0, 1):
        return log_p if teacher_weight else log_q
    return torch.logaddexp(log_p + math.log(teacher_weight), log_q + math.log1p(-teacher_weight))


def _within(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name} must lie between 0 and 1 (got {value:g})", code="U301")
