"""The stages of a run, in order, resumed where they stopped.

rows -> checks -> teacher -> transfer set -> student and control per seed -> artifact -> scorecard. Each stage reads what
the one before left in the run's folder and writes a card last; a stage whose card exists is not done again. Calling
`distill` with the same recipe therefore continues, and a finished run only prints its scorecard.
"""

from __future__ import annotations

import inspect as inspecting
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from understudy.checks.recipes import check_recipe
from understudy.checks.students import check_student
from understudy.data.rows import Rows
from understudy.errors import InputError, Problem, RecipeError, TransferSetError, raise_errors
from understudy.exporting import artifact
from understudy.make.lessons import build_label_objective, build_objective
from understudy.make.rows import encode, load_rows, synthetic_rows
from understudy.make.students import build_student, is_custom, is_estimator
from understudy.make.teachers import build_pool, train_on
from understudy.make.views import build_views
from understudy.measuring import scorecard as cards
from understudy.measuring import soft_labels
from understudy.planning import foretold, keep, probe, refused
from understudy.pools import Pool
from understudy.ranks import Ranks
from understudy.recipe import Recipe
from understudy.stages._fitting import parameters_of
from understudy.stages._foresight import note_time
from understudy.stages._run import Run, answers_of, join_rows, open_run, problems_of, refuse_other_storage
from understudy.stages._speaker import wire_layers
from understudy.stages.judging import close_run, export_best, measure_all, same_measure, write_lock
from understudy.stages.rows import prepare_rows, refuse_other_data
from understudy.stages.teachers import load_teachers, prepare_teacher
from understudy.stages.teaching import teach_rows, views_of
from understudy.stages.training import beside_control, choose_objective, learn_together, train_links, train_pair
from understudy.store.transfer_set import TransferSet, find_keys
from understudy.students.student import Student
from understudy.tasks import Task
from understudy.teachers import Teacher, modules
from understudy.teaching import compare_answers
from understudy.training.gradient import device_named

Stage = Literal["check", "teach", "train", "export", "measure"]


STAGES: tuple[Stage, ...] = ("check", "teach", "train", "export", "measure")


def distill(
    recipe: Recipe,
    *,
    until: Stage = "measure",
    fresh: bool = False,
    console: Console | None = None,
    workers: int | None = None,
    on: str | None = None,
) -> dict[str, Any]:
    """Do everything the recipe says, up to and including a stage; gives the scorecard (empty before `measure`).

    Raises PreflightError with every problem found before training, RequirementError when a gate of
    `measure.require` is not met. The run's folder is continued when it holds this recipe, refused when it holds
    another one; `fresh` starts students over (the transfer set is kept, since it is keyed by content). Under torchrun or
    `accelerate launch` all processes train, and the first does everything else; the others get an empty scorecard.

    `workers` processes ask the teacher, here or `on` a Ray cluster (`ray`, `ray://host:port`), which holds as many ranks of the
    training then; all of its machines see the run's folder at the same place.
    """
    refuse_other_storage(recipe)
    if on is not None and until == "train":
        return _train_on(recipe, on, workers, fresh, console)
    ranks = Ranks.here()
    pool = build_pool(workers, on)
    if ranks is None:
        return _distill(recipe, until, fresh, console, None, pool)
    ranks.check_budget(recipe.train.max_time)
    if recipe.cohort is not None or recipe.chain or recipe.generations is not None:
        ranks.refuse("cohorts, chains and generations")
    if recipe.objective.choose:
        ranks.refuse("objective.choose")
    if not ranks.leads:
        return _follow(recipe, ranks)
    with ranks.leading():
        return _distill(recipe, until, fresh, console, ranks, pool)


def _train_on(recipe: Recipe, on: str, workers: int | None, fresh: bool, console: Console | None) -> dict[str, Any]:
    """Teach on a cluster, then train there; each rank does what a process under torchrun does."""
    distill(recipe, until="teach", fresh=fresh, console=console, workers=workers, on=on)
    train_on(on, workers, partial(distill, recipe, until="train", console=None), Path(recipe.out))
    return {}


def _follow(recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    """Train beside the leader, once it has checked and taught; writes and prints nothing."""
    called = ranks.same(None)
    if called is None:
        return {}
    run = Run(recipe, Path(recipe.out), Console(quiet=True))
    run.loaded = load_rows(recipe, run.folder / "cache")
    rows = run.rows.part("train")
    run.extra = synthetic_rows(recipe, run.rows, run.task)
    run.seen = views_of(run, rows if run.extra is None else join_rows(rows, run.extra))
    prepare_teacher(run)
    wire_layers(run, build_objective(recipe, run.task, rows.labels))
    if called["taught"] is not None:
        run.taught = TransferSet.open(called["taught"], verify=False)
    for seed in recipe.seeds:
        train_pair(run, seed)
    return {}


def _distill(recipe: Recipe, until: Stage, fresh: bool, console: Console | None, ranks: Ranks | None, pool: Pool | None) -> dict[str, Any]:
    run = open_run(recipe, console or Console(stderr=False), fresh=fresh)
    run.pool = pool
    finished = run.folder / "scorecard.json"
    last = STAGES.index(until)
    made = (run.folder / "artifact" / "checksums.json").exists()
    if until == "measure" and finished.exists() and made and same_measure(run):
        refuse_other_data(run)
        run.say("finished", f"{run.folder} was complete; --fresh would start its students over")
        return close_run(run, json.loads(finished.read_text(encoding="utf-8")))
    preflight(run, prepare_teacher)
    if last >= 1 and recipe.cohort is None:
        started, complete = time.perf_counter(), (run.folder / "transfer" / "held_out" / "manifest.json").exists()
        teach_rows(run)
        if not complete:
            note_time(run, "teaching", time.perf_counter() - started)
    students: dict[int, dict[str, Student]] = {}
    if last >= 2 and recipe.cohort is not None:
        students = learn_together(run)
    elif last >= 2:
        train_links(run)
        choose_objective(run)
        if ranks is not None and not is_estimator(recipe.student.model):
            ranks.call({"taught": None if run.taught is None else str(run.taught.folder)})
        students = {seed: train_pair(run, seed) for seed in recipe.seeds}
        if recipe.generations is None:
            run.warn(beside_control(run, students))
    exported: dict[str, Any] = {}
    if last >= 3:
        exported = export_best(run, students)
    if last < 4:
        write_lock(run)
        return {}
    card = measure_all(run, students, exported)
    write_lock(run)
    return close_run(run, card)


def check(recipe: Recipe, *, console: Console | None = None) -> list[str]:
    """The preflight alone: reads the rows, loads and scores the teacher, trains nothing; gives the warnings."""
    run = open_run(recipe, console or Console(stderr=False), fresh=False)
    preflight(run, look_at_teacher)
    run.say("ready", f"nothing stands in the way; {len(run.warnings)} warnings")
    return run.warnings


def plan(recipe: Recipe, *, seconds: float = 30.0, console: Console | None = None) -> dict[str, Any]:
    """What the run will take, from a probe of so many seconds: rows, views, bytes, memory and seconds of each part.

    The run's folder keeps it as plan.json, and the scorecard of the run says how far off it was. Raises PreflightError where
    the disk (U208) or the memory (U468) is too small. A teacher that the recipe trains is trained on a few rows for it.
    """
    refuse_other_storage(recipe)
    run = open_run(recipe, console or Console(stderr=False), fresh=False)
    preflight(run, lambda run: None)
    found = foretold(run, probe(run, seconds))
    keep(run, found)
    raise_errors(refused(run, found["parts"]))
    return found


def verify(store: str | Path, recipe: Recipe, *, rows: int = 64, seed: int = 0, console: Console | None = None) -> dict[str, Any]:
    """Ask the recipe's teacher again about random rows of a transfer set; gives the worst difference and both accuracies.

    `worst` is in units of what the stored precision allows. Raises TransferSetError (U021 naming the parts of the teacher that
    moved, U022 with both answers) when the teacher is not the one that was asked.
    """
    taught = TransferSet.open(store)
    run = Run(recipe, Path(recipe.out), console or Console(stderr=False))
    run.loaded = load_rows(recipe)
    inside = run.rows.take(np.flatnonzero(find_keys(taught.keys, run.rows.keys) >= 0))
    if not len(inside):
        raise TransferSetError(f"none of the {len(run.rows):,} rows of {recipe.data.train} is in {store}: give its data", code="U325")
    prepare_teacher(run)
    assert run.teacher is not None
    now = run.teacher.fingerprint()
    moved = [f"{part}: {taught.fingerprint.get(part)!r} there, {value!r} now" for part, value in sorted(now.items())
             if taught.fingerprint.get(part) != value]  # fmt: skip
    found = compare_answers(run.teacher, inside, taught, n=rows, seed=seed)
    said: dict[str, Any] = {"rows": found.rows, "worst": found.worst, "row": inside.name(found.row), "moved": moved}
    said |= _both_accuracies(run, inside, taught, rows, seed)
    run.say("verified", f"{found.rows:,} of {len(taught):,} rows asked again; worst {said['row']}: {found.stored} there, {found.now} now")
    run.say("worst", f"{found.worst:.3g} of what {taught.encoding['stored']['kind']} storage allows")
    if "fresh" in said:
        run.say("accuracy", f"{said['cached']:.4f} from the store, {said['fresh']:.4f} asked now, on {said['scored']:,} labelled rows")
    if found.worst > 1:
        parts = "".join(f"\n  {part}" for part in moved)
        raise TransferSetError(
            f"the teacher does not say what is stored in {store}: {said['row']} has {found.signal} {found.stored} there, {found.now} now"
            + (f". What moved:{parts}" if moved else ", although it says it is the same (is it random?)"),
            code="U022",
        )
    if moved:
        run.warn([Problem("U021", "it answers the same, but is not the same: " + "; ".join(moved), "warning")])
    return said


def _both_accuracies(run: Run, inside: Rows, taught: TransferSet, n: int, seed: int) -> dict[str, Any]:
    """The teacher's metric on labelled rows that it answered itself, from the store and asked now."""
    task, teacher = run.task, run.teacher
    positions = taught.positions(inside.keys)
    if inside.labels is None or teacher is None:
        return {}
    known = np.flatnonzero(task.labelled(inside.labels) & (taught.fold[positions] == -1))
    if not len(known):
        return {}
    chosen = np.sort(np.random.default_rng(seed).choice(known, size=min(max(n, 256), len(known)), replace=False))
    some = inside.take(chosen)
    stored = taught.gather(task.signal, positions[chosen], np.zeros(len(chosen), dtype=np.int64)).numpy()
    figures = [cards.quality(answers, some.labels, task)[task.metric] for answers in (stored, answers_of(teacher, some.inputs, task))]
    return {"cached": figures[0], "fresh": figures[1], "scored": len(chosen)}


def inspect(store: str | Path, recipe: Recipe | None = None, *, rows: int = 10, console: Console | None = None) -> dict[str, Any]:
    """Show a transfer set: how sure the teacher is, the classes it confuses most, and random rows with their soft labels.

    With the recipe of its data, rows have their names.
    """
    taught = TransferSet.open(store)
    found = soft_labels.describe(taught, rows=rows)
    names = {}
    if recipe is not None:
        given = load_rows(recipe).rows
        shown = [row["position"] for row in found["shown"]]
        at = find_keys(given.keys, taught.keys[shown])
        names = {row: given.name(int(place)) for row, place in zip(shown, at, strict=True) if place >= 0}
    soft_labels.show(found, console or Console(stderr=False), names)
    return found


def preflight(run: Run, teacher: Callable[[Run], None]) -> None:
    """Recipe, rows, student and teacher, each as far as what was found before it allows; all errors are told together.

    A teacher that must be trained or paid for is left alone once there is an error.
    """
    problems = check_recipe(run.recipe, gates=cards.parse_gates)
    run.warn([problem for problem in problems if problem.level == "warning"])
    errors = [problem for problem in problems if problem.level == "error"]
    raised: list[InputError] = []
    for prepare in (prepare_rows, prepare_student, teacher, compare_sizes):
        if errors and ((run.loaded is None and prepare is not prepare_rows) or (prepare is teacher and _is_costly(run.recipe))):
            break
        try:
            prepare(run)
        except InputError as error:
            raised.append(error)
            errors += [problem for problem in problems_of(error) if problem not in errors]
        except Exception:
            if not errors:
                raise
            break  # it may well follow from the errors that were found
    if len(raised) == len(errors) == 1:
        raise raised[0]
    raise_errors(errors)


def _is_costly(recipe: Recipe) -> bool:
    said = recipe.teacher
    return any(member.train is not None or member.is_remote for member in (said, *said.members))


def look_at_teacher(run: Run) -> None:
    """Load and score the teacher, unless it would have to be trained or paid for."""
    if run.recipe.cohort is not None:
        run.say("cohort", f"{run.recipe.cohort.count} networks would teach each other ([cohort])")
    elif any(member.train is not None for member in (run.recipe.teacher, *run.recipe.teacher.members)):
        run.say("teacher", "would be trained here from the labels ([teacher.train])")
    elif _is_costly(run.recipe):
        load_teachers(run)
        run.say("teacher", "was asked nothing: a remote teacher is scored when the run begins")
    else:
        prepare_teacher(run)


def prepare_student(run: Run) -> None:
    """Build the student and its objective once, to find what would keep it from learning before the teacher is asked."""
    recipe, task, rows = run.recipe, run.task, run.rows.part("train")
    assert run.loaded is not None
    problems: list[Problem] = []
    steps: list[Callable[[], Any]] = [
        lambda: _refuse_limit(recipe, task),
        lambda: build_objective(recipe, task, rows.labels),
        lambda: build_label_objective(recipe.train, task, rows.labels),
        lambda: build_views(recipe.train, rows, run.loaded.encoding if run.loaded else None),
        lambda: raise_errors(_student_problems(run, rows)),
    ]
    if not is_estimator(recipe.student.model):
        steps.append(lambda: device_named(recipe.train.device))
    for step in steps:
        try:
            step()
        except InputError as error:
            problems += [problem for problem in problems_of(error) if problem not in problems]
    raise_errors(problems)


def _refuse_limit(recipe: Recipe, task: Task) -> None:
    if recipe.teaching.word_errors is None:
        return
    if task.kind != "recognition":
        raise RecipeError(f"teaching.word_errors counts words, and the task is {task.kind}: leave it out", code="U436")
    if recipe.cohort is not None:
        raise RecipeError("teaching.word_errors is for a teacher's words, and a [cohort] has none: leave it out", code="U436")


def _student_problems(run: Run, rows: Rows, teacher: Teacher | None = None) -> list[Problem]:
    recipe = run.recipe
    assert run.loaded is not None
    lesson = run.lesson
    some = lesson.rows.part("train").take(slice(0, 256))
    encoded = encode(some.inputs, some.kind, lesson.encoding)
    model = recipe.student.model
    student = build_student(model, recipe.student.options, lesson, encoded, some.labels, seed=recipe.seeds[0], name=model)
    if student.module is None:
        return []
    problems = check_student(
        student,
        run.task,
        encoded[:32],
        batch_size=recipe.train.batch_size,
        rows=len(rows),
        teacher_parameters=parameters_of(teacher),
        teachers=[] if teacher is None else modules(teacher),
    )
    if teacher is None and is_custom(model) and not any(problem.level == "error" for problem in problems):
        # hours of training would be lost when the file cannot be written in the end
        problems += artifact.check_exportable(student, encoded[:2])
    return problems


def compare_sizes(run: Run) -> None:
    """The student beside the teacher: its size, and whether training it would change the teacher."""
    if run.teacher is not None and run.recipe.generations is None:  # generations are of one size on purpose
        run.warn(raise_errors(_student_problems(run, run.rows.part("train"), run.teacher)))


def explain(recipe: Recipe) -> str:
    """The recipe's objective as formulas with its numbers, what each term reads, and the control's; reads no data and no weights.

    Without data a task of "auto" is taken as classes, three of them unless the recipe names its own.
    """
    several = recipe.data.separator is not None
    kind = ("multilabel" if several else "multiclass") if recipe.task == "auto" else recipe.task
    names = ("no", "yes") if kind == "binary" else ("a", "b", "c")
    task = Task(kind, () if kind == "regression" else tuple(recipe.data.classes if isinstance(recipe.data.classes, list) else names))
    options = recipe.train.model_copy(update={"class_weights": None})  # they follow from the labels
    objective = build_objective(recipe.model_copy(update={"train": options}), task, None)
    lines = [f"total = {objective.formula()}", ""]
    for term in objective.active:
        sentence, _, formula = inspecting.cleandoc(term.loss.__doc__ or "a loss of your own").partition("\n\n")
        lines += [
            f"{term.weight_text} * {term}",
            f"    {sentence.strip()}",
            *[f"    {line}" for line in formula.partition("\n\n")[0].splitlines()],
        ]
        lines += [f"    reads: {', '.join(term.reads) or 'layers that are paired when the run begins'}", ""]
    gap, momentum = options.momentum_gap, options.momentum
    if gap is not None:
        lines.append(f"momentum = {momentum - gap:g} for the gradient of the labels, {momentum + gap:g} for that of the teacher")
    return "\n".join([*lines, f"control = {build_label_objective(options, task, None).formula()}"])
