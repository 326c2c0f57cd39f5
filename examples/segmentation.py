"""Segmentation: a teacher, a control and a student of it on synthetic shapes, by channel-wise distillation and pixel-wise soft targets.

Run it as `python examples/segmentation.py`: circles, squares and crosses on noisy ground, four classes for every pixel, mean
intersection over union on held-out pictures. What a recipe does for rows, `understudy.train` does here for answers with a place
for every pixel; a control without the teacher stands beside the student, with the same start, rows and steps.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from torch import Tensor, nn

from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.tasks import Task
from understudy.training.gradient import TrainingSet, train

SHAPES = Task("multiclass", ("ground", "circle", "square", "cross"))


def shapes(count: int, *, size: int = 24, seed: int = 0, noise: float = 0.35) -> tuple[Tensor, Tensor]:
    """Grey pictures [count, 1, size, size] with two shapes each, and the class of every pixel [count, size, size]."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    for _ in range(2):
        kind = torch.randint(1, 4, (count, 1, 1), generator=draw)
        radius = torch.randint(size // 8, size // 4, (count, 1, 1), generator=draw)
        middle = torch.randint(size // 4, size - size // 4, (2, count, 1, 1), generator=draw)
        down, across = (rows - middle[0]).abs(), (columns - middle[1]).abs()
        circle = down**2 + across**2 <= radius**2
        square = torch.maximum(down, across) <= radius * 4 // 5
        cross = (torch.minimum(down, across) <= radius // 3) & (torch.maximum(down, across) <= radius)
        inside = torch.where(kind == 1, circle, torch.where(kind == 2, square, cross))
        labels = torch.where(inside, kind, labels)
    pictures = (labels > 0).float() + noise * torch.randn(count, size, size, generator=draw)
    return pictures[:, None], labels


def network(width: int, depth: int, seed: int) -> nn.Sequential:
    """3x3 convolutions that see further with depth, and a class for every pixel."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for number in range(depth):
        reach = 2 ** min(number, 3)
        enter = 1 if number == 0 else width
        layers += [
            nn.Conv2d(enter, width, 3, padding=reach, dilation=reach, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Conv2d(width, SHAPES.outputs, 1))


def mean_intersection_over_union(answers: Tensor, labels: Tensor) -> float:
    """Mean over classes of: pixels that are of a class and said to be, of those that are or are said to be.

    >>> answers = torch.tensor([[[[1.0, 1.0]], [[0.0, 2.0]], [[0.0, 0.0]], [[0.0, 0.0]]]])
    >>> mean_intersection_over_union(answers, torch.tensor([[[0, 0]]]))
    0.25
    """
    said = answers.argmax(1)
    parts = []
    for number in range(SHAPES.outputs):
        either = ((said == number) | (labels == number)).sum()
        if either:
            parts.append(((said == number) & (labels == number)).sum() / either)
    return float(torch.stack(parts).mean())


def taught(
    width: int, depth: int, terms: list[tuple[str, float, dict[str, float]]], data: TrainingSet, epochs: int, seed: int
) -> nn.Module:
    """A network trained on these terms beside the labels."""
    module = network(width, depth, seed)
    objective = Objective.from_terms([("dense.pixel_cross_entropy", 1.0, {}), *terms], SHAPES)
    options = OptimizerSection(epochs=epochs, batch_size=32, lr=5e-3, device="cpu")
    train(module, objective, data, task=SHAPES, options=options, seed=seed, progress=False)
    return module.eval()


def compared(*, train_rows: int = 256, test_rows: int = 256, epochs: int = 20, seeds: int = 3, width: int = 4) -> dict[str, list[float]]:
    """Mean intersection over union on held-out pictures: of the teacher, and of controls and students of each seed."""
    pictures, labels = shapes(train_rows, seed=1)
    plain = TrainingSet(pictures, labels, None, {})
    more, more_labels = shapes(4 * train_rows, seed=3)
    teacher = taught(24, 5, [], TrainingSet(more, more_labels, None, {}), epochs, seed=0)  # it has seen more pictures than its students
    held_out, truth = shapes(test_rows, seed=2)
    with torch.no_grad():
        heard = TrainingSet(pictures, labels, None, {"logits": teacher(pictures)})
    ways: dict[str, tuple[list[tuple[str, float, dict[str, float]]], TrainingSet]] = {
        "control": ([], plain),
        "channels": ([("dense.channel_distribution", 3.0, {"temperature": 4.0})], heard),
        "pixels": ([("dense.pixel_soft_target", 2.0, {"temperature": 2.0})], heard),
        "both": ([("dense.channel_distribution", 3.0, {}), ("dense.pixel_soft_target", 2.0, {"temperature": 2.0})], heard),
    }
    found: dict[str, list[float]] = {"teacher": []}
    with torch.no_grad():
        found["teacher"].append(mean_intersection_over_union(teacher(held_out), truth))
    for name, (terms, data) in ways.items():
        for seed in range(seeds):
            student = taught(width, 3, terms, data, epochs, seed=10 + seed)
            with torch.no_grad():
                found.setdefault(name, []).append(mean_intersection_over_union(student(held_out), truth))
    return found


def main() -> None:
    """Print the figures, as lines or as JSON."""
    given = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, default in (("train-rows", 256), ("test-rows", 256), ("epochs", 20), ("seeds", 3), ("width", 4)):
        given.add_argument(f"--{name}", type=int, default=default)
    given.add_argument("--json", action="store_true")
    options = vars(given.parse_args())
    as_json = options.pop("json")
    found = compared(**options)
    if as_json:
        print(json.dumps(found))
        return
    for name, values in found.items():
        spread = f" (deviation {statistics.stdev(values):.3f}, {len(values)} seeds)" if len(values) > 1 else ""
        print(f"{name:<9} mean IoU {statistics.mean(values):.3f}{spread}")


if __name__ == "__main__":
    main()
