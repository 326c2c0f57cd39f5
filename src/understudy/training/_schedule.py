"""When the learning rate is what, and which rows come when: pure functions of progress, seed and epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from understudy.sections import OptimizerSection


def rate_factor(progress: float, options: OptimizerSection) -> float:
    """What the learning rate is multiplied by after this fraction of training, 0 to 1.

    >>> [round(rate_factor(p, OptimizerSection(warmup=0.2)), 3) for p in (0.1, 0.2, 0.6, 1.0)]
    [0.5, 1.0, 0.5, 0.0]
    """
    if progress < options.warmup:
        return progress / options.warmup
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "steps":
        return 0.1 ** sum(progress >= step for step in options.steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (progress - options.warmup) / (1.0 - options.warmup))))


def progress_of(step: int, per_epoch: int, options: OptimizerSection, seconds: float) -> float:
    """The fraction of training that is behind us in the middle of this step, by steps or, under `max_time`, by the clock.

    The first epoch is always finished, so a budget shorter than it counts as exactly one epoch.
    """
    progress = (step + 0.5) / (per_epoch * options.epochs)
    if options.max_time is None:
        return progress
    by_clock = seconds / options.max_time
    if step < per_epoch:
        by_clock = min(by_clock, (step + 0.5) / per_epoch)
    return max(progress, min(by_clock, 1.0))


def row_order(rows: int, seed: int, epoch: int) -> Tensor:
    """The rows of an epoch in their order, int64 [rows]; the same for a student and its control."""
    return torch.randperm(rows, generator=generator(seed, epoch))


def view_order(rows: int, views: int, seed: int, epoch: int) -> Tensor:
    """The view in which each row is seen in this epoch, int64 [rows], drawn anew from all of them in each."""
    return torch.randint(views, (rows,), generator=generator(seed, -1 - epoch))


def generator(seed: int, epoch: int) -> torch.Generator:
    """Random numbers for one epoch; nearby seeds and epochs share nothing."""
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch * 7_919 + 12_345) % 2**63)


def steps_of(order: Tensor, batch_size: int, accumulate: int) -> list[Sequence[Tensor]]:
    """An epoch's rows as optimizer steps of up to `accumulate` batches each.

    A last batch of one row joins the one before it: batch normalisation cannot train on a single row.

    >>> [[len(batch) for batch in step] for step in steps_of(torch.arange(9), 2, 2)]
    [[2, 2], [2, 3]]
    """
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 and batch_size > 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]
