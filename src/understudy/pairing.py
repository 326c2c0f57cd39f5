"""What `data.inputs` says, read and joined: the table that has a row for each pair, and where each of its inputs is.

Every kind of input is read by the reader of its kind, so that a pair has what its halves have: the same checks, sizes and messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from understudy.data import pairs, tables, texts
from understudy.data._source import Source
from understudy.data.rows import Kind
from understudy.errors import DataError, did_you_mean
from understudy.recipe import Recipe
from understudy.sections import DataSection, InputSection
from understudy.tasks import Task

Array = np.ndarray[Any, Any]
Part = Literal["train", "validation", "test"]
Reader = Callable[[DataSection, str], Source]
TABLES = (".csv", ".csv.gz", ".parquet", ".pq")


def read_pairs(said: DataSection, part: Part, read: Reader) -> Source:
    """The rows of one part with all their inputs; `read` reads a source of one kind. DataError U510-U518 says what does not fit."""
    file = str(getattr(said, part))
    path = Path(said.root, file)
    in_table = path.name.lower().endswith(TABLES)
    inside: dict[str, tuple[Kind, Any]] = {}
    partners: dict[str, pairs.Partner] = {}
    # the rows' own source is read as data says; what is joined to them, as its input says
    rows = _table(said, path) if in_table else read(said.model_copy(update={"inputs": {}}), file)
    for name, one in said.inputs.items():
        if one.train is not None:
            partners[name] = _partner(said, name, one, part, rows, path if in_table else None, read)
        elif in_table:
            found = _columns(said, name, one, path, rows)
            if isinstance(found, pairs.Partner):
                partners[name] = found
            else:
                inside[name] = found
        elif one.column is not None:
            raise DataError(f"data.inputs.{name} is a column, and {path.name} is no table; give data.inputs.{name}.train", code="U517")
        elif any(kind is rows.inputs for _, kind in inside.values()):
            raise DataError(f"data.inputs names two inputs in {path.name}; give one of them a train of its own", code="U517")
        else:
            inside[name] = (rows.kind, rows.inputs)
    return pairs.join(rows, inside, partners, drop=said.unpaired == "drop")


def check_names(recipe: Recipe) -> None:
    """DataError U514 and U515 for inputs that teacher or student read and the data does not have."""
    said = recipe.data.inputs
    readers = {"student.inputs": recipe.student.inputs, "teacher.inputs": recipe.teacher.inputs}
    readers |= {f"teacher.members {number} inputs": each.inputs for number, each in enumerate(recipe.teacher.members, 1)}
    for place, names in readers.items():
        if names and not said:
            raise DataError(f"{place} = {names}, and the data has one input only; name its inputs in [data.inputs]", code="U515")
        strange = [name for name in names if name not in said]
        if strange:
            raise DataError(f"{place}: no input {strange[0]!r}; {did_you_mean(strange[0], said)}", code="U514")
        if len(set(names)) < len(names):
            raise DataError(f"{place} names an input twice: {', '.join(names)}", code="U514")
    if len(said) == 1:
        raise DataError("data.inputs has one input: give two or more, or name it in data.train and data.label alone", code="U515")


def matching(recipe: Recipe, sources: dict[str, Source]) -> tuple[Task, dict[str, Any]]:
    """The task of two inputs that find each other, and its labels, which say of every row that its own two belong together."""
    names, said = list(recipe.data.inputs), recipe.teacher
    if len(names) != 2:
        there = ", ".join(names) or "none"
        raise DataError(f"task = 'matching' is of two inputs, and data.inputs has {there}; name two", code="U520")
    if any(each and len(each) != 2 for each in (recipe.student.inputs, said.inputs)):
        raise DataError("task = 'matching': teacher and student read both inputs; leave teacher.inputs and student.inputs out", code="U520")
    if said.train is None and (said.source is None or not (said.is_mirrored or Path(said.source).is_dir())):
        told = "a teacher of a matching is trained here ([teacher.train] with the model 'dual') or a run's folder transfer, or its address"
        raise DataError(f"task = 'matching': {told}", code="U521")
    return Task("matching", tuple(names), recipe.width), {
        part: np.zeros((len(source.inputs), 1), np.float32) for part, source in sources.items()
    }


def _alone(said: DataSection, one: InputSection) -> DataSection:
    """The data section as the reader of one kind wants it for this input."""
    size = said.image_size if one.image_size is None else one.image_size
    own = {"kind": one.kind, "image_size": size, "grey": said.grey or one.grey}
    return said.model_copy(update={"inputs": {}, "labels": None, "group": None, **own})


def _table(said: DataSection, path: Path) -> Source:
    """The table of the pairs: labels, split and the names of its rows. What is odd about columns that nobody reads is not told."""
    found = tables.read_table(path, label=said.label, missing=said.missing, encoding=said.encoding, split_column=said.split)
    return replace(found, problems=())


def _partner(said: DataSection, name: str, one: InputSection, part: Part, rows: Source, table: Path | None, read: Reader) -> pairs.Partner:
    own = getattr(one, part)
    if own is None and one.by == "row":
        raise DataError(f"data.{part} is given and data.inputs.{name}.{part} is not: the n-th input belongs to the n-th row", code="U513")
    place = str(own or one.train)
    source = read(_alone(said, one), place)
    # a picture's folder means nothing here: the label is the row's
    if one.by != "label":
        source = replace(source, problems=tuple(problem for problem in source.problems if problem.code not in ("U161", "U164")))
    where = Path(place).name
    if one.by == "row":
        return pairs.Partner(source, where)
    if one.by == "label":
        return pairs.Partner(source, where, by_label=True)
    if table is None:
        raise DataError(f"data.inputs.{name}.by = {one.by!r} is a column, and data.{part} is no table; use 'row' or 'label'", code="U517")
    return pairs.Partner(source, where, asked=_texts(said, one.by, table, rows), shared=one.shared or own is None, spare=own is None)


def _columns(said: DataSection, name: str, one: InputSection, path: Path, rows: Source) -> pairs.Partner | tuple[Kind, Any]:
    """An input that is columns of the table: one column is a text unless it is asked to be a table."""
    columns = [one.column] if isinstance(one.column, str) else list(one.column or [name])
    there = [str(column) for column in rows.inputs.columns]
    absent = [column for column in columns if column not in there]
    if absent:
        raise DataError(f"No column {absent[0]!r} (data.inputs.{name}) in {path.name}; {did_you_mean(absent[0], there)}", code="U517")
    if one.kind == "text" or (one.kind == "auto" and isinstance(one.column, str | None)):
        source = texts.read_texts(path, text=columns, join=said.join, encoding=said.encoding)
        return pairs.Partner(source, f"column {columns[0]!r} of {path.name}", asked=rows.names)
    return "table", rows.inputs[columns]


def _texts(said: DataSection, column: str, path: Path, rows: Source) -> Array:
    """A column as the texts that stand there, one per row of the table; None where it is empty."""
    found = texts.read_texts(path, text=column, encoding=said.encoding)
    assert found.names is not None and rows.names is not None
    known = dict(zip(found.names.tolist(), found.inputs.tolist(), strict=True))
    return np.array([known.get(name) for name in rows.names.tolist()], dtype=object)
