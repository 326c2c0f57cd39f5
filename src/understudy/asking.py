"""Asking a teacher about many rows: in blocks of batches, the next block made ready while it answers, or in other processes.

What comes out depends on the rows, their order and the size of a batch alone, never on who asked or how many there were.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar, cast, final

import numpy as np
import torch
from torch import Tensor

from understudy.errors import TeacherError
from understudy.pools import Pool
from understudy.signals import Signals, is_answered
from understudy.store.encodings import Encoded, Encoder
from understudy.tasks import Task
from understudy.teachers import Teacher, batches_itself, max_missing, on_processor, signals_of, take

Augment = Callable[[Any, np.ndarray[Any, Any], int], Any]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Parts = list[Signals]
Given = TypeVar("Given")
Made = TypeVar("Made")

BLOCK_BYTES = 2**21
"""Raw rows made ready at once, where the teacher goes through them in batches of its own: they stay in the processor's cache."""
AHEAD = 2
"""Blocks of rows that are held: one is asked about while the other is made ready."""


@final
@dataclass(frozen=True)
class Sent:
    """What a worker sends of its rows: tensors as bytes and their types, and how they are encoded, None of whole answers.

    `wrong` marks the rows that cannot be stored; then nothing else is sent.
    """

    wrong: np.ndarray[Any, np.dtype[np.bool_]]
    tensors: dict[str, tuple[np.ndarray[Any, Any], torch.dtype]]
    signals: dict[str, Any] | None

    @property
    def values(self) -> dict[str, Tensor]:
        """The tensors themselves."""
        found = {name: (array if array.flags.writeable else array.copy(), dtype) for name, (array, dtype) in self.tensors.items()}
        return {name: torch.from_numpy(array).view(dtype) for name, (array, dtype) in found.items()}


@final
@dataclass(frozen=True)
class Kept:
    """What is stored of one chunk of rows; `wrong` marks those that cannot be, and then nothing is."""

    wrong: np.ndarray[Any, np.dtype[np.bool_]]
    encoded: Encoded


@final
@dataclass(frozen=True)
class Questions:
    """A teacher and how it is asked; called with (inputs, keys) it gives what is `Sent` of them: encoded where that is decided."""

    teacher: Teacher
    task: Task
    batch_size: int
    views: int = 1
    augment: Augment | None = None
    encoder: Encoder | None = None

    def __call__(self, item: tuple[Any, Integers]) -> Sent:
        inputs, keys = item
        with closing(answers(self, inputs, keys, [np.arange(len(keys))])) as answered:
            said = joined(next(answered))
        if self.encoder is None:
            return Sent(np.zeros(len(keys), dtype=bool), _packed(said), None)
        wrong = not_finite(said, self.encoder.dtype, unanswered=max_missing(self.teacher) > 0)
        if wrong.any():
            return Sent(wrong, {}, {})
        encoded = self.encoder(said, keys)
        return Sent(wrong, _packed(encoded.columns), encoded.signals)

    @property
    def alone(self) -> bool:
        """Whether the teacher goes through any number of rows itself, batch by batch."""
        return self.views == 1 and batches_itself(self.teacher, self.batch_size)

    def crowded(self, inputs: Any) -> bool:
        """Whether a thread beside the teacher only takes its cores: rows lie in memory, and it answers on all of the processor.

        The threads of a matrix product wait for each other; with one more at work than there are cores, each of a tiny network's
        products takes twice as long.
        """
        if torch.get_num_threads() < _cores() or not self.alone or not on_processor(self.teacher):
            return False
        return _lies_plain(inputs) and not isinstance(inputs, np.memmap)

    def blocks(self, chunk: Integers, row_bytes: int = BLOCK_BYTES) -> list[Integers]:
        """The positions of the rows that are made ready at once: whole batches, several where rows are small."""
        size = self.batch_size * max(1, BLOCK_BYTES // (row_bytes * self.batch_size))
        return [chunk[start : start + size] for start in range(0, len(chunk), size)]

    def ready(self, inputs: Any, keys: Integers, positions: Integers, view: int) -> Any:
        """These rows in this view."""
        rows = take(inputs, positions)
        return rows if view == 0 or self.augment is None else self.augment(rows, keys[positions], view)


def answers(
    questions: Questions, inputs: Any, keys: Integers, chunks: Iterable[Integers], advance: Callable[[int], None] = lambda rows: None
) -> Generator[Parts, None, None]:
    """What the teacher says of each chunk of rows, in parts that belong one after the other; close it if you end before it does."""
    return (_batched if questions.alone else _viewed)(questions, inputs, keys, list(chunks), advance)


def _viewed(
    questions: Questions, inputs: Any, keys: Integers, chunks: list[Integers], advance: Callable[[int], None]
) -> Generator[Parts, None, None]:
    """A batch at a time, each of its views asked."""
    wanted = ((block, view) for chunk in chunks for block in questions.blocks(chunk) for view in range(questions.views))
    with closing(_ahead(lambda at: questions.ready(inputs, keys, *at), wanted)) as ready:
        for chunk in chunks:
            parts: Parts = []
            for block in questions.blocks(chunk):
                said = [answer(questions.teacher, next(ready), questions.task) for _ in range(questions.views)]
                parts.append(said[0] if len(said) == 1 else {name: torch.stack([each[name] for each in said], dim=1) for name in said[0]})
                advance(len(block))
            yield parts


def _batched(
    questions: Questions, inputs: Any, keys: Integers, chunks: list[Integers], advance: Callable[[int], None]
) -> Generator[Parts, None, None]:
    """A chunk at a time, whose batches the teacher goes through itself."""
    teacher, size = questions.teacher, questions.batch_size
    taken = _Taken(inputs)
    blocks = [questions.blocks(chunk, taken.row_bytes) for chunk in chunks]

    def batches(ready: Iterator[Any], count: int) -> Iterator[Any]:
        for _ in range(count):
            block = next(ready)
            for start in range(0, len(block), size):
                some = block if len(block) <= size else block[start : start + size]
                yield some
                advance(len(some))

    every = itertools.chain.from_iterable(blocks)
    with closing((taken(block) for block in every) if questions.crowded(inputs) else _ahead(taken, every)) as ready:
        for chunk, own in zip(chunks, blocks, strict=True):
            yield [checked(teacher, signals_of(teacher, batches(ready, len(own)), len(chunk)), chunk, questions.task)]


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lies_plain(inputs: Any) -> bool:
    """Whether rows are one array of numbers, each row in one piece."""
    return isinstance(inputs, np.ndarray) and not inputs.dtype.hasobject and inputs.flags.c_contiguous and inputs.nbytes > 0


@final
class _Taken:
    """Rows at given positions. Those of an array are put where the rows before last were, for memory that was just used is fast."""

    def __init__(self, inputs: Any) -> None:
        self._inputs = inputs
        plain = _lies_plain(inputs)
        self.row_bytes = inputs.nbytes // len(inputs) if plain else BLOCK_BYTES
        self._held: list[np.ndarray[Any, Any] | None] = [None] * (AHEAD if plain else 0)

    def __call__(self, positions: Integers) -> Any:
        if not self._held:
            return take(self._inputs, positions)
        held = self._held.pop(0)
        if held is None or len(held) < len(positions):
            held = np.empty((len(positions), *self._inputs.shape[1:]), self._inputs.dtype)
        self._held.append(held)
        return np.take(self._inputs, positions, axis=0, out=held[: len(positions)], mode="clip")


def answers_of_pool(
    pool: Pool, questions: Questions, inputs: Any, keys: Integers, chunks: Iterable[Integers], advance: Callable[[int], None]
) -> Generator[Parts | Kept, None, None]:
    """The same, asked by the workers of a pool: one chunk is one item of work. Encoded, where the questions say how."""
    chunks = list(chunks)
    came = pool.map(questions, ((take(inputs, chunk), keys[chunk]) for chunk in chunks))
    for chunk, sent in zip(chunks, came, strict=True):
        advance(len(chunk))
        yield [sent.values] if sent.signals is None else Kept(sent.wrong, Encoded(sent.values, sent.signals))


def not_finite(said: Signals, dtype: torch.dtype, *, unanswered: bool) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Rows that hold NaN, or more than the stored type can say; `unanswered` lets those pass that hold no number at all."""
    most = torch.finfo(dtype).max
    if all(_within(value, most) for value in said.values() if value.is_floating_point()):
        return np.zeros(len(next(iter(said.values()))), dtype=bool)
    wrong = [
        ~(value.flatten(1).abs().amax(dim=1) <= most) & (is_answered(value) | (not unanswered))
        for value in said.values()
        if value.is_floating_point()
    ]
    return np.asarray(torch.stack(wrong).any(dim=0).numpy())


def _within(value: Tensor, most: float) -> bool:
    """Whether all numbers are finite and no larger than this; NaN is neither."""
    if not value.numel():
        return True
    low, high = value.aminmax()
    return bool(low >= -most) and bool(high <= most)


def _packed(tensors: dict[str, Tensor]) -> dict[str, tuple[np.ndarray[Any, Any], torch.dtype]]:
    """Tensors of any type, bfloat16 too, as arrays, which any pool can send."""
    return {name: (value.contiguous().view(torch.uint8).numpy(), value.dtype) for name, value in tensors.items()}


def joined(parts: Parts) -> Signals:
    """The parts as one."""
    return parts[0] if len(parts) == 1 else {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def answer(teacher: Teacher, inputs: Any, task: Task) -> Signals:
    """What a teacher says of these rows, on the CPU; TeacherError U010 when it does not fit the task."""
    return checked(teacher, teacher.signals(inputs), inputs, task)


def checked(teacher: Teacher, given: Signals, rows: Sized, task: Task) -> Signals:
    """What a teacher said of so many rows, on the CPU; TeacherError U010 when it does not fit the task."""
    said = {name: _plain(value) for name, value in given.items()}
    shape = tuple(said[task.signal].shape) if task.signal in said else None
    fits = shape is not None and shape[:1] + shape[-1:] == (len(rows), task.outputs)
    if not fits or len(shape or ()) != (3 if task.kind == "recognition" else 2):
        raise TeacherError(
            f"{teacher.name} answers {task.signal} of shape {shape} for {len(rows)} rows, the task needs {(len(rows), task.outputs)}; "
            "match its classes with the data's first (teacher.classes)",
            code="U010",
        )
    return said


def _plain(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return value.float() if value.is_floating_point() else value


def _ahead(make: Callable[[Given], Made], over: Iterable[Given]) -> Generator[Made, None, None]:
    """What is made of each, in order, on a thread that is a little ahead; what was given is done with when the next is asked for.

    Plain queues: what an executor does beside takes a twentieth of the time of a tiny teacher.
    """
    wanted, made = SimpleQueue[bool](), SimpleQueue[tuple[Made | None, BaseException | None] | None]()

    def work() -> None:
        try:
            for each in over:
                if not wanted.get():
                    return
                made.put((make(each), None))
            made.put(None)
        except BaseException as error:  # raised where it is waited for
            made.put((None, error))

    thread = Thread(target=work, name="rows", daemon=True)
    thread.start()
    try:
        for _ in range(AHEAD):
            wanted.put(True)
        while (given := made.get()) is not None:
            if given[1] is not None:
                raise given[1]
            yield cast("Made", given[0])
            wanted.put(True)
    finally:
        wanted.put(False)
        thread.join()
