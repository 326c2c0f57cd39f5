"""A file of predictions as a teacher: .parquet, .csv, .csv.gz or .npz, one answer per row of the data.

A column `key`, `row` or `id` says which row an answer belongs to; without one the order must be the data's, and is
believed only where the labels agree. Answers are then found by content key, so that they cannot misalign.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from understudy.adapters._loading import existing, file_digest
from understudy.answers import ClassMatch, Output, evidence, match_classes, to_logits
from understudy.data.keys import content_keys
from understudy.data.rows import Kind, Rows
from understudy.errors import TeacherError, did_you_mean
from understudy.signals import Signals
from understudy.store.transfer_set import find_keys
from understudy.tasks import Task

_KEY_COLUMNS = ("key", "row", "id")


@final
class PredictionsTeacher:
    """Stored answers, found by the content key of each row asked. `answers` are logits or values [rows, columns]."""

    def __init__(
        self,
        keys: np.ndarray[Any, np.dtype[np.int64]],
        answers: Tensor,
        *,
        kind: Kind,
        task: Task,
        classes: Sequence[str] | None = None,
        name: str = "predictions",
        content: str = "",
    ) -> None:
        if len(keys) != len(answers):
            raise TeacherError(f"{len(keys):,} rows, {len(answers):,} predictions", code="U016")
        self.name = name
        self.task = task
        self.classes = None if classes is None else tuple(classes)
        self._keys = keys
        self._answers = answers
        self._kind = kind
        self._content = content

    def signals(self, inputs: Any) -> Signals:
        found = find_keys(self._keys, content_keys(inputs, self._kind))
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise TeacherError(
                f"{self.name} has no prediction for {len(missing):,} of {len(found):,} rows (first: row {missing[0]}); "
                "a file of predictions cannot answer rows it was not made for (synthetic rows, augmented views, other data)",
                code="U016",
            )
        return {self.task.signal: self._answers[torch.from_numpy(found)]}

    def fingerprint(self) -> dict[str, str]:
        return {"content": self._content, "classes": ",".join(self.classes or ())}

    def parameters(self) -> None:
        return None

    def agreement(self, rows: Rows) -> tuple[bool, str]:
        """Whether the labels show that these answers belong to these rows, and the figure that says so."""
        if rows.labels is None:
            return False, "there are no labels to compare with"
        answers = self.signals(rows.inputs)[self.task.signal]
        if self.task.kind != "regression":
            found = _match(self.classes, self.task, answers)
            answers = answers if found is None else answers[:, list(found.order)]
        if answers.shape[1] != self.task.outputs:
            return False, f"the predictions have {answers.shape[1]} columns, the task {self.task.outputs}"
        seen = evidence(answers, rows.labels, self.task)
        if seen is None:
            return False, "there are no labelled rows to compare with"
        return seen.proved or seen.better is not None, seen.said


def _match(classes: Sequence[str] | None, task: Task, answers: Tensor) -> ClassMatch | None:
    try:
        return match_classes(classes, task, answers, None, accept=True)
    except TeacherError:
        return None


def load(path: str | Path, *, rows: Rows, task: Task, classes: Sequence[str] | None = None, output: Output = "auto") -> PredictionsTeacher:
    """The predictions in a file, aligned with these rows; columns other than the key are classes by name.

    A wrong count is U016; an order that labels do not support is U017.
    """
    path = existing(path)
    columns, names, values = _read(path)
    if values.shape[1] == 0:
        raise TeacherError(f"{path} has no column of predictions", code="U016")
    by_key = columns is not None
    if columns is not None:
        values = values[_align(path, columns[0], columns[1], rows)]
    elif len(values) != len(rows):
        raise TeacherError(
            f"{path}: {len(rows):,} rows, {len(values):,} predictions, and no column key, row or id says which is which. Add `row` "
            "(0, 1, ...) and one prediction for every row",
            code="U016",
        )
    raw = torch.from_numpy(np.array(values, dtype=np.float32))
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        # all of the file, not only the rows that the preflight asks about
        told = f"{path}: {len(bad):,} of {len(values):,} predictions are NaN or infinite (first: {rows.name(int(bad[0]))})"
        raise TeacherError(f"{told}; predict these rows again, or take them out of the data", code="U006")
    classes = names if classes is None else classes
    if task.kind == "regression" and raw.shape[1] > 1:
        raise TeacherError(f"{path} has {raw.shape[1]} columns of numbers ({', '.join(names or ())}), a regression needs one", code="U010")
    if task.kind == "regression" or raw.shape[1] == 1:
        classes = task.classes if task.single_label else None
    teacher = PredictionsTeacher(
        rows.keys, to_logits(raw, output, task), kind=rows.kind, task=task, classes=classes, name=path.name, content=file_digest(path)
    )
    if not by_key:
        fits, said = teacher.agreement(rows)
        if not fits:
            raise TeacherError(
                f"{path} has no column key, row or id, and the labels do not show that its order is the data's: {said}. "
                "Rows may be misaligned; add a column `row` (0, 1, ...) or `id`",
                code="U017",
            )
    return teacher


def _read(path: Path) -> tuple[tuple[str, np.ndarray[Any, Any]] | None, tuple[str, ...] | None, np.ndarray[Any, Any]]:
    """The key column (name, values) or None, the names of the other columns or None, and their values."""
    import pandas as pd

    if path.suffix == ".npz":
        return _read_npz(path)
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=dict.fromkeys(("key", "id"), str))
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise TeacherError(f"{path} cannot be read: {str(error).splitlines()[0]}", code="U034") from None
    key = next((name for name in _KEY_COLUMNS if name in frame.columns), None)
    rest = frame.drop(columns=[name for name in _KEY_COLUMNS if name in frame.columns])
    text = [str(name) for name in rest.columns if rest[name].dtype.kind not in "iufb"]
    if text:
        raise TeacherError(f"{path}: column {text[0]!r} is not numbers; a file of predictions has one column per class", code="U034")
    keys = None if key is None else (key, frame[key].to_numpy())
    return keys, tuple(str(name) for name in rest.columns), rest.to_numpy(dtype=np.float64)


def _read_npz(path: Path) -> tuple[tuple[str, np.ndarray[Any, Any]] | None, tuple[str, ...] | None, np.ndarray[Any, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise TeacherError(f"{path} cannot be read: {error}", code="U034") from None
    signal = next((name for name in ("logits", "probabilities", "values") if name in held), None)
    if signal is None:
        raise TeacherError(f"{path} has no array logits, probabilities or values; {did_you_mean('logits', held)}", code="U034")
    key = next((name for name in _KEY_COLUMNS if name in held), None)
    classes = tuple(str(name) for name in held["classes"]) if "classes" in held else None
    return None if key is None else (key, held[key]), classes, held[signal].reshape(len(held[signal]), -1)


def _align(path: Path, name: str, given: np.ndarray[Any, Any], rows: Rows) -> np.ndarray[Any, np.dtype[np.int64]]:
    """For each row of the data its line in the file; a row without one and a line said twice are refused."""
    import pandas as pd

    index = pd.Index(given if name == "row" else [str(value) for value in given])
    if not index.is_unique:
        raise TeacherError(f"{path}: column {name!r} says '{index[index.duplicated()][0]}' more than once", code="U016")
    found = index.get_indexer(pd.Index(_own_names(name, rows)))
    if (found < 0).any():
        lost = int((found < 0).sum())
        raise TeacherError(
            f"{path}: {len(rows):,} rows, {len(rows) - lost:,} predictions found by {name!r}; "
            f"the first without one is {rows.name(int(np.argmin(found)))}. Predict these {lost:,} rows too, or take them out of the data",
            code="U016",
        )
    return np.asarray(found, dtype=np.int64)


def _own_names(name: str, rows: Rows) -> Any:
    """What the data calls its rows: positions, a column `id` of the table, content keys in hex, or file names."""
    if name == "row":
        return np.arange(len(rows))
    if rows.kind == "table" and name in rows.inputs.columns:
        return rows.inputs[name].astype(str)
    if name == "id" and rows.names is not None:
        return [str(one) for one in rows.names]
    return [f"{first & (2**64 - 1):016x}{second & (2**64 - 1):016x}" for first, second in rows.keys.tolist()]
