"""The transfer set beside what it must not cost: teaching, gathering, opening, and what each encoding keeps.

    python benchmarks/transfer_set.py

Ratios are medians of interleaved pairs in this run. The exit status is 1 when a limit is passed: teaching over a bare forward
pass of the same teacher at the same batch 1.05 (large CNN) and 1.3 (MLPs of 292,452 and 56,740 weights) on one thread, beside all that the
machine has, which has no limit; gathering 256 rows x 100 float16 from 50 shards over
one raw memory-mapped gather 2; opening and aligning 1,000,000 rows 2 s. Encodings have no limit: their figures are printed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.adapters._loading import RawPreparation
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.losses.logits import soft_target
from understudy.losses.stored import tail_at, top_soft_target
from understudy.store.encodings import Dense, Sampled, TopK
from understudy.store.transfer_set import TransferSet
from understudy.store.writing import TransferWriter
from understudy.students.convnet import convnet
from understudy.students.mlp import mlp
from understudy.tasks import Task
from understudy.teachers import TorchTeacher
from understudy.teaching import teach


def task_of(classes: int) -> Task:
    """A task with this many classes."""
    return Task("multiclass", tuple(map(str, range(classes))))


def said(name: str, text: str, value: float, limit: float) -> bool:
    """Print one figure beside its limit; whether it is kept."""
    print(f"{name:34} {text}" + ("" if value <= limit else f"   ABOVE {limit:g}"), flush=True)
    return value <= limit


def paired(one: Callable[[int], Any], other: Callable[[int], Any], rounds: int, skip: int) -> tuple[float, float, float]:
    """Median seconds of both and the median of their ratio, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for who in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            (one, other)[who](turn)
            times[who].append(time.perf_counter() - start)
    kept = [each[skip:] for each in times]
    return statistics.median(kept[0]), statistics.median(kept[1]), statistics.median(a / b for a, b in zip(*kept, strict=True))


def teaching(
    name: str, module: nn.Module, inputs: np.ndarray[Any, Any], rounds: int, limit: float, folder: Path, *, threads: int, batch: int = 256
) -> bool:
    """`teach` over the same module's bare forward pass on the same raw rows, prepared in the same way, both on so many threads."""
    torch.set_num_threads(threads)
    name = f"{name}, {threads} thread{'s' * (threads > 1)}"
    kind: Any = "image" if inputs.dtype == np.uint8 else "array"
    rows = Rows(kind, inputs, content_keys(inputs, kind))
    prepare = RawPreparation()
    teacher = TorchTeacher(module, task=task_of(100), classes=None, prepare=prepare, batch_size=batch)

    def bare(turn: int) -> None:
        module.eval()
        with torch.inference_mode():
            for start in range(0, len(inputs), batch):
                module(prepare(inputs[start : start + batch]))

    def ours(turn: int) -> None:
        teach(teacher, rows, folder / f"{name}-{turn}", task=task_of(100), batch_size=batch, dtype="float16", progress=False)

    cost, forward, ratio = paired(ours, bare, rounds, 1)
    return said(f"teaching, {name}", f"{cost:6.3f} s, bare forward {forward:6.3f} s: ratio {ratio:.3f}", ratio, limit)


def filled(folder: Path, rows: int, shards: int, classes: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A float16 store of random answers; gives keys and answers."""
    draw = np.random.default_rng(0)
    keys = draw.integers(-(2**63), 2**63 - 1, (rows, 2))
    answers = draw.standard_normal((rows, classes), dtype=np.float32).astype(np.float16)
    with TransferWriter(folder, task=task_of(classes), teacher="random", fingerprint={}, dtype="float16") as writer:
        for part in np.array_split(np.arange(rows), shards):
            writer.write(keys[part], np.full(len(part), -1), {"logits": torch.from_numpy(answers[part])})
        writer.finish()
    return keys, answers


def gathering(folder: Path) -> bool:
    """256 random rows x 100 float16 out of 50 shards, and out of one memory-mapped array."""
    keys, answers = filled(folder / "gather", 200_000, 50, 100)
    np.save(folder / "raw.npy", answers)
    raw, stored = np.load(folder / "raw.npy", mmap_mode="r"), TransferSet.open(folder / "gather")
    drawn = np.random.default_rng(1).integers(0, len(keys), (2001, 256))
    column = stored.gather
    cost, bare, ratio = paired(lambda turn: column("logits", drawn[turn]), lambda turn: raw[drawn[turn]], 2001, 50)
    return said("gathering 256 x 100 from 50 shards", f"{cost * 1e6:6.1f} us, memmap {bare * 1e6:6.1f} us: ratio {ratio:.2f}", ratio, 2.0)


def opening(folder: Path) -> bool:
    """Open, check every hash, and find a million rows in another order."""
    keys, _ = filled(folder / "million", 1_000_000, 122, 10)
    order = np.random.default_rng(2).permutation(len(keys))
    asked = keys[order]
    start = time.perf_counter()
    stored = TransferSet.open(folder / "million")
    opened = time.perf_counter() - start
    found = stored.positions(asked)
    whole = time.perf_counter() - start
    assert (stored.keys[found] == asked).all()
    return said(
        "opening and aligning 1,000,000 rows", f"{opened:.2f} s opened + {whole - opened:.2f} s aligned = {whole:.2f} s", whole, 2.0
    )


def encodings(classes: int, rows: int, power: float) -> None:
    """Bytes per row, and the error of the student's gradient softmax(student) - stored against that of the full answer."""
    draw = torch.Generator().manual_seed(0)
    ranks = torch.stack([torch.randperm(classes, generator=draw) for _ in range(rows)]) + 1
    full = -power * ranks.float().log()
    student = (full + 0.7 * torch.randn(rows, classes, generator=draw)).log_softmax(1).exp()
    keys = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (rows, 2))
    print(f"\n{classes:,} classes, Zipf {power}, student = teacher + 0.7 noise{'':14}bytes   gradient error at T = 1    T = 4")

    def line(name: str, size: int, stored: Callable[[float], Tensor]) -> None:
        errors = []
        for temperature in (1.0, 4.0):
            truth = (full / temperature).softmax(1)
            own = student if temperature == 1 else (student.log() / temperature).softmax(1)
            kept = stored(temperature)
            errors.append(
                "     -" if kept.numel() == 0 else f"{float(((kept - truth).norm(dim=1) / (own - truth).norm(dim=1)).mean()):6.3f}"
            )
        print(f"  {name:44}{size:10,}            {errors[0]:>12}{errors[1]:>12}")

    for dtype in ("float32", "float16", "bfloat16"):
        dense = Dense(dtype)
        line(f"dense {dtype}", dense.bytes_per_row(classes), lambda t, e=dense: (e.encode(full, keys)[""].float() / t).softmax(1))  # type: ignore[misc]
    for top in (12, 32, 128):
        if top >= classes:
            continue
        encoding = TopK(top)
        stored, size = encoding.encode(full, keys), encoding.bytes_per_row(classes)
        line(f"top-{top} with tail (ours)", size, lambda t, e=encoding, s=stored: (e.decode(s, classes, temperature=t) / t).softmax(1))  # type: ignore[misc]

        def together(t: float, s: Any = stored, top: int = top) -> Tensor:
            own = (student.log() / t).softmax(1)
            head = s["/top"].double() / t
            shares = torch.cat([head, tail_at(s["/tail"].double(), classes - top, t)[:, None]], dim=1).softmax(1)
            others = own.scatter(1, s["/ids"].long(), 0.0)
            spread = others / others.sum(1, keepdim=True) * shares[:, -1:].float()
            return spread.scatter(1, s["/ids"].long(), shares[:, :-1].float())

        line(f"top-{top}, the rest together", size, together)
        head = full.topk(top)

        def renormalised(t: float, head: Any = head) -> Tensor:
            return torch.zeros_like(full).scatter(1, head.indices, (head.values / t).softmax(1))

        def uniform(t: float, head: Any = head) -> Tensor:
            log_probs = full.log_softmax(1)
            rest = (1 - log_probs.gather(1, head.indices).exp().sum(1, keepdim=True)) / (classes - head.indices.shape[1])
            spread = rest.clamp(min=1e-12).log().expand_as(full).scatter(1, head.indices, log_probs.gather(1, head.indices))
            return (spread / t).softmax(1)

        line(f"top-{top} renormalised", size - 12, renormalised)
        line(f"top-{top}, tail uniform from T = 1", size - 8, uniform)
    for top, draws in ((6, 6), (16, 16)):

        def sampled(t: float, top: int = top, draws: int = draws) -> Tensor:
            encoding = Sampled(top, draws, t)
            return (encoding.decode(encoding.encode(full, keys), classes, temperature=t) / t).softmax(1)

        line(f"sampled {top} + {draws} (noise, no bias)", Sampled(top, draws).bytes_per_row(classes), sampled)


def columns(classes: int, rows: int) -> None:
    """A soft target read from the columns of a top-k store beside the same from whole answers, forward and backward."""
    draw = torch.Generator().manual_seed(0)
    encoding, keys = TopK(32), np.zeros((rows, 2), dtype=np.int64)
    stored = encoding.encode(3 * torch.randn(rows, classes, generator=draw), keys)
    student = torch.randn(rows, classes, generator=draw)
    kept = [0, 0]

    def step(who: int, turn: int) -> None:
        ours, large = student.clone().requires_grad_(), dict[int, int]()

        def note(saved: Tensor) -> Tensor:
            large[saved.data_ptr()] = saved.nbytes
            return saved

        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            if who:
                values = soft_target(ours, encoding.decode(stored, classes, temperature=2.0), temperature=2.0)
            else:
                values = top_soft_target(ours, *stored.values(), temperature=2.0)
        kept[who] = sum(large.values())
        values.sum().backward()

    cost, whole, ratio = paired(lambda turn: step(0, turn), lambda turn: step(1, turn), 9, 1)
    print(
        f"soft target, {rows} x {classes:,}: from columns {cost * 1e3:7.2f} ms and {kept[0] / 2**20:6.2f} MiB kept for the way back, "
        f"from whole answers {whole * 1e3:7.2f} ms and {kept[1] / 2**20:6.2f} MiB: ratio of times {ratio:.2f}"
    )


def main() -> int:
    """All figures."""
    every = torch.get_num_threads()
    torch.set_num_threads(1)
    draw = np.random.default_rng(3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = draw.integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
        vectors = draw.standard_normal((98304, 784), dtype=np.float32)
        large = convnet(3, 100, size=(32, 32), width=64, depth=3, seed=0)
        tiny, small = mlp(784, 100, hidden=[64], seed=0), mlp(784, 100, hidden=[256, 256], seed=0)
        kept = [
            teaching("large CNN", large, images, 6, 1.05, folder, threads=1),
            teaching("small MLP", small, vectors, 8, 1.3, folder, threads=1),
            teaching("tiny MLP", tiny, vectors, 8, 1.3, folder, threads=1),
            teaching("small MLP", small, vectors, 8, float("inf"), folder, threads=every),
            teaching("tiny MLP", tiny, vectors, 8, float("inf"), folder, threads=every),
        ]
        torch.set_num_threads(1)
        kept += [
            gathering(folder),
            opening(folder),
        ]
    for classes, rows, power in ((100, 256, 1.2), (1000, 128, 1.2), (150_000, 8, 1.2)):
        encodings(classes, rows, power)
    print()
    for classes, rows in ((100, 256), (1000, 256), (150_000, 64)):
        columns(classes, rows)
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
