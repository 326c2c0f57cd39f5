"""The transfer set as it is read: rows found by content key, signals gathered by position.

Opening reads the manifest, checks every shard's hash and joins keys in one vectorised step, so that shuffling,
filtering and resuming cannot misalign a row and its teacher's answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from understudy.errors import TransferSetError, did_you_mean
from understudy.store._gathering import Column
from understudy.store._shards import FOLD, KEYS, MANIFEST, PLAN, damaged, read_json, read_shard
from understudy.store.encodings import from_spec
from understudy.store.mirror import Mirror, cache_folder, is_address
from understudy.tasks import Task

Keys = np.ndarray[Any, np.dtype[np.int64]]
Positions = np.ndarray[Any, np.dtype[np.int64]]


def find_keys(there: Keys, asked: Keys) -> Positions:
    """The position of each asked key [rows, 2] among those there, -1 where it is absent; one sort and one search.

    >>> there = np.array([[5, 1], [2, 9], [5, 0]]); find_keys(there, np.array([[5, 0], [7, 7], [5, 1]]))
    array([ 2, -1,  0])
    """
    if not len(there) or not len(asked):
        return np.full(len(asked), -1, dtype=np.int64)
    order = np.argsort(there[:, 0], kind="stable")
    ordered = there[order]
    at = np.searchsorted(ordered[:, 0], asked[:, 0])
    found = np.full(len(asked), -1, dtype=np.int64)
    open_rows = np.arange(len(asked))
    # Keys that share their first half are neighbours: step on until the second half fits. Almost always one step.
    while len(open_rows):
        inside = open_rows[at[open_rows] < len(ordered)]
        same = inside[ordered[at[inside], 0] == asked[inside, 0]]
        hit = ordered[at[same], 1] == asked[same, 1]
        found[same[hit]] = order[at[same[hit]]]
        open_rows = same[~hit]
        at[open_rows] += 1
    return found


@final
class TransferSet:
    """Rows with a teacher's signals, opened for reading; make one with `TransferSet.open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], shards: list[dict[str, Tensor]]) -> None:
        self.folder = folder
        self.task = Task.from_json(manifest["task"])
        self.signals: dict[str, dict[str, Any]] = manifest["signals"]
        self.fingerprint: dict[str, str] = manifest["fingerprint"]
        self.teacher: str = manifest["teacher"]
        self.views: int = manifest["views"]["count"]
        self.view_spec: dict[str, Any] = manifest["views"]["spec"]
        self.keys: Keys = np.concatenate([shard[KEYS].numpy() for shard in shards])
        self.fold = np.concatenate([shard[FOLD].numpy() for shard in shards])
        self.encoding: dict[str, Any] = manifest["encoding"]
        self._encodings = {name: from_spec(said["encoding"]) for name, said in self.signals.items()}
        self._columns = {
            name + ending: Column([shard[name + ending] for shard in shards], views=self.views)
            for name, encoding in self._encodings.items()
            for ending in encoding.endings
        }

    @staticmethod
    def open(folder: str | Path, *, verify: bool = True, cache: str | Path | None = None) -> TransferSet:
        """Open a complete transfer set; `verify` reads every shard once to check its hash.

        Of an address of fsspec (`s3://bucket/set`) what is missing or differs is copied below the folder `cache` first.
        """
        if is_address(folder):
            folder, verify = Mirror(str(folder)).fetch(cache_folder(str(folder), cache), verify=verify), False
        folder = Path(folder)
        if not (folder / MANIFEST).exists():
            if (folder / PLAN).exists():
                raise TransferSetError(f"{folder} is not complete: its teaching stopped. Run the same command again to go on", code="U026")
            raise TransferSetError(f"no transfer set at {folder}: there is no {MANIFEST}", code="U026")
        manifest = read_json(folder / MANIFEST)
        shards = []
        for entry in manifest["shards"]:
            path = folder / entry["file"]
            if not path.exists():
                raise damaged(path, "it is gone")
            shards.append(read_shard(path, expected=entry, verify=verify))
        return TransferSet(folder, manifest, shards)

    def __len__(self) -> int:
        return len(self.keys)

    def positions(self, keys: Keys) -> Positions:
        """Where these rows are, int64 [rows]; TransferSetError when one is missing."""
        found = find_keys(self.keys, keys)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise TransferSetError(
                f"{len(keys):,} rows, {len(keys) - len(missing):,} in the transfer set {self.folder}; {len(missing):,} missing "
                f"(first: row {missing[0]}). Run `understudy teach` again on these rows: only the missing ones are asked",
                code="U020",
            )
        return found

    def gather(self, signal: str, positions: Positions, view: Positions | None = None, *, temperature: float | None = None) -> Tensor:
        """A signal of these rows, each in its view, as float32 [rows, ...]; of all views, [rows, views, ...], when `view` is None.

        A set of one view has no axis of views. Where only some classes are stored the rest is filled so that the softmax at
        `temperature` (the one they were stored for, else 1) is right; the stored columns themselves are `logits/ids`,
        `logits/top` and `logits/tail`.
        """
        if signal in self._encodings:
            encoding = self._encodings[signal]
            columns = {ending: self._columns[signal + ending].gather(positions, view) for ending in encoding.endings}
            if not encoding.sparse:
                return columns[""].float() if columns[""].is_floating_point() else columns[""]
            places = next(iter(columns.values())).shape[:-1]
            flat = {ending: column.reshape(-1, column.shape[-1]) for ending, column in columns.items()}
            at = encoding.spec.get("temperature", 1.0) if temperature is None else temperature
            dense = encoding.decode(flat, self.signals[signal]["shape"][-1], temperature=at)
            return dense.reshape(*places, -1)
        if signal in self._columns:
            found = self._columns[signal].gather(positions, view)
            return found.float() if found.is_floating_point() else found.long()
        raise TransferSetError(f"the transfer set has no signal {signal!r}; {did_you_mean(signal, self.names)}", code="U027")

    @property
    def names(self) -> tuple[str, ...]:
        """All that `gather` knows: the signals, and the columns of those that are stored in part."""
        return tuple(dict.fromkeys([*self.signals, *self._columns]))

    def sparse(self, signal: str) -> bool:
        """Whether only some classes of this signal are stored."""
        return self._encodings[signal].sparse

    def witness(self, signal: str, positions: Positions, live: Tensor) -> tuple[Tensor, Tensor]:
        """What is stored of the plain rows beside what a live answer says of the same things, [rows, ...] each."""
        encoding, plain = self._encodings[signal], np.zeros(len(positions), dtype=np.int64)
        return encoding.witness({ending: self._columns[signal + ending].gather(positions, plain) for ending in encoding.endings}, live)
