"""Arrays: .npz files as a Source. Keys: inputs under `images`, `X`, `inputs`, `features` or `data`; labels under `labels`, `y`,
`targets` or `label`; optional `class_names` (or `classes`) and `split`. Nothing that needs a pickle is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from understudy.data._npz import load_arrays, one_of
from understudy.data._source import Source, as_inputs, split_words
from understudy.errors import DataError

Array = np.ndarray[Any, Any]

_INPUTS = ("images", "X", "inputs", "features", "data")
_LABELS = ("labels", "y", "targets", "label")
_CLASSES = ("class_names", "classes")


def read_arrays(path: str | Path, kind: Literal["auto", "array", "image"] = "auto") -> Source:
    """The rows of a .npz file. DataError U100-U128 says what is wrong with it, where, and what to do."""
    path = Path(path)
    arrays = load_arrays(path)
    key = one_of(arrays, _INPUTS, path.name, "inputs")
    if key is None:
        raise DataError(f"{path.name} has the keys {', '.join(arrays)}; inputs are under one of {', '.join(_INPUTS)}", code="U124")
    wanted = "image" if key == "images" and kind == "auto" else kind
    found, inputs = as_inputs(arrays[key], wanted, f"{key!r} of {path.name}")
    label_key = one_of(arrays, _LABELS, path.name, "labels")
    labels = None if label_key is None else arrays[label_key]
    if labels is not None and (labels.ndim == 0 or len(labels) != len(inputs)):
        raise DataError(
            f"{path.name} has {len(inputs)} rows in {key!r} but labels of the shape {list(labels.shape)} in {label_key!r};"
            " one label per row",
            code="U125",
        )
    class_key = one_of(arrays, _CLASSES, path.name, "class names")
    classes = None if class_key is None else tuple(str(name) for name in arrays[class_key].ravel())
    split = None
    if "split" in arrays:
        if arrays["split"].shape != (len(inputs),):
            raise DataError(f"'split' of {path.name} has the shape {list(arrays['split'].shape)}, not [{len(inputs)}]", code="U125")
        split = split_words(arrays["split"], f"'split' of {path.name}")
    names = np.array([f"{path.name} row {position}" for position in range(len(inputs))])
    return Source(found, inputs, labels, names, classes, split)
