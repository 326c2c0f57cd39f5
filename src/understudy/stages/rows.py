"""The first stage: rows read, labelled, split, checked, and the same ones as when the run began."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from understudy.checks.rows import check_rows
from understudy.data import splitting
from understudy.data.rows import Paired, Rows
from understudy.errors import InputError, RecipeError, raise_errors
from understudy.make.rows import load_rows
from understudy.stages._run import Run, label_digest


def prepare_rows(run: Run) -> None:
    """Read, label, split and check the rows; print what they are."""
    cache = run.folder / "cache"
    cache.mkdir(exist_ok=True)
    run.loaded = load_rows(run.recipe, cache)
    rows, task = run.rows, run.task
    kept = run.folder / "split.npz"
    if kept.exists():
        _same_rows(run, rows, kept)
    else:
        splitting.save_split(rows, kept)
    counts = {part: int(np.count_nonzero(rows.split == part)) for part in ("train", "validation", "test")}
    shape = _shape(rows)
    labelled = 0 if rows.labels is None else int(task.labelled(rows.labels).sum())
    what = f"{task.kind}, {len(task.classes)} classes" if task.classes else task.kind
    what = f"matching of {' with '.join(task.classes)}, vectors of {task.width}" if task.kind == "matching" else what
    run.say(
        "rows",
        f"{len(rows):,} of kind {rows.kind} ({shape}), {labelled:,} labelled · " + " / ".join(f"{n:,} {p}" for p, n in counts.items()),
    )
    run.say("task", what + ("" if not 0 < len(task.classes) <= 12 or task.kind == "matching" else ": " + ", ".join(task.classes)))
    problems = [*run.loaded.problems, *check_rows(rows, task, overlap=run.recipe.data.overlap, rate=run.loaded.rate)]
    run.warn(raise_errors(problems))
    if run.recipe.data.overlap != "refuse":
        run.overrides.append(f"data.overlap = {run.recipe.data.overlap!r}")


def _shape(rows: Rows) -> str:
    if isinstance(rows.inputs, Paired):
        kinds = rows.inputs.kinds
        return ", ".join(f"{name}: {kinds[name]} {_shape(rows.only([name]))}".rstrip() for name in kinds)
    if rows.kind == "text":
        return "pairs" if rows.inputs.ndim == 2 else "single texts"
    return f"{rows.inputs.shape[1]} columns" if rows.kind == "table" else " x ".join(map(str, rows.inputs.shape[1:]))


def refuse_other_data(run: Run) -> None:
    """A finished run whose data says something else now is not finished; data that is no longer there is not missed."""
    kept = run.folder / "split.npz"
    try:
        rows = load_rows(run.recipe, run.folder / "cache").rows
    except InputError:
        return
    if kept.exists():
        _same_rows(run, rows, kept)
    lock = run.folder / "lock.json"
    then = json.loads(lock.read_text(encoding="utf-8")).get("labels") if lock.exists() else None
    if then is not None and then != label_digest(rows):
        raise RecipeError("labels changed since this run ended. Choose another --out, or --fresh to start its students over", code="U051")


def _same_rows(run: Run, rows: Rows, kept: Path) -> None:
    before, _ = splitting.load_split(kept)
    now = {tuple(key) for key in rows.keys.tolist()}
    then = {tuple(key) for key in before.tolist()}
    if now != then:
        raise RecipeError(
            f"the data changed since this run began: {len(now - then):,} rows are new, {len(then - now):,} are gone. "
            "Choose another --out, or --fresh to start its students over (only new rows are taught again)",
            code="U051",
        )
    if not splitting.same(rows, kept):
        # a split follows the labels: rows that trained a student must not judge it now
        told = "the rows are the same as when this run began, but other ones are test rows now: labels or copies of rows changed"
        raise RecipeError(f"{told}. Choose another --out, or --fresh to start its students over", code="U051")
