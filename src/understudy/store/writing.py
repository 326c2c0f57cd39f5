"""The transfer set as it is written: one writer at a time, shards that are whole or absent, the manifest last."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from understudy.errors import TransferSetError
from understudy.store._shards import (
    FOLD,
    KEYS,
    MANIFEST,
    PLAN,
    VERSION,
    StoredType,
    content_hash,
    read_json,
    read_shard,
    shard_name,
    write_json,
    write_shard,
)
from understudy.tasks import Task

if sys.platform != "win32":
    import fcntl


@final
class TransferWriter:
    """Writes a transfer set into a folder, going on from what an earlier run left there.

    Use it in a `with`: the folder is locked inside. `keys` are the rows that are there already.
    """

    def __init__(
        self,
        folder: Path,
        *,
        task: Task,
        teacher: str,
        fingerprint: dict[str, str],
        dtype: StoredType = "float32",
        views: int = 1,
        view_spec: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._plan: dict[str, Any] = {
            "version": VERSION,
            "task": task.to_json(),
            "teacher": teacher,
            "fingerprint": dict(sorted(fingerprint.items())),
            "views": {"count": views, "spec": view_spec or {}},
            "dtype": dtype,
        }
        self._entries: dict[int, dict[str, Any]] = {}
        self._shapes: dict[str, Any] = {}
        self._lock: int | None = None
        self.keys = np.zeros((0, 2), dtype=np.int64)

    def __enter__(self) -> TransferWriter:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TransferSetError(f"cannot make the folder {self.folder}: {error.strerror or error}", code="U023") from None
        self._take_lock()
        try:
            self._compare()
            self._collect()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def write(self, keys: np.ndarray[Any, Any], fold: np.ndarray[Any, Any], signals: dict[str, Tensor]) -> None:
        """Store these rows as one shard."""
        number = next(n for n in range(len(self._entries) + 1) if n not in self._entries)
        tensors = {name: value.detach().to(self.dtype).contiguous() for name, value in signals.items()}
        self._shapes = self._shapes or _shapes(tensors)
        tensors |= {KEYS: torch.from_numpy(np.ascontiguousarray(keys)), FOLD: torch.from_numpy(np.asarray(fold, dtype=np.int8))}
        (self.folder / MANIFEST).unlink(missing_ok=True)
        self._entries[number] = write_shard(self.folder / shard_name(number), tensors)

    def finish(self) -> None:
        """Write the manifest; the transfer set is complete."""
        shards = [self._entries[number] for number in sorted(self._entries)]
        if not shards:
            raise TransferSetError("no row to teach: the rows given are empty", code="U027")
        rows = sum(entry["rows"] for entry in shards)
        write_json(self.folder / MANIFEST, self._plan | {"shards": shards, "signals": self._shapes, "rows": rows})
        (self.folder / PLAN).unlink(missing_ok=True)

    def _take_lock(self) -> None:
        if sys.platform == "win32":
            return
        self._lock = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._release()
            raise TransferSetError(
                f"another process is writing {self.folder}. Wait for it, or choose another folder", code="U028"
            ) from None
        except OSError:
            # Some network file systems cannot lock a folder; one writer is then the user's own care.
            return

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _compare(self) -> None:
        """Refuse a folder that another teacher (or task, type, views) filled; else note what is being written."""
        place = next((self.folder / name for name in (MANIFEST, PLAN) if (self.folder / name).exists()), None)
        if place is None:
            write_json(self.folder / PLAN, self._plan)
            return
        there = read_json(place)
        before, now = there["fingerprint"], self._plan["fingerprint"]
        moved = [
            f"{part}: {before.get(part, 'absent')!r} there, {now.get(part, 'absent')!r} now"
            for part in sorted(set(before) | set(now))
            if before.get(part) != now.get(part)
        ]
        moved += [
            f"{part}: {there[part]} there, {self._plan[part]} now" for part in ("task", "dtype", "views") if there[part] != self._plan[part]
        ]
        if moved:
            raise TransferSetError(
                "\n  ".join([f"the transfer set {self.folder} was taught by something else:", *moved])
                + "\nGive the teacher that was used, or teach into another folder",
                code="U021",
            )
        if place.name == MANIFEST:
            write_json(self.folder / PLAN, self._plan)

    def _collect(self) -> None:
        """Take over the whole shards of an earlier run; what is damaged or half-written goes."""
        for part in self.folder.glob(".*.part"):
            part.unlink()
        entries = {}
        if (self.folder / MANIFEST).exists():
            entries = {entry["file"]: entry for entry in read_json(self.folder / MANIFEST)["shards"]}
        keys = [self.keys]
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            try:
                shard = read_shard(path, expected=entries.get(path.name))
            except TransferSetError:
                path.unlink()
                continue
            self._shapes = self._shapes or _shapes({name: value for name, value in shard.items() if name not in (KEYS, FOLD)})
            hashed = {"file": path.name, "rows": len(shard[KEYS]), "blake2b": content_hash(shard)}
            self._entries[int(path.stem.removeprefix("shard-"))] = hashed
            keys.append(shard[KEYS].numpy().copy())
        self.keys = np.concatenate(keys)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: {"shape": list(value.shape[1:]), "dtype": str(value.dtype).removeprefix("torch.")} for name, value in tensors.items()}
