"""Files in a folder or a .zip, and their labels: from folder names or from a CSV. What images and audio share."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, final

import pandas as pd

from understudy.data._source import Source, split_words
from understudy.data.rows import Kind
from understudy.errors import DataError, Problem, did_you_mean

_SPLIT_FOLDERS = {"train", "val", "valid", "validation", "dev", "test"}


@final
@dataclass(frozen=True)
class Files:
    """Files of one kind in order: names with `/`, a stamp of each that changes with its content, and how to read one."""

    names: list[str]
    stamps: list[list[int]]
    read: Callable[[str], bytes]
    others: list[str]


@contextmanager
def open_files(path: Path, endings: Sequence[str], what: str) -> Iterator[Files]:
    """The files of a folder, or of a .zip that stays open meanwhile; hidden ones and `__MACOSX` left out."""
    if path.is_dir():
        there = {item.relative_to(path).as_posix(): item for item in sorted(path.rglob("*")) if item.is_file()}
        stats = {name: item.stat() for name, item in there.items()}
        stamps = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        yield _listed(stamps, lambda name: there[name].read_bytes(), path, endings, what)
    elif not path.exists():
        near = sorted(item.name for item in path.parent.iterdir() if not item.name.startswith(".")) if path.parent.is_dir() else []
        raise DataError(f"no folder or .zip {path}; {did_you_mean(path.name, near) if near else 'nothing is there'}", code="U160")
    else:
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is neither a folder nor a .zip that can be read: {error}", code="U160") from None
        with archive:
            stamps = {info.filename: [info.file_size, info.CRC] for info in archive.infolist() if not info.is_dir()}
            yield _listed(stamps, archive.read, path, endings, what)


def _listed(stamps: dict[str, list[int]], read: Callable[[str], bytes], path: Path, endings: Sequence[str], what: str) -> Files:
    seen = sorted(name for name in stamps if not any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts))
    names = [name for name in seen if PurePosixPath(name).suffix.casefold() in endings]
    others = sorted(set(seen) - set(names))
    if not names:
        found = sorted({PurePosixPath(name).suffix for name in others})
        raise DataError(f"no {what} in {path}; looked for {' '.join(endings)}, found {' '.join(found) or 'nothing'}", code="U160")
    return Files(names, [stamps[name] for name in names], read, others)


def by_folders(names: list[str], where: str, kind: Kind, what: str) -> Source:
    """Labels from folder names. A folder that holds everything is looked through."""
    parts = [PurePosixPath(name).parts for name in names]
    problems: list[Problem] = []
    if all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        if all(len(part) == 2 for part in parts):
            text = f"all {what} of {where} are in one folder, {parts[0][0]!r}: it is not taken for a class, and the {what} have no labels"
            problems.append(Problem("U161", text, "warning"))
        parts = [part[1:] for part in parts]
    split = None
    tops = {part[0].casefold() for part in parts}
    if tops <= _SPLIT_FOLDERS and "train" in tops and all(len(part) > 2 for part in parts):
        split = split_words([part[0] for part in parts], f"the folders of {where}")
        parts = [part[1:] for part in parts]
    flat = [name for name, part in zip(names, parts, strict=True) if len(part) == 1]
    if flat and len(flat) < len(names):
        raise DataError(
            f"{where} has {len(flat)} {what} outside of the class folders, such as {', '.join(flat[:3])}. Move them into folders,"
            f" or name the labels of all {what} in a CSV{'' if kind == 'text' else ': data.labels'}",
            code="U161",
        )
    if flat:
        return Source(kind, None, problems=tuple(problems))
    labels = pd.Series([part[0] for part in parts])
    return Source(kind, None, labels, classes=tuple(sorted(set(labels))), split=split)


def by_csv(
    names: list[str],
    path: Path,
    file_column: str,
    label_column: str | list[str] | None,
    encoding: str,
    kind: Kind,
    what: str,
    group_column: str | None = None,
) -> Source:
    """Labels from a CSV whose file column has the path, the file name, or either without its ending."""
    table = _read_csv(path, encoding)
    columns = list(table.columns)
    asked = [label_column] if isinstance(label_column, str) else label_column
    if asked is None:
        asked = [name for name in columns if name not in (file_column, group_column)]
        if len(asked) != 1:
            raise DataError(f"{path.name} has the columns {', '.join(columns)}; say which is the label: data.label", code="U107")
    for name, option in [(file_column, "data.file"), *((name, "data.label") for name in asked), (group_column, "data.group")]:
        if name is not None and name not in columns:
            raise DataError(f"No column {name!r} ({option}) in {path.name}; {did_you_mean(name, columns)}", code="U107")
    positions = _matches(table[file_column], names, path.name)
    problems = []
    bare = sorted(set(range(len(names))) - set(positions))
    if bare:
        shown = ", ".join(names[at] for at in bare[:3])
        problems.append(Problem("U164", f"{len(bare)} {what} are not in {path.name} and have no label: {shown}", "warning"))
    labels = pd.DataFrame({name: _values(table[name]) for name in asked})
    labels.index = pd.Index(positions)
    labels = labels.reindex(range(len(names)))
    groups = None
    if group_column is not None:
        said = pd.Series(table[group_column].to_numpy(dtype=object), index=positions).reindex(range(len(names)))
        groups = said.fillna("").astype(str).to_numpy(dtype=object)
    raw = labels[asked[0]] if isinstance(label_column, str | None) else labels
    return Source(kind, None, raw, problems=tuple(problems), groups=groups)


def _read_csv(path: Path, encoding: str) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""], encoding=encoding, skipinitialspace=True)
    except FileNotFoundError:
        there = sorted(item.name for item in path.parent.glob("*.csv*")) if path.parent.is_dir() else []
        near = did_you_mean(path.name, there) if there else "the folder has no CSV"
        raise DataError(f"no file {path} (data.labels); {near}", code="U100") from None
    except UnicodeDecodeError as error:
        text = f"{path.name} is not {encoding} text: {error}. Save it as UTF-8, or set data.encoding = 'cp1252'"
        raise DataError(text, code="U102") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path.name} cannot be read as CSV: {error}", code="U103") from None


def _values(column: pd.Series[Any]) -> pd.Series[Any]:
    texts = column.str.strip()
    numbers = pd.to_numeric(texts, errors="coerce")
    return texts if (numbers.isna() & texts.notna()).any() or not numbers.notna().any() else numbers


def _matches(asked: pd.Series[Any], names: list[str], where: str) -> list[int]:
    """The position of the image of each line. DataError U162 for images that are not there, U163 for two lines or two images."""
    found: dict[str, set[int]] = {}
    for at, name in enumerate(names):
        file = PurePosixPath(name)
        for form in {name, file.with_suffix("").as_posix(), file.name, file.stem}:
            found.setdefault(form, set()).add(at)
    said = ["" if pd.isna(text) else str(text).strip().removeprefix("./") for text in asked]
    absent = [(line, name) for line, name in enumerate(said, start=2) if name not in found]
    if absent:
        line, name = absent[0]
        raise DataError(
            f"{len(absent)} files named in {where} are not there, first {name!r} (line {line}); {did_you_mean(name, names)}", code="U162"
        )
    unclear = next((name for name in said if len(found[name]) > 1), None)
    if unclear is not None:
        both = " and ".join(names[at] for at in sorted(found[unclear])[:2])
        raise DataError(f"{unclear!r} in {where} can be {both}; write the path of each file", code="U163")
    positions = [next(iter(found[name])) for name in said]
    twice = [at for at, count in Counter(positions).items() if count > 1]
    if twice:
        raise DataError(f"{where} names {names[twice[0]]} more than once ({len(twice)} such files)", code="U163")
    return positions


def strange(others: list[str], where: str, what: str) -> Iterable[Problem]:
    """A warning that names files of an ending that nobody expects here."""
    odd = [name for name in others if PurePosixPath(name).suffix.casefold() not in (".csv", ".txt", ".md", ".json", ".gz", ".db")]
    if odd:
        yield Problem("U167", f"{len(odd)} files of {where} are no {what} and are left out: {', '.join(odd[:6])}", "warning")
