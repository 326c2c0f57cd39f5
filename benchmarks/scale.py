"""What a million rows of a transfer set cost: the figures of docs/scale.md.

    python benchmarks/scale.py

Each part is done on as many random answers as fit a few seconds, on one thread, and told for a million rows in processor seconds,
which do not depend on what else the machine does. Then a teacher is asked by one process and by two workers, whose answers come
encoded (as `teach --workers` does it) or in full: what the one process that writes has to do, and what it is sent. No limits.
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy.asking import Questions, not_finite
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.pools import Processes
from understudy.store.encodings import Dense, Encoding, Sampled, TopK
from understudy.store.transfer_set import TransferSet, find_keys
from understudy.store.writing import TransferWriter
from understudy.tasks import Task
from understudy.teachers import TorchTeacher
from understudy.teaching import teach

MILLION = 1_000_000
SIZES = {100: 131_072, 1_000: 32_768, 150_000: 512}
"""Classes -> rows that are timed."""
SHARD = 8_192


def task_of(classes: int) -> Task:
    """A task with this many classes."""
    return Task("multiclass", tuple(map(str, range(classes))))


def keys_of(rows: int) -> np.ndarray[Any, Any]:
    """Random keys."""
    return np.random.default_rng(0).integers(-(2**63), 2**63 - 1, (rows, 2))


class Clock:
    """Processor seconds of parts, added up over the shards."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, part: str, work: Callable[..., Any], *given: Any) -> Any:
        """Do this and note what it took."""
        start = time.process_time()
        done = work(*given)
        self.seconds[part] = self.seconds.get(part, 0.0) + time.process_time() - start
        return done


def storing(classes: int, encoding: Encoding, folder: Path) -> None:
    """Check, encode and write random answers; open the set, and gather every row once in batches of 256."""
    rows, clock, task = SIZES[classes], Clock(), task_of(classes)
    keys, draw = keys_of(rows), torch.Generator().manual_seed(0)
    with TransferWriter(folder, task=task, teacher="random", fingerprint={}, encoding=encoding) as writer:
        for start in range(0, rows, min(SHARD, rows)):
            part = keys[start : start + SHARD]
            said = {"logits": 3 * torch.randn(len(part), classes, generator=draw)}
            clock.time("check", partial(not_finite, unanswered=False), said, torch.float16)
            encoded = clock.time("encode", writer.encoder, said, part)
            clock.time("write", writer.keep, part, np.full(len(part), -1), encoded)
        writer.finish()
    stored = clock.time("open", TransferSet.open, folder)
    drawn = np.random.default_rng(1).permutation(rows)
    columns = [name for name in stored.names if name.startswith("logits") and (name != "logits" or not stored.sparse("logits"))]
    clock.time("gather", lambda: [stored.gather(name, drawn[at : at + 256]) for at in range(0, rows, 256) for name in columns])
    size = sum(path.stat().st_size for path in folder.glob("shard-*")) / rows
    spec = " ".join(str(value) for name, value in encoding.spec.items() if name != "temperature")
    figures = "".join(f"{clock.seconds[part] * MILLION / rows:10.2f}" for part in ("check", "encode", "write", "open", "gather"))
    print(f"{classes:9,}  {spec:16}{figures}{size:14,.0f}", flush=True)


def aligning() -> None:
    """Sort a million keys and find what is missing; find a million rows in another order."""
    clock, keys = Clock(), keys_of(MILLION)
    clock.time("sort", partial(np.argsort, kind="stable"), keys[:, 0])
    order = np.random.default_rng(1).permutation(MILLION)
    found = clock.time("align", find_keys, keys, keys[order])
    assert np.array_equal(found, order)
    print(f"sort a million keys {clock.seconds['sort']:.2f} s, find a million rows in another order {clock.seconds['align']:.2f} s")


def as_floats(inputs: Any) -> torch.Tensor:
    """Rows as the teacher reads them."""
    return torch.from_numpy(np.array(inputs))


class Watched:
    """Two workers, and what they send; `whole` takes from them how answers are encoded."""

    def __init__(self, *, whole: bool) -> None:
        self.whole, self.bytes, self.shards = whole, 0, 0
        self.begun: tuple[float, float] | None = None

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """As a pool does."""
        assert isinstance(work, Questions)
        for said in Processes(2).map(dataclasses.replace(work, encoder=None) if self.whole else work, items):
            if self.begun is None:  # from here on workers are there: to start them is no cost of rows
                self.begun = (time.perf_counter(), time.process_time())
            else:
                self.shards += 1
            self.bytes += len(pickle.dumps(said))
            yield said


def asking(folder: Path, classes: int = 1_000, rows: int = 65_536) -> None:
    """A linear teacher asked by this process and by two workers, stored as top-32."""
    inputs = np.random.default_rng(2).standard_normal((rows, 64), dtype=np.float32)
    given = Rows("array", inputs, content_keys(inputs, "array"))
    torch.manual_seed(0)
    teacher = TorchTeacher(torch.nn.Linear(64, classes), task=task_of(classes), classes=None, prepare=as_floats, batch_size=256)
    options: dict[str, Any] = {"task": task_of(classes), "encoding": TopK(32), "shard_rows": SHARD, "progress": False}
    print(f"\nteaching at {classes:,} classes, top-32     wall s   writing process s   bytes a row sent to it   (a million rows)")
    start = (time.perf_counter(), time.process_time())
    teach(teacher, given, folder / "one", **options)
    wall, own = time.perf_counter() - start[0], time.process_time() - start[1]
    print(f"{'one process':36}{wall * MILLION / rows:10.1f}{own * MILLION / rows:20.1f}{'-':>25}", flush=True)
    for name, whole in (("two workers, answers in full", True), ("two workers, encoded there", False)):
        pool = Watched(whole=whole)
        teach(teacher, given, folder / name, pool=pool, **options)
        assert pool.begun is not None
        done = pool.shards * SHARD / MILLION
        wall, own = (time.perf_counter() - pool.begun[0]) / done, (time.process_time() - pool.begun[1]) / done
        print(f"{name:36}{wall:10.1f}{own:20.1f}{pool.bytes / rows:25,.0f}", flush=True)
        one, other = ([path.read_bytes() for path in sorted((folder / each).iterdir())] for each in ("one", name))
        assert one == other, "the files differ"


def main() -> int:
    """All figures."""
    torch.set_num_threads(1)
    aligning()
    print("\nprocessor seconds for a million rows, and bytes of a row on the disk with its key")
    print(
        f"{'classes':>9}  {'stored as':16}"
        + "".join(f"{part:>10}" for part in ("check", "encode", "write", "open", "gather"))
        + f"{'bytes':>14}"
    )
    with tempfile.TemporaryDirectory() as name:
        for classes in SIZES:
            encodings: list[Encoding] = [Dense("float16"), TopK(32), Sampled(16, 16)]
            for number, encoding in enumerate(encodings):
                storing(classes, encoding, Path(name) / f"{classes}-{number}")
        asking(Path(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
