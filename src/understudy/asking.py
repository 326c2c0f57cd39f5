"""Asking a teacher about many rows: in blocks of batches, the next block made ready while it answers, or in other processes.

What comes out depends on the rows, their order and the size of a batch alone, never on who asked or how many there were.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from understudy.errors import TeacherError
from understudy.pools import Pool, in_order
from understudy.signals import Signals, is_answered
from understudy.store.encodings import Encoded, Encoder
from understudy.tasks import Task
from understudy.teachers import Teacher, batches_itself, max_missing, signals_at, take

Augment = Callable[[Any, np.ndarray[Any, Any], int], Any]
Integers = np.ndarray[Any, np.dtype[np.int64]]
Parts = list[Signals]
Given = TypeVar("Given")
Made = TypeVar("Made")

BLOCK_BATCHES = 16
"""Batches asked in one call of a teacher that takes them one after the other itself."""
AHEAD = 2


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
        said = joined(next(answers(self, inputs, keys, [np.arange(len(keys))])))
        if self.encoder is None:
            return Sent(np.zeros(len(keys), dtype=bool), _packed(said), None)
        wrong = not_finite(said, self.encoder.dtype, unanswered=max_missing(self.teacher) > 0)
        if wrong.any():
            return Sent(wrong, {}, {})
        encoded = self.encoder(said, keys)
        return Sent(wrong, _packed(encoded.columns), encoded.signals)

    @property
    def alone(self) -> bool:
        """Whether the teacher takes its rows itself, batch by batch: there is nothing to make ready."""
        return self.views == 1 and batches_itself(self.teacher, self.batch_size)

    def blocks(self, chunk: Integers) -> list[Integers]:
        """The positions that are asked in one call each."""
        size = self.batch_size * (BLOCK_BATCHES if self.alone else 1)
        return [chunk[start : start + size] for start in range(0, len(chunk), size)]

    def ready(self, inputs: Any, keys: Integers, positions: Integers, view: int) -> Any:
        """These rows in this view."""
        rows = take(inputs, positions)
        return rows if view == 0 or self.augment is None else self.augment(rows, keys[positions], view)


def answers(
    questions: Questions, inputs: Any, keys: Integers, chunks: Iterable[Integers], advance: Callable[[int], None] = lambda rows: None
) -> Iterator[Parts]:
    """What the teacher says of each chunk of rows, in parts that belong one after the other."""
    chunks, teacher, task = list(chunks), questions.teacher, questions.task
    views = () if questions.alone else range(questions.views)
    wanted = ((block, view) for chunk in chunks for block in questions.blocks(chunk) for view in views)
    ready = _ahead(lambda at: questions.ready(inputs, keys, *at), wanted)
    for chunk in chunks:
        parts: Parts = []
        for block in questions.blocks(chunk):
            said = [answer(teacher, next(ready), task) for _ in views] or [
                checked(teacher, signals_at(teacher, inputs, block), block, task)
            ]
            parts.append(said[0] if len(said) == 1 else {name: torch.stack([each[name] for each in said], dim=1) for name in said[0]})
            advance(len(block))
        yield parts
    ready.close()


def answers_of_pool(
    pool: Pool, questions: Questions, inputs: Any, keys: Integers, chunks: Iterable[Integers], advance: Callable[[int], None]
) -> Iterator[Parts | Kept]:
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
    """What is made of each, in order, on a thread that is a little ahead."""
    with ThreadPoolExecutor(1, thread_name_prefix="rows") as thread:
        yield from in_order(lambda each: thread.submit(make, each), lambda future: future.result(), over, AHEAD)
