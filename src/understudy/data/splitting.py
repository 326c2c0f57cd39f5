"""Splits: which rows train, choose (validation) and judge (test).

A split depends on content keys, labels and the seed, and not on the order of the rows; equal rows always land together.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from understudy.data.rows import SPLITS, Paired, Rows
from understudy.errors import DataError, did_you_mean
from understudy.tasks import Task

Array = np.ndarray[Any, Any]

_BINS = 10
"""Most strata of a regression, quantiles of the label; each holds about this many rows or more."""


def split_rows(rows: Rows, task: Task, *, validation: float, test: float, seed: int) -> Rows:
    """The rows with a split: fractions of the different rows, the same in every class (or quantile of a regression).

    A class with three or more different rows is in every split; a smaller one is in train only. A fraction of 0 leaves that
    split out. DataError U151 when the fractions leave nothing for train or the rows are too few.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise DataError(f"split.validation + split.test = {validation + test:g} must be below 1, to leave rows for train", code="U151")
    first, group = _groups(rows.keys)
    wanted = 1 + (validation > 0) + (test > 0)
    if len(first) < wanted:
        raise DataError(f"{len(first)} different rows cannot be split in {wanted}", code="U151")
    strata = _strata(rows.labels, task, group, len(first))
    order = np.lexsort((np.arange(len(first)), _shuffle(rows.keys[first], seed), strata))
    codes, starts = np.unique(strata[order], return_index=True)
    sizes = np.diff(np.append(starts, len(first)))
    floors = (sizes >= 3) & (codes >= 0)
    taken_test = _quotas(sizes, test, floors, sizes - 1)
    taken_validation = _quotas(sizes, validation, floors, sizes - 1 - taken_test)
    if (test and not taken_test.any()) or (validation and not taken_validation.any()):
        raise DataError(
            f"{len(first)} different rows of {len(sizes)} classes cannot be split in {wanted}; most classes have one or two rows."
            " Give more rows of each, or give data.validation and data.test",
            code="U151",
        )
    words = np.full(len(first), "train", dtype="<U10")
    for start, for_test, for_validation in zip(starts, taken_test, taken_validation, strict=True):
        words[order[start : start + for_test]] = "test"
        words[order[start + for_test : start + for_test + for_validation]] = "validation"
    return replace(rows, split=words[group])


def combine(
    train: Rows,
    validation: Rows | None = None,
    test: Rows | None = None,
    *,
    task: Task,
    validation_part: float,
    test_part: float,
    seed: int,
) -> Rows:
    """All rows with a split: given parts (or a given `train.split`) are kept, and what is missing is split off train.

    DataError U152 when a part is given twice or does not have the columns or the shape of train.
    """
    parts = {"validation": validation, "test": test}
    given = {word: part for word, part in parts.items() if part is not None}
    if train.split is not None:
        twice = [word for word in given if (train.split == word).any()]
        if twice:
            word = twice[0]
            raise DataError(f"the {word} rows are given twice: by data.{word} and by the split in data.train. Remove one", code="U152")
        given |= {word: train.part(word) for word in parts if (train.split == word).any()}
        train = train.part("train")
        if not len(train):
            raise DataError("no row of data.train is marked train", code="U152")
    train = replace(train, split=None)
    shares = {word: 0.0 if word in given else share for word, share in (("validation", validation_part), ("test", test_part))}
    train = split_rows(train, task, seed=seed, **shares)
    if not given:
        return train
    marked = [replace(part, split=np.full(len(part), word, dtype="<U10")) for word, part in given.items()]
    return _concatenate([train, *marked], task)


def some(rows: Rows, count: int, *, seed: int) -> Rows:
    """At most this many rows (of those marked `train` where a split is given), the same ones whatever the order; equal rows may part."""
    train = np.arange(len(rows)) if rows.split is None else np.flatnonzero(rows.split == "train")
    if count >= len(train):
        return rows
    left_out = train[np.argsort(_shuffle(rows.keys[train], seed), kind="stable")[count:]]
    return rows.take(np.setdiff1d(np.arange(len(rows)), left_out))


def split_groups(groups: Array, *, validation: float, test: float, seed: int) -> Array:
    """A split word per row, such that rows of one group (a speaker) are never in two splits.

    Groups are taken in an order that depends on their names and the seed, first for test, then for validation, until each has
    its share of the rows. DataError U425 when there are fewer groups than splits.

    >>> split_groups(np.array(["ann", "ann", "bob", "cy"]), validation=0.2, test=0.2, seed=0).tolist()
    ['train', 'train', 'test', 'validation']
    """
    names, group, counts = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
    wanted = 1 + (validation > 0) + (test > 0)
    if len(names) < wanted:
        told = f"data.group has {len(names)} different values ({', '.join(names[:6])}), too few for {wanted} splits without a group in two"
        raise DataError(told, code="U425")
    ranks = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names]
    order = sorted(range(len(names)), key=lambda at: ranks[at])
    words = np.full(len(names), "train", dtype="<U10")
    for word, share, after in (("test", test, 1 + (validation > 0)), ("validation", validation, 1)):
        taken = 0
        # at least one group, never so many that nothing is left for what comes after
        while share > 0 and len(order) > after and (taken == 0 or taken + counts[order[0]] / 2 <= share * len(groups)):
            words[order[0]] = word
            taken += int(counts[order.pop(0)])
    return words[group]


def overlap(rows: Rows) -> Array:
    """Positions of training rows that are also validation or test rows, and of validation rows that are also test rows; int64."""
    if rows.split is None:
        raise ValueError("these rows are not split yet")
    _, group = _groups(rows.keys)
    judged = np.zeros((group.max(initial=-1) + 1, 3), dtype=bool)
    for at, word in enumerate(SPLITS):
        judged[group[rows.split == word], at] = True
    train, validation, test = rows.split == "train", judged[group, 1], judged[group, 2]
    return np.flatnonzero((train & (validation | test)) | ((rows.split == "validation") & test))


def save_split(rows: Rows, path: str | Path) -> None:
    """Write keys and split words to a .npz file, whole or not at all."""
    path = Path(path)
    if rows.split is None:
        raise ValueError("these rows are not split yet")
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, keys=rows.keys, split=rows.split.astype("<U10"))
    os.replace(part, path)


def load_split(path: str | Path) -> tuple[Array, Array]:
    """Keys int64 [rows, 2] and split words [rows]. DataError U153 when the file is not one of save_split."""
    try:
        with np.load(path, allow_pickle=False) as said:
            return said["keys"], said["split"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no saved split: {error}", code="U153") from None


def same(rows: Rows, path: str | Path) -> bool:
    """Whether these rows have the same keys and the same split as the saved ones, in any order."""
    keys, split = load_split(path)
    if rows.split is None or len(keys) != len(rows):
        return False
    mine = np.lexsort((rows.split, rows.keys[:, 1], rows.keys[:, 0]))
    saved = np.lexsort((split, keys[:, 1], keys[:, 0]))
    return bool((rows.keys[mine] == keys[saved]).all() and (rows.split[mine] == split[saved]).all())


def _groups(keys: Array) -> tuple[Array, Array]:
    """One position per different key, in the order of the keys, and the group of each row."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ranked = keys[order]
    fresh = np.ones(len(keys), dtype=bool)
    fresh[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    group = np.empty(len(keys), dtype=np.int64)
    group[order] = np.cumsum(fresh) - 1
    return order[fresh], group


def _strata(labels: Array | None, task: Task, group: Array, groups: int) -> Array:
    """A number per group, the same whatever the order of the rows; -1 for unlabelled ones."""
    strata = np.full(groups, -1, dtype=np.int64)
    if labels is None or task.kind == "matching":
        return strata
    there = np.flatnonzero(task.labelled(labels))
    if not len(there):
        return strata
    if task.kind == "recognition":
        strata[group[there]] = 0
        return strata
    if task.kind == "regression":
        lowest = np.full(groups, np.inf)
        np.minimum.at(lowest, group[there], labels[there, 0].astype(np.float64))
        known = np.isfinite(lowest)
        bins = max(1, min(_BINS, int(known.sum()) // _BINS))
        edges = np.unique(np.quantile(lowest[known], np.linspace(0, 1, bins + 1)[1:-1]))
        strata[known] = np.searchsorted(edges, lowest[known], side="right")
        return strata
    if task.kind == "multilabel":
        # The rarest class that a row has: the one whose rows are most easily missed by a split.
        counts = labels[there].sum(axis=0)
        rarest = np.argsort(counts, kind="stable")
        ranked = labels[there][:, rarest] == 1
        own = np.where(ranked.any(axis=1), rarest[ranked.argmax(axis=1)], len(rarest))
    else:
        own = labels[there]
    smallest = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(smallest, group[there], own)
    known = smallest < np.iinfo(np.int64).max
    strata[known] = smallest[known]
    return strata


def _quotas(sizes: Array, part: float, floors: Array, room: Array) -> Array:
    """How many of each stratum go to a split: at least one where `floors`, and the right total by largest remainder."""
    if part == 0:
        return np.zeros(len(sizes), dtype=np.int64)
    exact = sizes * part
    quotas = np.minimum(np.maximum(np.floor(exact).astype(np.int64), floors.astype(np.int64)), np.maximum(room, 0))
    total = max(1, round(float(sizes.sum()) * part))
    small = (sizes < 3) & floors.any()
    for at in np.argsort(quotas - exact, kind="stable"):
        if quotas.sum() >= total:
            break
        if quotas[at] < room[at] and not small[at]:
            quotas[at] += 1
    return np.asarray(quotas)


def _shuffle(keys: Array, seed: int) -> Array:
    """A rank per key that depends on the seed, uint64: keys are uniform already, so multiplying them by odd numbers is enough."""
    words = keys.astype(np.uint64)
    odd = np.random.default_rng(seed % 2**64).integers(0, 2**64, size=2, dtype=np.uint64) | np.uint64(1)
    return np.asarray(words[:, 0] * odd[0] + words[:, 1] * odd[1])


def _inputs(parts: list[Rows]) -> Any:
    """The inputs of all parts, one after the other. DataError U152 when one is not like the first."""
    first = parts[0]
    if isinstance(first.inputs, Paired):
        return replace(first.inputs, parts={name: _inputs([part.only([name]) for part in parts]) for name in first.inputs.parts})
    for part in parts[1:]:
        word = str(part.split[0]) if part.split is not None else ""
        if part.kind != first.kind:
            raise DataError(f"train is {first.kind} but {word} is {part.kind}", code="U152")
        if first.kind != "table" and part.inputs.shape[1:] != first.inputs.shape[1:]:
            raise DataError(
                f"train rows have the shape {list(first.inputs.shape[1:])} but {word} rows {list(part.inputs.shape[1:])}."
                " Images can be resized with data.image_size",
                code="U152",
            )
    if first.kind == "table":
        return pd.concat([first.inputs, *(_like(first.inputs, part) for part in parts[1:])], ignore_index=True)
    return np.concatenate([part.inputs for part in parts])


def _concatenate(parts: list[Rows], task: Task) -> Rows:
    return Rows(
        parts[0].kind,
        _inputs(parts),
        np.concatenate([part.keys for part in parts]),
        None if all(part.labels is None for part in parts) else np.concatenate([_labels(part, task) for part in parts]),
        np.concatenate([part.split for part in parts if part.split is not None]),
        np.concatenate([np.array([part.name(at) for at in range(len(part))]) for part in parts]),
    )


def _labels(part: Rows, task: Task) -> Array:
    if part.labels is not None:
        return part.labels
    if task.single_label:
        return np.full(len(part), -1, dtype=np.int64)
    return np.full((len(part), task.outputs), np.nan, dtype=np.float32)


def _like(train: pd.DataFrame, part: Rows) -> pd.DataFrame:
    """The part with the columns of train, in its order and of its types."""
    frame: pd.DataFrame = part.inputs
    word = str(part.split[0]) if part.split is not None else ""
    absent = [str(name) for name in train.columns if name not in frame.columns]
    if absent:
        lines = [f"the {word} rows have no column {name!r}; {did_you_mean(name, map(str, frame.columns))}" for name in absent[:8]]
        raise DataError("\n  ".join(lines), code="U152")
    frame = frame[list(train.columns)].copy()
    for name in train.columns:
        texts = [pd.api.types.is_string_dtype(column.dtype) for column in (train[name], frame[name])]
        known = frame[name].dropna()
        if texts == [True, False]:
            frame[name] = frame[name].map(lambda value: repr(float(value)).removesuffix(".0"), na_action="ignore").astype(train[name].dtype)
        elif texts == [False, True] and len(known) and train[name].notna().any():
            bad = int(np.flatnonzero(pd.to_numeric(frame[name], errors="coerce").isna().to_numpy() & frame[name].notna().to_numpy())[0])
            raise DataError(
                f"column {name!r} holds numbers in train but texts in {word}, e.g. {str(frame[name].iloc[bad])!r} ({part.name(bad)})."
                " Name the text in data.missing if it means missing",
                code="U152",
            )
    return frame
