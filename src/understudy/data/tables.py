"""Tables: CSV, CSV.gz and Parquet files as a Source.

Missing is the empty cell and the texts in `missing`, in every column; in a column of numbers also `nan`. `NA`, `None` and the like are
texts: they can be categories. Texts lose the whitespace around them. A CSV column whose texts are all numbers is a number column.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from understudy.data._delimited import MOJIBAKE, check_there, decode, header_and_lines, is_number
from understudy.data._source import Source, check_columns, place, take_apart
from understudy.errors import DataError, Problem

Array = np.ndarray[Any, Any]


def read_table(
    path: str | Path,
    *,
    label: str | list[str] | None = None,
    ignore: Sequence[str] = (),
    missing: Sequence[str] = ("?",),
    encoding: str = "utf-8",
    split_column: str | None = None,
) -> Source:
    """The rows of a file. DataError U100-U113 says what is wrong with it, where, and what to do; warnings are in `problems`."""
    path = Path(path)
    check_there(path)
    labels = [label] if isinstance(label, str) else list(label or [])
    if path.suffix.casefold() in (".parquet", ".pq"):
        frame, names, texts_are_numbers = *_read_parquet(path), False
    else:
        frame, names, texts_are_numbers = *_read_csv(path, encoding, as_text=labels), True
    check_columns(list(frame.columns), path.name, label=label, ignore=ignore, split=split_column)
    frame = frame.drop(columns=[name for name in ignore if name not in labels])
    words = {word.strip() for word in missing} | {""}
    frame = pd.DataFrame({name: _tidy(frame[name], words, texts_are_numbers) for name in frame.columns}, index=frame.index)
    _check_finite(frame, names)
    lost = list(_lost_letters(frame, path.name, names))
    parts = take_apart(frame, path.name, names, label=label, ignore=[], split=split_column)
    return Source(
        "table", parts.inputs, parts.labels, names, split=parts.split, problems=(*lost, *_warnings(parts.inputs, path.name, names))
    )


def _read_parquet(path: Path) -> tuple[pd.DataFrame, Array]:
    try:
        frame = pd.read_parquet(path).reset_index(drop=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} is not a Parquet file that can be read: {error}", code="U101") from None
    frame.columns = pd.Index([str(name) for name in frame.columns])
    if not len(frame):
        raise DataError(f"{path.name} has no rows", code="U106")
    return frame, np.array([f"{path.name} row {position}" for position in range(len(frame))])


def _read_csv(path: Path, encoding: str, as_text: Iterable[str]) -> tuple[pd.DataFrame, Array]:
    text = decode(path, encoding)
    header, lines = header_and_lines(text, path.name)
    if len(lines) == 1:
        raise DataError(f"{path.name} has a header and no rows", code="U106")
    try:
        frame = pd.read_csv(
            io.BytesIO(text.encode("utf-8")),
            header=0,
            names=header,
            index_col=False,
            skipinitialspace=True,
            keep_default_na=False,
            na_values=[""],
            low_memory=False,
            dtype=dict.fromkeys((name for name in as_text if name in header), "str"),
        )
    except (pd.errors.ParserError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read as CSV: {error}", code="U103") from None
    if len(frame) != len(lines) - 1:
        counts_differ = f"{path.name} has {len(lines) - 1} records by its lines but {len(frame)} by its quotes"
        raise DataError(f"{counts_differ}; look for a stray quote", code="U103")
    return frame, np.array([f"{path.name} line {line}" for line in lines[1:]])


def _tidy(column: pd.Series[Any], missing: set[str], texts_are_numbers: bool) -> pd.Series[Any]:
    """Numbers as numbers with NaN, texts stripped with NaN; dates and true booleans as they are."""
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        column, texts_are_numbers = column.astype(object), False
    elif pd.api.types.is_bool_dtype(dtype) and not pd.api.types.is_object_dtype(dtype):
        return column.astype(bool) if column.notna().all() else column.astype("Float64").astype(np.float64)
    elif pd.api.types.is_numeric_dtype(dtype):
        return _without(column, missing)
    elif not (pd.api.types.is_string_dtype(dtype) or pd.api.types.is_object_dtype(dtype)):
        return column
    known = column.dropna()
    if not len(known):
        return column.astype(np.float64) if texts_are_numbers else column
    if not all(isinstance(value, str) for value in known):
        if all(isinstance(value, bool | np.bool_) for value in known):
            return column.map({True: 1.0, False: 0.0}).astype(np.float64)
        if any(isinstance(value, list | dict | set | tuple | np.ndarray) for value in known):
            raise DataError(f"column {str(column.name)!r} holds lists; a cell is one number or text. Name it in data.ignore", code="U112")
        column = column.map(str, na_action="ignore")
        texts_are_numbers = True
    texts = column.astype("str").str.strip()
    texts = texts.mask(texts.isin(missing))
    if not texts_are_numbers:
        return texts
    numbers = pd.to_numeric(texts, errors="coerce")
    words = texts[numbers.isna() & texts.notna()].str.casefold()
    if len(words) and not (numbers.notna().any() and bool((words == "nan").all())):
        return texts
    return numbers if numbers.dtype.kind in "iuf" else numbers.astype(np.float64)


def _without(column: pd.Series[Any], missing: set[str]) -> pd.Series[Any]:
    """A column of numbers as numpy holds it; numbers named in `missing` (-999) become NaN."""
    if pd.api.types.is_extension_array_dtype(column.dtype):
        column = column.astype(np.float64 if column.isna().any() or column.dtype.kind == "f" else np.int64)
    values = [float(word) for word in missing if is_number(word)]
    return column.mask(column.isin(values)) if values and bool(column.isin(values).any()) else column


def _check_finite(frame: pd.DataFrame, names: Array) -> None:
    lines = []
    for name in frame.columns:
        if frame[name].dtype.kind == "f":
            bad = np.flatnonzero(np.isinf(frame[name].to_numpy()))
            if len(bad):
                lines.append(f"column {name!r} has an infinite number in {place(names, bad[0])} ({len(bad)} such cells)")
    if lines:
        lines.append("Leave these cells empty if the number is missing, or write the largest sensible number")
        raise DataError("\n  ".join(lines), code="U109")


def _lost_letters(frame: pd.DataFrame, where: str, names: Array) -> Iterable[Problem]:
    for name in frame.columns:
        if pd.api.types.is_string_dtype(frame[name].dtype):
            bad = np.flatnonzero(frame[name].astype("str").str.contains(MOJIBAKE, regex=True, na=False).to_numpy())
            if len(bad):
                told = f"column {name!r} of {where} holds letters that were lost or changed when the text was read in a wrong encoding"
                first = f"{place(names, bad[0])}: {str(frame[name].iloc[bad[0]])[:40]!r}, {len(bad)} such cells"
                text = f"{told} ({first}); save it again as UTF-8"
                yield Problem("U373", text, "warning")


def _warnings(inputs: pd.DataFrame, where: str, names: Array) -> Iterable[Problem]:
    for name in inputs.columns:
        column = inputs[name]
        known = column.dropna()
        if not len(known):
            yield Problem("U110", f"column {name!r} of {where} has no value in any row; name it in data.ignore", "warning")
        elif pd.api.types.is_string_dtype(column.dtype):
            distinct = known.nunique()
            slips = list(_almost_numbers(str(name), known, where, names))
            if slips:
                yield from slips
            elif len(known) >= 20 and distinct >= 0.95 * len(known):
                yield Problem(
                    "U111",
                    f"column {name!r} of {where} holds {distinct} different texts in {len(known)} rows, as names and ids do;"
                    " a model cannot learn from them. Name it in data.ignore",
                    "warning",
                )
        elif column.dtype.kind in "iu" and len(column) >= 20 and bool((column.diff().iloc[1:] == 1).all()):
            yield Problem("U111", f"column {name!r} of {where} counts the rows; name it in data.ignore", "warning")


def _almost_numbers(name: str, known: pd.Series[Any], where: str, names: Array) -> Iterable[Problem]:
    words = known[pd.to_numeric(known, errors="coerce").isna()]
    if 0 < len(words) <= 0.1 * len(known):
        shown = ", ".join(repr(word) for word in words.unique()[:3])
        yield Problem(
            "U114",
            f"column {name!r} of {where} is read as texts because of {len(words)} cells such as {shown} ({place(names, words.index[0])});"
            " all others are numbers. Name the text in data.missing if it means missing",
            "warning",
        )
