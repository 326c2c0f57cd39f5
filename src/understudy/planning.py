"""What a run will take, from a probe: the same stages on a few rows, at growing sizes until half a minute is gone.

What the first size took longer than the others foretell is what a process pays once. From there a figure is a fixed part and one that
grows with the rows (a tree: rows times their logarithm), fitted to all sizes. What a probe cannot see (other work on the machine,
early stopping) a plan does not foresee.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import psutil
from rich.console import Console
from scipy.optimize import nnls

from understudy.checks.recipes import check_disk
from understudy.data.rows import Rows
from understudy.errors import Problem, RecipeError
from understudy.exporting import artifact
from understudy.make.lessons import with_steps_of
from understudy.make.rows import encode, synthetic_rows
from understudy.make.students import is_estimator
from understudy.recipe import Recipe
from understudy.stages._foresight import PARTS, PLAN, TIMES, identity, peak_memory, seconds_of, stored_bytes
from understudy.stages._run import Run, write_json
from understudy.stages.teachers import prepare_teacher
from understudy.stages.teaching import teach_rows
from understudy.stages.training import train_pair
from understudy.students.student import Student

PROBE_SECONDS = 30.0
FIRST_ROWS, GROWTH = 128, 16
EPOCHS = 3
SHARE = 0.6
"""Of the time that is left, the part that the next size may be expected to take."""
ESTIMATORS = ("forest", "boosted")
"""Teachers that grow with their rows."""
FOREST_SLOWS = 0.25
"""The nodes of grown trees become fewer a row as rows grow: a forest of letters was seen to take rows to the power of 0.6."""
STOPS_EARLY = 10_000
"""Rows above which scikit-learn's boosted trees stop by themselves, if nothing is said."""
OF_EACH_CLASS = 6
"""One for each fold of out-of-fold teachers, and one more."""


@final
@dataclass(frozen=True)
class Probed:
    """What one size of the probe came to; `fixed` seconds of a training are those outside of its epochs, `peak` the bytes held at most."""

    rows: int
    held_out: int
    bytes: float
    held_out_bytes: float
    seconds: dict[str, float]
    fixed: dict[str, float]
    whole: float
    peak: float = 0.0


def probe(run: Run, seconds: float = PROBE_SECONDS) -> list[Probed]:
    """The stages of this run at growing sizes; the first warms up."""
    _refuse_unprobed(run)
    began, rows, found = time.perf_counter(), int(np.count_nonzero(run.rows.split == "train")), list[Probed]()
    size: int | None = min(FIRST_ROWS, rows)
    while size is not None:
        found.append(_probe_one(run, size, lesson_epochs(run.recipe, found, size, seconds), first=not found))
        size = next_size(found, rows, seconds - (time.perf_counter() - began))
    return found


def lesson_epochs(recipe: Recipe, found: Sequence[Probed], rows: int, seconds: float) -> int:
    """The epochs of a probe's teacher: few, but as many as a tenth of the probe allows where a tree learns from it.

    A teacher that knows little spreads its answers over all classes, and a tree is fitted on as many weighted copies of each row.
    """
    own = recipe.teacher.train
    if own is None or not is_estimator(recipe.student.model) or not found:
        return EPOCHS
    epoch = found[-1].seconds["teacher"] * rows / found[-1].rows
    return EPOCHS if epoch <= 0 else max(EPOCHS, min(own.epochs, int(seconds / 10 / epoch)))


def next_size(found: Sequence[Probed], rows: int, left: float) -> int | None:
    """How many rows to probe next in the seconds that are left: as many as can be, for what lies far beyond is foreseen badly.

    Two sizes there are at any rate, since one does not tell what is fixed from what grows.
    """
    last, warm = found[-1], warmed(found)
    if last.rows == rows:
        return rows if len(found) == 1 else None
    known = len(found) > 2  # what is fixed; until then part of it is taken to be
    for power in range(GROWTH.bit_length() - 1 if known else 2, 0, -1):
        size = min(rows, last.rows * 2**power)
        expected = grown([each.rows for each in warm], [each.whole for each in warm], size) if known else last.whole * 2 ** (power / 2)
        if expected < (SHARE if known else 1) * left:
            return size
    return min(rows, 2 * last.rows) if len(found) == 1 else None


def warmed(found: Sequence[Probed]) -> Sequence[Probed]:
    """What was probed without the first, which warms up, when there is enough beside it."""
    return found[1:] if len(found) > 2 or (len(found) == 2 and found[0].rows == found[1].rows) else found


def _refuse_unprobed(run: Run) -> None:
    recipe = run.recipe
    what = "a server, whose answers have a price (`understudy check` quotes it)" if recipe.teacher.is_remote else None
    what = "a cohort, a chain or generations" if recipe.chain or recipe.cohort or recipe.generations else what
    if what is not None:
        raise RecipeError(f"a plan probes a teacher, a student and a control; this recipe has {what}", code="U469")


def _probe_one(run: Run, size: int, epochs: int, *, first: bool) -> Probed:
    with tempfile.TemporaryDirectory(prefix="understudy-plan-") as name:
        folder, began = Path(name), time.perf_counter()
        small = _small(run, size, folder, epochs)
        prepare_teacher(small)
        started = time.perf_counter()
        teach_rows(small)
        seconds = {"teaching": time.perf_counter() - started}
        pair = train_pair(small, small.recipe.seeds[0])
        fixed = {}
        places = {"teacher": folder / "teacher", "student": folder / "seed-0" / "student", "control": folder / "seed-0" / "control"}
        for part, place in places.items():
            seconds[part], fixed[part] = _epoch(place)
        if (folder / TIMES).exists():  # what the run notes of it: more than its epochs, and of an estimator all
            took = json.loads((folder / TIMES).read_text(encoding="utf-8")).get("teacher", 0.0)
            asked = 0 if small.recipe.teacher.train is None else small.recipe.teacher.train.epochs
            fixed["teacher"] = max(0.0, took - asked * seconds["teacher"])
        run.views = small.views
        stored = [stored_bytes(folder / "transfer" / part) for part in ("training", "held_out")]
        rest = int(np.count_nonzero(small.rows.split != "train"))
        whole = time.perf_counter() - began
        if first:
            _write_once(small, pair["student"])
        return Probed(size, rest, stored[0], stored[1], seconds, fixed, whole, peak_memory())


def _write_once(run: Run, student: Student) -> None:
    """Export the student for nothing: tracing a network takes memory, which the run will need too."""
    assert run.loaded is not None
    train = run.rows.part("train")
    artifact.check_exportable(student, encode(train.take(slice(0, 2)).inputs, train.kind, run.loaded.encoding))


def _small(run: Run, size: int, folder: Path, epochs: int = EPOCHS) -> Run:
    """This run with fewer rows of each part and few epochs, in a folder of its own."""
    assert run.loaded is not None
    share = size / max(1, int(np.count_nonzero(run.rows.split == "train")))
    labels = run.rows.labels if run.task.single_label else None
    kept = [_first(np.flatnonzero(run.rows.split == part), share, labels) for part in ("train", "validation", "test")]
    recipe = _short(run.recipe, folder, epochs, int(np.count_nonzero(run.rows.split == "train")))
    small = Run(recipe, folder, Console(quiet=True), share=share)
    small.loaded = replace(run.loaded, rows=_taken(run.rows, kept))
    return small


def _first(positions: np.ndarray[Any, Any], share: float, labels: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """A share of these rows, a few of every class among them: a teacher that is fitted on them must know all classes."""
    size = max(min(len(positions), 32), round(len(positions) * share))
    if labels is None or size >= len(positions):
        return positions[:size]
    order = np.argsort(labels[positions], kind="stable")
    _, starts, counts = np.unique(labels[positions][order], return_index=True, return_counts=True)
    rank = np.empty(len(positions), dtype=np.int64)
    rank[order] = np.arange(len(positions)) - np.repeat(starts, counts)
    first = positions[rank < OF_EACH_CLASS]
    rest = positions[rank >= OF_EACH_CLASS]
    return np.concatenate([first, rest[: max(0, size - len(first))]])


def _taken(rows: Rows, kept: Iterable[np.ndarray[Any, Any]]) -> Rows:
    return rows.take(np.sort(np.concatenate(list(kept))))


def _short(recipe: Recipe, folder: Path, epochs: int, whole: int) -> Recipe:
    """The recipe with few epochs; what its teacher does with `whole` rows alone, it does with few too."""
    few = {"epochs": min(EPOCHS, recipe.train.epochs), "stop": 1.0, "max_time": None, "patience": None}
    teacher = recipe.teacher.model_copy(update={"accept_score": True, "accept_mapping": True, "expect": None})
    if teacher.train is not None:
        own = few | {"epochs": min(epochs, teacher.train.epochs)}
        options = {"early_stopping": whole > STOPS_EARLY} if teacher.train.model == "boosted" else {}
        lesson = teacher.train.model_copy(update=own)
        teacher = teacher.model_copy(update={"train": lesson.model_copy(update={"options": options | lesson.options})})
    members = [
        each
        if each.train is None
        else each.model_copy(update={"train": each.train.model_copy(update=few | {"epochs": min(EPOCHS, each.train.epochs)})})
        for each in teacher.members
    ]
    teacher = teacher.model_copy(update={"members": members})
    changes = {"out": str(folder), "seeds": [0], "teacher": teacher, "train": recipe.train.model_copy(update=few)}
    # what is taught for a plan belongs nowhere else
    return recipe.model_copy(update=changes | {"teaching": recipe.teaching.model_copy(update={"store": None})})


def _epoch(folder: Path) -> tuple[float, float]:
    """(seconds of an epoch, seconds outside of epochs) of a network; of an estimator (0, all)."""
    whole = seconds_of(folder)
    if not (folder / "metrics.jsonl").exists():
        return 0.0, whole
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ends: dict[int, float] = {line["epoch"]: line["seconds"] for line in lines}
    first, last = int(min(ends)), int(max(ends))
    epoch = (ends[last] - ends[first]) / (last - first) if last > first else whole
    return epoch, max(0.0, whole - (last - first + 1) * epoch)


def foretold(run: Run, found: list[Probed]) -> dict[str, Any]:
    """Rows, views, bytes, memory and seconds of the whole run."""
    recipe, rows = run.recipe, int(np.count_nonzero(run.rows.split == "train"))
    seeds, further = len(recipe.seeds), _further(run)

    warm = warmed(found)
    # one tree of many leaves was seen to grow with rows times their logarithm, a forest with its rows
    sorts = {"student", "control"} if recipe.student.model == "tree" else set[str]()

    def at_whole(figures: list[float], *, part: str = "") -> float:
        return grown([each.rows for each in warm], figures, rows, logarithm=part in sorts)

    def once(part: str) -> float:
        """What the first time in a process took longer than another time would."""
        if warm is found:
            return 0.0
        first, *others = (each.fixed.get(part, each.seconds[part]) for each in found)
        return max(0.0, first - grown([each.rows for each in warm], others, found[0].rows))

    def training(part: str, epochs: float, times: int) -> float:
        epoch = at_whole([each.seconds[part] for each in warm])
        return (epochs * epoch + at_whole([each.fixed[part] for each in warm], part=part)) * times + once(part)

    held_out = grown([each.held_out for each in warm], [each.held_out_bytes for each in warm], len(run.rows) - rows)
    parts: dict[str, float] = {"bytes": at_whole([each.bytes for each in warm]) + held_out, "memory": _memory(run, warm, rows, further)}
    if recipe.teacher.train is not None:
        parts["teacher"] = training("teacher", recipe.teacher.train.epochs * recipe.teacher.train.stop, 1)
    parts["teaching"] = at_whole([each.seconds["teaching"] for each in warm]) + once("teaching")
    train = run.rows.part("train")
    alone = 0 if train.labels is None else int(run.task.labelled(train.labels).sum())
    # the control takes as many steps as the student, in more epochs of its fewer rows
    as_many = with_steps_of(recipe.train, alone, rows + further) if alone else recipe.train
    for part, options in (("student", recipe.train), ("control", as_many)):
        parts[part] = training(part, options.epochs * options.stop, seeds)
        if recipe.train.max_time is not None and parts[part]:
            parts[part] = recipe.train.max_time * seeds
    probed = {"rows": [each.rows for each in found], "seconds": sum(each.whole for each in found)}
    counts = {"rows": len(run.rows), "training": rows, "further": further, "views": run.views}
    return {"recipe": identity(recipe), "counts": counts, "parts": {k: v for k, v in parts.items() if v}, "probe": probed}


def grown(sizes: Sequence[int], figures: Sequence[float], whole: int, *, logarithm: bool = False) -> float:
    """The figure at the whole size: a fixed part and one that grows with the rows, neither below zero, nearest to all figures.

    Errors count as parts of the figures, and those of large sizes more, which are nearer to the whole. With `logarithm` rows are
    counted times their logarithm, as they are sorted for a tree.

    >>> [round(grown([10, 20], [3.0, 5.0], 100), 6), round(grown([20], [5.0], 100), 6), round(grown([10, 20], [5.0, 4.0], 100), 1)]
    [21.0, 25.0, 4.2]
    """

    def count(rows: float) -> float:
        return rows * np.log2(max(rows, 2)) if logarithm else rows

    counts, values = np.array([count(size) for size in sizes]), np.array(figures, dtype=float)
    if not values.any():
        return 0.0
    if len(set(counts)) == 1:  # nothing is known of a fixed part
        return float(values.mean() * count(whole) / counts[0])
    weights = np.sqrt(counts) / np.maximum(values, values.max() / 10)
    parts, _ = nnls(np.stack([weights, counts * weights], axis=1), values * weights)
    return float(parts[0] + parts[1] * count(whole))


def _further(run: Run) -> int:
    """How many rows without a label of their own there will be beside the training rows."""
    if run.recipe.rows.synthetic:
        return int(np.count_nonzero(run.rows.split == "train")) * run.recipe.rows.synthetic
    more = synthetic_rows(run.recipe, run.rows, run.task)
    return 0 if more is None else len(more)


def _memory(run: Run, found: Sequence[Probed], rows: int, further: int) -> float:
    """The most that this process held until now, and what the rows that the probe left out will add."""
    assert run.loaded is not None
    train = run.lesson.rows.part("train")
    some = encode(train.take(slice(0, 8)).inputs, train.kind, run.lesson.encoding)
    # the encoded row of the student and that of the control, answers once as they are stored and once as they are read
    each: float = (1 + further / rows) * (2 * some[:1].nbytes + 2 * 4 * run.task.outputs)
    own = run.recipe.teacher.train
    if (own is not None and own.model in ESTIMATORS) or is_estimator(run.recipe.student.model):
        each = max(each, steepest(found) * (found[-1].rows / rows) ** FOREST_SLOWS)
    return peak_memory() + (rows - found[-1].rows) * each


def steepest(found: Sequence[Probed]) -> float:
    """Bytes that the last rows of a probe added to the most that was held, per row.

    >>> steepest([Probed(rows, 0, 0, 0, {}, {}, 0, peak) for rows, peak in ((128, 500), (128, 520), (256, 776), (1024, 4616))])
    5.0
    """
    before = [each for each in found if each.rows < found[-1].rows]
    return (found[-1].peak - before[-1].peak) / (found[-1].rows - before[-1].rows) if before else 0.0


def refused(run: Run, parts: dict[str, float]) -> list[Problem]:
    """What there is too little of on this machine."""
    there = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    problems = check_disk(run.folder, int(parts["bytes"]))
    if parts["memory"] > there:
        told = f"the run needs about {parts['memory'] / 1e9:.1f} GB of memory and {there / 1e9:.1f} GB are free"
        problems.append(Problem("U468", f"{told}; take fewer rows.synthetic or rows, or a machine with more"))
    return problems


def keep(run: Run, plan: dict[str, Any]) -> None:
    """Write the plan where the scorecard will look for it, and print it."""
    write_json(run.folder / PLAN, plan)
    counts = plan["counts"]
    made = f", {counts['further']:,} without a label" if counts["further"] else ""
    run.say("plan", f"{counts['rows']:,} rows, {counts['training']:,} to train on{made} x {counts['views']} views")
    for name, title in PARTS.items():
        if name in plan["parts"]:
            value = plan["parts"][name]
            run.say("", f"{title:<22}{f'{value / 1e6:,.1f} MB' if name in ('bytes', 'memory') else told_seconds(value)}")
    run.say("probe", f"{plan['probe']['seconds']:.0f} s on {plan['probe']['rows'][-1]:,} rows")


def told_seconds(seconds: float) -> str:
    """A time for people; what is over in a moment is not foreseen to the tenth.

    >>> told_seconds(0.3), told_seconds(4.2), told_seconds(400), told_seconds(9000)
    ('under a second', '4.2 s', '6.7 min', '2.5 h')
    """
    if seconds < 1:
        return "under a second"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
