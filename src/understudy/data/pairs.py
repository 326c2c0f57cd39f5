"""Pairs: several named inputs of each row, joined to a table (or to the first of them) and checked: nothing missing, nothing twice.

What joins an input to its row is the name of its file in a column, its position, or its class. A student that reads several inputs
reads one row of bytes, in which they lie one after the other (`PairEncoding`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from understudy.data._source import Source, place
from understudy.data.rows import Kind, Paired, taken
from understudy.errors import DataError, Problem, did_you_mean

Array = np.ndarray[Any, Any]
SHOWN = 5


@final
@dataclass(frozen=True)
class Partner:
    """One input with its own source: `asked` holds, for each row, the name of its file; None joins by position, `labels` by class.

    `shared` files may belong to several rows, `spare` ones to none; `where` names the source in messages.
    """

    source: Source
    where: str
    asked: Array | None = None
    by_label: bool = False
    shared: bool = False
    spare: bool = False


def join(
    rows: Source, inside: Mapping[str, tuple[Kind, Any]], partners: Mapping[str, Partner], *, drop: bool = False, seed: int = 0
) -> Source:
    """The rows with all their inputs: those `inside` the source itself (kind and inputs), and the partner of each row.

    DataError U510 names rows without a partner (left out with a warning when `drop`), U511 partners that are claimed twice, U513
    counts that differ, U518 classes without a partner.
    """
    found = {name: _positions(name, rows, partner, seed) for name, partner in partners.items()}
    lacking = np.zeros(len(rows.inputs), dtype=bool)
    problems: list[Problem] = [*rows.problems, *itertools.chain(*(partner.source.problems for partner in partners.values()))]
    for name, positions in found.items():
        absent = np.flatnonzero(positions < 0)
        if len(absent):
            told = _absent(name, rows, partners[name], absent)
            if not drop:
                raise DataError(f"{told}. Add the files, take the rows out, or set data.unpaired = 'drop'", code="U510")
            problems.append(Problem("U510", f"{told}; these rows are left out (data.unpaired = 'drop')", "warning"))
        lacking |= positions < 0
        problems += _unused(name, partners[name], positions)
    kept = np.flatnonzero(~lacking)
    if not len(kept):
        raise DataError("no row has all of its inputs; look at data.inputs and at the names of the files", code="U510")
    parts = {name: taken(inputs, kept) for name, (_, inputs) in inside.items()}
    parts |= {name: taken(partner.source.inputs, found[name][kept]) for name, partner in partners.items()}
    kinds: dict[str, Kind] = {name: kind for name, (kind, _) in inside.items()}
    kinds |= {name: partner.source.kind for name, partner in partners.items()}
    parts = {name: part.reset_index(drop=True) if isinstance(part, pd.DataFrame | pd.Series) else part for name, part in parts.items()}
    return replace(
        rows,
        kind="pair",
        inputs=Paired(kinds, parts),
        labels=_labels(rows.labels, kept),
        names=None if rows.names is None else rows.names[kept],
        split=None if rows.split is None else rows.split[kept],
        groups=None if rows.groups is None else rows.groups[kept],
        problems=tuple(problems),
    )


def _labels(labels: Any, kept: Array) -> Any:
    if labels is None:
        return None
    return taken(labels, kept).reset_index(drop=True) if isinstance(labels, pd.DataFrame | pd.Series) else labels[kept]


def _positions(name: str, rows: Source, partner: Partner, seed: int) -> Array:
    """Which partner each row has, int64 [rows]; -1 where it has none."""
    if partner.by_label:
        return _of_same_class(name, rows, partner, seed)
    count = len(partner.source.inputs)
    if partner.asked is None:
        if count != len(rows.inputs):
            told = f"there are {len(rows.inputs):,} rows and {count:,} of input {name!r} in {partner.where}"
            raise DataError(
                f"{told}: the n-th belongs to the n-th row. Give as many, or say which column names its file: data.inputs.{name}.by",
                code="U513",
            )
        return np.arange(count)
    there = _forms(partner)
    said = ["" if pd.isna(text) else str(text).strip().removeprefix("./") for text in partner.asked]
    unclear = sorted({text for text in said if len(there.get(text, ())) > 1})
    if unclear:
        both = " and ".join(place(partner.source.names, at) for at in sorted(there[unclear[0]])[:2])
        raise DataError(
            f"{len(unclear)} names of input {name!r} are those of several files in {partner.where}: {unclear[0]!r} can be {both}. Write "
            "the path with its ending",
            code="U511",
        )
    positions = np.array([next(iter(there[text])) if text in there else -1 for text in said], dtype=np.int64)
    if not partner.shared:
        _refuse_twice(name, rows, partner, positions)
    return positions


def _forms(partner: Partner) -> dict[str, set[int]]:
    """The ways to name each file: its path and its name, with or without the ending."""
    found: dict[str, set[int]] = {}
    names: list[Any] = [] if partner.source.names is None else partner.source.names.tolist()
    for at, path in enumerate(map(str, names)):
        file = PurePosixPath(path)
        for form in {path, file.with_suffix("").as_posix(), file.name, file.stem}:
            found.setdefault(form, set()).add(at)
    return found


def _refuse_twice(name: str, rows: Source, partner: Partner, positions: Array) -> None:
    twice = [at for at, count in Counter(positions[positions >= 0].tolist()).items() if count > 1]
    if not twice:
        return
    lines = []
    for at in twice[:SHOWN]:
        claimed = [place(rows.names, row) for row in np.flatnonzero(positions == at)[:3]]
        lines.append(f"{place(partner.source.names, at)}: {', '.join(claimed)}")
    shown = "\n  ".join(lines)
    raise DataError(
        f"{len(twice):,} files of input {name!r} in {partner.where} belong to several rows:\n  {shown}\n"
        f"Take the copies out, or set data.inputs.{name}.shared = true where that is meant",
        code="U511",
    )


def _absent(name: str, rows: Source, partner: Partner, absent: Array) -> str:
    assert partner.asked is not None
    lines = []
    for row in absent[:SHOWN]:
        text = partner.asked[row]
        lines.append(f"{place(rows.names, row)}: {'no name' if pd.isna(text) else repr(str(text))}")
    first = str(partner.asked[absent[0]])
    names = [] if partner.source.names is None else list(map(str, partner.source.names[:2000]))
    near = did_you_mean(first, names) if names else ""
    shown = "\n  ".join(lines)
    return f"{len(absent):,} rows have no input {name!r} in {partner.where}:\n  {shown}\n{near.rstrip('.')}"


def _unused(name: str, partner: Partner, positions: Array) -> Iterator[Problem]:
    """Files that no row names, where they are named."""
    if partner.asked is None or partner.spare:
        return
    spare = np.setdiff1d(np.arange(len(partner.source.inputs)), positions)
    if len(spare):
        shown = ", ".join(place(partner.source.names, int(at)) for at in spare[:3])
        yield Problem("U512", f"{len(spare):,} files of input {name!r} in {partner.where} belong to no row: {shown}", "warning")


def _of_same_class(name: str, rows: Source, partner: Partner, seed: int) -> Array:
    """A partner of the same class for each row, drawn without repeating one before all of the class were used."""
    if rows.labels is None or partner.source.labels is None:
        lacks = "the rows have" if rows.labels is None else f"{partner.where} has"
        raise DataError(f"input {name!r} is joined by label, and {lacks} no labels", code="U518")
    ours, theirs = _words(rows.labels), _words(partner.source.labels)
    absent = sorted(set(ours) - set(theirs))
    if absent:
        near = did_you_mean(absent[0], sorted(set(theirs)))
        raise DataError(
            f"input {name!r} is joined by label, and {partner.where} has no row of the class {absent[0]!r}; {near}", code="U518"
        )
    positions = np.empty(len(ours), dtype=np.int64)
    for word in sorted(set(ours)):
        mine = np.flatnonzero(ours == word)
        drawn = np.random.default_rng(seed).permutation(np.flatnonzero(theirs == word))
        positions[mine] = np.resize(drawn, len(mine))
    return positions


def _words(labels: Any) -> Array:
    """Classes as texts, so that 3 and 3.0 and '3' are one."""
    column = labels.iloc[:, 0] if isinstance(labels, pd.DataFrame) else pd.Series(labels)
    return np.array([repr(float(one)).removesuffix(".0") if isinstance(one, float) else str(one) for one in column.tolist()], dtype=object)


# --- what a student reads of several inputs -------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class PairEncoding:
    """Several inputs of a row as one row of bytes: names, kinds, encodings of those that need one, shapes and types."""

    names: tuple[str, ...]
    kinds: tuple[Kind, ...]
    encodings: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    types: tuple[str, ...]

    @staticmethod
    def fit(paired: Paired, encodings: Mapping[str, Any]) -> PairEncoding:
        """The layout of these inputs, from the first of their rows; `encodings` are those of the inputs that need one."""
        few, names = paired[0:2], tuple(paired.parts)
        chosen = tuple(encodings.get(name) for name in names)
        encoded = [_encoded(few[name], encoding) for name, encoding in zip(names, chosen, strict=True)]
        kinds = tuple(paired.kinds[name] for name in names)
        return PairEncoding(names, kinds, chosen, tuple(part.shape[1:] for part in encoded), tuple(str(part.dtype) for part in encoded))

    def only(self, names: Sequence[str]) -> Any:
        """The encoding of the one input of that name, or of several; of all where none is named."""
        places = [self.names.index(name) for name in names] or list(range(len(self.names)))
        if len(places) == 1:
            return self.encodings[places[0]]
        fields = (self.names, self.kinds, self.encodings, self.shapes, self.types)
        return PairEncoding(*(tuple(field[at] for at in places) for field in fields))  # type: ignore[arg-type]

    def blank(self, name: str) -> int | None:
        """The value that an absent input is filled with; None where a row always has it."""
        at = self.names.index(name)
        if self.kinds[at] in ("table", "array"):
            return None
        return 0 if self.encodings[at] is None else int(self.encodings[at].padding)

    @property
    def ends(self) -> list[int]:
        """Where each input ends in the row of bytes."""
        widths = [
            int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize for shape, kind in zip(self.shapes, self.types, strict=True)
        ]
        return list(itertools.accumulate(widths))

    def encode(self, paired: Paired) -> Array:
        """The rows as bytes, uint8 [rows, bytes]."""
        parts = [_encoded(paired[name], encoding) for name, encoding in zip(self.names, self.encodings, strict=True)]
        return self.join(parts)

    def join(self, parts: Sequence[Array]) -> Array:
        """Encoded inputs in the order of the names as rows of bytes."""
        plain = [np.ascontiguousarray(part, dtype=kind) for part, kind in zip(parts, self.types, strict=True)]
        return np.concatenate([part.reshape(len(part), -1).view(np.uint8).reshape(len(part), -1) for part in plain], axis=1)

    def split(self, rows: Tensor) -> list[Tensor]:
        """The encoded inputs in rows of bytes, in the order of the names."""
        starts = [0, *self.ends[:-1]]
        parts = []
        for start, end, shape, kind in zip(starts, self.ends, self.shapes, self.types, strict=True):
            flat = rows[:, start:end].contiguous()
            parts.append(flat.view(getattr(torch, kind)).reshape(len(rows), *shape))
        return parts

    def to_json(self) -> dict[str, Any]:
        inner = [None if encoding is None else encoding.to_json() for encoding in self.encodings]
        said = {"names": list(self.names), "kinds": list(self.kinds), "shapes": [list(shape) for shape in self.shapes]}
        return {**said, "types": list(self.types), "encodings": inner}

    @staticmethod
    def from_json(said: dict[str, Any], encodings: Sequence[Any]) -> PairEncoding:
        """What `to_json` said, with the encodings of its inputs."""
        shapes = tuple(tuple(shape) for shape in said["shapes"])
        return PairEncoding(tuple(said["names"]), tuple(said["kinds"]), tuple(encodings), shapes, tuple(said["types"]))


def _encoded(inputs: Any, encoding: Any) -> Array:
    return np.asarray(inputs if encoding is None else encoding.encode(inputs))
