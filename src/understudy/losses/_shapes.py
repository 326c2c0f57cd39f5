"""What every loss does first: refuse shapes that torch would broadcast in silence, and go to a precise dtype.

The student decides the dtype: float64 stays float64, everything else is computed in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from understudy.errors import InputError


def same_shape(student: Tensor, other: Tensor, name: str) -> None:
    """Refuse a teacher or labels whose shape is not the student's."""
    if student.shape != other.shape:
        raise InputError(
            f"student and {name} must have one shape: student is {list(student.shape)}, {name} is {list(other.shape)}. "
            "Nothing is broadcast here; reshape one of them",
            code="U073",
        )


def positive(name: str, value: float | Tensor) -> None:
    """Refuse a temperature or scale that is not above zero."""
    if not value > 0:
        raise InputError(f"{name} must be > 0 (got {value:g})", code="U073")


def precise(student: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 if they are float64 already."""
    return student if student.dtype == torch.float64 else student.float()


def labelled(student: Tensor, labels: Tensor) -> None:
    """Refuse anything but student [rows, classes] with one class index per row."""
    if student.ndim != 2 or labels.shape != student.shape[:1] or labels.is_floating_point():
        raise InputError(
            f"this loss reads student [rows, classes] and one class index per row: student is {list(student.shape)}, "
            f"labels are {labels.dtype} {list(labels.shape)}",
            code="U073",
        )
