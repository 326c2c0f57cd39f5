"""A run's transfer sets, or their address, as the teacher: `source = "runs/adult/transfer"`. Neither it nor its framework is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from understudy.data.keys import content_keys
from understudy.data.rows import Kind
from understudy.errors import TeacherError, TransferSetError
from understudy.signals import Signals
from understudy.store.mirror import Mirror, is_address
from understudy.store.transfer_set import TransferSet, find_keys
from understudy.tasks import Task

PARTS = ("training", "held_out")


def load(folder: str | Path, *, kind: Kind, task: Task) -> StoredTeacher:
    """The answers in a folder that holds the transfer sets `training` and `held_out`; TeacherError U327 for another task."""
    if is_address(folder):
        places = {part: f"{str(folder).rstrip('/')}/{part}" for part in PARTS}
        sets = {part: TransferSet.open(place) for part, place in places.items() if Mirror(place).note() is not None}
    else:
        sets = {part: TransferSet.open(Path(folder) / part) for part in PARTS if (Path(folder) / part).exists()}
    if "held_out" not in sets:
        raise TeacherError(f"{folder} holds no transfer set of held-out rows: copy the whole folder `transfer` of a run", code="U327")
    other = next((one.task for one in sets.values() if one.task != task), None)
    if other is not None:
        raise TeacherError(f"{folder} was taught for {other.to_json()}, the data has {task.to_json()}; set data.classes", code="U327")
    return StoredTeacher(folder, sets, kind)


@final
class StoredTeacher:
    """Answers the rows that were taught, found by their content, in their plain view."""

    def __init__(self, folder: str | Path, sets: dict[str, TransferSet], kind: Kind) -> None:
        self.folder, self.sets = folder, sets
        first = next(iter(sets.values()))
        self.name = f"{first.teacher} (stored)"
        self.task = first.task
        self.classes = first.task.classes or None
        self._kind = kind

    def signals(self, inputs: Any) -> Signals:
        keys, signal = content_keys(inputs, self._kind), self.task.signal
        none = np.zeros(0, dtype=np.int64)
        shape = next(iter(self.sets.values())).gather(signal, none, none).shape[1:]  # a recognition has frames
        answers, missing = torch.zeros(len(keys), *shape), np.ones(len(keys), dtype=bool)
        for taught in self.sets.values():
            found = find_keys(taught.keys, keys)
            here = np.flatnonzero((found >= 0) & missing)
            answers[torch.from_numpy(here)] = taught.gather(signal, found[here], np.zeros(len(here), dtype=np.int64))
            missing[here] = False
        if missing.any():
            raise TransferSetError(
                f"{int(missing.sum()):,} of {len(keys):,} rows are not in {self.folder}: stored answers say nothing of new rows. Give the "
                "teacher itself, or the data and split.seed that were taught",
                code="U020",
            )
        return {signal: answers}

    def fingerprint(self) -> dict[str, str]:
        return dict(next(iter(self.sets.values())).fingerprint)

    def parameters(self) -> None:
        return None
