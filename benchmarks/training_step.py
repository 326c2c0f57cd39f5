"""A step of `train` beside the same step written by hand in plain PyTorch: same tensors, same loss, same fused AdamW.

    python benchmarks/training_step.py

Whole trainings of both are interleaved, both gather their batches, and the ratio of each round is printed as a median
over the rounds. Limits: 1.10 for an MLP 64-128-10 on batches of 128, 1.03 for a convnet step of 10 ms or more; the
exit status is 1 above them.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.students.convnet import convnet
from understudy.students.mlp import mlp
from understudy.tasks import Task
from understudy.training.gradient import TrainingSet, train

TASK = Task("multiclass", tuple("0123456789"))
BATCH, TEMPERATURE, ALPHA = 128, 4.0, 0.9


def by_hand(module: nn.Module, inputs: Tensor, labels: Tensor, teacher: Tensor, epochs: int) -> float:
    """Seconds per step of the loop that a user would write."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(inputs) // BATCH))
    start = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(inputs)).split(BATCH):
            logits, said = module(inputs[rows]), teacher[rows]
            hard = functional.cross_entropy(logits, labels[rows])
            log_student = functional.log_softmax(logits / TEMPERATURE, 1)
            soft = functional.kl_div(log_student, functional.softmax(said / TEMPERATURE, 1), reduction="batchmean")
            loss = (1 - ALPHA) * hard + ALPHA * TEMPERATURE**2 * soft
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return (time.perf_counter() - start) / (epochs * (len(inputs) // BATCH))


def compare(name: str, build: Callable[[], nn.Module], inputs: Tensor, *, epochs: int, rounds: int, limit: float) -> bool:
    """Print the medians and their paired ratio; whether the limit is kept."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (len(inputs),), generator=draw)
    teacher = torch.randn(len(inputs), 10, generator=draw)
    data = TrainingSet(inputs, labels, None, {"logits": teacher})
    objective = Objective.soft_labels(alpha=ALPHA, temperature=TEMPERATURE, task=TASK)
    options = OptimizerSection(epochs=epochs, batch_size=BATCH, lr=1e-3, device="cpu")
    hand, ours = [], []
    for turn in range(rounds + 1):
        pair: dict[str, float] = {}
        for who in ("hand", "ours") if turn % 2 else ("ours", "hand"):
            gc.collect()
            module = build()
            if who == "hand":
                pair[who] = by_hand(module, inputs, labels, teacher, epochs)
            else:
                done = train(module, objective, data, task=TASK, options=options, seed=0, progress=False)
                pair[who] = done.seconds / done.steps
        if turn:  # the first round warms up
            hand.append(pair["hand"])
            ours.append(pair["ours"])
    ratio = statistics.median(one / other for one, other in zip(ours, hand, strict=True))
    mark = "" if ratio <= limit else f"  ABOVE {limit}"
    times = f"by hand {statistics.median(hand) * 1e3:7.3f} ms   ours {statistics.median(ours) * 1e3:7.3f} ms"
    print(f"{name:24} {times}   ratio {ratio:.3f}{mark}")
    return ratio <= limit


def main() -> int:
    """A small step, which shows every overhead, and a larger one."""
    """Print the figures; 1 when a claim does not hold."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(1)
    rows, images = torch.rand(12_800, 64, generator=draw), torch.rand(2_560, 1, 12, 12, generator=draw)
    small = compare("MLP 64-128-10", lambda: mlp(64, 10, seed=0), rows, epochs=1, rounds=81, limit=1.10)
    large = compare(
        "convnet 12x12, width 8", lambda: convnet(1, 10, size=(12, 12), width=8, seed=0), images, epochs=1, rounds=15, limit=1.03
    )
    return 0 if small and large else 1


if __name__ == "__main__":
    sys.exit(main())
