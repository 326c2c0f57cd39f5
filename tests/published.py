"""Reading tests/golden, and what of it a computation misses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"

Case = dict[str, Tensor]


@dataclass(frozen=True)
class Published:
    """How a golden file is computed here: from its student input and the whole case to its `loss<suffix>`."""

    compute: Callable[[Tensor, Case], Tensor]
    student: str = "student_logits"
    suffix: str = ""
    file: str = ""
    """The file, where one has several entries; the entry's name otherwise."""


def cases(name: str) -> list[Case]:
    """The arrays of each case of a file, without their case number."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as held:
        found: list[Case] = [{} for _ in range(int(held["n_cases"]))]
        for key in held.files:
            stem, _, number = key.rpartition("_")
            if number.isdigit() and held[key].dtype.kind in "fi":
                found[int(number)][stem] = torch.from_numpy(held[key])
    return found


def misses(name: str, entry: Published, *, rtol: float = 1e-9) -> list[str]:
    """The cases whose value or gradient differs by more than `rtol`."""
    found = []
    for number, case in enumerate(cases(entry.file or name)):
        student = case[entry.student].clone().requires_grad_()
        value = entry.compute(student, case)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        wanted = {"value": case[f"loss{entry.suffix}"], "gradient": case[f"grad_student{entry.suffix}"]}
        for what, here in (("value", value), ("gradient", gradient)):
            there = wanted[what]
            scale = max(1.0, float(there.abs().max()))
            if not torch.allclose(here.detach(), there, rtol=rtol, atol=rtol / 100 * scale):
                worst = float((here.detach() - there).abs().max())
                found.append(f"case {number}: {what} differs by {worst:.2g}")
    return found


def not_finite(name: str, entry: Published, dtype: torch.dtype) -> list[str]:
    """The cases whose value or gradient is not finite when every number comes in this dtype."""
    found = []
    for number, case in enumerate(cases(entry.file or name)):
        low = {key: value.to(dtype) if value.is_floating_point() and value.ndim else value for key, value in case.items()}
        student = low[entry.student].clone().requires_grad_()
        value = entry.compute(student, low)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        if not (value.isfinite().all() and gradient.isfinite().all()):
            found.append(f"case {number}")
    return found
