"""Losses that compare a batch of softmax outputs as a table: along its rows, along its classes, and rows with rows.

`loss(student, teacher, *, options)`, one value per row, whose mean over the batch is the published loss; a row's value
depends on its neighbours. Batches should be shuffled and larger than a few rows. To add one: write it here, name it in
`__all__`, and give it a line in tests/definitions_logits.py.

When it helps and hurts: A teacher that is much stronger than the student: order among classes is easier to follow than exact
probabilities. Small batches (below some 64 rows) make the part along classes noise.

Known problems: In a batch of one row the part along classes is constant. A row's value depends on its neighbours, so values of
different batch sizes do not compare.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from understudy.errors import InputError
from understudy.losses._divergences import divergence, log_probabilities
from understudy.losses._shapes import positive, precise, same_shape

__all__ = ["correlation", "multi_level"]


def correlation(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    temperature: float | Float[Tensor, ""] = 1.0,
    row_weight: float = 1.0,
    class_weight: float = 1.0,
) -> Float[Tensor, " batch"]:
    """One minus Pearson's correlation with the teacher, of each row over its classes and of each class over the rows.

    T^2 * [row_weight * (1 - r(p_i, q_i)) + class_weight * (1 - mean_c r(p_.c, q_.c))], where p, q are softmax(student / T)
    and softmax(teacher / T), and r(x, y) = sum xy / (norm x * norm y + 1e-8) of centred x, y. A row's part of the second
    term is its part of each sum, times rows. Huang et al. 2022, arXiv:2205.10536, section 3 (DIST), published with weight 2
    and T = 1 (ImageNet) or 4. It helps with a teacher that is much stronger, for ranks matter more than probabilities; small
    batches make the second term noise, and a batch of one leaves it constant.

    >>> correlation(torch.tensor([[4.0, 0.0], [0.0, 4.0]]), torch.tensor([[0.0, 4.0], [4.0, 0.0]]))
    tensor([4., 4.])
    """
    same_shape(student, teacher, "teacher")
    positive("temperature", temperature)
    student = precise(student)
    p, q = (torch.softmax(each / temperature, -1) for each in (student, teacher.to(student.dtype)))
    values = row_weight * (1 - _cosines(p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True), 1).sum(1))
    if class_weight and len(p):
        shares = _cosines(p - p.mean(0), q - q.mean(0), 0).mean(1) * len(p)
        values = values + class_weight * (1 - shares)
    return values * temperature**2


def _cosines(x: Tensor, y: Tensor, axis: int) -> Tensor:
    """The products whose sum along the axis is the cosine of x and y."""
    return x * y / (x.norm(dim=axis, keepdim=True) * y.norm(dim=axis, keepdim=True) + 1e-8)


def multi_level(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    *,
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
    row_weight: float = 1.0,
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
    mask: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Soft targets, likeness of rows and likeness of classes, at several temperatures and added.

    sum_T [row_weight * m T^2 KL(q_i || p_i) + batch_weight * sum_j (p_i p_j - q_i q_j)^2 + class_weight * norm(P'P - Q'Q)^2 / C],
    where p, q are softmax(student / T) and softmax(teacher / T), P, Q the tables [B, C] of them: the mean over rows of the
    second part is norm(PP' - QQ')^2 / B, and the third belongs to all rows alike. The mask m, of rows, touches the first
    part only; published is m = the teacher's confidence is at most its median. Jin, Wang & Lin 2023, Multi-Level Logit
    Distillation, CVPR, section 3. It was published with twice the epochs and strong augmentation; without them expect less.

    >>> multi_level(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    tensor([0., 0.])
    """
    same_shape(student, teacher, "teacher")
    if mask is not None and mask.shape != student.shape[:1]:
        raise InputError(f"mask must be one per row: student is {list(student.shape)}, mask is {list(mask.shape)}", code="U300")
    student = precise(student)
    teacher = teacher.to(student.dtype)
    rows, classes = student.shape
    values = student.new_zeros(rows)
    for temperature in temperatures:
        positive("temperature", temperature)
        log_p, log_q = log_probabilities(student, temperature), log_probabilities(teacher, temperature)
        single = divergence(log_q, log_p) * temperature**2
        values = values + row_weight * (single if mask is None else single * mask)
        p, q = log_p.exp(), log_q.exp()
        if batch_weight:
            values = values + batch_weight * (p @ p.T - q @ q.T).square().sum(1)
        if class_weight:
            values = values + class_weight * (p.T @ p - q.T @ q).square().sum() / classes
    return values
