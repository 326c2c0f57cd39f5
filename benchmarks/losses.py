"""Forward and backward of every loss beside the plainest PyTorch expression of its formula, in one process, interleaved.

    python benchmarks/losses.py

Prints the medians and their ratio for a [256, 100] and a [64, 1000] batch in float32 on one CPU thread; a ratio above 1.2
is marked, and the exit status is then 1. Losses on labels that may be NaN are set beside an expression that does the same
for missing labels, and once beside one that cannot.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from understudy.losses.labels import binary_cross_entropy, cross_entropy
from understudy.losses.logits import binary_soft_target, logit_mse, soft_target
from understudy.losses.regression import squared_error, teacher_bounded, teacher_squared_error

SHAPES = [(256, 100), (64, 1000)]
LIMIT = 1.2
NO_NAN = "plain without NaN"
ROUNDS = 1001
T = 4.0

Pair = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


def pairs(teacher: Tensor, labels: Tensor, bits: Tensor) -> dict[str, Pair]:
    """Name -> (ours, plain), each from the student's output to one value per row."""
    p = T * T

    def plain_binary(s: Tensor) -> Tensor:
        a, b = functional.logsigmoid(s / T), functional.logsigmoid(-s / T)
        c, d = functional.logsigmoid(teacher / T), functional.logsigmoid(-teacher / T)
        return (c.exp() * (c - a) + d.exp() * (d - b)).mean(-1) * p

    def plain_bounded(s: Tensor) -> Tensor:
        missing = bits.isnan()
        mine, bound = ((a - bits).masked_fill(missing, 0).square().sum(-1) for a in (s, teacher))
        return torch.where((mine > bound) & ~missing.any(-1), mine, 0.0)

    def plain_labels(s: Tensor) -> Tensor:
        missing = bits.isnan()
        values = functional.binary_cross_entropy_with_logits(s, bits.masked_fill(missing, 0), reduction="none").mean(-1)
        return values.masked_fill(missing.any(-1), 0)

    def plain_squares(s: Tensor) -> Tensor:
        missing = bits.isnan()
        values = functional.mse_loss(s, bits.masked_fill(missing, 0), reduction="none").mean(-1)
        return values.masked_fill(missing.any(-1), 0)

    def plain_soft(s: Tensor) -> Tensor:
        log_student, target = functional.log_softmax(s / T, -1), functional.softmax(teacher / T, -1)
        return functional.kl_div(log_student, target, reduction="none").sum(-1) * p

    def plain_centred(s: Tensor) -> Tensor:
        return (((s - s.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))) ** 2).mean(-1)

    return {
        "labels.cross_entropy": (lambda s: cross_entropy(s, labels), lambda s: functional.cross_entropy(s, labels, reduction="none")),
        "labels.binary_cross_entropy": (lambda s: binary_cross_entropy(s, bits), plain_labels),
        f"labels.binary_cross_entropy, {NO_NAN}": (
            lambda s: binary_cross_entropy(s, bits),
            lambda s: functional.binary_cross_entropy_with_logits(s, bits, reduction="none").mean(-1),
        ),
        "logits.soft_target": (lambda s: soft_target(s, teacher, temperature=T), plain_soft),
        "logits.binary_soft_target": (lambda s: binary_soft_target(s, teacher, temperature=T), plain_binary),
        "logits.logit_mse": (lambda s: logit_mse(s, teacher), plain_centred),
        "logits.logit_mse, not centred": (
            lambda s: logit_mse(s, teacher, centred=False),
            lambda s: functional.mse_loss(s, teacher, reduction="none").mean(-1),
        ),
        "regression.squared_error": (lambda s: squared_error(s, bits), plain_squares),
        f"regression.squared_error, {NO_NAN}": (
            lambda s: squared_error(s, bits),
            lambda s: functional.mse_loss(s, bits, reduction="none").mean(-1),
        ),
        "regression.teacher_squared_error": (
            lambda s: teacher_squared_error(s, teacher),
            lambda s: functional.mse_loss(s, teacher, reduction="none").mean(-1),
        ),
        "regression.teacher_bounded": (lambda s: teacher_bounded(s, teacher, bits), plain_bounded),
    }


def seconds(loss: Callable[[Tensor], Tensor], student: Tensor) -> float:
    """Time of one forward and backward."""
    student.grad = None
    start = time.perf_counter()
    loss(student).mean().backward()
    return time.perf_counter() - start


def main() -> int:
    """Print the table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    slow = 0
    print(f"torch {torch.__version__}, float32, one CPU thread, medians of {ROUNDS} alternating rounds, microseconds")
    print(f"{'loss':48} {'shape':>12} {'understudy':>10} {'plain':>10} {'ratio':>6}")
    for rows, classes in SHAPES:
        student, teacher = (torch.randn(rows, classes, generator=generator) * 3 for _ in range(2))
        labels = torch.randint(classes, (rows,), generator=generator)
        bits = (torch.rand(rows, classes, generator=generator) < 0.3).float()
        for name, (ours, plain) in pairs(teacher, labels, bits).items():
            leaf = student.clone().requires_grad_()
            torch.testing.assert_close(ours(leaf), plain(leaf), rtol=1e-4, atol=1e-5)
            times = [(seconds(ours, leaf), seconds(plain, leaf)) for _ in range(ROUNDS)]
            mine, theirs = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
            above = mine > LIMIT * theirs
            slow += above and NO_NAN not in name
            mark = f"  above {LIMIT}" if above else ""
            print(f"{name:48} {f'[{rows}, {classes}]':>12} {mine:10.1f} {theirs:10.1f} {mine / theirs:6.2f}{mark}")
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
