"""Labels and splits from the names of folders, for every kind of data that comes as files."""

from __future__ import annotations

from pathlib import PurePosixPath

import pandas as pd

from understudy.data._source import Source, split_words
from understudy.data.rows import Kind
from understudy.errors import DataError, Problem

_SPLIT_FOLDERS = {"train", "val", "valid", "validation", "dev", "test"}


def by_folders(names: list[str], where: str, *, kind: Kind, things: str) -> Source:
    """Labels from folder names. A folder that holds everything is looked through."""
    parts = [PurePosixPath(name).parts for name in names]
    problems: list[Problem] = []
    if all(len(part) > 1 and part[0] == parts[0][0] for part in parts):
        if all(len(part) == 2 for part in parts):
            text = (
                f"all {things} of {where} are in one folder, {parts[0][0]!r}: it is not taken for a class, and the {things} have no labels"
            )
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
            f"{where} has {len(flat)} {things} outside of the class folders, such as {', '.join(flat[:3])}. Move them into folders,"
            f" or name the labels of all {things} in a CSV{': data.labels' if kind == 'image' else ''}",
            code="U161",
        )
    if flat:
        return Source(kind, None, problems=tuple(problems))
    labels = pd.Series([part[0] for part in parts])
    return Source(kind, None, labels, classes=tuple(sorted(set(labels))), split=split)
