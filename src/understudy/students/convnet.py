"""Small convolutional networks: the student for images, from 8x8 pixels up."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from understudy.students._seeding import seeded


def convnet(
    channels: int,
    outputs: int,
    *,
    size: tuple[int, int],
    width: int = 16,
    depth: int = 3,
    dropout: float = 0.0,
    norm: Literal["batch", "group", "none"] = "batch",
    separable: bool = False,
    seed: int | None = None,
) -> nn.Sequential:
    """A network [rows, channels, height, width] -> [rows, outputs]; its initial weights depend on `seed` alone, if given.

    `depth` stages of two 3x3 convolutions, each stage twice as wide and half as high as the one before it (while at
    least 2x2 is left of `size`), then a global average and one linear layer. `separable` splits all but the first
    convolution into depthwise and pointwise (MobileNet, Howard et al. 2017, arXiv:1704.04861).

    >>> sum(weight.numel() for weight in convnet(1, 10, size=(8, 8), width=8).parameters())
    18482
    """
    smaller = min(size)
    stages: OrderedDict[str, nn.Module] = OrderedDict()
    with seeded(seed):
        before = channels
        for stage in range(depth):
            after = width * 2**stage
            layers = [*_block(before, after, norm, separable and stage > 0), *_block(after, after, norm, separable)]
            if stage < depth - 1 and smaller >= 4:
                layers.append(nn.MaxPool2d(2))
                smaller //= 2
            stages[f"stage{stage + 1}"] = nn.Sequential(*layers)
            before = after
        stages["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        if dropout:
            stages["dropout"] = nn.Dropout(dropout)
        stages["head"] = nn.Linear(before, outputs)
    return nn.Sequential(stages)


def _block(before: int, after: int, norm: str, separable: bool) -> list[nn.Module]:
    """3x3 convolution, normalisation, ReLU."""
    bias = norm == "none"  # a normalisation brings its own shift
    if separable:
        convolution = [nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False), nn.Conv2d(before, after, 1, bias=bias)]
    else:
        convolution = [nn.Conv2d(before, after, 3, padding=1, bias=bias)]
    return [*convolution, *_norm(norm, after), nn.ReLU()]


def _norm(norm: str, channels: int) -> list[nn.Module]:
    if norm == "none":
        return []
    return [nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(max(1, channels // 8) if channels % 8 == 0 else 1, channels)]
