"""Losses between a student's logits and a teacher's: `loss(student, teacher, *, options)`, one value per row.

Log-probabilities are logits too; a teacher may say minus infinity (probability 0) in the soft targets. To add one:
write it here, name it in `__all__`, and give it a line in tests/definitions_logits.py.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from understudy.losses._shapes import positive, precise, same_shape

__all__ = ["binary_soft_target", "logit_mse", "soft_target"]

# Stands for the logarithm of zero where 0 * -inf would be NaN.
LOWEST = -1e30


def soft_target(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, temperature: float = 4.0
) -> Float[Tensor, "*batch"]:
    """KL(teacher || student) between softened distributions, times temperature squared.

    T^2 * sum_c q_c (log q_c - log p_c), where q = softmax(teacher / T) and p = softmax(student / T). The factor keeps
    the gradient's size about the same whatever the temperature (Hinton, Vinyals & Dean 2015, arXiv:1503.02531,
    section 2).

    >>> soft_target(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    student = precise(student)
    log_student = torch.log_softmax(student / temperature, dim=-1)
    log_teacher = torch.log_softmax(teacher.to(student.dtype) / temperature, dim=-1).clamp_min(LOWEST)
    # the factor goes to the side that has no gradient: one operation fewer on the way back
    return (log_teacher.exp() * temperature**2 * (log_teacher - log_student)).sum(-1)


def binary_soft_target(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, temperature: float = 4.0
) -> Float[Tensor, "*batch"]:
    """KL(teacher || student) of a softened yes or no per class, mean over classes, times temperature squared.

    T^2 * mean_c [q_c log(q_c / p_c) + (1 - q_c) log((1 - q_c) / (1 - p_c))], where q = sigmoid(teacher / T) and
    p = sigmoid(student / T): the soft targets of Hinton, Vinyals & Dean 2015 (arXiv:1503.02531) for labels that do not
    exclude each other, as in Yang et al. 2023, arXiv:2308.06453 (there a sum over classes at T = 1).

    >>> binary_soft_target(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    student = precise(student)
    softened = (teacher.to(student.dtype) / temperature).clamp(LOWEST, -LOWEST)
    target = softened.sigmoid()
    # The cross-entropy less the teacher's entropy, both by the same kernel, so that equal logits give exactly 0.
    crossed = functional.binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
    entropy = functional.binary_cross_entropy_with_logits(softened, target, reduction="none")
    return (crossed - entropy).mean(-1) * temperature**2


def logit_mse(
    student: Float[Tensor, "*batch classes"], teacher: Float[Tensor, "*batch classes"], *, centred: bool = True
) -> Float[Tensor, "*batch"]:
    """Squared difference of logits, mean over classes; centred, a constant added to a row's logits changes nothing.

    mean_c (d_c - mean(d))^2, where d = student - teacher; mean_c d_c^2 when not centred. Ba & Caruana 2014,
    arXiv:1312.6184, section 2.2; centred, it is the limit of soft targets at a high temperature (Hinton, Vinyals & Dean
    2015, arXiv:1503.02531, section 2.1). The teacher's logits must be finite.

    >>> logit_mse(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([1.])
    """
    same_shape(student, teacher, "teacher")
    student = precise(student)
    teacher = teacher.to(student.dtype)
    if not centred:
        return functional.mse_loss(student, teacher, reduction="none").mean(-1)
    difference = student - teacher
    return (difference - difference.mean(-1, keepdim=True)).square().mean(-1)
