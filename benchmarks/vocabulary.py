"""A token loss over a large vocabulary in chunks, beside the same loss on whole logits: memory at its peak, and time.

    python benchmarks/vocabulary.py

Forward and backward of `tokens.forward_kl` from hidden states of 512 positions and 32,000 tokens, float32 on one CPU thread.
The peak is the sum of live tensors as the profiler counts them, so it is the same on every machine; the times alternate.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from understudy.losses.chunks import in_chunks
from understudy.losses.tokens import forward_kl

POSITIONS, VOCABULARY, WIDTH = 512, 32_000, 256
CHUNKS = (32, 128)
ROUNDS = 3


def peak(step: Callable[[], None]) -> float:
    """MiB of live tensors at the most, above those there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        step()
    assert watched.profiler is not None
    live = most = 0
    for event in watched.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most / 2**20


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    states, teacher_states = (torch.randn(1, POSITIONS, WIDTH, generator=generator) for _ in range(2))
    head, teacher_head = (torch.randn(VOCABULARY, WIDTH, generator=generator) / WIDTH**0.5 for _ in range(2))
    trained = [states.requires_grad_(), head.requires_grad_()]

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            torch.autograd.grad(loss().mean(), trained)

        return run

    def chunked(size: int) -> Callable[[], Tensor]:
        return lambda: in_chunks(forward_kl, states, head, teacher_states, teacher_head=teacher_head, chunk=size)

    steps = {"whole": step(lambda: forward_kl(states @ head.T, teacher_states @ teacher_head.T))}
    steps |= {f"chunks of {size}": step(chunked(size)) for size in CHUNKS}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    print(f"torch {torch.__version__}; one tensor [{POSITIONS}, {VOCABULARY}] is {POSITIONS * VOCABULARY * 4 / 2**20:.1f} MiB")
    print(f"{'':16} {'peak MiB':>9} {'seconds':>8} {'ratio':>6}")
    for name, run in steps.items():
        ratio = statistics.median(mine / whole for mine, whole in zip(times[name], times["whole"], strict=True))
        print(f"{name:16} {peak(run):9.1f} {statistics.median(times[name]):8.2f} {ratio:6.2f}")


if __name__ == "__main__":
    main()
