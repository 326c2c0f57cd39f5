"""Texts: a column of a CSV, Parquet or JSON-lines file, or a folder of .txt files, as a Source.

A row is one text, or a pair of texts where two columns are named; with `join` several columns become one text. A text is
kept as it stands, but for whitespace around it: lower case and the like belong to the student's tokenizer.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from understudy.data._delimited import MOJIBAKE, check_there, decode, header_and_lines
from understudy.data._files import by_folders
from understudy.data._source import Source, check_columns, place, split_words
from understudy.errors import DataError, Problem, did_you_mean

Array = np.ndarray[Any, Any]

TOLERATED = 0.01
"""Part of rows without a text that is left out with a warning; more is an error."""


def read_texts(
    path: str | Path,
    *,
    text: str | Sequence[str] | None = None,
    join: str | None = None,
    label: str | list[str] | None = None,
    encoding: str = "utf-8",
    split_column: str | None = None,
) -> Source:
    """The texts of a file or folder, object [rows] or [rows, 2]. DataError U100-U107 and U400-U403 says what is wrong and where."""
    path = Path(path)
    if path.is_dir():
        return _cleaned(_read_folder(path, encoding), path.name)
    check_there(path)
    frame, names = _read_file(path, encoding)
    return texts_of(frame, path.name, names, text=text, join=join, label=label, split_column=split_column)


def texts_of(
    frame: pd.DataFrame,
    where: str,
    names: Array | None,
    *,
    text: str | Sequence[str] | None = None,
    join: str | None = None,
    label: str | list[str] | None = None,
    split_column: str | None = None,
) -> Source:
    """The texts of a table that is in memory already."""
    check_columns(list(frame.columns), where, label=label, ignore=(), split=split_column)
    columns = _text_columns(frame, where, text, label, split_column)
    if len(columns) > 2 and join is None:
        raise DataError(f"data.text names {len(columns)} columns; a row is a text or a pair. Set data.join = ' ' to join them", code="U400")
    cells = [frame[column].map(_plain).to_numpy(dtype=object) for column in columns]
    inputs: Array = cells[0]
    if len(cells) > 1:
        inputs = np.array([join.join(filter(None, row)) for row in zip(*cells, strict=True)], dtype=object) if join is not None else inputs
        inputs = np.stack(cells, axis=1) if join is None else inputs
    labels = None if label is None else _labels(frame[label])
    split = None if split_column is None else split_words(frame[split_column].to_numpy(dtype=object), f"column {split_column!r}", names)
    return _cleaned(Source("text", inputs, labels, names, split=split), where)


def has_texts(path: Path) -> bool:
    """Whether a folder holds .txt files."""
    return path.is_dir() and next(path.rglob("*.txt"), None) is not None


def _read_file(path: Path, encoding: str) -> tuple[pd.DataFrame, Array]:
    name = path.name.casefold()
    if name.endswith((".parquet", ".pq")):
        try:
            frame = pd.read_parquet(path).reset_index(drop=True)
        except (OSError, ValueError) as error:
            raise DataError(f"{path.name} is not a Parquet file that can be read: {error}", code="U101") from None
        frame.columns = pd.Index([str(column) for column in frame.columns])
        names = np.array([f"{path.name} row {position}" for position in range(len(frame))])
    elif name.endswith((".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")):
        frame, names = _read_lines(path, encoding)
    else:
        frame, names = _read_csv(path, encoding)
    if not len(frame):
        raise DataError(f"{path.name} has no rows", code="U106")
    return frame, names


def _read_csv(path: Path, encoding: str) -> tuple[pd.DataFrame, Array]:
    """Every cell as the text it is: `7`, `NA` and `null` are texts."""
    text = decode(path, encoding)
    header, lines = header_and_lines(text, path.name)
    try:
        frame = pd.read_csv(
            io.BytesIO(text.encode("utf-8")),
            header=0,
            names=header,
            index_col=False,
            skipinitialspace=True,
            keep_default_na=False,
            dtype="str",
        )
    except (pd.errors.ParserError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as CSV: {error}", code="U103") from None
    if len(frame) != len(lines) - 1:
        counts_differ = f"{path.name} has {len(lines) - 1} records by its lines but {len(frame)} by its quotes"
        raise DataError(f"{counts_differ}; look for a stray quote", code="U103")
    return frame, np.array([f"{path.name} line {line}" for line in lines[1:]])


def _read_lines(path: Path, encoding: str) -> tuple[pd.DataFrame, Array]:
    found, names = [], []
    for number, line in enumerate(decode(path, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path.name} line {number} is not JSON: {error}. Each line is one object", code="U403") from None
        if not isinstance(said, dict):
            raise DataError(f'{path.name} line {number} is not an object such as {{"text": ...}} but {type(said).__name__}', code="U403")
        found.append(said)
        names.append(f"{path.name} line {number}")
    return pd.DataFrame(found), np.array(names)


def _read_folder(path: Path, encoding: str) -> Source:
    """One text per .txt file; sub-folders are classes or splits, as with images."""
    files = sorted(file for file in path.rglob("*.txt") if not any(part.startswith(".") for part in file.relative_to(path).parts))
    if not files:
        raise DataError(f"no .txt file in {path}. Name a CSV, Parquet or .jsonl file, or a folder of .txt files", code="U403")
    names = [file.relative_to(path).as_posix() for file in files]
    plan = by_folders(names, path.name, "text", "texts")
    inputs = np.array([decode(file, encoding).strip() for file in files], dtype=object)
    return Source("text", inputs, plan.labels, np.array(names), plan.classes, plan.split, plan.problems)


def _text_columns(
    frame: pd.DataFrame, where: str, text: str | Sequence[str] | None, label: str | list[str] | None, split: str | None
) -> list[str]:
    """The columns that hold the text, `text` or the only one left when none is named."""
    asked = [text] if isinstance(text, str) else list(text or [])
    taken = {split, *([label] if isinstance(label, str) else label or [])}
    left = [str(name) for name in frame.columns if name not in taken]
    if not asked:
        asked = ["text"] if "text" in left else left
        if len(asked) != 1:
            raise DataError(f"which column of {where} holds the text? Say data.text = 'NAME'; there is: {', '.join(left)}", code="U400")
    absent = [name for name in asked if name not in frame.columns]
    if absent:
        told = did_you_mean(absent[0], map(str, frame.columns))
        raise DataError(f"No column {absent[0]!r} (data.text) in {where}; {told}", code="U107")
    wrong = [name for name in asked if frame[name].dropna().map(lambda cell: not isinstance(cell, str)).any()]
    if wrong:
        kind = next(type(cell).__name__ for cell in frame[wrong[0]].dropna() if not isinstance(cell, str))
        raise DataError(f"column {wrong[0]!r} of {where} holds {kind}, not texts; name another column in data.text", code="U400")
    return asked


def _plain(cell: Any) -> str:
    return cell.strip() if isinstance(cell, str) else ""


def _labels(raw: Any) -> Any:
    """Labels as people wrote them: numbers where every one that is there is a number, empty cells missing."""
    if isinstance(raw, pd.DataFrame):
        return pd.DataFrame({name: _labels(raw[name]) for name in raw.columns})
    if not (pd.api.types.is_string_dtype(raw.dtype) or pd.api.types.is_object_dtype(raw.dtype)):
        return raw
    if any(not isinstance(cell, str) for cell in raw.dropna()):
        return raw
    texts = raw.astype("str").str.strip()
    texts = texts.mask(texts == "")
    numbers = pd.to_numeric(texts, errors="coerce")
    return texts if (numbers.isna() & texts.notna()).any() or not numbers.notna().any() else numbers


def _cleaned(source: Source, where: str) -> Source:
    """The source without its empty texts, and with warnings of texts that were read in a wrong encoding."""
    inputs, names = source.inputs, source.names
    both = inputs.reshape(len(inputs), -1)
    empty = np.array([not all(row) for row in both.tolist()])
    problems = [*source.problems, *_strange(both, where, names)]
    if empty.any():
        shown = ", ".join(place(names, int(at)) for at in np.flatnonzero(empty)[:5])
        told = f"{int(empty.sum()):,} of {len(inputs):,} rows of {where} have no text ({shown})"
        if empty.mean() > TOLERATED:
            raise DataError(f"{told}. Fill or remove them (up to 1 % are left out with a warning), or name another data.text", code="U402")
        problems.append(Problem("U402", f"{told} and are left out", "warning"))
    there = np.flatnonzero(~empty)
    labels = source.labels
    if labels is not None:
        labels = labels.iloc[there].reset_index(drop=True) if isinstance(labels, pd.Series | pd.DataFrame) else labels[there]
    return Source(
        "text",
        inputs[there],
        labels,
        None if names is None else names[there],
        source.classes,
        None if source.split is None else source.split[there],
        tuple(problems),
    )


def _strange(texts: Array, where: str, names: Array | None) -> Iterable[Problem]:
    found = np.zeros(len(texts), dtype=bool)
    for column in texts.T:
        found |= pd.Series(column, dtype=object).str.contains(MOJIBAKE, regex=True, na=False).to_numpy(dtype=bool)
    if found.any():
        at = np.flatnonzero(found)
        shown = ", ".join(place(names, int(position)) for position in at[:5])
        example = next(cell for cell in texts[at[0]] if pd.Series([cell]).str.contains(MOJIBAKE, regex=True).any())
        told = f"{len(at):,} texts of {where} look as if they were read in a wrong encoding, such as {example[:60]!r} ({shown})"
        fix = "if the file is not UTF-8, say so in data.encoding; if it was saved wrong, save it again from its source"
        yield Problem("U401", f"{told}; {fix}", "warning")
