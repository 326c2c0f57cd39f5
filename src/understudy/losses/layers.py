"""Losses between two layers' outputs, place by place: `loss(student, teacher, *, options)`, one value per row.

Maps are [rows, channels, height, width]. Channels are equal here: a connector (a projection used in training only) makes
them so. To add a loss: write it here, name it in `__all__`, and give it a line in tests/definitions_features.py.

When it helps and hurts: A student of the teacher's family whose labels are few or whose depth makes training slow; the late
stages carry most. Between families it may cost accuracy (the figures below), and one layer too many is worse than one too few:
begin with one, beside soft targets.

Known problems: Connectors are trained with the student and thrown away: with `feature_alignment` the projector belongs to the
student and must be kept. Responses before the activation are meant by `activation_boundaries` and `partial_distance`; sums grow
with the layer.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from understudy.losses._maps import matched, one_per_channel, pair, same_rows, unit
from understudy.losses._shapes import positive, same_shape

__all__ = [
    "activation_boundaries",
    "factor_transfer",
    "feature_alignment",
    "hierarchical_context",
    "hint",
    "partial_distance",
    "variational_information",
]


def hint(
    student: Float[Tensor, "batch channels *positions"], teacher: Float[Tensor, "batch channels *positions"]
) -> Float[Tensor, " batch"]:
    """Mean squared difference between a student's layer and the teacher's hint layer (FitNets).

    mean_d (student_d - teacher_d)^2 over channels and positions. The published weight of 100 goes with this mean; the
    publication prints half the sum. CIFAR-100, ResNet-32x4 to ResNet-8x4: 73.50 % (72.50 alone); between families it may
    cost accuracy: ResNet-50 to MobileNetV2 63.16 (64.60 alone). Romero et al. 2015, arXiv:1412.6550, section 2.2.

    >>> hint(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([2.])
    """
    same_shape(student, teacher, "teacher")
    student, teacher = pair(student, teacher)
    return functional.mse_loss(student, teacher, reduction="none").flatten(1).mean(1)


def feature_alignment(
    student: Float[Tensor, "batch channels student_height student_width"],
    teacher: Float[Tensor, "batch channels teacher_height teacher_width"],
) -> Float[Tensor, " batch"]:
    """Mean squared difference of maps, the larger one averaged down to the smaller: the last layer, for the teacher's classifier (SimKD).

    mean_d (student_d - teacher_d)^2 over channels and positions, of the student's projected map. Nothing else is trained
    on: no labels, no soft targets; the teacher's own classifier then reads the student's map. CIFAR-100, ResNet-32x4 to
    ResNet-8x4: 78.08 % (73.09 alone), with the projector's parameters kept in the student. Chen et al. 2022,
    arXiv:2203.14001, section 3.

    >>> feature_alignment(torch.full((1, 1, 2, 2), 3.0), torch.tensor([[[[1.0]]]]))
    tensor([4.])
    """
    same_rows(student, teacher, also="channels")
    student, teacher = matched(*pair(student, teacher))
    return functional.mse_loss(student, teacher, reduction="none").flatten(1).mean(1)


def hierarchical_context(
    student: Float[Tensor, "batch channels height width"], teacher: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, " batch"]:
    """Mean squared difference of maps as they are and averaged to 4x4, 2x2 and 1x1 (HCL, the loss of ReviewKD).

    sum_l w_l mean_d (pool_l(student) - pool_l(teacher))_d^2 / sum_l w_l, where w = 1 for the map itself and 1/2, 1/4, 1/8 in
    the order of the sizes that are below the map's height. Levels are added by the objective; published weights lie between
    0.6 and 8 with a warm-up of 20 epochs. CIFAR-100, ResNet-32x4 to ResNet-8x4: 75.63 % (72.50 alone), ResNet-50 to
    MobileNetV2: 69.89 (64.60 alone). Chen et al. 2021, arXiv:2104.09044, section 3.

    >>> hierarchical_context(torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]]), torch.zeros(1, 1, 2, 2))
    tensor([0.6667])
    """
    same_shape(student, teacher, "teacher")
    student, teacher = pair(student, teacher)
    difference = student - teacher  # averaging is linear: pool the difference, not both maps
    value, weight, whole = difference.square().mean((1, 2, 3)), 1.0, 1.0
    for size in (4, 2, 1):
        if size < student.shape[2]:
            weight /= 2
            whole += weight
            value = value + weight * functional.adaptive_avg_pool2d(difference, size).square().mean((1, 2, 3))
    return value / whole


def variational_information(
    student: Float[Tensor, "batch channels student_height student_width"],
    teacher: Float[Tensor, "batch channels teacher_height teacher_width"],
    *,
    raw_variances: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, " batch"]:
    """Negative log-likelihood of the teacher's map under a normal distribution around the student's (VID).

    mean_d [(teacher_d - student_d)^2 / v_c + log v_c] / 2 over channels and positions, where v_c = softplus(raw_c) + 1e-5
    is the variance of channel c; the constant log(2 pi) / 2 is left out. The raw variances are parameters, trained with
    the student: left as they are, the loss is a weighted squared error. None: the published start, a variance of 5. The
    larger map is averaged down to the smaller; the least value is not 0. CIFAR-100, ResNet-32x4 to ResNet-8x4: 73.09 %
    (72.50 alone), ResNet-50 to MobileNetV2: 67.57 (64.60 alone). Ahn et al. 2019, arXiv:1904.05835, section 2.

    >>> variational_information(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), raw_variances=torch.tensor([0.0]))
    tensor([-0.1832])
    """
    same_rows(student, teacher, also="channels")
    student, teacher = matched(*pair(student, teacher))
    if raw_variances is None:
        raw_variances = student.new_full(student.shape[1:2], math.log(math.expm1(5.0 - 1e-5)))
    one_per_channel(student, raw_variances, "raw_variances")
    variances = functional.softplus(raw_variances.to(student.dtype)) + 1e-5
    squares = functional.mse_loss(student, teacher, reduction="none").mean((2, 3))
    return (squares / variances + variances.log()).mean(1) / 2


def activation_boundaries(
    student: Float[Tensor, "batch channels *positions"], teacher: Float[Tensor, "batch channels *positions"], *, margin: float = 1.0
) -> Float[Tensor, " batch"]:
    """Squared distance of the student's responses to the right side of zero, with a margin: which neurons fire (AB).

    sum_d max(0, margin - sign_d student_d)^2 over channels and positions, where sign_d is 1 if teacher_d > 0 and -1
    otherwise. Both are responses before the activation function. Not 0 at student = teacher: what lies inside the margin is
    pushed out. A sum: the published factors are 3/1000 (CIFAR) and 1/1000 (ImageNet), halved for each earlier layer; it
    was meant for 30 epochs of initialisation. CIFAR-100, ResNet-32x4 to ResNet-8x4: 73.17 % (72.50 alone), WRN-40-2 to
    WRN-16-2: 72.50 (73.26 alone). Heo et al. 2019, arXiv:1811.03233, section 3.

    >>> activation_boundaries(torch.tensor([[2.0, 0.5, 0.5]]), torch.tensor([[7.0, 7.0, -7.0]]))
    tensor([2.5000])
    """
    same_shape(student, teacher, "teacher")
    positive("margin", margin)
    student, teacher = pair(student, teacher)
    away = torch.where(teacher > 0, -1.0, 1.0).to(student.dtype)
    return functional.relu(away * student + margin, inplace=True).square().flatten(1).sum(1)


def partial_distance(
    student: Float[Tensor, "batch channels *positions"],
    teacher: Float[Tensor, "batch channels *positions"],
    *,
    margins: Float[Tensor, " channels"] | None = None,
) -> Float[Tensor, " batch"]:
    """Squared distance to the teacher's responses above a margin, where silence need not be copied exactly (OFD).

    sum_d (student_d - u_d)^2 over channels and positions, where u_d = max(teacher_d, margin_c), without the places where
    student_d <= u_d <= 0. Both are responses before the activation function; `batch_norm_margins` gives the published
    margins, one below zero per channel (none: 0, a plain ReLU of the teacher). A sum: the published factor is 1/1000,
    halved for each earlier layer. CIFAR-100, ResNet-32x4 to ResNet-8x4: 74.95 % (72.50 alone), ResNet-50 to MobileNetV2:
    69.04 (64.60 alone). Heo et al. 2019, arXiv:1904.01866, section 3.

    >>> partial_distance(torch.tensor([[2.0, -3.0]]), torch.tensor([[1.0, -2.0]]), margins=torch.tensor([-0.5, -0.5]))
    tensor([1.])
    """
    same_shape(student, teacher, "teacher")
    student, teacher = pair(student, teacher)
    if margins is None:
        target = teacher.clamp_min(0)
    else:
        one_per_channel(student, margins, "margins")
        target = torch.maximum(teacher, margins.to(student.dtype).reshape(-1, *[1] * (student.ndim - 2)))
    squares = functional.mse_loss(student, target, reduction="none")
    return (squares * ((student > target) | (target > 0))).flatten(1).sum(1)


def factor_transfer(
    student: Float[Tensor, "batch channels student_height student_width"],
    teacher: Float[Tensor, "batch channels teacher_height teacher_width"],
) -> Float[Tensor, " batch"]:
    """Absolute difference of factors of length one (FT): what a translator says beside what a paraphraser says.

    mean_d |u_d - v_d|, where u and v are the flattened factors divided by their lengths and the larger map is averaged down
    to the smaller. The published weight is 500. Paraphraser and translator are connectors, the first one trained beforehand
    to give the teacher's layer back. CIFAR-100, ResNet-32x4 to ResNet-8x4: 72.86 % (72.50 alone), ResNet-50 to
    MobileNetV2: 60.99 (64.60 alone), both with factors averaged over channels first. Kim, Park & Kwak 2018,
    arXiv:1802.04977, section 3.

    >>> factor_transfer(torch.tensor([[[[2.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[5.0]]]]))
    tensor([1.])
    """
    same_rows(student, teacher, also="channels")
    student, teacher = matched(*pair(student, teacher))
    return (unit(student.flatten(1)) - unit(teacher.flatten(1))).abs().mean(1)


def batch_norm_margins(weight: Float[Tensor, " channels"], bias: Float[Tensor, " channels"]) -> Float[Tensor, " channels"]:
    """The margins of `partial_distance` from the teacher's batch norm: the mean of each channel where it is below zero.

    E[x | x < 0] for x normal with mean `bias` and deviation |weight|; -3 |weight| where less than a thousandth of x lies
    below zero. Heo et al. 2019, arXiv:1904.01866, section 3.

    >>> batch_norm_margins(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 9.0]))
    tensor([-0.7979, -3.0000])
    """
    weight, bias = pair(weight, bias)
    deviation = weight.abs()
    ratio = bias / deviation.clamp_min(torch.finfo(weight.dtype).tiny)
    log_below = torch.special.log_ndtr(-ratio)
    log_density = -ratio.square() / 2 - math.log(2 * math.pi) / 2
    conditional = bias - deviation * (log_density - log_below).exp()
    return torch.where(log_below > math.log(0.001), conditional, -3 * deviation)
