"""What is in a .npz file, read without a pickle; what arrays and audio share."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from understudy.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]


def load_arrays(path: Path) -> dict[str, Array]:
    """Every array of a .npz file by its key. DataError U100, U126-U128 says why it cannot be read."""
    if not path.is_file():
        there = sorted(item.name for item in path.parent.glob("*.npz")) if path.parent.is_dir() else []
        raise DataError(f"no file {path}; {did_you_mean(path.name, there) if there else 'the folder has no .npz files'}", code="U100")
    arrays = {}
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{path.name} is one array; save inputs and labels by numpy.savez(path, X=..., y=...)", code="U126")
            for key in archive.files:
                try:
                    arrays[key] = archive[key]
                except ValueError:
                    raise DataError(
                        f"{key!r} of {path.name} is an object array, which is a pickle and can run code when loaded; it is not read."
                        " Save plain numbers or texts: numpy.asarray(..., dtype='float32') or dtype='U'",
                        code="U127",
                    ) from None
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path.name} is no .npz file that can be read without a pickle, or it is damaged: {error}", code="U128") from None
    return arrays


def one_of(arrays: dict[str, Array], words: Sequence[str], name: str, what: str) -> str | None:
    """The one of these keys that is there; DataError U124 for two."""
    there = [word for word in words if word in arrays]
    if len(there) > 1:
        raise DataError(f"{name} has {' and '.join(map(repr, there))}; keep one of them for the {what}", code="U124")
    return there[0] if there else None
