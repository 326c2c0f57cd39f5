"""Teaching: the teacher is asked once about each row, and what it says is stored as a transfer set.

Rows are asked in the order of their content keys, equal rows once, so that the same rows give the same files byte for
byte. A run that was stopped goes on where it stopped; new rows are the only ones asked.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from understudy.asking import Augment, Integers, Kept, Parts, Questions, answer, answers, answers_of_pool, joined, not_finite
from understudy.data.rows import Rows
from understudy.errors import TeacherError, TransferSetError
from understudy.pools import Pool
from understudy.signals import Signals
from understudy.store.encodings import Dense, Encoding, StoredType, choose, lost
from understudy.store.mirror import Mirror, cache_folder, is_address
from understudy.store.transfer_set import TransferSet, find_keys
from understudy.store.writing import TransferWriter
from understudy.tasks import Task
from understudy.teachers import Layered, Refittable, Teacher, check_missing, comparable, digest, max_missing, take

SHARD_BYTES = 2**26
"""Answers are gathered in memory, as float32, until a shard is written."""
FRAMES = 256
"""How many frames a row of a recognition is taken to have, for the size of a shard."""
MEASURED_ROWS = 64
_TOLERANCE = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2}


@final
@dataclass(frozen=True)
class OutOfFold:
    """Answers to training rows by teachers that had not seen them; `fold` int8 [rows] is -1 where the teacher itself spoke.

    `description` enters the transfer set's fingerprint: other rows or labels make other fold teachers. The fold teachers
    are fitted when their answers are first read, so a transfer set that is already complete costs no fit.
    """

    keys: np.ndarray[Any, np.dtype[np.int64]]
    ask: Callable[[], Signals]
    fold: np.ndarray[Any, np.dtype[np.int8]]
    description: str

    @cached_property
    def signals(self) -> Signals:
        """What the fold teachers say, in the order of `keys`."""
        return self.ask()


def teach(
    teacher: Teacher,
    rows: Rows,
    to: str | Path,
    *,
    task: Task,
    batch_size: int = 256,
    dtype: StoredType = "float32",
    encoding: Encoding | Literal["auto"] | None = None,
    most_lost: float = 1e-3,
    temperature: float = 1.0,
    shard_rows: int = 8192,
    views: int = 1,
    augment: Augment | None = None,
    view_spec: dict[str, Any] | None = None,
    folds: OutOfFold | None = None,
    pool: Pool | None = None,
    mirror: str | None = None,
    progress: bool = True,
) -> TransferSet:
    """Ask the teacher about each row that the transfer set at `to` lacks, and give the complete transfer set.

    Every signal it gives is a column: answers in their `encoding` (every number as `dtype` by default), others as `dtype`.
    What the encoding loses is measured on the first 64 rows, at T = 1 and at the training `temperature`, and kept in the
    manifest; "auto" takes the smallest encoding that loses at most `most_lost` nats. A shard holds `shard_rows` rows, fewer
    where it would pass 64 MB.

    `augment(inputs, keys, view)` makes views 1 and on; view 0 is the plain row. Answers that are NaN or infinite are
    refused with the rows' names after all rows were asked; the good shards stay. A remote teacher may have no answer to a
    row: it is stored as NaN, and refused (U335) when there are more of them than the teacher's `max_missing`.

    With a `pool` the rows of each shard are asked by one of its workers, which all hold the teacher; the files are the same.

    `mirror` is an address of fsspec (`s3://bucket/set`) where each file is copied as soon as it is whole, and from which teaching
    goes on on another machine. An address as `to` is that, beside a folder in the cache.
    """
    if is_address(to):
        to, mirror = cache_folder(str(to)), str(to)
    if views > 1 and (augment is None or folds is not None):
        raise TeacherError("several views need an augmentation, and cannot be combined with out-of-fold answers", code="U018")
    if isinstance(encoding, Encoding) and encoding.sparse and not task.single_label:
        raise TransferSetError(
            f"the encoding {encoding.spec['kind']} is for classes that exclude each other, the task is {task.kind}; set "
            'teaching.encoding = "dense"',
            code="U322",
        )
    fingerprint = dict(teacher.fingerprint())
    if folds is not None:
        fingerprint["out of fold"] = folds.description
    spec: dict[str, Any] = {
        "task": task,
        "teacher": teacher.name,
        "fingerprint": fingerprint,
        "dtype": dtype,
        "views": views,
        "view_spec": view_spec,
        "encoding": encoding,
        "mirror": None if mirror is None else Mirror(mirror),
    }
    allowed = max_missing(teacher)
    with TransferWriter(Path(to), **spec) as writer:
        asked = _missing(rows.keys, writer.keys)
        shard_rows = max(1, min(shard_rows, SHARD_BYTES // (views * 4 * _numbers(teacher, rows, task, asked))))
        chunks = [asked[start : start + shard_rows] for start in range(0, len(asked), shard_rows)]
        shards = _Shards(writer, rows, folds, views, dtype, most_lost, temperature, unanswered=allowed > 0)
        questions = Questions(teacher, task, batch_size, views, augment)
        if pool is not None and chunks and folds is None:
            questions = _encoding_there(questions, shards, rows, chunks[0])
        now = pool is None and mirror is None and questions.crowded(rows.inputs)
        with _progress(len(asked), progress, teacher.name) as advance, _Behind(now) as behind:
            given = (rows.inputs, rows.keys, chunks, advance)
            asking = answers(questions, *given) if pool is None or not chunks else answers_of_pool(pool, questions, *given)
            with closing(asking) as answered:
                for chunk, parts in zip(chunks, answered, strict=True):
                    behind.do(shards.store, chunk, parts)
        if shards.bad:
            raise TeacherError(
                f"{len(shards.bad):,} of {len(asked):,} teacher rows are NaN or infinite as {dtype} (first: {rows.name(min(shards.bad))}). "
                "Find out why before teaching: a student would learn it",
                code="U006",
            )
        writer.finish()
    taught = TransferSet.open(to, verify=False)
    if allowed:
        check_missing(taught.gather(task.signal, np.arange(len(taught))), allowed, teacher.name)
    return taught


@final
@dataclass
class _Shards:
    """What is said of each chunk of rows, stored as a shard; `bad` are the positions of rows that cannot be, whose shard is left out.

    How answers are encoded, and what that loses, is settled on the first rows that are to be stored. They are the same whenever the same
    command begins anew, and a set that was measured says so: nothing is asked for it.
    """

    writer: TransferWriter
    rows: Rows
    folds: OutOfFold | None
    views: int
    dtype: StoredType
    most_lost: float
    temperature: float
    unanswered: bool
    bad: list[int] = field(default_factory=list)

    def store(self, chunk: Integers, parts: Parts | Kept) -> None:
        """Write what was said of the rows at these positions."""
        keys, fold = self.rows.keys[chunk], np.full(len(chunk), -1, dtype=np.int8)
        if isinstance(parts, Kept):
            self.bad.extend(chunk[parts.wrong].tolist())
            if not parts.wrong.any():
                self.writer.keep(keys, fold, parts.encoded)
            return
        said = joined(parts)
        if self.folds is not None:
            said, fold = _replace(said, keys, self.folds)
        wrong = not_finite(said, self.writer.dtype, unanswered=self.unanswered)
        self.bad.extend(chunk[wrong].tolist())
        if not wrong.any():
            self.settle(said, keys)
            self.writer.write(keys, fold, said)

    @property
    def settled(self) -> bool:
        """Whether it is decided how answers are stored, and known what that loses."""
        writer = self.writer
        full = writer.encoding is not None and (writer.encoding.spec == Dense("float32").spec or not writer.task.single_label)
        return writer.measured is not None or full

    def settle(self, said: Signals, keys: Integers) -> None:
        """Decide the encoding where that is left open, and measure what it loses."""
        writer, task = self.writer, self.writer.task
        if self.settled:
            return
        if not task.single_label:
            writer.settle(Dense(self.dtype), {})
            return
        answers, known = said[task.signal][:MEASURED_ROWS], keys[:MEASURED_ROWS]
        answers = answers[:, 0] if self.views > 1 else answers
        encoding = writer.encoding or choose(answers, known, temperature=self.temperature, most=self.most_lost)
        loss = lost(encoding, answers, known, temperature=self.temperature)
        figures = {name: float(f"{value:.3g}") for name, value in loss.items()}
        writer.settle(encoding, figures | {"rows": len(known), "bytes_per_row": encoding.bytes_per_row(task.outputs)})


def _encoding_there(questions: Questions, shards: _Shards, rows: Rows, chunk: Integers) -> Questions:
    """Let the workers encode what they say: an answer in full is many times what is stored of it.

    How is settled on the first rows, which this process asks in the batches that a worker will.
    """
    if not shards.settled:
        first = chunk[: math.ceil(MEASURED_ROWS / questions.batch_size) * questions.batch_size]
        with closing(answers(questions, rows.inputs, rows.keys, [first])) as answered:
            said = joined(next(answered))
        if not_finite(said, shards.writer.dtype, unanswered=False).any():
            return questions
        shards.settle(said, rows.keys[first])
    return replace(questions, encoder=shards.writer.encoder)


def _numbers(teacher: Teacher, rows: Rows, task: Task, asked: Integers) -> int:
    """How many a row's answer has; where layers are said too, one row is asked to see it."""
    if isinstance(teacher, Layered) and teacher.layers and len(asked):
        return sum(value.numel() for value in answer(teacher, take(rows.inputs, asked[:1]), task).values())
    return task.outputs * (FRAMES if task.kind == "recognition" else 1)


def _missing(keys: Integers, there: Integers) -> Integers:
    """Positions of the rows to ask, in the order of their keys, equal keys once."""
    order = np.argsort(keys[:, 0])
    first_half = keys[order, 0]
    if (first_half[1:] == first_half[:-1]).any():  # equal rows, or what hardly ever happens: keys that share their first half only
        order = np.lexsort((keys[:, 1], keys[:, 0]))
        ordered = keys[order]
        first = np.ones(len(order), dtype=bool)
        first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        order = order[first]
    return order if not len(there) else np.asarray(order[find_keys(there, keys[order]) < 0])


@final
class _Behind:
    """One thing after the other on a thread of its own, at most one of them open: a shard is stored while the next is asked.

    Or `now`, where a thread more would cost more than it saves.
    """

    def __init__(self, now: bool) -> None:
        self._now = now
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="teaching")
        self._open: Future[None] | None = None

    def __enter__(self) -> _Behind:
        return self

    def do(self, work: Callable[..., None], *given: Any) -> None:
        """Begin this once what came before is done; an error of that is raised here."""
        self._settle()
        if self._now:
            work(*given)
            return
        self._open = self._thread.submit(work, *given)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._settle()
        finally:
            self._thread.shutdown(wait=True)

    def _settle(self) -> None:
        if self._open is not None:
            opened, self._open = self._open, None
            opened.result()


def _replace(said: Signals, keys: Integers, folds: OutOfFold) -> tuple[Signals, np.ndarray[Any, np.dtype[np.int8]]]:
    found = find_keys(folds.keys, keys)
    known = torch.from_numpy(found >= 0)
    replaced = {}
    for name, value in said.items():
        if name not in folds.signals:
            raise TeacherError(f"out-of-fold teachers answer {', '.join(folds.signals)} alone; {name} cannot be stored beside", code="U018")
        value = value.clone()
        value[known] = folds.signals[name][torch.from_numpy(found[found >= 0])]
        replaced[name] = value
    return replaced, np.where(found >= 0, folds.fold[found], -1).astype(np.int8)


@contextmanager
def _progress(total: int, wanted: bool, name: str) -> Iterator[Callable[[int], None]]:
    if not (wanted and total and sys.stderr.isatty()):
        yield lambda rows: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task(f"asking {name}", total=total)
        yield lambda rows: bar.advance(line, rows)


@final
@dataclass(frozen=True)
class Comparison:
    """Rows asked again: how many, and the one that is furthest from what is stored.

    `worst` is in units of what the stored precision allows; above 1 the teacher is another one.
    """

    rows: int
    worst: float
    row: int
    signal: str
    stored: str
    now: str


def compare_answers(teacher: Teacher, rows: Rows, transfer_set: TransferSet, *, n: int = 16, seed: int = 0) -> Comparison:
    """Ask a live teacher again about n random rows (fewer where others spoke for it) and find the worst difference."""
    positions = transfer_set.positions(rows.keys)
    own = np.flatnonzero(transfer_set.fold[positions] == -1)
    if not len(own):
        return Comparison(0, 0.0, 0, transfer_set.task.signal, "", "")
    chosen = np.sort(np.random.default_rng(seed).choice(own, size=min(n, len(own)), replace=False))
    now = teacher.signals(take(rows.inputs, chosen))
    found = Comparison(len(chosen), -1.0, 0, "", "", "")
    for name, said in transfer_set.signals.items():
        if name not in now:
            raise TransferSetError(
                f"the teacher gives no {name}, which {transfer_set.folder} holds; it gives: {', '.join(now)}", code="U022"
            )
        stored, live = transfer_set.witness(name, positions[chosen], now[name])
        tolerance = _TOLERANCE.get(said["encoding"].get("dtype", "float16"), 1e-9)
        apart = _apart(name, stored, live, tolerance)
        row = int(apart.argmax())
        if float(apart[row]) > found.worst:
            found = Comparison(len(chosen), float(apart[row]), int(chosen[row]), name, _shown(stored[row]), _shown(live[row]))
    return found


def reask(teacher: Teacher, rows: Rows, transfer_set: TransferSet, *, n: int = 16, seed: int = 0) -> None:
    """Ask a live teacher again about a few random rows; TransferSetError when it says something else than what is stored."""
    found = compare_answers(teacher, rows, transfer_set, n=n, seed=seed)
    if found.worst > 1:
        raise TransferSetError(
            f"the teacher no longer says what is stored in {transfer_set.folder}: {rows.name(found.row)} has {found.signal} "
            f"{found.stored} there, {found.now} now. Teach again into another folder",
            code="U022",
        )


def _apart(name: str, stored: Tensor, live: Tensor, tolerance: float) -> Tensor:
    """The largest difference of each row, in units of the tolerance (relative and absolute)."""
    a, b = comparable(name, stored.double()), comparable(name, live.double())
    if a.shape != b.shape:
        return torch.full((len(stored),), torch.inf)
    apart = (a - b).abs() / (tolerance * (1 + a.abs()))
    apart = torch.where(a.isnan() & b.isnan(), 0.0, apart)  # no answer then, none now
    return apart.flatten(1).amax(dim=1).nan_to_num(torch.inf)


def _shown(values: Tensor) -> str:
    values = values.flatten()
    return "[" + ", ".join(f"{float(value):.4g}" for value in values[:4]) + (", ...]" if len(values) > 4 else "]")


def out_of_fold(teacher: Teacher, rows: Rows, *, task: Task, folds: int = 5, seed: int = 0, batch_size: int = 4096) -> OutOfFold:
    """Each training row answered by a copy of the teacher fitted on the other folds; rows without a label by the teacher itself.

    An estimator that remembers its rows says their labels back, which teaches nothing (Wolpert 1992, stacked
    generalization). Equal rows share a fold, classes are spread evenly.
    """
    if not isinstance(teacher, Refittable) or rows.labels is None:
        raise TeacherError(
            f"out-of-fold answers need an estimator that can be fitted again, and labels; {teacher.name} lacks one", code="U018"
        )
    labels = rows.labels
    fold = assign_folds(rows.keys, labels, task.labelled(labels), task, folds=folds, seed=seed)

    def ask() -> Signals:
        answers = torch.zeros(len(rows), task.outputs)
        for number in range(-1, folds):
            inside = np.flatnonzero(fold == number)
            if not len(inside):
                continue
            speaker: Teacher = teacher
            if number >= 0:
                others = np.flatnonzero((fold != number) & (fold >= 0))
                speaker = teacher.refit(take(rows.inputs, others), labels[others])
            for start in range(0, len(inside), batch_size):
                positions = inside[start : start + batch_size]
                answers[torch.from_numpy(positions)] = answer(speaker, take(rows.inputs, positions), task)[task.signal]
        return {task.signal: answers}

    order = np.lexsort((rows.keys[:, 1], rows.keys[:, 0]))
    seen = digest(rows.keys[order].tobytes(), np.ascontiguousarray(labels[order]).tobytes())
    return OutOfFold(rows.keys, ask, fold, f"{folds} folds, seed {seed}, rows {seen}")


def assign_folds(
    keys: Integers, labels: np.ndarray[Any, Any], labelled: np.ndarray[Any, Any], task: Task, *, folds: int, seed: int
) -> np.ndarray[Any, np.dtype[np.int8]]:
    """A fold for each row, -1 without a label: decided by key (equal rows together), spread evenly within each class."""
    if folds < 2 or labelled.sum() < folds:
        raise TeacherError(f"{folds} folds need at least 2 folds and as many labelled rows; there are {int(labelled.sum())}", code="U018")
    mixed = (keys[:, 0] ^ keys[:, 1]) * np.int64(6364136223846793005 | 1) ^ np.int64(seed * 2862933555777941757 % 2**62)
    strata = labels.astype(np.int64) if task.single_label else np.zeros(len(keys), dtype=np.int64)
    fold = np.full(len(keys), -1, dtype=np.int8)
    rows = np.flatnonzero(labelled)
    # The first row of each key decides for all rows with that key.
    _, first, same = np.unique(keys[rows], axis=0, return_index=True, return_inverse=True)
    leaders = rows[first]
    order = leaders[np.lexsort((mixed[leaders], strata[leaders]))]
    fold[order] = np.arange(len(order)) % folds
    fold[rows] = fold[leaders][same.reshape(-1)]
    return fold
