"""A run in progress, its folder, and what more than one of its stages needs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape

from understudy.checks.recipes import check_writable
from understudy.data.rows import Rows
from understudy.data.views import AnyViews
from understudy.ensembles import Ensemble
from understudy.errors import InputError, PreflightError, Problem, RecipeError
from understudy.make.rows import Loaded
from understudy.make.teachers import free_teacher_options
from understudy.pools import Pool
from understudy.recipe import Recipe, parse, to_toml
from understudy.signals import is_answered
from understudy.store.transfer_set import TransferSet
from understudy.tasks import Task
from understudy.teachers import Teacher

FREE_TO_CHANGE = ("measure", "export")
WORD_ERRORS = 0.1
"""The published limit of Distil-Whisper (Gandhi, von Platen & Rush 2023, arXiv:2311.00430)."""
COPIES = "teaching.store"
"""Where answers are copied to changes none of them."""


@final
@dataclass
class Run:
    """A run in progress: its recipe, its folder and what the stages have made so far."""

    recipe: Recipe
    folder: Path
    console: Console
    loaded: Loaded | None = None
    extra: Rows | None = None
    share: float = 1.0  # of the texts of rows.unlabelled: what a probe takes of them
    teacher: Teacher | None = None
    teacher_line: str = ""
    teacher_score: float | None = None
    writes: bool = False  # the teacher's words are known, and not when they were said
    warnings: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    taught: TransferSet | None = None
    held_out: TransferSet | None = None
    seen: AnyViews | None = None
    views: int = 1
    ensemble: Ensemble | None = None
    last: Teacher | None = None  # the last of a chain, once it is trained
    speaker: Teacher | None = None  # who teaches next: the teacher or one of a chain, giving the layers that terms read too
    wired: list[str] = field(default_factory=list)  # the pairs of layers that were told
    pool: Pool | None = None  # who asks the teacher about rows, None for this process
    middle: dict[str, list[Any]] = field(default_factory=dict)  # further models to measure, one per seed or one for all

    @property
    def rows(self) -> Rows:
        assert self.loaded is not None
        return self.loaded.rows

    @property
    def lesson(self) -> Loaded:
        """The rows as the student sees them: the inputs that it reads."""
        assert self.loaded is not None
        return self.loaded.seen_by(self.recipe.student.inputs)

    @property
    def task(self) -> Task:
        assert self.loaded is not None
        return self.loaded.task

    @property
    def word_errors(self) -> float | None:
        """The share of wrong words above which the teacher is not believed about a labelled row; None for whatever it says."""
        said = self.recipe.teaching.word_errors
        return WORD_ERRORS if said is None and self.writes else said

    def say(self, word: str, text: str) -> None:
        self.console.print(f"[bold cyan]{word:<9}[/] {escape(text)}", highlight=False, soft_wrap=True)

    def warn(self, problems: list[Problem]) -> None:
        for problem in problems:
            if str(problem) not in self.warnings:
                self.warnings.append(str(problem))
                self.console.print(f"[yellow]warning[/]   {escape(str(problem))}", highlight=False, markup=True, soft_wrap=True)


def problems_of(error: InputError) -> Sequence[Problem]:
    return error.problems if isinstance(error, PreflightError) else [Problem(error.code, str(error.args[0]))]


def refuse_other_storage(recipe: Recipe) -> None:
    """A run lies on a file system that can lock, rename and map files into memory; an object store can none of them."""
    if "://" in recipe.out:
        raise RecipeError(
            f"out = {recipe.out!r}: a run is written into a folder of a file system (locks, renames and memory maps are what keeps it "
            f"whole). Give it a folder, and the transfer set an address: teaching.store = {recipe.out!r}",
            code="U467",
        )


def open_run(recipe: Recipe, console: Console, *, fresh: bool) -> Run:
    """Make the run's folder, or continue it when it holds the same recipe."""
    folder = Path(recipe.out)
    kept = folder / "recipe.json"
    check_writable(folder)
    if folder.exists() and any(folder.iterdir()) and not kept.exists():
        raise RecipeError(f"{folder} is not empty and is no run of understudy; choose another out", code="U050")
    said = recipe.model_dump(mode="json")
    if kept.exists():
        before = _as_now(_read(kept))
        free = ["seeds"] if _begins_alike(before["seeds"], recipe.seeds) else []
        moved = _moved(before, said, [*free, *free_teacher_options(recipe.teacher), COPIES])
        if moved and not fresh and _made_something(folder):
            raise RecipeError(
                f"{folder} holds another run: {'; '.join(moved)}. Choose another --out, or --fresh to start its students over", code="U050"
            )
        if moved:
            _clear(folder)
    if fresh and folder.exists():
        _clear(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
    write_json(kept, said)
    console.print(f"[bold]understudy[/] {version_of('understudy')} · {folder}", highlight=False)
    return Run(recipe, folder, console)


def _read(kept: Path) -> dict[str, Any]:
    """The recipe that a folder's run was begun with."""
    try:
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        told = f"{kept} says what run this folder holds, and cannot be read ({error})"
        raise RecipeError(f"{told}. Put it back from a copy, or choose another --out", code="U050") from None


def _as_now(before: dict[str, Any]) -> dict[str, Any]:
    """A kept recipe with the options that have come since, at their defaults; as it is where it no longer is a recipe."""
    try:
        return parse(before).model_dump(mode="json")
    except RecipeError:
        return before


def _begins_alike(before: list[int], now: list[int]) -> bool:
    """Whether one list of seeds goes on where the other ends: what was trained for the seeds of both is the same."""
    both = min(len(before), len(now))
    return both > 0 and before[:both] == now[:both]


def _moved(before: dict[str, Any], now: dict[str, Any], free: list[str]) -> list[str]:
    flat_before, flat_now = _flat(before), _flat(now)
    names = [name for name in sorted({*flat_before, *flat_now} - {*free}) if name.split(".")[0] not in (*FREE_TO_CHANGE, "out")]
    return [
        f"{name} was {flat_before.get(name)}, now {flat_now.get(name)}" for name in names if flat_before.get(name) != flat_now.get(name)
    ]


def _flat(said: dict[str, Any], place: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in said.items():
        flat |= _flat(value, f"{place}{key}.") if isinstance(value, dict) else {f"{place}{key}": value}
    return flat


def _made_something(folder: Path) -> bool:
    """Whether a run got beyond its checks; until then its recipe may be mended in place."""
    made = ("teacher", "chain", "choice", "cohort", "transfer", "artifact")
    return any(entry.name.startswith("seed-") or entry.name in made for entry in folder.iterdir())


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name.startswith("seed-") or entry.name in ("artifact", "teacher", "chain", "cohort", "choice"):
            shutil.rmtree(entry)
        elif entry.name in ("scorecard.json", "lock.json", "split.npz", "choice.json"):
            entry.unlink()


def write_json(path: Path, said: Any) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(said, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def label_digest(rows: Rows) -> str | None:
    """A hash of rows and their labels, whatever their order."""
    if rows.labels is None:
        return None
    parts = [np.ascontiguousarray(part).reshape(len(rows), -1).view(np.uint8) for part in (rows.keys, rows.labels)]
    joined = np.ascontiguousarray(np.hstack(parts))
    return hashlib.blake2b(np.sort(joined.view(f"V{joined.shape[1]}").ravel()).tobytes(), digest_size=16).hexdigest()


def answered_rows(answers: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of the rows that the teacher has an answer to."""
    return np.flatnonzero(is_answered(torch.from_numpy(answers)).numpy())


def first_inputs(rows: Rows, n: int) -> Any:
    return rows.take(slice(0, n)).inputs


def answers_of(model: Any, inputs: Any, task: Task) -> np.ndarray[Any, Any]:
    signals = model.signals(inputs)
    return np.asarray(signals[task.signal].float().cpu().numpy())


def join_rows(first: Rows, second: Rows) -> Rows:
    import pandas as pd

    if first.kind == "table":
        inputs: Any = pd.concat([first.inputs, second.inputs], ignore_index=True)
    else:
        inputs = np.concatenate([first.inputs, second.inputs])
    names = np.concatenate([np.asarray(first.names), np.asarray(second.names)])
    return Rows(first.kind, inputs, np.concatenate([first.keys, second.keys]), names=names)


def size_of(folder: Path) -> str:
    total = float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    for unit in ("B", "kB", "MB"):
        if total < 1000:
            return f"{total:.3g} {unit}"
        total /= 1000
    return f"{total:.3g} GB"
