"""Losses on outputs with a place for every pixel: `loss(student, teacher, *, options)`, one value per row.

Logits and maps are [rows, channels, height, width] of one size. To add a loss: write it here, name it in `__all__`, and
give it a line in tests/definitions_features.py.

When it helps and hurts: Segmentation, depth, heat maps: wherever the answer has a place for every pixel. Pixels follow the
teacher's classes where labels are few or borders are uncertain; channels follow where a class is, which helps with small
objects.

Known problems: Pixels that labels leave out (the border, the unknown) still count in what the teacher says unless the mask
leaves them out. Answers of unlike size must be resized by the models: no connector changes an answer.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._maps import masked_like, pair
from understudy.losses._shapes import positive, precise, same_shape

__all__ = ["channel_distribution", "pixel_cross_entropy", "pixel_soft_target"]

# Stands for the logarithm of zero where 0 * -inf would be NaN.
_LOWEST = -1e30


def channel_distribution(
    student: Float[Tensor, "batch channels height width"],
    teacher: Float[Tensor, "batch channels height width"],
    *,
    temperature: float | Float[Tensor, ""] = 4.0,
) -> Float[Tensor, " batch"]:
    """KL(teacher || student) of where each channel is active, mean over channels, times temperature squared (CWD).

    T^2 mean_c sum_p q_cp log(q_cp / p_cp) over positions p, where p_c = softmax_p(student_c / T) and q_c = softmax_p(teacher_c /
    T). Published weights: 3 on logits, 50 on features. Shu et al. 2021, arXiv:2011.13256, section 3.

    >>> channel_distribution(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    student, teacher = (each.flatten(2) for each in pair(student, teacher))
    return _divergence(student / temperature, teacher / temperature, dim=2).mean(1) * temperature**2


def pixel_cross_entropy(
    student: Float[Tensor, "batch classes height width"], labels: Int[Tensor, "batch height width"]
) -> Float[Tensor, " batch"]:
    """Minus the log-probability that the student gives to each pixel's label, mean over the pixels that have one.

    mean_p -log softmax_c(student_p)[label_p] over pixels p; those of label -1 are left out, and a row without any gives 0. Long,
    Shelhamer & Darrell 2015, arXiv:1411.4038, section 4. It is the hard part beside a teacher, and what a control learns.

    >>> pixel_cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[1, -1]]]))
    tensor([0.6931])
    """
    if student.ndim != 4 or labels.shape != (len(student), *student.shape[2:]) or labels.is_floating_point():
        raise InputError(
            f"this loss reads student [rows, classes, height, width] and one class index per pixel: student is {list(student.shape)}, "
            f"labels are {labels.dtype} {list(labels.shape)}",
            code="U073",
        )
    values = functional.cross_entropy(precise(student), labels.long(), ignore_index=-1, reduction="none")
    return values.sum((1, 2)) / (labels >= 0).sum((1, 2)).clamp_min(1)


def pixel_soft_target(
    student: Float[Tensor, "batch classes height width"],
    teacher: Float[Tensor, "batch classes height width"],
    *,
    temperature: float | Float[Tensor, ""] = 1.0,
    mask: Bool[Tensor, "batch height width"] | None = None,
) -> Float[Tensor, " batch"]:
    """KL(teacher || student) of each pixel's classes, mean over the pixels that count, times temperature squared.

    T^2 mean_p sum_c q_cp log(q_cp / p_cp) over pixels p, where p_p = softmax_c(student_p / T) and q_p = softmax_c(teacher_p / T).
    The mask is true at pixels that count; a row without any gives 0, and whatever stands at the others reaches no
    gradient. Liu et al. 2019, arXiv:1903.04197, section 3, which has it at T = 1 and with weight 10.

    >>> pixel_soft_target(torch.zeros(1, 2, 1, 2), torch.tensor([[[[2.0, 9.0]], [[2.0, 0.0]]]]), mask=torch.tensor([[[True, False]]]))
    tensor([0.])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    masked_like(mask, (len(student), *student.shape[2:]), "each pixel")
    student, teacher = pair(student, teacher)
    if mask is not None:
        absent = ~mask[:, None]
        student, teacher = student.masked_fill(absent, 0), teacher.masked_fill(absent, 0)
    values = _divergence(student / temperature, teacher / temperature, dim=1)
    # Pixels that do not count hold zeros in both, so that theirs is 0.
    pixels = values.shape[1] * values.shape[2] if mask is None else mask.sum((1, 2)).clamp_min(1)
    return values.sum((1, 2)) / pixels * temperature**2


def _divergence(ours: Tensor, theirs: Tensor, *, dim: int) -> Tensor:
    """KL(theirs || ours) along a dimension; the teacher may give probability 0."""
    log_ours = torch.log_softmax(ours, dim)
    log_theirs = torch.log_softmax(theirs, dim).clamp_min(_LOWEST)
    return (log_theirs.exp() * (log_theirs - log_ours)).sum(dim)
