"""What losses between layers share: rows that belong together, maps of one size, vectors of length one.

A vector of length 0 stays 0 and gets no gradient, where a plain division would send one of any size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from understudy.errors import InputError
from understudy.losses._shapes import precise

SHORTEST = 1e-12
"""A vector shorter than this counts as zero."""


def same_rows(student: Tensor, teacher: Tensor, *, also: str = "") -> None:
    """Refuse two tensors of other rows; `also = "channels"` compares dimension 1 too."""
    dimensions = 2 if also else 1
    if student.shape[:dimensions] != teacher.shape[:dimensions] or student.ndim != teacher.ndim:
        needed = f"the same rows and {also}" if also else "the same rows"
        raise InputError(
            f"student and teacher must have {needed} and as many dimensions: student is {list(student.shape)}, "
            f"teacher is {list(teacher.shape)}. Give both the same rows" + (f"; a connector makes the {also} equal" if also else ""),
            code="U310",
        )


def one_per_channel(student: Tensor, given: Tensor, name: str) -> None:
    """Refuse anything but one number per channel of the student."""
    if given.shape != student.shape[1:2]:
        raise InputError(
            f"{name} must hold one number per channel: student has {student.shape[1]} channels, {name} is {list(given.shape)}",
            code="U311",
        )


def masked_like(mask: Tensor | None, wanted: tuple[int, ...], what: str) -> None:
    """Refuse a mask of another shape or of numbers."""
    if mask is not None and (tuple(mask.shape) != wanted or mask.dtype != torch.bool):
        raise InputError(
            f"mask must be true or false for {what}, {list(wanted)}: it is {list(mask.shape)} of {str(mask.dtype).removeprefix('torch.')}. "
            "Give mask.bool(), true where there is something to learn from",
            code="U312",
        )


def pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the student's precise dtype."""
    student = precise(student)
    return student, teacher.to(student.dtype)


def matched(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps, the larger one averaged down to the size of the smaller one."""
    height, width = (min(sizes) for sizes in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return _pooled(student, height, width), _pooled(teacher, height, width)


def _pooled(maps: Tensor, height: int, width: int) -> Tensor:
    return maps if maps.shape[2:] == (height, width) else functional.adaptive_avg_pool2d(maps, (height, width))


def unit(vectors: Tensor, dim: int = -1) -> Tensor:
    """The vectors along a dimension, divided by their length."""
    lengths = torch.linalg.vector_norm(vectors, dim=dim, keepdim=True)
    return vectors / lengths.masked_fill(lengths <= SHORTEST, torch.inf)
