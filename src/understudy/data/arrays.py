"""Arrays: .npz files as a Source. Keys: inputs under `images`, `X`, `inputs`, `features` or `data`; labels under `labels`, `y`,
`targets` or `label`; optional `class_names` (or `classes`) and `split`. Nothing that needs a pickle is read.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from understudy.data._source import Source, as_inputs, split_words
from understudy.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]

_INPUTS = ("images", "X", "inputs", "features", "data")
_LABELS = ("labels", "y", "targets", "label")
_CLASSES = ("class_names", "classes")


def read_arrays(path: str | Path, kind: Literal["auto", "array", "image"] = "auto") -> Source:
    """The rows of a .npz file. DataError U100-U128 says what is wrong with it, where, and what to do."""
    path = Path(path)
    if not path.is_file():
        there = sorted(item.name for item in path.parent.glob("*.npz")) if path.parent.is_dir() else []
        raise DataError(f"no file {path}; {did_you_mean(path.name, there) if there else 'the folder has no .npz files'}", code="U100")
    arrays = _load(path)
    key = _one(arrays, _INPUTS, path.name, "inputs")
    if key is None:
        raise DataError(f"{path.name} has the keys {', '.join(arrays)}; inputs are under one of {', '.join(_INPUTS)}", code="U124")
    wanted = "image" if key == "images" and kind == "auto" else kind
    found, inputs = as_inputs(arrays[key], wanted, f"{key!r} of {path.name}")
    label_key = _one(arrays, _LABELS, path.name, "labels")
    labels = None if label_key is None else arrays[label_key]
    if labels is not None and (labels.ndim == 0 or len(labels) != len(inputs)):
        raise DataError(
            f"{path.name} has {len(inputs)} rows in {key!r} but labels of the shape {list(labels.shape)} in {label_key!r};"
            " one label per row",
            code="U125",
        )
    class_key = _one(arrays, _CLASSES, path.name, "class names")
    classes = None if class_key is None else tuple(str(name) for name in arrays[class_key].ravel())
    split = None
    if "split" in arrays:
        if arrays["split"].shape != (len(inputs),):
            raise DataError(f"'split' of {path.name} has the shape {list(arrays['split'].shape)}, not [{len(inputs)}]", code="U125")
        split = split_words(arrays["split"], f"'split' of {path.name}")
    names = np.array([f"{path.name} row {position}" for position in range(len(inputs))])
    return Source(found, inputs, labels, names, classes, split)


def _load(path: Path) -> dict[str, Array]:
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


def _one(arrays: dict[str, Array], words: Sequence[str], name: str, what: str) -> str | None:
    there = [word for word in words if word in arrays]
    if len(there) > 1:
        raise DataError(f"{name} has {' and '.join(map(repr, there))}; keep one of them for the {what}", code="U124")
    return there[0] if there else None
