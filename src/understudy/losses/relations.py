"""Losses between the relations of the rows of a batch: `loss(student, teacher, *, options)`, each row's part of the loss.

What is compared is how rows stand to each other, so the widths of student and teacher may differ and no connector is
needed; a row's value depends on its neighbours, and a batch of one row teaches nothing. Relations come from products
of matrices, never from a tensor of rows x rows x width. To add a loss: write it here, name it in `__all__`, and give it a
line in tests/definitions_features.py.

When it helps and hurts: Embeddings and late layers of any width: no connector is needed, so it fits pairs of different
families. Alone it is weaker than soft targets; beside them it adds most where the product is the embedding.

Known problems: A batch of one row is refused, small batches are noise, and values of different batch sizes do not compare. What
is published as correlation congruence is often another quantity, which depends on the order of the batch.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from understudy.losses._maps import pair, same_rows, unit
from understudy.losses._shapes import positive

__all__ = [
    "correlation_congruence",
    "probabilistic_transfer",
    "relational_angle",
    "relational_distance",
    "similarity_preserving",
]

_CLOSE = 1e-12
"""Rows that are nearer than this count as one point."""

_AT_ONCE = 2**20
"""Angles that are held at a time."""


def similarity_preserving(
    student: Float[Tensor, "batch student_width *student_map"], teacher: Float[Tensor, "batch teacher_width *teacher_map"]
) -> Float[Tensor, " batch"]:
    """Squared difference between the rows' similarities to each other in the student and in the teacher (SP).

    sum_j (G_ij - H_ij)^2 / rows, where G and H are the products of flattened rows, each row of the product divided by its
    length. The published weight is 3000. CIFAR-100, ResNet-50 to MobileNetV2: 68.08 % (64.60 alone), ResNet-32x4 to
    ResNet-8x4: 72.94 (72.50 alone). Tung & Mori 2019, arXiv:1907.09682, section 2.

    >>> similarity_preserving(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    tensor([0.2929, 0.2929])
    """
    _same_batch(student, teacher)
    ours, theirs = (unit(flat @ flat.T) for flat in (each.flatten(1) for each in pair(student, teacher)))
    return functional.mse_loss(ours, theirs, reduction="none").mean(1)


def relational_distance(
    student: Float[Tensor, "batch student_width"], teacher: Float[Tensor, "batch teacher_width"]
) -> Float[Tensor, " batch"]:
    """Difference between the distances of rows, each network's distances in units of their mean (RKD-D).

    mean_j huber(d_ij / mean(d) - e_ij / mean(e)), where d and e are the distances of the student's and the teacher's rows, the
    means are over distances above 0, and huber(x) = x^2 / 2 up to |x| = 1, |x| - 1/2 beyond. The authors weigh distance to
    angle 1 : 2; the CRD protocol's weights are 25 and 50. CIFAR-100, both together, ResNet-50 to VGG-8: 71.50 % (70.36
    alone), ResNet-32x4 to ResNet-8x4: 71.90 (72.50 alone). Park et al. 2019, arXiv:1904.05068, section 3.2.1.

    >>> relational_distance(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[0.0], [10.0], [20.0]]))
    tensor([0., 0., 0.])
    """
    same_rows(student, teacher)
    ours, theirs = (_in_means(_distances(each)) for each in pair(student, teacher))
    return functional.smooth_l1_loss(ours, theirs, reduction="none").mean(1)


def relational_angle(
    student: Float[Tensor, "batch student_width"], teacher: Float[Tensor, "batch teacher_width"]
) -> Float[Tensor, " batch"]:
    """Difference between the angles that rows form, seen from each row (RKD-A).

    mean_jk huber(cos(j i k) - cos'(j i k)) for row i, where cos(j i k) is the cosine of the angle at i between the rows j and
    k of the student and cos' that of the teacher, 0 where j or k is i or lies on it, and huber(x) = x^2 / 2 up to |x| = 1,
    |x| - 1/2 beyond. Cosines come from distances, in slices of the batch whose size is bounded. Weights and figures:
    see `relational_distance`. Park et al. 2019, arXiv:1904.05068, section 3.2.2.

    >>> relational_angle(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0], [1.0], [2.0]]))
    tensor([0.1111, 0.2682, 0.0095])
    """
    same_rows(student, teacher)
    ours, theirs = (_distances(each) for each in pair(student, teacher))
    rows = len(ours)
    step = max(1, _AT_ONCE // max(1, rows * rows))
    slices = []
    for start in range(0, max(rows, 1), step):
        here = slice(start, start + step)
        # Recomputed backwards: rows^3 angles are never held together.
        slices.append(checkpoint(_angle_gaps, ours, theirs, here, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(slices)


def probabilistic_transfer(
    student: Float[Tensor, "batch student_width"], teacher: Float[Tensor, "batch teacher_width"]
) -> Float[Tensor, " batch"]:
    """KL(teacher || student) between each row's probabilities of its neighbours (PKT).

    sum_j q_ij log((q_ij + e) / (p_ij + e)) / rows, where p_ij = s_ij / sum_k s_ik with s_ij = (cosine(i, j) + 1) / 2 in the
    student, q the same in the teacher, and e = 1e-7. The division by rows is that of the authors' code, which their weight
    of 30000 at 64 rows belongs to; times rows, the weight is 469 at any batch size. CIFAR-100, ResNet-32x4 to
    ResNet-8x4: 73.64 % (72.50 alone), ResNet-50 to MobileNetV2: 66.52 (64.60 alone). Passalis & Tefas 2018,
    arXiv:1803.10837, section 3.

    >>> probabilistic_transfer(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0], [5.0]]))
    tensor([0.0294, 0.0294])
    """
    same_rows(student, teacher)
    ours, theirs = (_neighbours(each) for each in pair(student, teacher))
    return (theirs * ((theirs + 1e-7).log() - (ours + 1e-7).log())).mean(1)


def correlation_congruence(
    student: Float[Tensor, "batch student_width"],
    teacher: Float[Tensor, "batch teacher_width"],
    *,
    kernel: Literal["gaussian", "bilinear"] = "gaussian",
    gamma: float = 0.4,
    order: int = 2,
) -> Float[Tensor, " batch"]:
    """Squared difference between the kernels of rows in the student and in the teacher (CC).

    sum_j (K_ij - L_ij)^2 / rows, where K_ij = exp(-2 gamma) sum_p (2 gamma x_i . x_j)^p / p! for p up to `order`, the Taylor
    series of exp(-gamma |x_i - x_j|^2) for rows x of length one; bilinear: K_ij = x_i . x_j for the rows as they are. The
    figures known by this name (CIFAR-100, ResNet-32x4 to ResNet-8x4: 72.97 %, 72.50 alone) belong to another quantity,
    which depends on the order of the batch. Peng et al. 2019, arXiv:1904.01802, section 3.

    >>> correlation_congruence(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [1.0]]), kernel="bilinear")
    tensor([0.5000, 5.0000])
    """
    same_rows(student, teacher)
    ours, theirs = pair(student, teacher)
    if kernel == "gaussian":
        ours, theirs = (_gaussian(unit(each), gamma, order) for each in (ours, theirs))
    else:
        ours, theirs = (each @ each.T for each in (ours, theirs))
    return functional.mse_loss(ours, theirs, reduction="none").mean(1)


def _same_batch(student: Tensor, teacher: Tensor) -> None:
    """Shapes may differ behind the rows, even in their number of dimensions."""
    same_rows(student.flatten(1), teacher.flatten(1))


def _distances(rows: Tensor) -> Tensor:
    """Distances of all pairs by differences: exact for near rows, where a product of matrices cancels."""
    return torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")


def _in_means(distances: Tensor) -> Tensor:
    apart = (distances > 0).sum().clamp_min(1)
    return distances / (distances.sum() / apart).clamp_min(_CLOSE)


def _angle_gaps(ours: Tensor, theirs: Tensor, here: slice) -> Tensor:
    return functional.smooth_l1_loss(_cosines(ours, here), _cosines(theirs, here), reduction="none").mean((1, 2))


def _cosines(distances: Tensor, here: slice) -> Tensor:
    """cos(j i k) = (d_ij^2 + d_ik^2 - d_jk^2) / (2 d_ij d_ik) for the rows i of a slice."""
    mine = distances[here]
    inverse = 1 / mine.masked_fill(mine <= _CLOSE, torch.inf)
    squares = mine.square()
    both = squares[:, :, None] + squares[:, None, :] - distances.square()
    return both * (inverse[:, :, None] * (inverse / 2)[:, None, :])


def _neighbours(rows: Tensor) -> Tensor:
    directions = rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True) + 1e-7)
    similarities = (directions @ directions.T + 1) / 2
    return similarities / similarities.sum(1, keepdim=True)


def _gaussian(directions: Tensor, gamma: float, order: int) -> Tensor:
    """The Taylor series by Horner's rule."""
    positive("gamma", gamma)
    scaled = directions @ directions.T * (2 * gamma)
    series = torch.ones_like(scaled)
    for power in range(order, 0, -1):
        series = 1 + scaled * series / power
    return series * math.exp(-2 * gamma)
