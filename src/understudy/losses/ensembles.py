"""What several teachers, or the students of a cohort, say together: one target per row, or a weight per teacher and row.

They all take `teacher` [teachers, rows, classes] of logits. A target is [rows, classes] of logits, which goes to any loss in
`logits` as its teacher; weights are [teachers, rows] and add to 1 over the teachers: for `logits.ensemble_soft_target` or
for the two means here. Both are constants: no gradient flows back, so a student of a cohort may stand among its own
teachers. They are no losses, so a recipe cannot name them as a term. To add one: write it here, name it in `__all__`, and
give it a definition by hand in tests/test_losses_ensembles.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._divergences import log_probabilities
from understudy.losses._shapes import positive, precise

__all__ = [
    "best_mixture_weights",
    "best_of_teachers",
    "confidence_weights",
    "entropy_weights",
    "least_margins",
    "mean_of_logits",
    "mean_of_probabilities",
]


def mean_of_logits(
    teacher: Float[Tensor, "teachers batch classes"], *, weights: Float[Tensor, "teachers batch"] | None = None
) -> Float[Tensor, "batch classes"]:
    """The mean over teachers of their logits: a geometric mean of their distributions.

    sum_k w_k teacher_k, where w is 1 / teachers unless given per teacher and row. A teacher that is nearly sure that a class
    is wrong is heard over the others. Hinton, Vinyals & Dean 2015, arXiv:1503.02531, section 2, name both means.

    >>> mean_of_logits(torch.tensor([[[2.0, 0.0]], [[0.0, 4.0]]]))
    tensor([[1., 2.]])
    """
    teacher = _several(teacher)
    return teacher.mean(0) if weights is None else (teacher * _weights(weights, teacher)[..., None]).sum(0)


def mean_of_probabilities(
    teacher: Float[Tensor, "teachers batch classes"],
    *,
    weights: Float[Tensor, "teachers batch"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, "batch classes"]:
    """Logits whose softmax at a temperature is the mean over teachers of their softmaxes at that temperature.

    T * log sum_k w_k softmax(teacher_k / T), where w is 1 / teachers unless given per teacher and row. A loss that softens
    them by the same T learns from the mean itself, and has the gradient of `logits.ensemble_soft_target`; its value is lower
    by what the teachers disagree. You et al. 2017, Learning from Multiple Teacher Networks, KDD, section 3.1.

    >>> mean_of_probabilities(torch.tensor([[[0.0, 0.0]], [[0.0, -1e4]]])).exp()
    tensor([[0.7500, 0.2500]])
    """
    positive("temperature", temperature)
    teacher = _several(teacher)
    shares = torch.full_like(teacher[..., 0], 1 / len(teacher)) if weights is None else _weights(weights, teacher)
    return (log_probabilities(teacher, temperature) + shares.log()[..., None]).logsumexp(0) * temperature


def entropy_weights(teacher: Float[Tensor, "teachers batch classes"]) -> Float[Tensor, "teachers batch"]:
    """More weight to the teachers whose answer has less entropy, row by row, whether they are right or not.

    (1 - h_k / sum_j h_j) / (teachers - 1), where h_k is the entropy of softmax(teacher_k); 1 / teachers where no teacher has
    any. Kwon, Na, Lee & Kim 2020, Adaptive Knowledge Distillation Based on Entropy, ICASSP, section 3; scaled to add to 1, as
    in the comparison of Zhang, Chen & Wang 2022, arXiv:2201.00007. It helps where a teacher knows part of the rows and says
    so; a teacher that is sure and wrong leads it astray.

    >>> entropy_weights(torch.tensor([[[0.0, 0.0]], [[1e4, 0.0]]]))
    tensor([[0.],
            [1.]])
    """
    log_teacher = log_probabilities(_several(teacher))
    entropy = -(log_teacher.exp() * log_teacher).sum(-1)
    whole = entropy.sum(0)
    return _rest(torch.where(whole > 0, entropy / whole, 1 / len(teacher)))


def confidence_weights(teacher: Float[Tensor, "teachers batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, "teachers batch"]:
    """More weight to the teachers whose answer is nearer to the label, row by row.

    (1 - v_k) / (teachers - 1), where v is the softmax over teachers of their cross-entropies with the label; 1 / teachers in
    rows without a label (-1). Zhang, Chen & Wang 2022, arXiv:2201.00007, section 3.1 (CA-MKD; the code behind its numbers
    divides by the number of teachers once more). It helps where teachers differ in quality; among equals it gives about the
    mean, and wrong labels give their rows to the teacher that learned them by heart.

    >>> confidence_weights(torch.tensor([[[0.0, 0.0]], [[1e4, 0.0]]]), torch.tensor([1]))
    tensor([[1.],
            [0.]])
    """
    teacher = _several(teacher)
    errors = _cross_entropies(teacher, labels)
    return torch.where(labels >= 0, _rest(torch.softmax(errors, 0)), 1 / len(teacher))


def best_of_teachers(teacher: Float[Tensor, "teachers batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
    """The logits of the teacher that has the least cross-entropy with the label, chosen row by row.

    teacher_k with k = argmin_j -log softmax(teacher_j)[label]; the mean of logits in rows without a label (-1). Guo et al.
    2020, Online Knowledge Distillation via Collaborative Learning, CVPR, section 3.2 (KDCL-Naive).

    >>> best_of_teachers(torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]]), torch.tensor([0]))
    tensor([[2., 0.]])
    """
    teacher = _several(teacher)
    chosen = _cross_entropies(teacher, labels).argmin(0)
    rows = torch.arange(len(labels), device=teacher.device)
    return torch.where((labels >= 0)[:, None], teacher[chosen, rows], teacher.mean(0))


def least_margins(teacher: Float[Tensor, "teachers batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
    """For each class the smallest of the teachers' logits, after the label's logit is taken from each of them.

    min_k (teacher_kc - teacher_k,label), which is 0 at the label: no teacher gives the label a higher probability than this
    target does. The mean of logits in rows without a label (-1). Guo et al. 2020, Online Knowledge Distillation via
    Collaborative Learning, CVPR, section 3.2 (KDCL-MinLogit), found close to the best mixture at a fraction of its cost.

    >>> least_margins(torch.tensor([[[1.0, 0.0, 1.0]], [[3.0, 3.0, 0.0]]]), torch.tensor([0]))
    tensor([[ 0., -1., -3.]])
    """
    teacher = _several(teacher)
    return torch.where((labels >= 0)[:, None], _margins(teacher, labels).amin(0), teacher.mean(0))


def best_mixture_weights(
    teacher: Float[Tensor, "teachers batch classes"], labels: Int[Tensor, " batch"], *, tolerance: float = 1e-5
) -> Float[Tensor, "teachers batch"]:
    """The weights whose mean of logits has the least cross-entropy with the label, row by row.

    argmin_w -log softmax(sum_k w_k teacher_k)[label] over w >= 0, sum_k w_k = 1, whose cross-entropy is within `tolerance`
    of the least (times the largest difference of logits, where that is above 1); 1 / teachers in rows without a label (-1).
    Guo et al. 2020, Online Knowledge Distillation via Collaborative Learning, CVPR, section 3.2 (KDCL-Linear). The target is
    `mean_of_logits(teacher, weights=...)`. It solves a small convex problem per row by Newton's method, some twenty to fifty passes
    over the logits: use `least_margins` where that is felt.

    >>> best_mixture_weights(torch.tensor([[[0.0, 0.0]], [[2.0, 0.0]]]), torch.tensor([0])).round(decimals=3)
    tensor([[0.],
            [1.]])
    """
    positive("tolerance", tolerance)
    teacher = _several(teacher)
    margins = torch.where((labels >= 0)[:, None], _margins(teacher, labels), 0.0).double()
    return _mixture(margins.permute(1, 0, 2), tolerance).T.to(teacher.dtype)


def _mixture(margins: Tensor, tolerance: float) -> Tensor:
    """The weights w [rows, teachers] that minimise logsumexp(w @ margins): Newton's method with a falling barrier at 0."""
    rows, teachers, _ = margins.shape
    weights = margins.new_full((rows, teachers), 1 / teachers)
    if not margins.numel() or teachers == 1:
        return weights
    scale = margins.abs().flatten(1).amax(1).clamp_min(1)
    height = 0.1
    while height * teachers > tolerance:
        height *= 0.1
        barrier = height * scale
        for _ in range(30):
            step, gain = _newton_step(weights, margins, barrier)
            worth = gain > barrier
            if not bool(worth.any()):
                break
            # a row that is done stays, so that it does not depend on how long its neighbours take
            weights = _descended(weights, torch.where(worth[:, None], step, 0.0), gain * worth, margins, barrier)
    return weights / weights.sum(-1, keepdim=True)


def _barred(weights: Tensor, margins: Tensor, barrier: Tensor) -> Tensor:
    """What is minimised: the cross-entropy, and a wall where a weight is 0."""
    return torch.einsum("rk,rkc->rc", weights, margins).logsumexp(-1) - barrier * weights.log().sum(-1)


def _newton_step(weights: Tensor, margins: Tensor, barrier: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's step in the weights, whose sum it keeps, and the gain that it promises."""
    rows, teachers = weights.shape
    softened = torch.softmax(torch.einsum("rk,rkc->rc", weights, margins), -1)
    slopes = torch.einsum("rkc,rc->rk", margins, softened)
    centred = margins - slopes[..., None]
    system = margins.new_zeros(rows, teachers + 1, teachers + 1)
    system[:, :-1, :-1] = (centred * softened[:, None]) @ centred.mT + torch.diag_embed(barrier[:, None] / weights.square())
    system[:, :-1, -1] = system[:, -1, :-1] = 1
    slopes = slopes - barrier[:, None] / weights
    step = torch.linalg.solve(system, torch.cat([-slopes, torch.zeros_like(slopes[:, :1])], -1))[:, :-1]
    return step, -(step * slopes).sum(-1)


def _descended(weights: Tensor, step: Tensor, gain: Tensor, margins: Tensor, barrier: Tensor) -> Tensor:
    """As much of the step, halved again and again, as lowers what is minimised."""
    room = torch.where(step < 0, -0.99 * weights / step, 1.0).amin(-1).clamp_max(1)
    before = _barred(weights, margins, barrier)
    for _ in range(30):
        enough = _barred(weights + room[:, None] * step, margins, barrier) <= before - 0.1 * room * gain
        if bool(enough.all()):
            break
        room = torch.where(enough, room, room / 2)
    return weights + torch.where(enough, room, 0.0)[:, None] * step


def _several(teacher: Tensor) -> Tensor:
    """The teachers' logits, precise and constant."""
    if teacher.ndim != 3 or not len(teacher):
        raise InputError(f"several teachers are [teachers, rows, classes]: teacher is {list(teacher.shape)}", code="U073")
    return precise(teacher.detach())


def _weights(weights: Tensor, teacher: Tensor) -> Tensor:
    if weights.shape != teacher.shape[:2]:
        raise InputError(
            f"weights must hold one number per teacher and row: teacher is {list(teacher.shape)}, weights are {list(weights.shape)}",
            code="U303",
        )
    return weights.detach().to(teacher.dtype)


def _labelled(teacher: Tensor, labels: Tensor) -> None:
    if labels.shape != teacher.shape[1:2] or labels.is_floating_point():
        raise InputError(
            f"one class index per row goes with several teachers: teacher is {list(teacher.shape)}, "
            f"labels are {labels.dtype} {list(labels.shape)}",
            code="U073",
        )


def _cross_entropies(teacher: Tensor, labels: Tensor) -> Tensor:
    """[teachers, rows]; 0 without a label."""
    _labelled(teacher, labels)
    wanted = labels.long().expand(len(teacher), -1)
    return functional.cross_entropy(teacher.movedim(-1, 1), wanted, ignore_index=-1, reduction="none")


def _margins(teacher: Tensor, labels: Tensor) -> Tensor:
    """The logits less the label's."""
    _labelled(teacher, labels)
    at = labels.clamp_min(0).long().expand(len(teacher), -1)[..., None]
    return teacher - teacher.gather(-1, at)


def _rest(shares: Tensor) -> Tensor:
    """Shares over teachers turned around: the smaller the share, the larger the weight."""
    return (1 - shares) / (len(shares) - 1) if len(shares) > 1 else torch.ones_like(shares)
