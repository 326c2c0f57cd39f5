"""What every reader of this folder gives: inputs, raw labels and where each row came from; and the checks that readers share.

Labels are raw here (texts, numbers, None or NaN where missing); understudy.data.labelling turns them into a task's labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import pandas as pd

from understudy.data.rows import SPLITS, Kind
from understudy.errors import DataError, Problem, did_you_mean

Array = np.ndarray[Any, Any]

_SPLIT_WORDS = {**{word: word for word in SPLITS}, "val": "validation", "valid": "validation", "dev": "validation"}


@final
@dataclass(frozen=True)
class Source:
    """Rows as read: `inputs` by kind as in Rows, `labels` raw (Series, DataFrame, ndarray or None), `problems` are warnings;
    `groups` names what must not be split (a speaker), a text per row."""

    kind: Kind
    inputs: Any
    labels: Any = None
    names: Array | None = None
    classes: tuple[str, ...] | None = None
    split: Array | None = None
    problems: tuple[Problem, ...] = ()
    groups: Array | None = None


def place(names: Array | None, position: int) -> str:
    """Where a row came from, for messages."""
    return f"row {position}" if names is None else str(names[position])


def split_words(raw: Any, where: str, names: Array | None = None) -> Array:
    """One of `train`, `validation`, `test` per row; `val`, `valid` and `dev` mean validation. DataError U113 otherwise.

    >>> split_words(["Train", "dev"], "column 'part'").tolist()
    ['train', 'validation']
    """
    words = np.array([_SPLIT_WORDS.get(str(word).strip().casefold(), "") for word in raw], dtype="<U10")
    bad = np.flatnonzero(words == "")
    if len(bad):
        raise DataError(
            f"{where} must say train, validation or test in every row; {place(names, bad[0])} says {str(raw[bad[0]])!r}"
            f" ({len(bad)} such rows)",
            code="U113",
        )
    return words


@final
@dataclass(frozen=True)
class Columns:
    """A table taken apart."""

    inputs: pd.DataFrame
    labels: Any
    split: Array | None


def check_columns(columns: Sequence[str], where: str, *, label: str | list[str] | None, ignore: Sequence[str], split: str | None) -> None:
    """DataError U107 that names every asked column that is not there, each with the nearest one that is."""
    labels = [label] if isinstance(label, str) else list(label or [])
    lines = []
    for asked, option in [*((name, "data.label") for name in labels), *((name, "data.ignore") for name in ignore), (split, "data.split")]:
        if asked is None or asked in columns:
            continue
        line = f"No column {asked!r} ({option}) in {where}; {did_you_mean(asked, columns)}"
        if option == "data.label":
            line += " Distillation does not need labels, evaluation does: leave data.label out for rows without labels"
        lines.append(line)
    if lines:
        raise DataError("\n  ".join(lines), code="U107")


def take_apart(
    frame: pd.DataFrame, where: str, names: Array | None, *, label: str | list[str] | None, ignore: Sequence[str], split: str | None
) -> Columns:
    """Inputs, labels and split of a table whose columns were checked. DataError U108 when nothing is left to learn from."""
    labels = [label] if isinstance(label, str) else list(label or [])
    inputs = frame.drop(columns=list(dict.fromkeys([*labels, *ignore, *([split] if split else [])])))
    if not len(inputs.columns):
        raise DataError(f"{where} has no input columns left beside the label and the ignored ones", code="U108")
    raw = None if label is None else frame[label]
    parts = None if split is None else split_words(frame[split].to_numpy(dtype=object), f"column {split!r} of {where}", names)
    return Columns(inputs, raw, parts)


def as_inputs(raw: Array, kind: str, where: str) -> tuple[Kind, Array]:
    """The kind and the canonical array: images uint8 [rows, height, width, channels], anything else float32 [rows, ...].

    `kind` is `auto`, `array` or `image`; uint8 of the shape of images is taken for images. Floats asked to be images are converted
    when they are whole numbers in 0..255. DataError U120-U123 for objects, NaN, infinities and shapes.
    """
    raw = np.asarray(raw)
    if raw.dtype.kind not in "buif":
        raise DataError(
            f"{where} holds {raw.dtype} and not numbers. Save numeric arrays (object arrays are pickles, which are not read)", code="U120"
        )
    if raw.ndim < 2:
        raise DataError(f"{where} has the shape {list(raw.shape)}; inputs are [rows, ...] with at least two axes", code="U123")
    if not raw.size:
        raise DataError(f"{where} has no rows (shape {list(raw.shape)})", code="U106")
    like_images = raw.dtype == np.uint8 and (raw.ndim == 3 or (raw.ndim == 4 and raw.shape[-1] in (1, 3)))
    if kind == "image" or (kind == "auto" and like_images):
        return "image", _as_images(raw, where)
    flat = raw.reshape(len(raw), -1)
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=1)) if raw.dtype.kind == "f" else np.empty(0, dtype=np.int64)
    if len(bad):
        what = "NaN" if np.isnan(flat[bad[0]]).any() else "an infinite number"
        raise DataError(f"{where} has {what} in row {bad[0]} ({len(bad)} such rows). Fill or drop these rows", code="U121")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(raw, dtype=np.float32)
    if raw.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
        raise DataError(f"{where} has a number beyond float32 in row {row}. Scale the inputs", code="U121")
    return "array", values


def _as_images(raw: Array, where: str) -> Array:
    if raw.ndim == 3:
        raw = raw[..., None]
    if raw.ndim != 4 or raw.shape[-1] not in (1, 3):
        hint = " Move the channels last: images.transpose(0, 2, 3, 1)" if raw.ndim == 4 and raw.shape[1] in (1, 3) else ""
        raise DataError(f"{where} has the shape {list(raw.shape)}; images are [rows, height, width] or [..., 1 or 3].{hint}", code="U123")
    if raw.dtype == np.uint8:
        return raw
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        row = int(np.flatnonzero(~np.isfinite(raw.reshape(len(raw), -1)).all(axis=1))[0])
        raise DataError(f"{where} has NaN or infinite pixels in row {row}", code="U121")
    low, high = raw.min(), raw.max()
    whole = raw.dtype.kind != "f" or bool((raw == np.rint(raw)).all())
    if whole and low >= 0 and 1 < high <= 255:
        return raw.astype(np.uint8)
    raise DataError(
        f"{where} holds {raw.dtype} from {low:g} to {high:g}; images are uint8 from 0 to 255."
        " Save (images * 255).round().astype('uint8') if 1 is white, or call the array X and use data.kind = 'array'",
        code="U122",
    )
