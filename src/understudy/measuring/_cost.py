"""Cost: how large a model is and how fast it answers on this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

FIGURES: dict[str, bool] = {
    "parameters": False,
    "bytes": False,
    "latency_p50_us": False,
    "latency_p95_us": False,
    "rows_per_second": True,
    "latency_p50_us_all": False,
    "latency_p95_us_all": False,
    "rows_per_second_all": True,
}
"""Each figure, and whether larger is better; those that end in `_all` use every core, the others one thread."""


def latency(
    call: Callable[[Any], Any],
    batch1: Any,
    batch256: Any,
    *,
    seconds: float = 0.5,
    call_all: Callable[[Any], Any] | None = None,
) -> dict[str, float]:
    """Median and 95th percentile in microseconds of one row, and rows per second of a batch, on one thread and on all.

    `call` answers a batch; `call_all` is another for all threads where the engine fixes its threads when it is made
    (onnxruntime). Each of the four figures takes about `seconds` / 4. Thread settings are put back.
    """
    found: dict[str, float] = {}
    every = os.cpu_count() or 1
    for ending, threads, ask in (("", 1, call), ("_all", every, call_all or call)):
        with _threads(threads):
            single = _times(ask, batch1, seconds / 4)
            batch = _times(ask, batch256, seconds / 4)
        found[f"latency_p50_us{ending}"] = float(np.median(single) * 1e6)
        found[f"latency_p95_us{ending}"] = float(np.quantile(single, 0.95) * 1e6)
        found[f"rows_per_second{ending}"] = float(len(batch256) / np.median(batch))
    return {**found, "threads_all": float(every)}


def _times(call: Callable[[Any], Any], batch: Any, seconds: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Seconds of each call, after three that warm up; at least five."""
    for _ in range(3):
        call(batch)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        call(batch)
        taken.append(time.perf_counter() - start)
    return np.asarray(taken)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    with threadpool_limits(limits=count):
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)
