"""From raw labels to a task and labels as understudy.tasks holds them.

How `auto` decides: several 0/1 columns are multilabel; two different values are binary; texts and few different integers are
multiclass; other numbers are regression. "Few" is at most 20, or a run from 0 or 1 without gaps and 5 rows per class.

Class names are texts: 3.0 is `3`, booleans are `False` and `True`. They are ordered as numbers when all are numbers and as texts
otherwise, unless declared. When declared names are no numbers, integer labels are positions among them, and -1 is missing; in
every other case -1 is a class, with a warning unless the other is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from understudy.data._delimited import check_there, decode
from understudy.data._source import place
from understudy.errors import DataError, Problem, did_you_mean
from understudy.tasks import Task, TaskKind

Array = np.ndarray[Any, Any]

_MOST_CLASSES = 1000


def decide(
    word: Literal["auto"] | TaskKind, raw: Any, classes: Sequence[str] | None, names: Array | None = None
) -> tuple[Task, Array | None, list[Problem]]:
    """The task, its labels (None when there is none) and warnings. DataError U130-U138 when labels and task do not fit.

    >>> task, labels, _ = decide("auto", np.array(["cat", "dog", None, "cat"], dtype=object), None)
    >>> task.kind, task.classes, labels.tolist()
    ('binary', ('cat', 'dog'), [0, 1, -1, 0])
    """
    declared = None if classes is None else [str(name) for name in classes]
    if declared is not None and len(set(declared)) < len(declared):
        twice = next(name for name in declared if declared.count(name) > 1)
        raise DataError(f"the declared classes name {twice!r} more than once", code="U130")
    table = _table(raw)
    if table is None or not bool(table.notna().to_numpy().any()):
        return _without_labels(word, declared), None, []
    if word == "multilabel" or (word == "auto" and table.shape[1] > 1):
        return _multilabel(table, declared, names)
    if table.shape[1] > 1:
        raise DataError(f"{table.shape[1]} label columns are task = 'multilabel', but task is {word!r}; name one column", code="U131")
    column = table.iloc[:, 0]
    if word == "recognition":
        return _transcripts(column, declared, names)
    kind = _guess(column, declared, names) if word == "auto" else word
    if kind == "regression":
        return _regression(column, declared, names)
    return _classes(kind, column, declared, names)


def spread(raw: pd.Series[Any], separator: str, declared: Sequence[str] | None, names: Array | None = None) -> pd.DataFrame:
    """Cells that hold several labels as one 0/1 column per class; numbers are positions among declared names that are none.

    DataError U415 for labels that are not among the declared ones.

    >>> spread(pd.Series(["joy,love", "joy"]), ",", None).to_numpy().tolist()
    [[1.0, 1.0], [1.0, 0.0]]
    """
    cells = raw.reset_index(drop=True)
    texts = cells.map(lambda cell: cell if isinstance(cell, str) else _name(cell), na_action="ignore").dropna()
    parts = texts.str.split(separator, regex=False).explode().str.strip()
    parts = parts[parts != ""]
    classes = _ordered(list(parts.unique())) if declared is None else list(declared)
    by_place = declared is not None and not any(name.isdigit() for name in classes) and bool(parts.str.isdigit().all())
    listed = {str(at) if by_place else name: at for at, name in enumerate(classes)}
    strange = parts[~parts.isin(listed)]
    if len(strange):
        at = int(strange.index[0])
        told = f"{place(names, at)} has the label {strange.iloc[0]!r} ({len(strange)} such labels), which is not among the declared classes"
        raise DataError(f"{told}; {did_you_mean(strange.iloc[0], listed)}. Look at data.classes and data.separator", code="U415")
    table = np.full((len(cells), len(classes)), np.nan, dtype=np.float32)
    table[cells.notna().to_numpy()] = 0
    table[parts.index.to_numpy(), parts.map(listed).to_numpy(dtype=np.int64)] = 1
    return pd.DataFrame(table, columns=classes)


def read_classes(path: Path) -> list[str]:
    """The class names of a text file, one per line. DataError U100 without the file, U404 when it names none."""
    check_there(path)
    names = [line.strip() for line in decode(path, "utf-8").splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path} (data.classes) names no class: write one name per line, in the order of the labels", code="U404")
    return names


def to_names(labels: Array, task: Task) -> Array:
    """Labels as people say them, object [rows]: the class, the classes joined by `|`, or the number; None where missing.

    >>> to_names(np.array([1, -1]), Task("binary", ("no", "yes"))).tolist()
    ['yes', None]
    """
    there = task.labelled(labels)
    said = np.full(len(labels), None, dtype=object)
    words = np.array(task.classes, dtype=object)
    for position in np.flatnonzero(there):
        if task.single_label:
            said[position] = words[labels[position]]
        elif task.kind == "recognition":
            said[position] = " ".join(words[labels[position][labels[position] >= 0]])
        elif task.kind == "multilabel":
            said[position] = "|".join(words[labels[position] == 1])
        else:
            said[position] = float(labels[position, 0])
    return said


def _transcripts(column: pd.Series[Any], declared: list[str] | None, names: Array | None) -> tuple[Task, Array, list[Problem]]:
    """What was said, as words with spaces between them."""
    said = [None if pd.isna(value) else _name(value).split() for value in column]
    seen = sorted({word for words in said if words for word in words}, key=_order)
    if declared is not None:
        strange = next((word for word in seen if word not in declared), None)
        if strange is not None:
            row = next(at for at, words in enumerate(said) if words and strange in words)
            raise DataError(f"{place(names, row)} says {strange!r}; {did_you_mean(strange, declared)} (data.classes)", code="U430")
    task = Task("recognition", tuple(declared or seen))
    codes = {word: code for code, word in enumerate(task.classes)}
    most = max((len(words) for words in said if words), default=1)
    labels = np.full((len(said), most), -1, dtype=np.int64)
    for row, words in enumerate(said):
        labels[row, : len(words or ())] = [codes[word] for word in words or ()]
    return task, labels, []


def _order(word: str) -> tuple[bool, float, str]:
    number = pd.to_numeric(word, errors="coerce")
    return (bool(np.isnan(number)), 0.0 if np.isnan(number) else float(number), word)


def _table(raw: Any) -> pd.DataFrame | None:
    """Raw labels as a DataFrame whose missing cells are NaN."""
    if raw is None:
        return None
    if isinstance(raw, pd.Series):
        table = raw.to_frame()
    elif isinstance(raw, pd.DataFrame):
        table = raw
    else:
        values = np.asarray(raw)
        if values.ndim not in (1, 2):
            raise DataError(
                f"labels have the shape {list(values.shape)}; they are [rows] or, several per row, [rows, classes]", code="U131"
            )
        table = pd.DataFrame(values.reshape(len(values), -1))
    table = table.reset_index(drop=True)
    return pd.DataFrame({name: _column(table[name]) for name in table.columns})


def _column(column: pd.Series[Any]) -> pd.Series[Any]:
    dtype = column.dtype
    if pd.api.types.is_bool_dtype(dtype) and not pd.api.types.is_object_dtype(dtype):
        return column.astype(object).where(column.notna(), np.nan)
    if pd.api.types.is_numeric_dtype(dtype):
        return column.astype(np.float64) if dtype.kind == "f" or column.isna().any() else column
    if pd.api.types.is_datetime64_any_dtype(dtype):
        raise DataError(f"the label {str(column.name)!r} holds dates; turn them into numbers or classes", code="U131")
    plain = column.astype(object)
    texts = plain.map(lambda value: value.strip() if isinstance(value, str) else value, na_action="ignore")
    texts = texts.where(texts.notna() & (texts != ""), np.nan)
    known = texts.dropna()
    numeric = len(known) > 0 and not any(isinstance(value, str | bool | np.bool_) for value in known)
    return texts.astype(np.float64) if numeric else texts


def _is_numbers(column: pd.Series[Any]) -> bool:
    return column.dtype.kind in "iuf"


def _name(value: Any) -> str:
    return repr(float(value)).removesuffix(".0") if isinstance(value, float | np.floating) else str(value)


def _without_labels(word: str, declared: list[str] | None) -> Task:
    if word == "regression":
        return Task("regression")
    if declared is None or len(declared) < (1 if word == "multilabel" else 2):
        raise DataError(
            "there are no labels, so the classes must be said in order: data.classes = ['no', 'yes'], or task = 'regression'",
            code="U132",
        )
    if word == "auto":
        return Task("binary" if len(declared) == 2 else "multiclass", tuple(declared))
    if word == "recognition":
        return Task("recognition", tuple(declared))
    kind: TaskKind = "multilabel" if word == "multilabel" else "binary" if word == "binary" else "multiclass"
    return _checked(kind, declared)


def _checked(kind: TaskKind, classes: Sequence[str]) -> Task:
    if kind == "binary" and len(classes) != 2:
        shown = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
        raise DataError(f"task = 'binary' needs 2 classes; there are {len(classes)}: {shown}. Use task = 'multiclass'", code="U133")
    return Task(kind, tuple(classes))


def _guess(column: pd.Series[Any], declared: list[str] | None, names: Array | None) -> TaskKind:
    if declared is not None:
        return "binary" if len(declared) == 2 else "multiclass"
    values = column.dropna()
    distinct = values.unique()
    if len(distinct) == 2:
        return "binary"
    if not _is_numbers(values):
        if len(values) >= 20 and len(distinct) > 0.5 * len(values):
            raise DataError(
                f"the label {str(column.name)!r} has {len(distinct)} different texts in {len(values)} rows: an id or free text?"
                f" {place(names, values.index[0])} says {str(values.iloc[0])[:40]!r}. If they are classes, say task = 'multiclass'",
                code="U134",
            )
        return "multiclass"
    whole = bool(np.isfinite(distinct).all() and (distinct == np.rint(distinct)).all())
    run = whole and distinct.min() in (0, 1) and distinct.max() - distinct.min() + 1 == len(distinct) and len(values) >= 5 * len(distinct)
    few = whole and (len(distinct) <= 20 or (run and len(distinct) <= _MOST_CLASSES))
    return "multiclass" if few else "regression"


def _regression(column: pd.Series[Any], declared: list[str] | None, names: Array | None) -> tuple[Task, Array, list[Problem]]:
    if declared is not None:
        raise DataError("task = 'regression' has no classes; remove data.classes", code="U131")
    numbers = pd.to_numeric(column, errors="coerce").astype(np.float64)
    bad = np.flatnonzero((numbers.isna() & column.notna()).to_numpy())
    if len(bad):
        raise DataError(
            f"task = 'regression' needs numbers; {place(names, bad[0])} has the label {str(column.iloc[bad[0]])!r} ({len(bad)} such rows)."
            " Correct it, leave the cell empty, or name the text in data.missing",
            code="U135",
        )
    with np.errstate(over="ignore"):
        labels = numbers.to_numpy().astype(np.float32)
    bad = np.flatnonzero(np.isinf(labels))
    if len(bad):
        raise DataError(f"{place(names, bad[0])} has an infinite label ({len(bad)} such rows). Correct or remove it", code="U135")
    if numbers.nunique() == 1:
        raise DataError(f"every label is {_name(numbers.dropna().iloc[0])}; there is nothing to learn", code="U136")
    return Task("regression"), labels[:, None], []


def _multilabel(table: pd.DataFrame, declared: list[str] | None, names: Array | None) -> tuple[Task, Array, list[Problem]]:
    columns = [str(name) for name in table.columns]
    if declared is not None and len(declared) != len(columns):
        raise DataError(f"{len(declared)} classes are declared but there are {len(columns)} label columns", code="U137")
    named = not isinstance(table.columns, pd.RangeIndex)
    if declared is not None and named and set(declared) != set(columns):
        if not all(name.isdigit() for name in columns):
            strange = next(name for name in declared if name not in columns)
            raise DataError(f"no label column for the declared class {strange!r}; {did_you_mean(strange, columns)}", code="U137")
    elif declared is not None and set(declared) == set(columns):
        table = table[[table.columns[columns.index(name)] for name in declared]]
    labels = np.empty(table.shape, dtype=np.float32)
    for at, name in enumerate(table.columns):
        column = table[name]
        plain = column.map(lambda value: float(value) if isinstance(value, bool | np.bool_) else value, na_action="ignore")
        values = pd.to_numeric(plain, errors="coerce")
        bad = np.flatnonzero((column.notna() & ~values.isin([0, 1])).to_numpy())
        if len(bad):
            raise DataError(
                f"multilabel columns hold 0 and 1; column {str(name)!r} has {_name(column.iloc[bad[0]])!r} in {place(names, bad[0])}"
                f" ({len(bad)} such cells). For one class per row name one label column",
                code="U137",
            )
        labels[:, at] = values.to_numpy(dtype=np.float32, na_value=np.nan)
    task = Task("multilabel", tuple(declared or columns))
    same = [task.classes[at] for at in range(labels.shape[1]) if np.nanmin(labels[:, at], initial=1) == np.nanmax(labels[:, at], initial=0)]
    warning = f"the label columns {', '.join(same[:8])} hold the same value in every row; nothing can be said of them"
    return task, labels, [Problem("U138", warning, "warning")] if same else []


def _classes(kind: TaskKind, column: pd.Series[Any], declared: list[str] | None, names: Array | None) -> tuple[Task, Array, list[Problem]]:
    there = column.notna().to_numpy()
    values = column[there]
    if _is_numbers(values) and not np.isfinite(values).all():
        raise DataError(f"{place(names, int(np.flatnonzero(np.isinf(column))[0]))} has an infinite label", code="U135")
    distinct = values.unique()
    whole = _is_numbers(values) and bool((distinct == np.rint(distinct)).all())
    if _is_numbers(values) and not whole and (len(distinct) > _MOST_CLASSES or (len(values) >= 20 and len(distinct) > 0.5 * len(values))):
        raise DataError(f"task = {kind!r}, but the labels are {len(distinct)} different numbers. Say task = 'regression'", code="U133")
    labels = np.full(len(column), -1, dtype=np.int64)
    if declared is not None and whole and not any(name.lstrip("-").isdigit() for name in declared):
        labels[there] = _positions(values, declared, names)
        return _result(kind, labels, declared, None)
    texts = values.map(_name)
    found = _ordered(list(texts.unique()))
    if declared is None and len(found) == 1:
        raise DataError(f"every label is {found[0]!r}; a classifier needs two classes. Declare the others with data.classes", code="U136")
    listed = _match_case(found, declared) if declared is not None else {name: at for at, name in enumerate(found)}
    strange = [name for name in found if name not in listed]
    if declared is not None and strange:
        raise DataError(_strangers(texts, strange, declared, names), code="U130")
    labels[there] = texts.map(listed).to_numpy()
    minus = "-1" if whole and "-1" in found and found != ["-1", "1"] else None
    return _result(kind, labels, declared or found, minus)


def _match_case(found: list[str], declared: list[str]) -> dict[str, int]:
    """The place of each class; booleans are found under any spelling."""
    listed = {name: at for at, name in enumerate(declared)}
    folded = {name.casefold(): at for at, name in enumerate(declared)}
    return listed | {name: folded[name.casefold()] for name in found if name in ("True", "False") and name.casefold() in folded}


def _positions(values: pd.Series[Any], declared: list[str], names: Array | None) -> Array:
    positions = values.to_numpy().astype(np.int64)
    bad = np.flatnonzero((positions < -1) | (positions >= len(declared)))
    if len(bad):
        hint = " Labels that count from 1 must have 1 taken off" if positions.min() == 1 and positions.max() == len(declared) else ""
        raise DataError(
            f"integer labels are positions among the {len(declared)} declared classes, 0 to {len(declared) - 1} (-1: missing);"
            f" {place(names, int(values.index[bad[0]]))} says {positions[bad[0]]} ({len(bad)} such rows).{hint}",
            code="U130",
        )
    return np.asarray(positions)


def _strangers(texts: pd.Series[Any], strange: list[str], declared: list[str], names: Array | None) -> str:
    lines = []
    for name in strange[:8]:
        rows = texts.index[texts == name]
        lines.append(f"{name!r}: {len(rows)} rows, first {place(names, int(rows[0]))}; {did_you_mean(name, declared)}")
    more = [f"and {len(strange) - 8} more"] if len(strange) > 8 else []
    lines = ["labels that are not among the declared classes:", *lines, *more, "Correct these labels, or data.classes"]
    return "\n  ".join(lines)


def _ordered(found: Sequence[str]) -> list[str]:
    try:
        return sorted(found, key=lambda name: (float(name), name))
    except ValueError:
        return sorted(found)


def _result(kind: TaskKind, labels: Array, classes: list[str], minus: str | None) -> tuple[Task, Array, list[Problem]]:
    task = _checked(kind, classes)
    counts = np.bincount(labels[labels >= 0], minlength=len(classes))
    problems = []
    empty = [classes[at] for at in np.flatnonzero(counts == 0)]
    if empty:
        problems.append(Problem("U138", f"no row has the class {', '.join(map(repr, empty[:8]))}", "warning"))
    single = [classes[at] for at in np.flatnonzero(counts == 1)]
    if single:
        shown = ", ".join(map(repr, single[:8]))
        problems.append(Problem("U138", f"only one row has the class {shown}; it can be learned or measured, not both", "warning"))
    if minus is not None:
        problems.append(Problem("U139", "the label -1 is taken as a class. If it means missing, leave those labels empty (NaN)", "warning"))
    return task, labels, problems
