"""The transfer set as it is written: one writer at a time, shards that are whole or absent, the manifest last."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, final

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
    content_hash,
    note_of,
    read_json,
    read_shard,
    shard_name,
    write_json,
    write_shard,
)
from understudy.store.encodings import Dense, Encoded, Encoder, Encoding, StoredType, from_spec
from understudy.store.mirror import Mirror
from understudy.tasks import Task

if sys.platform != "win32":
    import fcntl


@final
class TransferWriter:
    """Writes a transfer set into a folder, going on from what an earlier run left there.

    Use it in a `with`: the folder is locked inside. `keys` are the rows that are there already. `encoding` is how the
    answers are stored, "auto" when `settle` will say it; other signals are stored as `dtype`, whole numbers as they are.
    With a `mirror` it goes on from what lies at that address too, and each file is copied there once it is whole here.
    """

    def __init__(
        self,
        folder: Path,
        *,
        task: Task,
        teacher: str,
        fingerprint: dict[str, str],
        dtype: StoredType = "float32",
        encoding: Encoding | Literal["auto"] | None = None,
        views: int = 1,
        view_spec: dict[str, Any] | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self.folder = folder
        self.mirror = mirror
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.encoding: Encoding | None = Dense(dtype) if encoding is None else None if encoding == "auto" else encoding
        self.measured: dict[str, Any] | None = None
        self.task = task
        self._plan: dict[str, Any] = {
            "version": VERSION,
            "task": task.to_json(),
            "teacher": teacher,
            "fingerprint": dict(sorted(fingerprint.items())),
            "views": {"count": views, "spec": view_spec or {}},
            "dtype": dtype,
            "asked": "auto" if self.encoding is None else self.encoding.spec,
        }
        self._entries: dict[int, dict[str, Any]] = {}
        self._shapes: dict[str, Any] = {}
        self._planned = True
        self._digest = hashlib.blake2b(json.dumps(self._plan, sort_keys=True).encode(), digest_size=16).hexdigest()
        self._open = ExitStack()
        self.keys = np.zeros((0, 2), dtype=np.int64)

    def __enter__(self) -> TransferWriter:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TransferSetError(f"cannot make the folder {self.folder}: {error.strerror or error}", code="U023") from None
        with ExitStack() as opened:
            self._take_lock(opened)
            self._compare()
            if self.mirror is not None:
                self._take(opened.enter_context(self.mirror))
            self._collect()
            self._open = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._open.close()

    def settle(self, encoding: Encoding, measured: dict[str, Any]) -> None:
        """Keep to this encoding, and say what it was measured to lose."""
        self.encoding, self.measured = encoding, measured
        self._planned = False  # the next shard writes it down first

    def write(self, keys: np.ndarray[Any, Any], fold: np.ndarray[Any, Any], signals: dict[str, Tensor]) -> None:
        """Store these rows as one shard, which is on the disk when this returns."""
        self.keep(keys, fold, self.encoder(signals, keys))

    @property
    def encoder(self) -> Encoder:
        """How signals become what is stored, wherever that is done."""
        assert self.encoding is not None
        return Encoder(self.task, self.encoding, self.dtype, int(self._plan["views"]["count"]))

    def keep(self, keys: np.ndarray[Any, Any], fold: np.ndarray[Any, Any], encoded: Encoded) -> None:
        """The same with what was encoded before."""
        number = next(n for n in range(len(self._entries) + 1) if n not in self._entries)
        if not self._shapes or not self._planned:
            self._shapes = self._shapes or encoded.signals
            write_json(self.folder / PLAN, self._noted())
            self._planned = True
        tensors = dict(encoded.columns)
        tensors |= {KEYS: torch.from_numpy(np.ascontiguousarray(keys)), FOLD: torch.from_numpy(np.asarray(fold, dtype=np.int8))}
        (self.folder / MANIFEST).unlink(missing_ok=True)
        if self.mirror is not None:
            self.mirror.drop(MANIFEST)
            self.mirror.put(self.folder / PLAN)
        self._entries[number] = write_shard(self.folder / shard_name(number), tensors, self._note())
        if self.mirror is not None:
            self.mirror.put(self.folder / shard_name(number))

    def _noted(self) -> dict[str, Any]:
        """The plan with what was settled on the way."""
        encoding = {"stored": None if self.encoding is None else self.encoding.spec, "measured": self.measured}
        return self._plan | {"encoding": encoding, "signals": self._shapes}

    def _note(self) -> dict[str, Any]:
        """What every shard says of the whole, so that a lost plan or manifest can be made again."""
        return {"plan": self._digest} | {name: self._noted()[name] for name in ("encoding", "signals")}

    def _recall(self, there: dict[str, Any]) -> None:
        """Take over what an earlier run settled."""
        stored, self.measured = there["encoding"]["stored"], there["encoding"]["measured"]
        self.encoding = None if stored is None else from_spec(stored)
        self._shapes = there["signals"]

    def finish(self) -> None:
        """Write the manifest; the transfer set is complete."""
        shards = [self._entries[number] for number in sorted(self._entries)]
        if not shards:
            raise TransferSetError("no row to teach: the rows given are empty", code="U027")
        rows = sum(entry["rows"] for entry in shards)
        write_json(self.folder / MANIFEST, self._noted() | {"shards": shards, "rows": rows})
        (self.folder / PLAN).unlink(missing_ok=True)
        if self.mirror is not None:
            for entry in shards:
                if not self.mirror.has(entry["file"]):
                    self.mirror.put(self.folder / entry["file"])
            self.mirror.put(self.folder / MANIFEST)
            self.mirror.drop(PLAN)

    def _take_lock(self, opened: ExitStack) -> None:
        if sys.platform == "win32":
            return
        lock = os.open(self.folder, os.O_RDONLY)
        opened.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TransferSetError(
                f"another process is writing {self.folder}. Wait for it, or choose another folder", code="U028"
            ) from None
        except OSError:
            # Some network file systems cannot lock a folder; one writer is then the user's own care.
            return

    def _take(self, mirror: Mirror) -> None:
        """Go on from what lies at the address, unless something else was taught there."""
        there = mirror.note()
        if there is not None:
            self._refuse_other(there, mirror.address)
        if mirror.take(self.folder):
            (self.folder / MANIFEST).unlink(missing_ok=True)  # it knows less than what came
            if there is None:
                self._compare_shards()
        if there is not None and not self._shapes:
            self._recall(there)
            write_json(self.folder / PLAN, self._noted())

    def _compare(self) -> None:
        """Refuse a folder that another teacher (or task, type, views) filled; else note what is being written."""
        there = next((said for said in map(self._read, (MANIFEST, PLAN)) if said is not None), None)
        if there is None:
            self._compare_shards()
            write_json(self.folder / PLAN, self._noted())
            return
        self._refuse_other(there, str(self.folder))
        self._recall(there)
        write_json(self.folder / PLAN, self._noted())

    def _refuse_other(self, there: dict[str, Any], place: str) -> None:
        """TransferSetError naming what moved, when the note there is of another teacher, task, type or views."""
        before, now = there["fingerprint"], self._plan["fingerprint"]
        moved = [
            f"{part}: {before.get(part, 'absent')!r} there, {now.get(part, 'absent')!r} now"
            for part in sorted(set(before) | set(now))
            if before.get(part) != now.get(part)
        ]
        parts = ("task", "dtype", "views") if there["asked"] == self._plan["asked"] else ("task", "dtype", "views", "asked")
        moved += [
            f"{'encoding' if part == 'asked' else part}: {there[part]} there, {self._plan[part]} now"
            for part in parts
            if there[part] != self._plan[part]
        ]
        if moved:
            raise TransferSetError(
                "\n  ".join([f"the transfer set {place} was taught by something else:", *moved])
                + "\nGive the teacher that was used, or teach into another folder",
                code="U021",
            )

    def _read(self, name: str) -> dict[str, Any] | None:
        """A note of an earlier run; one that was cut short is worth nothing, one of another version is refused."""
        path = self.folder / name
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            path.unlink(missing_ok=True)
            return None
        return read_json(path)

    def _compare_shards(self) -> None:
        """Without plan and manifest: refuse shards of another plan, and learn from those of this one."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            said = note_of(path)
            if said.get("plan") == self._digest:
                self._recall(said)
            elif said:
                raise TransferSetError(
                    f"{path} was taught by something else (another teacher, task, encoding or views), and the note that said by what "
                    "is lost. Give the teacher that was used, or teach into another folder",
                    code="U021",
                )

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
            hashed = {"file": path.name, "rows": len(shard[KEYS]), "blake2b": content_hash(shard)}
            self._entries[int(path.stem.removeprefix("shard-"))] = hashed
            keys.append(shard[KEYS].numpy().copy())
        self.keys = np.concatenate(keys)
