"""Pools: many processes that do one work on many items, in order. `Processes` are local; a cluster's are in adapters/.

A pool knows nothing of teachers or rows. Adding one: a final class with `map`.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

import torch

from understudy.errors import TransferSetError

Item = TypeVar("Item", contravariant=True)
Done = TypeVar("Done", covariant=True)

AHEAD = 2
"""Items given out beyond those that are waited for, per worker: no worker is idle, and few answers are in memory."""


class Pool(Protocol):
    """Workers, each of which gets the work once and then items of it."""

    def map(self, work: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done]:
        """What `work` makes of each item, in the order of the items; few items are taken ahead of what is asked for."""
        ...


@final
class Processes:
    """Processes on this machine; they end with the one that started them, however that ends.

    Each takes its part of the threads that PyTorch would use here.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise TransferSetError(f"{count} workers: say 1 or more", code="U460")
        self.count = count

    def map(self, work: Callable[[Item], Done], items: Iterable[Item]) -> Iterator[Done]:
        sent = packed(work)
        threads = max(1, torch.get_num_threads() // self.count)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.count, mp_context=context, initializer=_begin, initargs=(sent, threads))
        try:
            yield from in_order(lambda item: pool.submit(_do, item), lambda future: future.result(), items, self.count * AHEAD)
        except BrokenProcessPool:
            raise TransferSetError(
                f"one of {self.count} workers ended by itself (out of memory? each holds the teacher once). What is written is whole: run "
                "the same command again, with fewer --workers if it happens again. A Python script that starts workers keeps its own "
                'work below `if __name__ == "__main__":`',
                code="U462",
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def packed(work: Any) -> bytes:
    """The work as bytes for another process; TransferSetError where it cannot leave this one."""
    try:
        return pickle.dumps(work)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TransferSetError(
            f"this teacher cannot be sent to another process: {error}. Teach with one worker, or give a teacher whose parts are named at "
            "the top of a module",
            code="U461",
        ) from None


def in_order(give: Callable[[Any], Any], receive: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Give out items, at most `ahead` of them open, and receive what comes of them in their order."""
    opened: deque[Future[Any]] = deque()
    for item in items:
        opened.append(give(item))
        if len(opened) >= ahead:
            yield receive(opened.popleft())
    while opened:
        yield receive(opened.popleft())


_WORK: list[Callable[[Any], Any]] = []


def _begin(sent: bytes, threads: int) -> None:
    """What a new worker does first."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        # a parent that was killed cannot say so, and would leave its workers waiting for ever
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(threads)
    sys.path.append(str(Path.cwd()))  # a teacher named as module:function may be written in a file here
    _WORK.append(pickle.loads(sent))


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def _do(item: Any) -> Any:
    return _WORK[-1](item)
