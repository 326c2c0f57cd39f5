"""What rows cannot show once they are split: overlaps, parts that are too small, classes without rows, dead inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from understudy.data.nearness import near_twins
from understudy.data.rows import SPLITS, Paired, Rows
from understudy.errors import InputError, Problem
from understudy.tasks import Task

Array = np.ndarray[Any, Any]
Overlap = Literal["refuse", "drop", "allow"]
FEW_ROWS = 100
FEW_TWINS = 0.01
"""The share of held-out rows with a near twin in training from which it is told."""
FEW_TEXTS = 0.01
"""The share of texts that may be longer than their clips, as for clips that are broken."""
LOOKED_AT = 2000
"""Images looked at, evenly spaced, because they may be a memory map."""


def check_rows(rows: Rows, task: Task, *, overlap: Overlap = "refuse", rate: int | None = None) -> list[Problem]:
    """What the split rows cannot show: overlaps, splits that are too small, classes without rows, dead inputs.

    With the `rate` of the samples of sound, texts that are longer than the clip they are said in too.
    """
    if rows.split is None:
        raise InputError("rows are checked after they are split; this is a mistake in the calling program", code="U220")
    problems = [*_check_sizes(rows, task), *_check_overlap(rows, overlap), *_check_twins(rows), *_check_inputs(rows)]
    if rows.labels is None:
        told = "no row has a label: quality cannot be measured, only fidelity to the teacher, and there is no control"
        return [*problems, Problem("U229", f"{told}; label some validation and test rows (data.label)", "warning")]
    if task.kind == "matching":
        return problems
    problems += _check_values(rows, task) if task.kind == "regression" else _check_classes(rows, task)
    if task.kind == "recognition" and rows.kind == "audio" and rate is not None:
        problems += _check_texts(rows, rate)
    return [*problems, *_check_labelled(rows, task)]


def _check_sizes(rows: Rows, task: Task) -> Iterator[Problem]:
    for part in SPLITS:
        count = int(np.count_nonzero(rows.split == part))
        if count == 0:
            yield Problem("U220", f"no row is in the {part} split; give data.{part} or a larger share in [split]")
        elif count < FEW_ROWS and part != "train":
            # the widest 95 % interval of a share, at one half
            points = "" if task.kind == "regression" else f": ±{98 / np.sqrt(count):.0f} points at 95 %"
            told = f"{part} has {count} rows{points or ': figures on so few rows are uncertain'}"
            yield Problem("U226" if part == "validation" else "U227", f"{told}; give data.{part} or a larger split.{part}", "warning")


def _check_overlap(rows: Rows, overlap: Overlap) -> Iterator[Problem]:
    assert rows.split is not None
    _, ids = np.unique(rows.keys, axis=0, return_inverse=True)
    ids = ids.ravel()
    parts = {part: np.flatnonzero(rows.split == part) for part in SPLITS}
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        shared = parts[first][np.isin(ids[parts[first]], ids[parts[second]])]
        if not len(shared):
            continue
        examples = ", ".join(rows.name(int(position)) for position in shared[:3])
        told = f"{len(shared):,} {first} rows are also {second} rows, to the byte (first: {examples})"
        if overlap == "refuse":
            why = "scores would count what was learned by heart"
            yield Problem("U225", f"{told}: {why}; set data.overlap = 'drop' to take them out of training, or 'allow'")
        else:
            yield Problem("U225", f"{told}; kept because data.overlap = {overlap!r}", "warning")


def _check_twins(rows: Rows) -> Iterator[Problem]:
    if isinstance(rows.inputs, Paired):
        for name in rows.inputs.parts:
            yield from (replace(one, message=f"input {name!r}: {one.message}") for one in _check_twins(rows.only([name])))
        return
    found = near_twins(rows)
    if found.share >= FEW_TWINS:
        train, held_out = (rows.name(int(position)) for position in found.pairs[0])
        first = f"first: {held_out}, like {train}"
        told = f"{found.share:.1%} of {found.looked_at:,} held-out rows looked at nearly repeat a training row ({first})"
        why = "if they are one thing recorded twice, scores count what was learned by heart"
        yield Problem("U232", f"{told}; {why}: keep such rows together with a split column (data.split)", "warning")


def _check_inputs(rows: Rows) -> list[Problem]:
    if len(rows) < 2:
        return []
    if isinstance(rows.inputs, Paired):
        found = [(name, problem) for name in rows.inputs.parts for problem in _check_inputs(rows.only([name]))]
        return [Problem(problem.code, f"input {name!r}: {problem.message}", problem.level) for name, problem in found]
    if rows.kind == "image":
        return list(_check_images(rows.inputs[:: max(1, len(rows) // LOOKED_AT)]))
    if rows.kind in ("array", "audio", "text"):
        same = bool((rows.inputs == rows.inputs[:1]).all())
        return [Problem("U230", f"all {len(rows):,} inputs are identical: nothing can be learned from them; check data.train")] * same
    constant = [str(name) for name in rows.inputs.columns if _constant(rows.inputs[name])]
    if len(constant) == len(rows.inputs.columns):
        return [Problem("U230", f"all {len(rows):,} rows have the same inputs: nothing can be learned from them; check data.train")]
    if not constant:
        return []
    shown = ", ".join(constant[:5]) + (f" and {len(constant) - 5} more" if len(constant) > 5 else "")
    what = "column has one value only" if len(constant) == 1 else "columns have one value only"
    told = f"{len(constant)} {what} ({shown}) and cannot help"
    return [Problem("U228", f"{told}; name what should be left out in data.ignore", "warning")]


def _constant(column: Any) -> bool:
    missing = column.isna()
    if missing.any():
        return bool(missing.all())
    return bool((column == column.iloc[0]).all())


def _check_images(images: Array) -> Iterator[Problem]:
    highest = images.reshape(len(images), -1).max(axis=1)
    if not highest.any():
        yield Problem("U230", f"all {len(images):,} images looked at are black; check how they were saved")
    elif len(images) > 1 and bool((images == images[:1]).all()):
        yield Problem("U230", f"all {len(images):,} images looked at are identical; check data.train")
    elif highest.max() <= 1:
        told = "no pixel is above 1: images held as fractions were rounded to 0 and 1"
        yield Problem("U231", f"{told}; save them as 0 to 255 (uint8)")
    elif not highest.all():
        black = int((highest == 0).sum())
        yield Problem("U231", f"{black:,} of {len(images):,} images looked at are black; check how they were saved", "warning")


def _check_labelled(rows: Rows, task: Task) -> Iterator[Problem]:
    assert rows.labels is not None
    assert rows.split is not None
    there = task.labelled(rows.labels)
    counts = {part: int(np.count_nonzero(there & (rows.split == part))) for part in SPLITS}
    losses = {
        "test": "quality and gain cannot be measured, only fidelity to the teacher",
        "validation": "the teacher cannot be scored and no student chosen by quality",
        "train": "there is nothing to train a control on",
    }
    for part, why in losses.items():
        if counts[part] == 0 and np.any(rows.split == part):
            yield Problem("U229", f"no {part} row has a label: {why}; label some of them", "warning")
    if 0 < counts["train"] < len(task.classes):
        told = f"{counts['train']} training rows have a label and there are {len(task.classes)} classes"
        yield Problem("U224", f"{told}: the control cannot learn them all; label more rows", "warning")


def _check_values(rows: Rows, task: Task) -> Iterator[Problem]:
    assert rows.labels is not None
    known = rows.labels[(rows.split == "train") & task.labelled(rows.labels)]
    if len(known) > 1 and bool((known == known[0]).all()):
        told = f"all {len(known):,} training labels are {float(known[0, 0]):g}"
        yield Problem("U223", f"{told}: there is nothing to predict; check data.label")


def _check_classes(rows: Rows, task: Task) -> Iterator[Problem]:
    counts = {part: _class_counts(rows, task, part) for part in SPLITS}
    train = counts["train"]
    if task.single_label and (len(task.classes) < 2 or (train.sum() > 1 and (train > 0).sum() == 1)):
        only = task.classes[int(train.argmax())]
        yield Problem("U223", f"all labelled training rows are of one class, {only!r}: there is nothing to tell apart; check data.label")
        return
    absent = [index for index in range(len(task.classes)) if any(all_.sum() and not all_[index] for all_ in counts.values())]
    if absent:
        told = f"{len(absent)} of {len(task.classes)} classes are absent from a split, their figures are undefined there"
        yield Problem("U221", f"{told}; give more rows or another split.seed\n{_table(absent, counts, task)}", "warning")
    rarest = int(np.where(train > 0, train, train.max(initial=0) + 1).argmin())
    if task.single_label and train.any() and train.max() > 20 * train[rarest]:
        told = f"classes are severely imbalanced: {train.max():,} training rows of {task.classes[int(train.argmax())]!r}"
        fix = "look at macro_f1 beside accuracy, or set train.class_weights = 'balanced'"
        shown = [*np.argsort(train, kind="stable")[:6].tolist(), int(train.argmax())]
        told = f"{told}, {train[rarest]:,} of {task.classes[rarest]!r}"
        yield Problem("U222", f"{told}; {fix}\n{_table(list(dict.fromkeys(shown)), counts, task)}", "warning")


def _check_texts(rows: Rows, rate: int) -> Iterator[Problem]:
    """Texts with more words than there are frames of 20 ms to say them in, a blank between two that are the same."""
    assert rows.labels is not None
    samples, labels = np.asarray(rows.inputs), rows.labels
    ends = np.where(samples != 0, np.arange(1, samples.shape[1] + 1), 0).max(axis=1, initial=0)
    frames = (2 + ends // round(0.01 * rate)) // 2
    needed = (labels >= 0).sum(axis=1) + ((labels[:, 1:] >= 0) & (labels[:, 1:] == labels[:, :-1])).sum(axis=1)
    long = np.flatnonzero(needed > frames)
    if len(long):
        shown = ", ".join(f"{rows.name(int(at))} ({needed[at]} for {frames[at]})" for at in long[:6])
        told = f"{len(long):,} of {len(rows):,} texts need more frames than their clips have, one every 20 ms: {shown}"
        advice = "nothing can be learned from them. Look at their labels, at data.rate and at data.seconds"
        yield Problem("U439", f"{told}; {advice}", "warning" if len(long) <= FEW_TEXTS * len(rows) else "error")


def _class_counts(rows: Rows, task: Task, part: str) -> Array:
    assert rows.labels is not None
    known = rows.labels[(rows.split == part) & task.labelled(rows.labels)]
    if task.kind == "recognition":
        return np.bincount(known[known >= 0], minlength=len(task.classes))
    if task.single_label:
        return np.bincount(known, minlength=len(task.classes))
    return np.asarray(known.sum(axis=0), dtype=np.int64)


def _table(shown: list[int], counts: dict[str, Array], task: Task) -> str:
    lines = [f"  {'class':<24} {'train':>9} {'validation':>11} {'test':>9}"]
    for index in shown[:12]:
        train, validation, test = (int(counts[part][index]) for part in SPLITS)
        lines.append(f"  {task.classes[index][:24]:<24} {train:>9,} {validation:>11,} {test:>9,}")
    return "\n".join(lines + [f"  ... and {len(shown) - 12} more"] * (len(shown) > 12))
