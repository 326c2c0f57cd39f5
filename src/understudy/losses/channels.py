"""Losses between the relations of channels inside one row: `loss(student, teacher, *, options)`, one value per row.

Maps are [rows, channels, height, width]. Relations are products of matrices, never a tensor of channel x channel x
position. To add a loss: write it here, name it in `__all__`, and give it a line in tests/definitions_features.py.

When it helps and hurts: Convolutional pairs whose channels mean something together; none of them needs equal sizes, and
`neuron_selectivity` not even equal channels. As a second term beside soft targets it rarely hurts; alone it falls behind them,
and between families it may cost accuracy.

Known problems: Scales differ between publications and their code; weights of one do not carry over to the other. Relations of
many channels are matrices of channels squared for every row: take a late stage where memory is short.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from understudy.losses._maps import matched, pair, same_rows, unit

__all__ = ["channel_correlation", "neuron_selectivity", "solution_flow"]


def neuron_selectivity(
    student: Float[Tensor, "batch student_channels student_height student_width"],
    teacher: Float[Tensor, "batch teacher_channels teacher_height teacher_width"],
) -> Float[Tensor, " batch"]:
    """Distance between the sets of patterns that channels react to: MMD^2 with the kernel (x . y)^2 (NST).

    mean_cd (x_c . x_d)^2 + mean_cd (y_c . y_d)^2 - 2 mean_cd (x_c . y_d)^2, where x and y are the channels' maps of the
    student and the teacher, flattened and of length one; the larger map is averaged down to the smaller first, and channels
    may differ. The weight of RepDistiller is 50. CIFAR-100, ResNet-32x4 to ResNet-8x4: 73.30 % (72.50 alone), VGG-13 to
    MobileNetV2: 58.16 (64.60 alone). Huang & Wang 2017, arXiv:1707.01219, section 4.

    >>> neuron_selectivity(torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0]], [[0.0, 5.0]]]]))
    tensor([2.])
    """
    same_rows(student, teacher)
    student, teacher = (unit(each.flatten(2)) for each in matched(*pair(student, teacher)))
    if student.shape[2] <= max(student.shape[1], teacher.shape[1]):  # the same number from [position, position] matrices
        ours, theirs = (each.mT @ each / each.shape[1] for each in (student, teacher))
        return (ours - theirs).square().sum((1, 2))
    return _kernel(student, student) + _kernel(teacher, teacher) - 2 * _kernel(student, teacher)


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return torch.bmm(first, second.mT).square().mean((1, 2))


def channel_correlation(
    student: Float[Tensor, "batch channels student_height student_width"],
    teacher: Float[Tensor, "batch channels teacher_height teacher_width"],
) -> Float[Tensor, " batch"]:
    """Squared difference between the channels' similarities to each other (ICKD-C, inter-channel correlation).

    sum_cd (G_cd - H_cd)^2 / channels, where G and H are the student's and the teacher's products of flattened channels,
    each row divided by its length. Sizes may differ, channels may not. The published weight of 2.5 goes with this
    division, which the authors' code makes; they print 1 / channels^2. One independent reproduction on ImageNet, with the rows
    of a batch divided out twice, got 68.34 where 72.19 is published. Liu et al. 2021, arXiv:2202.03680, section 3.

    >>> channel_correlation(torch.eye(2).reshape(1, 2, 1, 2), torch.ones(1, 2, 1, 2))
    tensor([0.5858])
    """
    same_rows(student, teacher, also="channels")
    ours, theirs = (unit(each.flatten(2) @ each.flatten(2).mT) for each in pair(student, teacher))
    return functional.mse_loss(ours, theirs, reduction="none").sum(2).mean(1)


def solution_flow(
    student: tuple[
        Float[Tensor, "batch channels height width"],
        Float[Tensor, "batch later_channels later_height later_width"],
    ],
    teacher: tuple[
        Float[Tensor, "batch channels teacher_height teacher_width"],
        Float[Tensor, "batch later_channels teacher_later_height teacher_later_width"],
    ],
) -> Float[Tensor, " batch"]:
    """Mean squared difference between how an earlier and a later layer go together (FSP, flow of solution procedure).

    mean_cd (G_cd - H_cd)^2, where G = sum_p earlier_cp later_dp / positions in the student and H the same in the teacher; the
    larger of two maps is averaged down to the smaller first. Each side is (earlier layer, later layer), with the
    channels of both equal. The weight of RepDistiller is 50; it was meant for an initialisation. CIFAR-100, ResNet-32x4
    to ResNet-8x4: 72.62 % (72.50 alone), WRN-40-2 to WRN-16-2: 72.91 (73.26 alone). Yim et al. 2017, A Gift from
    Knowledge Distillation (CVPR), section 3.

    >>> one, two = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    >>> solution_flow((one, one), (one, two))
    tensor([1.])
    """
    for ours, theirs in zip(student, teacher, strict=True):
        same_rows(ours, theirs, also="channels")
    for side in (student, teacher):
        same_rows(*side)
    earlier, earlier_teacher = pair(student[0], teacher[0])
    later, later_teacher = (each.to(earlier.dtype) for each in (student[1], teacher[1]))
    return functional.mse_loss(_flow(earlier, later), _flow(earlier_teacher, later_teacher), reduction="none").mean((1, 2))


def _flow(earlier: Tensor, later: Tensor) -> Tensor:
    earlier, later = (each.flatten(2) for each in matched(earlier, later))
    return earlier @ later.mT / earlier.shape[2]
