"""Small networks for sound: features [rows, mels + 1, frames] with a mask as their last channel -> an answer per clip or per frame.

Padding takes no part: it is zero after every layer and left out of every mean. With `frames`, there is an answer for every second
frame, [rows, (frames + 1) // 2, outputs], whose last output is the blank, certain after a clip's end. Each function takes the
number of mels and of outputs. Adding one: a body [rows, channels, frames] -> [rows, channels', frames'] here, a line in make.py.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from understudy.signals import CERTAIN
from understudy.students._seeding import seeded


def convnet(
    mels: int,
    outputs: int,
    *,
    width: int = 32,
    depth: int = 4,
    kernel: int = 9,
    dropout: float = 0.0,
    causal: bool = False,
    frames: bool = False,
    seed: int | None = None,
) -> nn.Module:
    """Separable convolutions along time, with a way around each pair (as MatchboxNet, Majumdar & Ginsburg 2020, arXiv:2004.08531).

    With `causal` a frame hears what came before it and nothing after, so that a stream is answered as it comes.

    >>> sum(weight.numel() for weight in convnet(40, 10, width=48).parameters()) < 50_000
    True
    """
    with seeded(seed):
        blocks: list[nn.Module] = [_Separable(width, kernel, dropout, causal=causal) for _ in range(depth)]
        return _Network(_Start(mels, width, causal=causal), blocks, nn.Linear(width, outputs), frames=frames)


def recurrent(
    mels: int, outputs: int, *, width: int = 96, depth: int = 2, dropout: float = 0.1, frames: bool = False, seed: int | None = None
) -> nn.Module:
    """Convolutions that halve the frames, then gated recurrent units in both directions, `width` in each.

    >>> recurrent(40, 10, width=8)(torch.zeros(2, 41, 30)).shape
    torch.Size([2, 10])
    """
    with seeded(seed):
        blocks: list[nn.Module] = [_Separable(width, 9, dropout), _Recurrent(width, width, depth, dropout)]
        return _Network(_Start(mels, width), blocks, nn.Linear(2 * width, outputs), frames=frames)


def transformer(
    mels: int,
    outputs: int,
    *,
    width: int = 96,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.1,
    frames: bool = False,
    seed: int | None = None,
) -> nn.Module:
    """Convolutions that halve the frames and tell their order, then self-attention that looks at no padding.

    >>> transformer(40, 10, width=8, heads=2)(torch.zeros(2, 41, 30)).shape
    torch.Size([2, 10])
    """
    with seeded(seed):
        blocks: list[nn.Module] = [_Separable(width, 9, dropout), *(_Attention(width, heads, dropout) for _ in range(depth))]
        return _Network(_Start(mels, width), blocks, nn.Linear(width, outputs), frames=frames)


@final
class _Network(nn.Module):
    """The start, blocks that keep the frames, and a linear layer on each frame or on the mean of those that count."""

    ended: Tensor

    def __init__(self, start: nn.Module, blocks: list[nn.Module], head: nn.Linear, *, frames: bool) -> None:
        super().__init__()
        self.start, self.head, self.frames = start, head, frames
        self.register_buffer("ended", torch.tensor([0.0] * (head.out_features - 1) + [CERTAIN]), persistent=False)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, features: Tensor) -> Tensor:
        mask = features[:, -1:]
        values = self.start(features[:, :-1])
        mask = mask[:, :, ::2]
        values = values * mask
        for block in self.blocks:
            values = block(values, mask) * mask
        if self.frames:
            return torch.where(mask.transpose(1, 2) > 0, self.head(values.transpose(1, 2)), self.ended)
        answer: Tensor = self.head(values.sum(2) / mask.sum(2).clamp(min=1))
        return answer


@final
class _Start(nn.Module):
    """A convolution over all mels that keeps every second frame."""

    def __init__(self, mels: int, width: int, *, causal: bool = False) -> None:
        super().__init__()
        self.before = 4 if causal else 0
        around = 0 if causal else 2
        self.layers = nn.Sequential(nn.Conv1d(mels, width, 5, stride=2, padding=around, bias=False), nn.BatchNorm1d(width), nn.ReLU())

    def forward(self, values: Tensor) -> Tensor:
        answer: Tensor = self.layers(_earlier(values, self.before))
        return answer


@final
class _Separable(nn.Module):
    """Depthwise along time, pointwise across channels, and what came in added."""

    def __init__(self, width: int, kernel: int, dropout: float, *, causal: bool = False) -> None:
        super().__init__()
        self.before = kernel - 1 if causal else 0
        self.along = nn.Conv1d(width, width, kernel, padding=0 if causal else kernel // 2, groups=width, bias=False)
        self.across = nn.Sequential(nn.Conv1d(width, width, 1, bias=False), nn.BatchNorm1d(width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        return self.dropout(torch.relu(values + self.across(self.along(_earlier(values, self.before)))))


def _earlier(values: Tensor, frames: int) -> Tensor:
    """With so many frames of zeros in front."""
    return nn.functional.pad(values, (frames, 0)) if frames else values


@final
class _Recurrent(nn.Module):
    """Gated recurrent units in both directions."""

    def __init__(self, before: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.units = nn.GRU(before, width, depth, batch_first=True, bidirectional=True, dropout=dropout if depth > 1 else 0.0)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        answer: Tensor = self.units(values.transpose(1, 2))[0]
        return answer.transpose(1, 2)


@final
class _Attention(nn.Module):
    """One layer of a transformer's encoder, normalised first."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asked, self.told = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        steps = values.transpose(1, 2)
        rows, frames, width = steps.shape
        query, key, value = self.asked(self.before(steps)).reshape(rows, frames, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = (mask[:, None] > 0).expand(-1, 1, frames, -1)
        heard = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        steps = steps + self.dropout(self.told(heard.transpose(1, 2).reshape(rows, frames, width)))
        steps = steps + self.dropout(self.wide(self.after(steps)))
        return steps.transpose(1, 2)
