"""One row through a decision tree: the exported file in onnxruntime beside scikit-learn's own predict_proba.

    python benchmarks/tree_latency.py

256 leaves, 20 columns of plain numbers, 6 classes, one thread, one process, interleaved; microseconds per row at batch 1 and
256, of the fastest block, which a busy machine disturbs least. skl2onnx's file of the same tree is a third column. The exit
status is 1 when the exported file takes more than 15 microseconds at batch 1, or its answers differ from scikit-learn's.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skl2onnx
import torch
from torch import nn

from understudy.exporting._graphs import open_session, to_onnx
from understudy.students.student import Student
from understudy.students.trees import tree
from understudy.tasks import Task

LIMIT = 15.0
LEAVES, COLUMNS, CLASSES = 256, 20, 6
BLOCKS = 41


def models(folder: Path) -> dict[str, Callable[[Any], Any]]:
    """Name -> what answers float32 rows with probabilities; all three are one fitted tree."""
    rng = np.random.default_rng(0)
    rows, codes = rng.normal(size=(5000, COLUMNS)).astype(np.float32), rng.integers(0, CLASSES, 5000)
    task = Task("multiclass", tuple("abcdef"))
    fitted = tree(task, leaves=LEAVES).fit(rows, codes)
    to_onnx(Student("tree", task, preprocessing=nn.Identity(), estimator=fitted), torch.from_numpy(rows[:2]), folder / "ours.onnx")
    converted = skl2onnx.to_onnx(fitted, rows[:1], options={"zipmap": False})
    (folder / "skl2onnx.onnx").write_bytes(converted.SerializeToString())
    ours, theirs = open_session(folder / "ours.onnx"), open_session(folder / "skl2onnx.onnx")
    names = ["probabilities"]
    return {
        "exported": lambda some: ours.run(names, {"rows": some})[0],
        "skl2onnx": lambda some: theirs.run(names, {"X": some})[0],
        "scikit-learn": fitted.predict_proba,
    }


def microseconds(asked: dict[str, Callable[[Any], Any]], some: Any, repeats: int) -> dict[str, float]:
    """The time per row in the fastest block; the models take turns."""
    times: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(BLOCKS):
        for name, ask in asked.items():
            start = time.perf_counter()
            for _ in range(repeats):
                ask(some)
            times[name].append((time.perf_counter() - start) / repeats / len(some) * 1e6)
    return {name: min(taken) for name, taken in times.items()}


def main() -> int:
    """Print the figures; gives the exit status."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        asked = models(Path(folder))
        many = rng.normal(size=(256, COLUMNS)).astype(np.float32)
        difference = float(np.abs(asked["exported"](many) - asked["scikit-learn"](many)).max())
        print(f"{'microseconds per row':<22}" + "".join(f"{name:>14}" for name in asked) + f"{'ratio':>10}")
        first = 0.0
        for some, repeats in ((many[:1].copy(), 200), (many, 20)):
            taken = microseconds(asked, some, repeats)
            ratio = taken["scikit-learn"] / taken["exported"]
            print(f"batch {len(some):<16}" + "".join(f"{value:>14.2f}" for value in taken.values()) + f"{ratio:>9.1f}x")
            first = first or taken["exported"]
    print(f"largest difference of a probability: {difference:.1e}")
    return int(first > LIMIT or difference > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
