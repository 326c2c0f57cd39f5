"""Checkpoints from which training goes on as if nothing had happened, and the card of a finished one.

A checkpoint is one file, written aside, flushed and renamed, of tensors and plain values only (loaded with
weights_only=True). It names what it was made from, and refuses to go on with anything else.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from understudy.errors import InputError

EVERY = 30.0
"""Seconds between checkpoints within an epoch."""
COST = 50.0
"""A checkpoint waits for this many times what the last one took, so that they cost at most 2 % of the time."""

WEIGHTS, CARD = "model.safetensors", "card.json"


@final
class Checkpoints:
    """The checkpoint of one training in its folder; with no folder, none is kept."""

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity
        self.took, self.last = 0.0, time.perf_counter()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def due(self, *, epoch_end: bool) -> bool:
        """At the end of every epoch, every EVERY seconds within one, but not so often that it costs time."""
        waited = time.perf_counter() - self.last
        return self.folder is not None and waited >= self.took * COST and (epoch_end or waited >= EVERY)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; a crash leaves the old one or the new one."""
        assert self.folder is not None
        start = time.perf_counter()
        write(self.folder / "checkpoint.pt", lambda file: torch.save({"identity": json.dumps(self.identity), **state}, file))
        self.last = time.perf_counter()
        self.took = self.last - start

    def load(self) -> dict[str, Any] | None:
        """The checkpoint, or None when there is none. InputError when it belongs to another training."""
        if self.folder is None or not (self.folder / "checkpoint.pt").exists():
            return None
        state: dict[str, Any] = torch.load(self.folder / "checkpoint.pt", weights_only=True, map_location="cpu")
        self._compare(json.loads(state.pop("identity")))
        return state

    def card(self) -> dict[str, Any] | None:
        """The card of this training if it is complete."""
        if self.folder is None or not (self.folder / CARD).exists():
            return None
        card: dict[str, Any] = json.loads((self.folder / CARD).read_text(encoding="utf-8"))
        self._compare(card["identity"])
        return card

    def finish(self, module: nn.Module, card: dict[str, Any]) -> None:
        """Keep the weights, then the card, then drop the checkpoint."""
        if self.folder is None:
            return
        from safetensors.torch import save_model

        write(self.folder / WEIGHTS, lambda file: save_model(module, str(file)))
        text = json.dumps({"identity": self.identity, **card}, indent=1)
        write(self.folder / CARD, lambda file: file.write_text(text, encoding="utf-8"))
        (self.folder / "checkpoint.pt").unlink(missing_ok=True)

    def _compare(self, before: dict[str, Any]) -> None:
        then, now = _flat(before), _flat(json.loads(json.dumps(self.identity)))
        moved = [f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in sorted(then | now) if then.get(key) != now.get(key)]
        if moved:
            text = f"{self.folder} holds the training of something else: {'; '.join(moved)}. Give another folder, or delete it"
            raise InputError(text, code="U076")


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """A file that is whole or absent: written aside, flushed to the disk, renamed."""
    aside = path.with_name(f"{path.name}.part")
    fill(aside)
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(aside, path)


def shape_digest(module: nn.Module) -> str:
    """A short hash of a network's names and shapes."""
    said = [(name, list(tensor.shape), str(tensor.dtype)) for name, tensor in module.state_dict().items()]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _flat(said: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(said, dict):
        return {place: said}
    return {key: value for name, inner in said.items() for key, value in _flat(inner, f"{place}.{name}" if place else str(name)).items()}
