"""Shards and the manifest: how a transfer set lies on disk. A file is whole or absent.

A folder is `shard-00000.safetensors` ... plus `manifest.json`, written last; while being taught it holds `plan.json`
instead. Each shard carries the hash of its own tensors and a note of the plan it was taught by, so that a resumed run can trust what a
killed one left, even when both notes are lost.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from understudy.errors import TransferSetError

MANIFEST = "manifest.json"
PLAN = "plan.json"
VERSION = 2
KEYS = "keys"
FOLD = "fold"


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent: temporary file, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TransferSetError(
            f"cannot write {path}: {error.strerror or error}. What is written is whole; make room and run the same command again",
            code="U023",
        ) from error
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def as_json(said: dict[str, Any]) -> bytes:
    return (json.dumps(said, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, said: dict[str, Any]) -> None:
    write_whole(path, as_json(said))


def read_json(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        advice = "Run the same command again: shards that are whole are kept"
        raise TransferSetError(f"{path} cannot be read: {error}. {advice}", code="U024") from None
    return of_this_version(said, path)


def of_this_version(said: Any, path: Path | str) -> dict[str, Any]:
    """A manifest or plan, when this version of the package can read it."""
    if not isinstance(said, dict) or said.get("version") != VERSION:
        found = said.get("version") if isinstance(said, dict) else None
        raise TransferSetError(
            f"{path} is format {found}, this version of understudy reads {VERSION}. Teach again into an empty folder", code="U024"
        )
    return said


def write_shard(path: Path, tensors: dict[str, Tensor], note: dict[str, Any]) -> dict[str, Any]:
    """Write one shard with a note of what it belongs to; gives its entry in the manifest."""
    hashed = content_hash(tensors)
    # one entry: several would come in any order, and the same rows would not give the same bytes
    said = json.dumps({"blake2b": hashed, **note}, sort_keys=True)
    write_whole(path, save(tensors, metadata={"understudy": said}))
    return {"file": path.name, "rows": len(tensors[KEYS]), "blake2b": hashed}


def read_shard(path: Path, *, expected: dict[str, Any] | None = None, verify: bool = True) -> dict[str, Tensor]:
    """A shard's tensors, memory-mapped; TransferSetError when it is damaged or not the one the manifest means."""
    try:
        with safe_open(path, framework="pt") as file:
            hashed = _said(file).get("blake2b")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged(path, str(error).splitlines()[0]) from None
    if hashed is None or (expected is not None and (hashed != expected["blake2b"] or len(tensors.get(KEYS, ())) != expected["rows"])):
        raise damaged(path, "it is not the shard that the manifest describes")
    if verify and content_hash(tensors) != hashed:
        raise damaged(path, "its content hash differs")
    return tensors


def note_of(path: Path) -> dict[str, Any]:
    """The note that a shard was written with, empty when it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return _said(file)
    except (OSError, ValueError, SafetensorError):
        return {}


def _said(file: Any) -> dict[str, Any]:
    said = json.loads((file.metadata() or {}).get("understudy", "{}"))
    return said if isinstance(said, dict) else {}


def damaged(path: Path, reason: str) -> TransferSetError:
    return TransferSetError(f"{path} is damaged ({reason}). Run the same command again: only it will be taught again", code="U025")


def content_hash(tensors: dict[str, Tensor]) -> str:
    """The hash of all tensors' names, types, shapes and bytes."""
    seen = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        seen.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        seen.update(as_bytes(tensor).data)
    return seen.hexdigest()


def as_bytes(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.asarray(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
