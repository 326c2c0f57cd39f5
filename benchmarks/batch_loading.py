"""A batch of 256 rows from a TrainingSet beside two bare gathers from NumPy memory maps: inputs and teacher's logits.

    python benchmarks/batch_loading.py

Interleaved, the same random rows for both; the median of the paired ratios is printed for inputs of bytes and of
float32, with 100 classes and 50,000 rows. The exit status is 1 above 1.5.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy.training.gradient import TrainingSet

ROWS, WIDTH, CLASSES, BATCH, ROUNDS, LIMIT = 50_000, 784, 100, 256, 1001, 1.5


def mapped(folder: Path, name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array as a read-only memory map."""
    np.save(folder / name, array)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def compare(inputs: np.ndarray[Any, Any], logits: np.ndarray[Any, Any]) -> bool:
    """Print the medians and their paired ratio; whether the limit is kept."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        data = TrainingSet(torch.from_numpy(inputs), None, None, {"logits": torch.from_numpy(logits)})
    draw = np.random.default_rng(0)
    bare: list[float] = []
    ours: list[float] = []
    for turn in range(ROUNDS):
        rows = draw.integers(0, ROWS, BATCH)
        positions = torch.from_numpy(rows)
        for who in ("bare", "ours") if turn % 2 else ("ours", "bare"):
            start = time.perf_counter()
            if who == "bare":
                _ = inputs[rows], logits[rows]
            else:
                _ = data.batch(positions)
            (bare if who == "bare" else ours).append(time.perf_counter() - start)
    ratio = statistics.median(one / other for one, other in zip(ours[20:], bare[20:], strict=True))
    mark = "" if ratio <= LIMIT else f"  ABOVE {LIMIT}"
    times = f"two gathers {statistics.median(bare) * 1e6:6.0f} us   TrainingSet.batch {statistics.median(ours) * 1e6:6.0f} us"
    print(f"{inputs.dtype!s:8} {times}   ratio {ratio:.2f}{mark}")
    return ratio <= LIMIT


def main() -> int:
    """Both kinds of inputs."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        logits = mapped(folder, "logits", draw.normal(size=(ROWS, CLASSES)).astype(np.float32))
        pixels = draw.integers(0, 256, (ROWS, WIDTH), dtype=np.uint8)
        kept = [compare(mapped(folder, dtype, pixels.astype(dtype)), logits) for dtype in ("uint8", "float32")]
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
