"""Forward and backward of every loss on labels, logits and values beside the plainest PyTorch expression of its formula.

    python benchmarks/losses.py

Both in one process, alternating. Prints the medians and the median of the paired ratios for a [256, 100] and a [64, 1000]
batch in float32 on one CPU thread; a ratio above 1.2 is marked, and the exit status is then 1. Losses on labels that may be
missing are set beside an expression that does the same for them, and once beside one that cannot.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from understudy.losses.correlations import correlation, multi_level
from understudy.losses.labels import binary_cross_entropy, cross_entropy, soft_cross_entropy, virtual_teacher
from understudy.losses.logits import (
    binary_soft_target,
    decoupled,
    ensemble_soft_target,
    hard_target,
    logit_mse,
    normalized,
    soft_target,
    standardized,
    teacher_cross_entropy,
    transformed_teacher,
    weighted_soft_label,
    weighted_transformed_teacher,
)
from understudy.losses.regression import smooth_absolute_error, squared_error, teacher_bounded, teacher_squared_error

SHAPES = [(256, 100), (64, 1000)]
LIMIT = 1.2
NO_NAN = "plain without NaN"
SECONDS = 0.6
"""Spent on each line."""
T = 4.0

Loss = Callable[[Tensor], Tensor]
Pair = tuple[Loss, Loss]


def on_labels(labels: Tensor, bits: Tensor) -> dict[str, Pair]:
    """Name -> (ours, plain), each from the student's output to one value per row."""
    soft = bits.softmax(-1)

    def plain_bits(s: Tensor) -> Tensor:
        missing = bits.isnan()
        values = functional.binary_cross_entropy_with_logits(s, bits.masked_fill(missing, 0), reduction="none").mean(-1)
        return values.masked_fill(missing.any(-1), 0)

    def plain_soft(s: Tensor) -> Tensor:
        missing = soft.isnan()
        return functional.cross_entropy(s, soft.masked_fill(missing, 0), reduction="none").masked_fill(missing.any(-1), 0)

    def plain_virtual(s: Tensor) -> Tensor:
        rough = torch.full_like(s, 0.01 / (s.shape[1] - 1)).scatter(1, labels[:, None], 0.99)
        return functional.kl_div(s.log_softmax(-1), (rough.log() / 20).softmax(-1), reduction="none").sum(-1)

    return {
        "labels.cross_entropy": (lambda s: cross_entropy(s, labels), lambda s: functional.cross_entropy(s, labels, reduction="none")),
        "labels.binary_cross_entropy": (lambda s: binary_cross_entropy(s, bits), plain_bits),
        f"labels.binary_cross_entropy, {NO_NAN}": (
            lambda s: binary_cross_entropy(s, bits),
            lambda s: functional.binary_cross_entropy_with_logits(s, bits, reduction="none").mean(-1),
        ),
        "labels.soft_cross_entropy": (lambda s: soft_cross_entropy(s, soft), plain_soft),
        "labels.virtual_teacher": (lambda s: virtual_teacher(s, labels), plain_virtual),
    }


def on_logits(teacher: Tensor, labels: Tensor) -> dict[str, Pair]:
    """Losses of student and teacher."""

    def plain_kl(s: Tensor, t: Tensor) -> Tensor:
        return functional.kl_div(s.log_softmax(-1), t.softmax(-1), reduction="none").sum(-1)

    def plain_binary(s: Tensor) -> Tensor:
        a, b = functional.logsigmoid(s / T), functional.logsigmoid(-s / T)
        c, d = functional.logsigmoid(teacher / T), functional.logsigmoid(-teacher / T)
        return (c.exp() * (c - a) + d.exp() * (d - b)).mean(-1) * T**2

    def plain_centred(s: Tensor) -> Tensor:
        return (((s - s.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))) ** 2).mean(-1)

    def plain_standardized(s: Tensor) -> Tensor:
        a, b = ((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-7) for x in (s, teacher))
        return plain_kl(a / 2, b / 2) * 4

    def plain_weighted(s: Tensor) -> Tensor:
        return (teacher.softmax(-1) ** 0.2).sum(-1) * plain_kl(s, 0.2 * teacher)

    def plain_ensemble(s: Tensor) -> Tensor:
        return torch.stack([plain_kl(s / T, each / T) for each in (teacher, -teacher, teacher / 2)]).mean(0) * T**2

    several = torch.stack([teacher, -teacher, teacher / 2])
    return {
        "logits.soft_target": (lambda s: soft_target(s, teacher, temperature=T), lambda s: plain_kl(s / T, teacher / T) * T**2),
        "logits.binary_soft_target": (lambda s: binary_soft_target(s, teacher, temperature=T), plain_binary),
        "logits.logit_mse": (lambda s: logit_mse(s, teacher), plain_centred),
        "logits.logit_mse, not centred": (
            lambda s: logit_mse(s, teacher, centred=False),
            lambda s: functional.mse_loss(s, teacher, reduction="none").mean(-1),
        ),
        "logits.teacher_cross_entropy": (
            lambda s: teacher_cross_entropy(s, teacher),
            lambda s: -(teacher.softmax(-1) * s.log_softmax(-1)).sum(-1),
        ),
        "logits.hard_target": (
            lambda s: hard_target(s, teacher),
            lambda s: functional.cross_entropy(s, teacher.argmax(-1), reduction="none"),
        ),
        "logits.standardized": (lambda s: standardized(s, teacher), plain_standardized),
        "logits.transformed_teacher": (lambda s: transformed_teacher(s, teacher), lambda s: plain_kl(s, 0.1 * teacher)),
        "logits.weighted_transformed_teacher": (lambda s: weighted_transformed_teacher(s, teacher), plain_weighted),
        "logits.ensemble_soft_target, 3 teachers": (lambda s: ensemble_soft_target(s, several, temperature=T), plain_ensemble),
        **on_logits_and_labels(teacher, labels),
    }


def on_logits_and_labels(teacher: Tensor, labels: Tensor) -> dict[str, Pair]:
    """Losses of student, teacher and labels."""
    at = labels[:, None]
    elsewhere = torch.ones_like(teacher, dtype=torch.bool).scatter(1, at, False)

    def others(x: Tensor) -> Tensor:
        return x[elsewhere].view(len(x), -1)

    def plain_decoupled(s: Tensor) -> Tensor:
        p, q = (x.softmax(-1).gather(1, at) for x in (s / T, teacher / T))
        p, q = (torch.cat([x, 1 - x], 1) for x in (p, q))
        target = (q * (q / p).log()).sum(-1)
        a, b = others(s / T).log_softmax(-1), others(teacher / T).log_softmax(-1)
        return T**2 * (target + 8 * (b.exp() * (b - a)).sum(-1))

    def plain_normalized(s: Tensor) -> Tensor:
        target = teacher.softmax(-1).gather(1, at) * s.log_softmax(-1).gather(1, at)
        return -target.squeeze(1) - 1.5 * (others(teacher).softmax(-1) * others(s).log_softmax(-1)).sum(-1)

    def plain_soft_label(s: Tensor) -> Tensor:
        mine, bound = (functional.cross_entropy(x.detach(), labels, reduction="none") for x in (s, teacher))
        crossed = -((teacher / 2).softmax(-1) * (s / 2).log_softmax(-1)).sum(-1)
        return 4 * (1 - (-mine / (bound + 1e-7)).exp()) * crossed

    return {
        "logits.decoupled": (lambda s: decoupled(s, teacher, labels, temperature=T), plain_decoupled),
        "logits.normalized": (lambda s: normalized(s, teacher, labels), plain_normalized),
        "logits.weighted_soft_label": (lambda s: weighted_soft_label(s, teacher, labels), plain_soft_label),
    }


def on_batches(teacher: Tensor) -> dict[str, Pair]:
    """Losses whose rows know each other; the plain expressions give one number."""

    def pearson(x: Tensor, y: Tensor) -> Tensor:
        return functional.cosine_similarity(x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True), dim=-1, eps=1e-8)

    def plain_correlation(s: Tensor) -> Tensor:
        p, q = s.softmax(-1), teacher.softmax(-1)
        return 2 - pearson(p, q).mean() - pearson(p.T, q.T).mean()

    def plain_levels(s: Tensor) -> Tensor:
        total = s.new_zeros(())
        for heat in (2.0, 4.0):
            p, q = (s / heat).softmax(-1), (teacher / heat).softmax(-1)
            total = total + heat**2 * functional.kl_div((s / heat).log_softmax(-1), q, reduction="batchmean")
            total = total + (p @ p.T - q @ q.T).square().sum() / len(p)
            total = total + (p.T @ p - q.T @ q).square().sum() / p.shape[1]
        return total

    return {
        "correlations.correlation": (lambda s: correlation(s, teacher), plain_correlation),
        "correlations.multi_level, 2 temperatures": (lambda s: multi_level(s, teacher, temperatures=(2.0, 4.0)), plain_levels),
    }


def on_values(teacher: Tensor, values: Tensor) -> dict[str, Pair]:
    """Losses of a regression."""

    def where_known(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
        def plain(s: Tensor) -> Tensor:
            missing = values.isnan()
            return loss(s, values.masked_fill(missing, 0)).masked_fill(missing.any(-1), 0)

        return plain

    def squares(s: Tensor, y: Tensor) -> Tensor:
        return functional.mse_loss(s, y, reduction="none").mean(-1)

    def bounded(s: Tensor, y: Tensor) -> Tensor:
        mine, bound = ((x - y).square().sum(-1) for x in (s, teacher))
        return torch.where(mine > bound, mine, 0.0)

    def smooth(s: Tensor, y: Tensor) -> Tensor:
        return functional.smooth_l1_loss(s, y, reduction="none").mean(-1)

    return {
        "regression.squared_error": (lambda s: squared_error(s, values), where_known(squares)),
        f"regression.squared_error, {NO_NAN}": (lambda s: squared_error(s, values), lambda s: squares(s, values)),
        "regression.smooth_absolute_error": (lambda s: smooth_absolute_error(s, values), where_known(smooth)),
        "regression.teacher_squared_error": (lambda s: teacher_squared_error(s, teacher), lambda s: squares(s, teacher)),
        "regression.teacher_bounded": (lambda s: teacher_bounded(s, teacher, values), where_known(bounded)),
    }


def seconds(loss: Loss, student: Tensor) -> float:
    """Time of one forward and backward."""
    student.grad = None
    start = time.perf_counter()
    loss(student).mean().backward()
    return time.perf_counter() - start


def measured(ours: Loss, plain: Loss, student: Tensor) -> tuple[float, float, float]:
    """Median microseconds of each, and the median ratio of neighbours."""
    leaf = student.clone().requires_grad_()
    torch.testing.assert_close(ours(leaf).mean(), plain(leaf).mean(), rtol=1e-3, atol=1e-5)
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        times.append((seconds(ours, leaf), seconds(plain, leaf)))
    mine, theirs = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return mine, theirs, statistics.median(mine / theirs for mine, theirs in times)


def main() -> int:
    """Print the table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    slow = []
    print(f"torch {torch.__version__}, float32, one CPU thread, medians over {SECONDS} s of alternating rounds, microseconds")
    print(f"{'loss':50} {'shape':>12} {'understudy':>10} {'plain':>10} {'ratio':>6}")
    for rows, classes in SHAPES:
        student, teacher = (torch.randn(rows, classes, generator=generator) * 3 for _ in range(2))
        labels = torch.randint(classes, (rows,), generator=generator)
        bits = (torch.rand(rows, classes, generator=generator) < 0.3).float()
        lines = on_labels(labels, bits) | on_logits(teacher, labels) | on_batches(teacher) | on_values(teacher, bits)
        for name, (ours, plain) in lines.items():
            mine, theirs, ratio = measured(ours, plain, student)
            above = ratio > LIMIT
            slow += [name] if above and NO_NAN not in name else []
            mark = f"  above {LIMIT}" if above else ""
            print(f"{name:50} {f'[{rows}, {classes}]':>12} {mine:10.1f} {theirs:10.1f} {ratio:6.2f}{mark}")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
