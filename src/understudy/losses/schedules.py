"""How an option of a loss changes in training: pure functions from a state to the next. No losses: they take no tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from understudy.errors import InputError

__all__ = ["Interpolation", "adaptive_interpolation"]


@final
@dataclass(frozen=True)
class Interpolation:
    """Where the target of `tokens.interpolated_teacher` stands: all that must be kept between steps."""

    teacher_weight: float = 0.4
    momentum: float = 0.0
    loss: float | None = None


def adaptive_interpolation(
    state: Interpolation,
    loss: float,
    *,
    progress: float,
    start: float = 0.4,
    end: float = 1.0,
    rate: float = 5e-4,
    memory: float = 0.99,
    adaptive: bool = True,
) -> Interpolation:
    """The teacher's weight after a step: faster while the loss falls, and never behind a straight line (TAID).

    w' = min(end, max(line, w + rate * sigmoid(m') * (1 - w))), where line = start + (end - start) * progress, m' = memory * m +
    (1 - memory) * r and r = (l - l') / (l + 1e-15) is how much of the last loss l the new one l' has lost. The first call only
    keeps the loss; with `adaptive=False` the weight is the line. Call it once per step of the optimiser with the mean over
    all processes; `progress` is the share of the steps that are done. Shing et al. 2025, arXiv:2501.16937, section 3.2.

    >>> state = Interpolation(0.4)
    >>> for loss in (2.0, 1.0):
    ...     state = adaptive_interpolation(state, loss, progress=0.1)
    >>> round(state.teacher_weight, 3)
    0.46
    """
    if not (0 <= start <= 1 and 0 <= end <= 1 and 0 <= memory <= 1):
        raise InputError(f"start, end and memory must lie between 0 and 1 (got {start:g}, {end:g} and {memory:g})", code="U301")
    if state.loss is None:
        return Interpolation(state.teacher_weight, state.momentum, loss)
    momentum = memory * state.momentum + (1 - memory) * (state.loss - loss) / (state.loss + 1e-15)
    line = start + (end - start) * progress
    change = rate / (1 + math.exp(-momentum)) * (1 - state.teacher_weight)
    return Interpolation(min(end, max(line, state.teacher_weight + change)) if adaptive else line, momentum, loss)
