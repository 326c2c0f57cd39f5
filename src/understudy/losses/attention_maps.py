"""Losses between maps of where a network looks: `loss(student, teacher, *, options)`, one value per row.

Maps are [rows, channels, height, width], of any size on either side. To add a loss: write it here, name it in `__all__`,
and give it a line in tests/definitions_features.py.

When it helps and hurts: Networks of one family, convolutional both, with stages of like depth; it needs no connector, so it
adds no parameters. Between families it has cost up to six points (the figures below), and it says nothing of which class: keep
soft targets or labels beside it.

Known problems: Two definitions go by one name and differ by a large factor: a weight of 1000 belongs to the mean, not to the
norm. A map that is 0 everywhere has no direction and gives no gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from understudy.losses._maps import matched, pair, same_rows, unit
from understudy.losses._shapes import positive

__all__ = ["attention_transfer", "class_attention"]


def attention_transfer(
    student: Float[Tensor, "batch student_channels student_height student_width"],
    teacher: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
    *,
    power: float = 2.0,
    distance: Literal["mean_square", "norm"] = "mean_square",
) -> Float[Tensor, " batch"]:
    """Difference between maps of where each network is active, each of length one (AT).

    mean_p (a_p - b_p)^2, where a and b are mean_c |map_c|^power flattened over positions p and divided by their lengths; the
    larger map is averaged down to the smaller first, and channels may differ. The published weight of 1000 goes with this
    mean, which the authors' code computes; distance = "norm" is sqrt(sum_p (a_p - b_p)^2), which they print. CIFAR-100,
    ResNet-32x4 to ResNet-8x4: 73.44 % (72.50 alone); between families it may cost a lot: ResNet-50 to MobileNetV2
    58.58 (64.60 alone). Zagoruyko & Komodakis 2017, arXiv:1612.03928, section 3.1.

    >>> attention_transfer(torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]]]]))
    tensor([1.])
    """
    same_rows(student, teacher)
    positive("power", power)
    student, teacher = matched(*pair(student, teacher))
    difference = _activity(student, power) - _activity(teacher, power)
    return difference.square().mean(1) if distance == "mean_square" else torch.linalg.vector_norm(difference, dim=1)


def _activity(maps: Tensor, power: float) -> Tensor:
    strength = maps.square() if power == 2 else maps.abs().pow(power)
    return unit(strength.mean(1).flatten(1))


def class_attention(
    student: Float[Tensor, "batch classes student_height student_width"],
    teacher: Float[Tensor, "batch classes teacher_height teacher_width"],
    *,
    resolution: int = 2,
    normalised: bool = True,
) -> Float[Tensor, " batch"]:
    """Mean squared difference of class activation maps at a low resolution, each map of length one (CAT-KD).

    mean_d (u_d - v_d)^2 over classes and positions, where u and v are the maps averaged to resolution x resolution and
    divided by their lengths over positions. A class activation map is the last convolution's output read by the classifier
    at each position. Published: 2, or 4 for ShuffleNet students, and not normalised for some pairs. Guo et al. 2023,
    arXiv:2304.12777, section 3.

    >>> class_attention(torch.ones(1, 1, 4, 4), torch.full((1, 1, 2, 2), 7.0))
    tensor([0.])
    """
    same_rows(student, teacher, also="channels")
    positive("resolution", float(resolution))
    student, teacher = (functional.adaptive_avg_pool2d(each, resolution).flatten(2) for each in pair(student, teacher))
    if normalised:
        student, teacher = unit(student), unit(teacher)
    return functional.mse_loss(student, teacher, reduction="none").mean((1, 2))
