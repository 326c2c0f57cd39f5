"""Definitions by hand of losses on what a transfer set keeps of an answer: one row at a time."""

from __future__ import annotations

import math

import torch
from definitions import CLASSES, LOGITS, Definition, Kind, normal
from torch import Tensor

KEPT = 2


def columns(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of a top-k store, of one draw of logits, so that they belong together."""
    logs = normal(7, rows, CLASSES).log_softmax(-1)
    top, ids = logs.topk(KEPT, dim=-1)
    rest = logs.scatter(1, ids, -math.inf)
    return ids, top, torch.stack([(rest / temperature).logsumexp(-1) for temperature in (1.0, 2.0, 4.0)], 1)


IDS = Kind(lambda seed, rows, dtype: columns(rows)[0], anything=False)
TOP = Kind(lambda seed, rows, dtype: columns(rows)[1].to(dtype), anything=False)
TAIL = Kind(lambda seed, rows, dtype: columns(rows)[2].to(dtype), anything=False)


def even(student: list[float], ids: list[int], top: list[float], tail: list[float]) -> float:
    """The answer made whole again at T = 2, and the KL between the two, class by class."""
    others = CLASSES - KEPT
    whole = [math.exp(tail[1]) / others] * CLASSES
    for at, value in zip(ids, top, strict=True):
        whole[at] = math.exp(value / 2)
    q = [value / sum(whole) for value in whole]
    p = [math.exp(value / 2) for value in student]
    p = [value / sum(p) for value in p]
    return 4 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))


def says_it(ids: Tensor, top: Tensor, tail: Tensor) -> Tensor:
    """The student that says what is stored."""
    others = CLASSES - KEPT
    return (2 * (tail[:, 1:2] - math.log(others))).expand(-1, CLASSES).contiguous().scatter(1, ids, top)


DEFINITIONS = {
    "stored.top_soft_target": Definition(
        even, (IDS, TOP, TAIL), LOGITS, {"temperature": 2.0}, least_at=says_it, shift_changes_nothing=True
    ),
}
"""Place of a loss -> its definition."""
