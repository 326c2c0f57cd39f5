"""Losses on a student's values: `loss(student, labels, ...)`, `loss(student, teacher, ...)`, one value per row.

Which it reads is said by the names of its arguments. Values are in the label's own unit; `scale` (the standard
deviation of the labels, say) makes the loss a pure number. A row with a NaN label gives 0 and no gradient. To add one:
write it here, name it in `__all__`, and give it a line in tests/definitions_logits.py.

When it helps and hurts: A teacher that is nearer to the truth than noisy labels are. A teacher's value carries no uncertainty,
so gains are small; the bound protects a student that is already better than its teacher.

Known problems: Values are in the label's unit: without `scale` the weight depends on it. A teacher's bias is learned along with
the rest.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from understudy.losses._shapes import positive, precise, same_shape

__all__ = ["smooth_absolute_error", "squared_error", "teacher_bounded", "teacher_squared_error"]


def squared_error(
    student: Float[Tensor, "batch outputs"], labels: Float[Tensor, "batch outputs"], *, scale: float = 1.0
) -> Float[Tensor, " batch"]:
    """Squared difference from the label, mean over outputs: mean_d ((student_d - label_d) / scale)^2.

    Source: least squares (Legendre 1805); in distillation the hard part of Ba & Caruana 2014, arXiv:1312.6184.

    >>> squared_error(torch.tensor([[3.0], [3.0]]), torch.tensor([[1.0], [float("nan")]]), scale=2.0)
    tensor([1., 0.])
    """
    positive("scale", scale)
    squares, known = _squares(student, labels)
    return torch.where(known, squares.mean(-1) / scale**2, 0.0)


def smooth_absolute_error(
    student: Float[Tensor, "batch outputs"], labels: Float[Tensor, "batch outputs"], *, scale: float = 1.0
) -> Float[Tensor, " batch"]:
    """Difference from the label that is squared when small and absolute when large, mean over outputs (smooth L1).

    mean_d h((student_d - label_d) / scale), where h(x) = x^2 / 2 for |x| < 1 and |x| - 1 / 2 beyond. Girshick 2015,
    arXiv:1504.08083, section 2.3. It helps where some labels are far off. Times the number of outputs, it is what
    `teacher_bounded` stands beside, at half its weight, in Chen et al. 2017.

    >>> smooth_absolute_error(torch.tensor([[3.0], [1.5]]), torch.tensor([[1.0], [1.0]]))
    tensor([1.5000, 0.1250])
    """
    positive("scale", scale)
    same_shape(student, labels, "labels")
    student = precise(student) / scale
    labels = labels.to(student.dtype) / scale
    known = ~labels.sum(-1).isnan()
    return torch.where(known, functional.smooth_l1_loss(student, labels.nan_to_num(), reduction="none").mean(-1), 0.0)


def teacher_squared_error(
    student: Float[Tensor, "batch outputs"], teacher: Float[Tensor, "batch outputs"], *, scale: float = 1.0
) -> Float[Tensor, " batch"]:
    """Squared difference from the teacher, mean over outputs: mean_d ((student_d - teacher_d) / scale)^2.

    Source: Ba & Caruana 2014, arXiv:1312.6184, section 2.2. A teacher that says NaN gives NaN.

    >>> teacher_squared_error(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor([4.])
    """
    same_shape(student, teacher, "teacher")
    positive("scale", scale)
    student = precise(student)
    return functional.mse_loss(student, teacher.to(student.dtype), reduction="none").mean(-1) / scale**2


def teacher_bounded(
    student: Float[Tensor, "batch outputs"],
    teacher: Float[Tensor, "batch outputs"],
    labels: Float[Tensor, "batch outputs"],
    *,
    margin: float = 0.0,
    scale: float = 1.0,
) -> Float[Tensor, " batch"]:
    """Squared distance to the label, in rows where the student is not yet better than the teacher by a margin.

    s if s + margin > t else 0, where s = sum_d ((student_d - label_d) / scale)^2 and t is the same of the teacher
    (Chen et al. 2017, Learning Efficient Object Detection Models with Knowledge Distillation, section 3.3, at weight 0.5 beside
    `smooth_absolute_error`).

    >>> teacher_bounded(torch.tensor([[3.0], [1.5]]), torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    tensor([4., 0.])
    """
    same_shape(student, teacher, "teacher")
    positive("scale", scale)
    squares, known = _squares(student, labels)
    distance = squares.sum(-1) / scale**2
    bound = _squares(teacher.to(squares.dtype), labels)[0].sum(-1) / scale**2
    return torch.where(known & (distance + margin > bound), distance, 0.0)


def _squares(values: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Squared differences with 0 for a missing label, and which rows have all of theirs."""
    same_shape(values, labels, "labels")
    values = precise(values)
    known = ~labels.sum(-1).isnan()
    return functional.mse_loss(values, labels.to(values.dtype).nan_to_num(), reduction="none"), known
