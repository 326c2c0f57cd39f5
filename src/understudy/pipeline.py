"""The stages of a run, in order, resumed where they stopped.

rows -> checks -> teacher -> transfer set -> student and control per seed -> artifact -> scorecard. Each stage reads what
the one before left in the run's folder and writes a card last; a stage whose card exists is not done again. Calling
`distill` with the same recipe therefore continues, and a finished run only prints its scorecard.
"""

from __future__ import annotations

import hashlib
import inspect as inspecting
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape

from understudy import checks, make, wiring
from understudy.answers import is_placeholder, known_columns, match_classes
from understudy.data import splitting
from understudy.data.rows import Rows
from understudy.data.views import WITHOUT_END, Views
from understudy.errors import InputError, PreflightError, Problem, RecipeError, TeacherError, TransferSetError
from understudy.exporting import artifact
from understudy.measuring import scorecard as cards
from understudy.measuring import soft_labels
from understudy.objectives import Objective
from understudy.ranks import Ranks
from understudy.recipe import Recipe, to_toml
from understudy.signals import Signals, is_answered
from understudy.store.transfer_set import TransferSet, find_keys
from understudy.students.student import Student
from understudy.tasks import Task
from understudy.teachers import Ensemble, Matched, Refittable, Teacher, check_missing, check_teacher, max_missing, modules, remotes
from understudy.teaching import compare_answers, out_of_fold, reask, teach
from understudy.training.chain import Link, check_sizes, train_chain
from understudy.training.cohort import cohort_objective, train_cohort
from understudy.training.gradient import Ask, Trained, TrainingSet, Validate, device_named, train
from understudy.training.trees import fit_estimator

Stage = Literal["check", "teach", "train", "export", "measure"]
STAGES: tuple[Stage, ...] = ("check", "teach", "train", "export", "measure")
FREE_TO_CHANGE = ("measure", "export")


@final
@dataclass
class Run:
    """A run in progress: its recipe, its folder and what the stages have made so far."""

    recipe: Recipe
    folder: Path
    console: Console
    loaded: make.Loaded | None = None
    extra: Rows | None = None
    teacher: Teacher | None = None
    teacher_line: str = ""
    teacher_score: float | None = None
    warnings: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    taught: TransferSet | None = None
    held_out: TransferSet | None = None
    seen: Views | None = None
    views: int = 1
    ensemble: Ensemble | None = None
    speaker: Teacher | None = None  # who teaches the student: the teacher, or the last of a chain
    middle: dict[str, list[Any]] = field(default_factory=dict)  # further models to measure, one per seed or one for all

    @property
    def rows(self) -> Rows:
        assert self.loaded is not None
        return self.loaded.rows

    @property
    def task(self) -> Task:
        assert self.loaded is not None
        return self.loaded.task

    def say(self, word: str, text: str) -> None:
        self.console.print(f"[bold cyan]{word:<9}[/] {escape(text)}", highlight=False, soft_wrap=True)

    def warn(self, problems: list[Problem]) -> None:
        for problem in problems:
            if str(problem) not in self.warnings:
                self.warnings.append(str(problem))
                self.console.print(f"[yellow]warning[/]   {escape(str(problem))}", highlight=False, markup=True, soft_wrap=True)


def distill(recipe: Recipe, *, until: Stage = "measure", fresh: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Do everything the recipe says, up to and including a stage; gives the scorecard (empty before `measure`).

    Raises PreflightError with every problem found before training, RequirementError when a gate of
    `measure.require` is not met. The run's folder is continued when it holds this recipe, refused when it holds
    another one; `fresh` starts students over (the transfer set is kept, since it is keyed by content). Under torchrun or
    `accelerate launch` all processes train, and the first does everything else; the others get an empty scorecard.
    """
    ranks = Ranks.here()
    if ranks is None:
        return _distill(recipe, until, fresh, console, None)
    ranks.check_budget(recipe.train.max_time)
    if recipe.cohort is not None or recipe.chain or recipe.generations is not None:
        ranks.refuse("cohorts, chains and generations")
    if not ranks.leads:
        return _follow(recipe, ranks)
    with ranks.leading():
        return _distill(recipe, until, fresh, console, ranks)


def _follow(recipe: Recipe, ranks: Ranks) -> dict[str, Any]:
    """Train beside the leader, once it has checked and taught; writes and prints nothing."""
    called = ranks.same(None)
    if called is None:
        return {}
    run = Run(recipe, Path(recipe.out), Console(quiet=True))
    run.loaded = make.load_rows(recipe, run.folder / "cache")
    rows = run.rows.part("train")
    run.extra = make.synthetic_rows(recipe, rows, run.task)
    run.seen = _seen(run, rows if run.extra is None else _joined(rows, run.extra))
    prepare_teacher(run)
    _wire(run, make.build_objective(recipe, run.task, rows.labels))
    if called["taught"] is not None:
        run.taught = TransferSet.open(called["taught"], verify=False)
    for seed in recipe.seeds:
        train_pair(run, seed)
    return {}


def _distill(recipe: Recipe, until: Stage, fresh: bool, console: Console | None, ranks: Ranks | None) -> dict[str, Any]:
    run = open_run(recipe, console or Console(stderr=False), fresh=fresh)
    finished = run.folder / "scorecard.json"
    last = STAGES.index(until)
    if until == "measure" and finished.exists() and _same_measure(run):
        _same_data(run)
        run.say("finished", f"{run.folder} was complete; --fresh would start its students over")
        return _close(run, json.loads(finished.read_text(encoding="utf-8")))
    preflight(run, prepare_teacher)
    if last >= 1 and recipe.cohort is None:
        teach_rows(run)
    students: dict[int, dict[str, Student]] = {}
    if last >= 2 and recipe.cohort is not None:
        students = learn_together(run)
    elif last >= 2:
        train_links(run)
        if ranks is not None and not make.is_estimator(recipe.student.model):
            ranks.call({"taught": None if run.taught is None else str(run.taught.folder)})
        students = {seed: train_pair(run, seed) for seed in recipe.seeds}
        if recipe.generations is None:
            run.warn(_beside_control(run, students))
    exported: dict[str, Any] = {}
    if last >= 3:
        exported = export_best(run, students)
    if last < 4:
        _write_lock(run)
        return {}
    card = measure_all(run, students, exported)
    _write_lock(run)
    return _close(run, card)


def check(recipe: Recipe, *, console: Console | None = None) -> list[str]:
    """The preflight alone: reads the rows, loads and scores the teacher, trains nothing; gives the warnings."""
    run = open_run(recipe, console or Console(stderr=False), fresh=False)
    preflight(run, look_at_teacher)
    run.say("ready", f"nothing stands in the way; {len(run.warnings)} warnings")
    return run.warnings


def verify(store: str | Path, recipe: Recipe, *, rows: int = 64, seed: int = 0, console: Console | None = None) -> dict[str, Any]:
    """Ask the recipe's teacher again about random rows of a transfer set; gives the worst difference and both accuracies.

    `worst` is in units of what the stored precision allows. Raises TransferSetError (U021 naming the parts of the teacher that
    moved, U022 with both answers) when the teacher is not the one that was asked.
    """
    taught = TransferSet.open(store)
    run = Run(recipe, Path(recipe.out), console or Console(stderr=False))
    run.loaded = make.load_rows(recipe)
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
    figures = [cards.quality(answers, some.labels, task)[task.metric] for answers in (stored, _answers(teacher, some.inputs, task))]
    return {"cached": figures[0], "fresh": figures[1], "scored": len(chosen)}


def inspect(store: str | Path, recipe: Recipe | None = None, *, rows: int = 10, console: Console | None = None) -> dict[str, Any]:
    """Show a transfer set: how sure the teacher is, the classes it confuses most, and random rows with their soft labels.

    With the recipe of its data, rows have their names.
    """
    taught = TransferSet.open(store)
    found = soft_labels.describe(taught, rows=rows)
    names = {}
    if recipe is not None:
        given = make.load_rows(recipe).rows
        shown = [row["position"] for row in found["shown"]]
        at = find_keys(given.keys, taught.keys[shown])
        names = {row: given.name(int(place)) for row, place in zip(shown, at, strict=True) if place >= 0}
    soft_labels.show(found, console or Console(stderr=False), names)
    return found


# --- the preflight --------------------------------------------------------------------------------------------------


def preflight(run: Run, teacher: Callable[[Run], None]) -> None:
    """Recipe, rows, student and teacher, each as far as what was found before it allows; all errors are told together.

    A teacher that must be trained or paid for is left alone once there is an error.
    """
    problems = checks.check_recipe(run.recipe, gates=cards.parse_gates)
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
            errors += [problem for problem in _told(error) if problem not in errors]
        except Exception:
            if not errors:
                raise
            break  # it may well follow from the errors that were found
    if len(raised) == len(errors) == 1:
        raise raised[0]
    checks.raise_errors(errors)


def _told(error: InputError) -> Sequence[Problem]:
    return error.problems if isinstance(error, PreflightError) else [Problem(error.code, str(error.args[0]))]


def _is_costly(recipe: Recipe) -> bool:
    said = recipe.teacher
    return said.train is not None or any(member.is_remote for member in (said, *said.members))


def look_at_teacher(run: Run) -> None:
    """Load and score the teacher, unless it would have to be trained or paid for."""
    if run.recipe.cohort is not None:
        run.say("cohort", f"{run.recipe.cohort.count} networks would teach each other ([cohort])")
    elif run.recipe.teacher.train is not None:
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
        lambda: make.build_objective(recipe, task, rows.labels),
        lambda: make.build_label_objective(recipe.train, task, rows.labels),
        lambda: make.build_views(recipe.train, rows, run.loaded.encoding if run.loaded else None),
        lambda: checks.raise_errors(_student_problems(run, rows)),
    ]
    if not make.is_estimator(recipe.student.model):
        steps.append(lambda: device_named(recipe.train.device))
    for step in steps:
        try:
            step()
        except InputError as error:
            problems += [problem for problem in _told(error) if problem not in problems]
    checks.raise_errors(problems)


def _student_problems(run: Run, rows: Rows, teacher: Teacher | None = None) -> list[Problem]:
    recipe = run.recipe
    assert run.loaded is not None
    some = rows.take(slice(0, 256))
    encoded = make.encode(some.inputs, rows.kind, run.loaded.encoding)
    model = recipe.student.model
    student = make.build_student(model, recipe.student.options, run.loaded, encoded, some.labels, seed=recipe.seeds[0], name=model)
    if student.module is None:
        return []
    problems = checks.check_student(
        student,
        run.task,
        encoded[:32],
        batch_size=recipe.train.batch_size,
        rows=len(rows),
        teacher_parameters=_parameters(teacher),
        teachers=[] if teacher is None else modules(teacher),
    )
    if teacher is None and make.is_custom(model) and not any(problem.level == "error" for problem in problems):
        # hours of training would be lost when the file cannot be written in the end
        problems += artifact.check_exportable(student, encoded[:2])
    return problems


def compare_sizes(run: Run) -> None:
    """The student beside the teacher: its size, and whether training it would change the teacher."""
    if run.teacher is not None and run.recipe.generations is None:  # generations are of one size on purpose
        run.warn(checks.raise_errors(_student_problems(run, run.rows.part("train"), run.teacher)))


def explain(recipe: Recipe) -> str:
    """The recipe's objective as formulas with its numbers, what each term reads, and the control's; reads no data and no weights.

    Without data a task of "auto" is taken as classes, three of them unless the recipe names its own.
    """
    kind = "multiclass" if recipe.task == "auto" else recipe.task
    names = ("no", "yes") if kind == "binary" else ("a", "b", "c")
    task = Task(kind, () if kind == "regression" else tuple(recipe.data.classes or names))
    options = recipe.train.model_copy(update={"class_weights": None})  # they follow from the labels
    objective = make.build_objective(recipe.model_copy(update={"train": options}), task, None)
    lines = [f"total = {objective.formula()}", ""]
    for term in objective.active:
        sentence, _, formula = inspecting.cleandoc(term.loss.__doc__ or "a loss of your own").partition("\n\n")
        lines += [
            f"{term.weight_text} * {term}",
            f"    {sentence.strip()}",
            *[f"    {line}" for line in formula.partition("\n\n")[0].splitlines()],
        ]
        lines += [f"    reads: {', '.join(term.reads) or 'layers that are paired when the run begins'}", ""]
    return "\n".join([*lines, f"control = {make.build_label_objective(options, task, None).formula()}"])


# --- the folder -----------------------------------------------------------------------------------------------------


def open_run(recipe: Recipe, console: Console, *, fresh: bool) -> Run:
    """Make the run's folder, or continue it when it holds the same recipe."""
    folder = Path(recipe.out)
    kept = folder / "recipe.json"
    checks.check_writable(folder)
    if folder.exists() and any(folder.iterdir()) and not kept.exists():
        raise RecipeError(f"{folder} is not empty and is no run of understudy; choose another out", code="U050")
    said = recipe.model_dump(mode="json")
    if kept.exists():
        moved = _moved(json.loads(kept.read_text(encoding="utf-8")), said, make.free_teacher_options(recipe.teacher))
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
    _write_json(kept, said)
    console.print(f"[bold]understudy[/] {_version('understudy')} · {folder}", highlight=False)
    return Run(recipe, folder, console)


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
    return any(
        entry.name.startswith("seed-") or entry.name in ("teacher", "chain", "cohort", "transfer", "artifact") for entry in folder.iterdir()
    )


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name.startswith("seed-") or entry.name in ("artifact", "teacher", "chain", "cohort"):
            shutil.rmtree(entry)
        elif entry.name in ("scorecard.json", "lock.json", "split.npz"):
            entry.unlink()


def _write_json(path: Path, said: Any) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(said, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(name, path)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# --- rows -----------------------------------------------------------------------------------------------------------


def prepare_rows(run: Run) -> None:
    """Read, label, split and check the rows; print what they are."""
    cache = run.folder / "cache"
    cache.mkdir(exist_ok=True)
    run.loaded = make.load_rows(run.recipe, cache)
    rows, task = run.rows, run.task
    kept = run.folder / "split.npz"
    if kept.exists():
        _same_rows(run, rows, kept)
    else:
        splitting.save_split(rows, kept)
    counts = {part: int(np.count_nonzero(rows.split == part)) for part in ("train", "validation", "test")}
    shape = f"{rows.inputs.shape[1]} columns" if rows.kind == "table" else " x ".join(map(str, rows.inputs.shape[1:]))
    labelled = 0 if rows.labels is None else int(task.labelled(rows.labels).sum())
    what = f"{task.kind}, {len(task.classes)} classes" if task.classes else task.kind
    run.say(
        "rows",
        f"{len(rows):,} of kind {rows.kind} ({shape}), {labelled:,} labelled · " + " / ".join(f"{n:,} {p}" for p, n in counts.items()),
    )
    run.say("task", what + ("" if not 0 < len(task.classes) <= 12 else ": " + ", ".join(task.classes)))
    problems = [*run.loaded.problems, *checks.check_rows(rows, task, overlap=run.recipe.data.overlap)]
    run.warn(checks.raise_errors(problems))
    if run.recipe.data.overlap != "refuse":
        run.overrides.append(f"data.overlap = {run.recipe.data.overlap!r}")


def _same_data(run: Run) -> None:
    """A finished run whose data says something else now is not finished; data that is no longer there is not missed."""
    kept = run.folder / "split.npz"
    try:
        rows = make.load_rows(run.recipe, run.folder / "cache").rows
    except InputError:
        return
    if kept.exists():
        _same_rows(run, rows, kept)
    lock = run.folder / "lock.json"
    then = json.loads(lock.read_text(encoding="utf-8")).get("labels") if lock.exists() else None
    if then is not None and then != _label_digest(rows):
        raise RecipeError("labels changed since this run ended. Choose another --out, or --fresh to start its students over", code="U051")


def _label_digest(rows: Rows) -> str | None:
    """A hash of rows and their labels, whatever their order."""
    if rows.labels is None:
        return None
    parts = [np.ascontiguousarray(part).reshape(len(rows), -1).view(np.uint8) for part in (rows.keys, rows.labels)]
    joined = np.ascontiguousarray(np.hstack(parts))
    return hashlib.blake2b(np.sort(joined.view(f"V{joined.shape[1]}").ravel()).tobytes(), digest_size=16).hexdigest()


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


# --- teacher --------------------------------------------------------------------------------------------------------


def prepare_teacher(run: Run) -> None:
    """Load or train the teacher, match its classes by name, score it on the validation rows, test its manners."""
    said, task = run.recipe.teacher, run.task
    if said.cohort:
        return  # nobody comes before a cohort: learn_together makes one
    validation = run.rows.part("validation")
    if said.train is not None:
        teacher = train_teacher(run)
    else:
        loaded = load_teachers(run)
        teacher = loaded[0]
        if said.members:
            members = [_member(run, each, validation, number) for number, each in enumerate(loaded, 1)]
            teacher = run.ensemble = make.build_ensemble(members, task, said.members, said.combine)
    try:
        run.teacher = _matched(run, teacher, validation)
    except TeacherError as error:
        # one that answers at random shows a wrong order of classes too: say first what is behind it
        manners = check_teacher(teacher, _some(validation, 64))
        raise (PreflightError([*manners, *_told(error)]) if manners else error) from None
    problems = check_teacher(run.teacher, _some(validation, 64))
    answers, validation = _scored(run, validation)
    figures = cards.quality(answers, validation.labels, task) if validation.labels is not None else {}
    score = figures.get(task.metric)
    found = checks.check_answers(answers, task, validation, score=score, expect=said.expect, accept_score=said.accept_score)
    problems = [problem for problem in problems if problem.code not in {other.code for other in found}] + found
    run.warn(checks.raise_errors(problems))
    trusted = said.trust or any(member.trust for member in said.members)
    given = {"trust": trusted, "accept_score": said.accept_score, "accept_mapping": said.accept_mapping}
    run.overrides += [f"teacher.{name} = true" for name, there in given.items() if there]
    shown = " · ".join(f"{name} {value:.4f}" for name, value in figures.items()) or "no labels to score it on"
    run.teacher_score = score
    run.teacher_line = f"{run.teacher.name}: validation {shown}"
    run.say("teacher", run.teacher_line)


def load_teachers(run: Run) -> list[Teacher]:
    """The teachers of the recipe; those asked over a network say what that will take before they are asked anything."""
    said, rows = run.recipe.teacher, run.rows
    loaded = [make.load_teacher(member, run.task, rows, run.folder / "cache") for member in said.members or [said]]
    further = int(np.count_nonzero(rows.split == "train")) * run.recipe.rows.synthetic
    for teacher in loaded:
        for remote in remotes(teacher):
            run.say("quote", remote.quote(rows.inputs, further))
    return loaded


def _scored(run: Run, rows: Rows) -> tuple[np.ndarray[Any, Any], Rows]:
    """The teacher's answers to these rows, and the rows; those it has no answer to are left out, and said."""
    assert run.teacher is not None
    answers = _answers(run.teacher, rows.inputs, run.task)
    if not remotes(run.teacher):
        return answers, rows
    check_missing(torch.from_numpy(answers), max_missing(run.teacher), run.teacher.name, "validation rows")
    there = _there(answers)
    return answers[there], rows.take(there)


def _there(answers: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Positions of the rows that the teacher has an answer to."""
    return np.flatnonzero(is_answered(torch.from_numpy(answers)).numpy())


def _member(run: Run, teacher: Teacher, validation: Rows, number: int) -> Teacher:
    """One of several teachers, which may know some of the classes only, by name."""
    task, names = run.task, teacher.classes
    if names is None or not task.classes:
        return _matched(run, teacher, validation)
    try:
        order = known_columns(names, task)
    except TeacherError as error:
        if all(map(is_placeholder, names)):
            return _matched(run, teacher, validation)
        raise TeacherError(f"teacher.members {number} ({teacher.name}): {error.args[0]}", code=error.code) from None
    # plain numbers are names only where each of them is one of the data's
    if min(order) >= 0 or (all(map(is_placeholder, names)) and sum(column >= 0 for column in order) < len(names)):
        return _matched(run, teacher, validation)
    known = [name for name, column in zip(task.classes, order, strict=True) if column >= 0]
    run.say("classes", f"member {number} knows {len(known)} of {len(task.classes)} classes: {', '.join(known[:12])}")
    return Matched(teacher, order, task=task)


def _matched(run: Run, teacher: Teacher, validation: Rows) -> Teacher:
    task = run.task
    if task.kind == "regression":
        return teacher
    known = np.zeros(0, dtype=np.int64) if validation.labels is None else np.flatnonzero(task.labelled(validation.labels))[:2000]
    some = validation.take(known if len(known) else slice(0, 8))
    answers = teacher.signals(some.inputs)[task.signal]
    if remotes(teacher):
        there = _there(answers.numpy())
        answers, some = answers[torch.from_numpy(there)], some.take(there)
    match = match_classes(teacher.classes, task, answers, some.labels if len(known) else None, accept=run.recipe.teacher.accept_mapping)
    run.say("classes", match.sentence)
    if match.order == tuple(range(answers.shape[1])) and answers.shape[1] == task.outputs:
        return teacher
    return Matched(teacher, match.order, task=task)


def train_teacher(run: Run) -> Teacher:
    """A teacher from the labels, with the same loop as the student."""
    said = run.recipe.teacher.train
    assert said is not None and run.loaded is not None
    rows = run.rows.part("train")
    if rows.labels is None:
        raise RecipeError("[teacher.train] needs labels, and no row has one; give teacher.source instead", code="U064")
    folder = run.folder / "teacher"
    if said.model in ("forest", "boosted"):
        return make.train_estimator_teacher(said, run.task, rows, folder)
    seen = make.build_views(said, rows, run.loaded.encoding)
    everything = make.training_set(run.loaded, rows, None, {}, views=1 if seen is None else WITHOUT_END, augment=seen, only_labelled=True)
    teacher = make.build_student(
        said.model, said.options, run.loaded, everything.inputs, rows.labels, seed=said.seed, name=f"teacher ({said.model})"
    )
    objective = make.build_label_objective(said, run.task, rows.labels)
    _fit(run, teacher, objective, everything, said, said.seed, folder, "teacher", alone=True)
    return teacher


def _some(rows: Rows, n: int) -> Any:
    return rows.take(slice(0, n)).inputs


def _answers(model: Any, inputs: Any, task: Task) -> np.ndarray[Any, Any]:
    signals = model.signals(inputs)
    return np.asarray(signals[task.signal].float().cpu().numpy())


# --- teaching -------------------------------------------------------------------------------------------------------


def teach_rows(run: Run) -> None:
    """Ask the teacher once about every row; keep the answers as two transfer sets, training and held-out."""
    said, task = run.recipe.teaching, run.task
    assert run.teacher is not None
    train_rows, rest = run.rows.part("train"), run.rows.take(np.flatnonzero(run.rows.split != "train"))
    run.extra = make.synthetic_rows(run.recipe, train_rows, task)
    asked = train_rows if run.extra is None else _joined(train_rows, run.extra)
    run.seen = _seen(run, asked)
    _wire(run, make.build_objective(run.recipe, task, train_rows.labels))
    assert run.speaker is not None
    there = make.stored_sets(run.teacher)
    if there is not None:
        _take_stored(run, there, asked, rest)
        return
    folds = _folds(run, train_rows)
    options: dict[str, Any] = {"task": task, "batch_size": said.batch_size, "dtype": said.dtype, "shard_rows": said.shard_rows}
    folder = run.folder / "transfer"
    temperature = 1.0
    if said.encoding != "dense":
        temperature = make.temperature_of(make.build_objective(run.recipe, task, train_rows.labels))
    encoding = make.build_encoding(run.recipe, temperature)
    width = {"float32": 4, "float16": 2, "bfloat16": 2}[said.dtype] * task.outputs
    if encoding != "auto":
        width = encoding.bytes_per_row(task.outputs)
    live = said.views == "live"
    needed = (len(asked) * (0 if live else run.views) + len(rest)) * width + 17 * (len(asked) + len(rest))
    run.warn(checks.raise_errors(checks.check_disk(run.folder, needed)))
    if not live:
        spec = None if run.seen is None else run.seen.spec
        stored: dict[str, Any] = {"encoding": encoding, "most_lost": said.max_loss, "temperature": temperature}
        views: dict[str, Any] = {"views": run.views, "augment": run.seen, "view_spec": spec}
        run.taught = teach(run.speaker, asked, folder / "training", folds=folds, **views, **stored, **options)
    run.held_out = teach(run.teacher, rest, folder / "held_out", **options)
    _same_accuracy(run)
    for rows, taught in ((asked, run.taught), (rest, run.held_out)):
        if taught is not None:
            reask(run.speaker, rows, taught, n=16, seed=0)
    if folds is None and not live:
        run.warn(_in_sample(run, train_rows))
    lacking = _unanswered(run) if remotes(run.teacher) else 0
    if lacking:
        told = f"the teacher has no readable answer to {lacking:,} of {len(asked) + len(rest):,} rows"
        run.warn([Problem("U339", f"{told}: in training they take no part in the soft term, held-out ones are not measured", "warning")])
    made = "" if run.extra is None else f", {len(run.extra):,} of them synthetic"
    fold = "" if folds is None else " · training rows out of fold"
    view = f" x {run.views} views" if run.views > 1 else ""
    if live:
        run.say("taught", f"{len(rest):,} held-out rows · {_bytes(folder)} · training rows are asked in the loop (teaching.views = 'live')")
        return
    run.say("taught", f"{len(asked) + len(rest):,} rows{made}{view} · {_bytes(folder)}{fold} · 16 of each asked again: the same")
    assert run.taught is not None
    if run.taught.encoding["measured"]:
        run.say("encoding", _loss_of(run.taught))


def _wire(run: Run, objective: Objective) -> None:
    """Settle the layers that the terms read, with a student made for that; the teacher is asked for them from here on."""
    assert run.teacher is not None and run.loaded is not None
    first = run.speaker is None
    if not objective.reads_layers:
        run.speaker = run.speaker or run.teacher
        return
    _refuse_together(run)
    rows = run.rows.part("train")
    model, some = run.recipe.student.model, rows.take(slice(0, 256))
    encoded = make.encode(some.inputs, rows.kind, run.loaded.encoding)
    student = make.build_student(model, run.recipe.student.options, run.loaded, encoded, some.labels, seed=0, name=model)
    wired = wiring.wire(objective, student, run.teacher, _some(rows, wiring.ROWS))
    run.speaker = wired.teacher
    if first:
        run.warn(checks.raise_errors(check_teacher(run.speaker, _some(rows, 16))))
        for line in wired.pairs:
            run.say("layers", line)


def _refuse_together(run: Run) -> None:
    """Terms that read layers hear one teacher: what an assistant or a generation says is its answers."""
    several = "[[chain]]" if run.recipe.chain else "[generations]" if run.recipe.generations is not None else None
    if several is not None:
        raise RecipeError(f"terms that read layers cannot be combined with {several}; take one of the two out", code="U347")


def _unanswered(run: Run) -> int:
    """How many rows the teacher has no answer to."""
    sets = [taught for taught in (run.taught, run.held_out) if taught is not None]
    return sum(int((~is_answered(taught.gather(run.task.signal, np.arange(len(taught))))).sum()) for taught in sets)


def _take_stored(run: Run, there: dict[str, TransferSet], asked: Rows, rest: Rows) -> None:
    """Train from the transfer sets of another run, wherever they were copied from."""
    spec = {} if run.seen is None else run.seen.spec
    taught = there.get("training")
    if taught is None or run.recipe.teaching.views == "live":
        raise TeacherError("stored answers cannot be asked in the loop; set teaching.views to what was taught", code="U327")
    if (taught.views, taught.view_spec) != (run.views, spec):
        raise TransferSetError(
            f"{taught.folder} holds {taught.views} views of {taught.view_spec}, the recipe asks for {run.views} of {spec}; set "
            "teaching.views and train.augment to what was taught",
            code="U021",
        )
    for rows, one in ((asked, taught), (rest, there["held_out"])):
        one.positions(rows.keys)
    run.taught, run.held_out = taught, there["held_out"]
    _same_accuracy(run)
    run.say("taught", f"before, by {taught.teacher}: {len(asked) + len(rest):,} rows found in {taught.folder.parent}; no teacher is needed")


def _loss_of(taught: TransferSet) -> str:
    spec, measured = taught.encoding["stored"], taught.encoding["measured"]
    what = " ".join(str(spec[name]) for name in ("kind", "dtype", "top", "draws") if name in spec)
    size = f"{what}: {measured['bytes_per_row']:,} bytes an answer ({4 * taught.task.outputs:,} in full)"
    if spec["kind"] == "sampled":
        return f"{size}; unbiased, noise of {measured['error']:.3g} of an answer ({measured['rows']} rows)"
    return f"{size}; loses {measured['kl']:.3g} nats of KL ({measured['rows']} rows)"


def _seen(run: Run, asked: Rows) -> Views | None:
    """What the views of the training rows are; None where each row is seen as it is."""
    said = run.recipe.teaching.views
    assert run.loaded is not None
    if said == 1:
        return None
    seen = make.build_views(run.recipe.train, asked, run.loaded.encoding, counted=said in ("all", "live"))
    run.views = 1 if seen is None else said if isinstance(said, int) else seen.count
    return seen


def _folds(run: Run, rows: Rows) -> Any:
    said, teacher = run.recipe.teaching.out_of_fold, run.teacher
    assert teacher is not None
    live = run.recipe.teaching.views == "live"
    if live and isinstance(teacher, Refittable) and teacher.self_scoring and said != 0:
        told = f"{teacher.name} remembers its training rows, so asking it in the loop (teaching.views = 'live') would say their labels"
        raise TeacherError(f"{told}; set teaching.views = 1, or teaching.out_of_fold = 0 to ask it all the same", code="U018")
    if live or said == 0 or rows.labels is None or not run.task.labelled(rows.labels).any():
        return None
    if said == "auto" and not (isinstance(teacher, Refittable) and teacher.self_scoring):
        return None
    return out_of_fold(teacher, rows, task=run.task, folds=5 if said == "auto" else int(said), seed=0)


def _same_accuracy(run: Run) -> None:
    """The stored validation answers must score what the teacher scored when it was asked a moment ago."""
    rows, task, taught = run.rows.part("validation"), run.task, run.held_out
    if rows.labels is None or run.teacher_score is None or taught is None:
        return
    cached = cards.quality(taught.gather(task.signal, taught.positions(rows.keys)).numpy(), rows.labels, task)[task.metric]
    # a rounding may turn a tie; answers that belong to other rows turn far more
    if abs(cached - run.teacher_score) > 0.005 + 1 / len(rows):
        raise TransferSetError(
            f"the stored answers in {taught.folder} score {task.metric} {cached:.4f} on the validation rows, the teacher itself "
            f"{run.teacher_score:.4f}: they belong to other rows or another teacher. Teach into another folder",
            code="U326",
        )


def _in_sample(run: Run, train_rows: Rows) -> list[Problem]:
    """Whether the teacher's answers to its training rows are little more than their labels."""
    task, validation = run.task, run.rows.part("validation")
    scores = []
    for rows, taught in ((train_rows, run.taught), (validation, run.held_out)):
        assert taught is not None
        said = taught.gather(task.signal, taught.positions(rows.keys), np.zeros(len(rows), dtype=np.int64)).numpy()
        there = _there(said)
        scores.append(cards.quality(said[there], rows.labels[there], task).get(task.metric) if rows.labels is not None else None)
    inside, outside = scores
    return [] if inside is None or outside is None else checks.check_in_sample(inside, outside, task.metric)


def _joined(first: Rows, second: Rows) -> Rows:
    import pandas as pd

    if first.kind == "table":
        inputs: Any = pd.concat([first.inputs, second.inputs], ignore_index=True)
    else:
        inputs = np.concatenate([first.inputs, second.inputs])
    names = np.concatenate([np.asarray(first.names), np.asarray(second.names)])
    return Rows(first.kind, inputs, np.concatenate([first.keys, second.keys]), names=names)


def _bytes(folder: Path) -> str:
    total = float(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))
    for unit in ("B", "kB", "MB"):
        if total < 1000:
            return f"{total:.3g} {unit}"
        total /= 1000
    return f"{total:.3g} GB"


# --- training -------------------------------------------------------------------------------------------------------


def train_pair(run: Run, seed: int) -> dict[str, Student]:
    """The student and its control: same initialisation, row order, views and steps; only the teacher differs."""
    recipe, task = run.recipe, run.task
    objective = make.build_objective(recipe, task, run.rows.part("train").labels)
    _wire(run, objective)
    full = _lesson(run, objective)
    student = _one(run, "student", full, objective, recipe.train, seed, run.folder / f"seed-{seed}" / "student", full.inputs)
    return {"student": student, **_control(run, seed, full)}


def _lesson(run: Run, objective: Objective) -> TrainingSet:
    """The training rows with what the speaker says of them."""
    assert run.loaded is not None
    rows = run.rows.part("train")
    said = rows if run.extra is None else _joined(rows, run.extra)
    teacher, ask = _evidence(run, said, objective)
    return make.training_set(run.loaded, rows, run.extra, teacher, views=run.views, augment=run.seen, ask=ask)


def _control(run: Run, seed: int, full: TrainingSet) -> dict[str, Student]:
    """The same student on the labels alone, with as many steps; nothing where there is no label."""
    recipe, task, rows = run.recipe, run.task, run.rows.part("train")
    assert run.loaded is not None
    if not recipe.control:
        return {}
    if rows.labels is None or not task.labelled(rows.labels).any():
        run.warn([Problem("U066", "no training row has a label, so no control can be trained: gain unknown", "warning")])
        return {}
    alone = make.training_set(run.loaded, rows, None, {}, views=run.views, augment=run.seen, only_labelled=True)
    options = make.with_steps_of(recipe.train, len(alone.inputs), len(full.inputs))
    labels_only = make.build_label_objective(recipe.train, task, rows.labels)
    folder = run.folder / f"seed-{seed}" / "control"
    return {"control": _one(run, "control", alone, labels_only, options, seed, folder, full.inputs[: len(rows)])}


def _untrained(run: Run, model: str, options: dict[str, Any], encoded: torch.Tensor, seed: int) -> Student:
    assert run.loaded is not None
    real = encoded[: int(np.count_nonzero(run.rows.split == "train"))]
    return make.build_student(model, options, run.loaded, real, run.rows.part("train").labels, seed=seed, name=model)


def train_links(run: Run) -> None:
    """Assistants and earlier generations, each on a transfer set of what the one before it says."""
    recipe, task = run.recipe, run.task
    objective = make.build_objective(recipe, task, run.rows.part("train").labels)
    links = _links(run)
    if not links:
        return
    assert run.teacher is not None
    student = _untrained(run, recipe.student.model, recipe.student.options, _encoded(run), 0)
    assistants = [(link.title, link.student.parameters()) for link in links[: len(recipe.chain)]]
    if assistants:
        run.warn(check_sizes([("the teacher", _parameters(run.teacher)), *assistants, ("the student", student.parameters())]))

    def lesson(speaker: Teacher, folder: Path) -> TrainingSet:
        _hear(run, speaker, folder)
        return _lesson(run, objective)

    def done(link: Link, trained: Trained) -> None:
        run.middle[link.title] = [link.student]
        run.say("link", f"{link.title}: {_count(link.student)}, {trained.epochs} epochs{_validated(run, link.student)}")

    validate = _validation(run)
    metric = task.metric if run.rows.labels is not None else "agreement"
    last = train_chain(
        run.teacher, links, objective, lesson, task=task, to=run.folder / "chain", validate=validate, metric=metric, done=done
    )
    _hear(run, last, run.folder / "chain" / "last")


def _links(run: Run) -> list[Link]:
    """The networks between teacher and student as the recipe has them, untrained."""
    recipe, encoded, links = run.recipe, _encoded(run), []
    for number, said in enumerate(recipe.chain, 1):
        student = _untrained(run, said.model, said.options, encoded, said.seed)
        links.append(Link(f"assistant {number}", f"assistant-{number}", student, said.train or recipe.train, said.seed))
    for number in range(1, recipe.generations.count if recipe.generations is not None else 1):
        # far from the seeds of students: generations differ in how they begin as well
        seed = 1000 + number
        student = _untrained(run, recipe.student.model, recipe.student.options, encoded, seed)
        links.append(Link(f"generation {number}", f"generation-{number}", student, recipe.train, seed))
    return links


def _encoded(run: Run) -> torch.Tensor:
    assert run.loaded is not None
    rows = run.rows.part("train")
    return make.encode(rows.inputs, rows.kind, run.loaded.encoding)


def _hear(run: Run, speaker: Teacher, folder: Path) -> None:
    """From here on this one speaks of the training rows; what it says is kept in the folder unless it answers in the loop."""
    run.speaker = speaker
    if speaker is run.teacher or run.recipe.teaching.views == "live":
        return
    said, rows = run.recipe.teaching, run.rows.part("train")
    asked = rows if run.extra is None else _joined(rows, run.extra)
    spec = None if run.seen is None else run.seen.spec
    run.taught = teach(
        speaker,
        asked,
        folder,
        task=run.task,
        batch_size=said.batch_size,
        dtype=said.dtype,
        shard_rows=said.shard_rows,
        views=run.views,
        augment=run.seen,
        view_spec=spec,
    )


def learn_together(run: Run) -> dict[int, dict[str, Student]]:
    """The cohort of every seed, its first member being the student, and the controls; then what the first cohort says together."""
    recipe, task, rows = run.recipe, run.task, run.rows.part("train")
    said = recipe.cohort
    assert said is not None and run.loaded is not None
    if said.method == "collaborative" and not task.single_label:
        raise RecipeError(
            f"cohort.method = 'collaborative' is for classes that exclude each other, the task is {task.kind}: use 'mutual'", code="U352"
        )
    run.seen = make.build_views(recipe.train, rows, run.loaded.encoding)
    run.views = 1 if run.seen is None else WITHOUT_END
    full = make.training_set(run.loaded, rows, None, {}, views=run.views, augment=run.seen)
    models = [(recipe.student.model, recipe.student.options)]
    models += [(each.model, each.options) for each in said.members] or models * (said.count - 1)
    objective = cohort_objective(task, said.method, temperature=said.temperature, weight=said.weight)
    made, cohorts = {}, []
    for seed in recipe.seeds:
        students = [_untrained(run, model, options, full.inputs, seed + 1000 * number) for number, (model, options) in enumerate(models)]
        run.warn(checks.raise_errors([each for student in students for each in _fit_to_learn(run, student, full)]))
        done = train_cohort(
            [student.module for student in students if student.module is not None],
            objective,
            full,
            task=task,
            options=recipe.train,
            seed=seed,
            method=said.method,
            target=said.target,
            own_views=said.own_views,
            to=run.folder / f"seed-{seed}" / "cohort",
            validate=_watching(run, students),
            metric=task.metric,
            name=f"cohort {seed}, member",
        )
        for number, student in enumerate(students, 1):
            who = "the student" if number == 1 else f"member {number}"
            run.say("cohort", f"seed {seed}: {who}, {_count(student)}, {done[0].epochs} epochs{_validated(run, student)}")
        made[seed] = {"student": students[0], **_control(run, seed, full)}
        cohorts.append(students)
    for number in range(2, len(models) + 1):
        run.middle[f"member {number}"] = [students[number - 1] for students in cohorts]
    run.teacher = Ensemble(cohorts[0], task=task)
    run.teacher.name = f"the mean of the cohort of seed {recipe.seeds[0]}"
    run.teacher_line = f"none came before: measured in its place is {run.teacher.name}"
    run.say("teacher", run.teacher_line)
    rest = run.rows.take(np.flatnonzero(run.rows.split != "train"))
    run.held_out = teach(run.teacher, rest, run.folder / "cohort" / "held_out", task=task)
    return made


def _fit_to_learn(run: Run, student: Student, data: TrainingSet) -> list[Problem]:
    return checks.check_student(student, run.task, data.inputs[:32], batch_size=run.recipe.train.batch_size, rows=len(data))


def _watching(run: Run, students: list[Student]) -> list[Validate]:
    validate = _validation(run)
    return [lambda module, student=student: validate(student) for student in students]  # type: ignore[misc]


def _evidence(run: Run, rows: Rows, objective: Objective) -> tuple[Signals, Ask | None]:
    """The speaker's signals of these rows in memory, or the way to ask for those of a batch.

    Trees take the plain row's answers; so do several views, whose answers are read batch by batch.
    """
    task, trees = run.task, make.is_estimator(run.recipe.student.model)
    reads = list(objective.hears)
    weighed = run.ensemble if run.ensemble is not None and run.ensemble.combine == "confidence" else None
    if run.speaker is not None and run.speaker is not run.teacher:
        weighed = None  # an assistant has learned what its teachers say together
    lacking = [] if run.taught is None else [name for name in reads if name not in run.taught.signals]
    if lacking:
        assert run.taught is not None
        raise TransferSetError(
            f"a term reads {lacking[0]}, and the transfer set {run.taught.folder} holds {', '.join(run.taught.signals)}. Delete it "
            "and run the same command: the teacher is asked again",
            code="U341",
        )
    everything = torch.arange(len(rows))
    if run.taught is None:
        speaker = run.speaker or run.teacher
        assert speaker is not None
        if trees:
            return speaker.signals(rows.inputs), None
        ask = make.live_answers(speaker, rows, run.seen)
        return {}, ask if weighed is None else make.weighed_answers(ask, weighed, _labels(run, len(rows)), make.temperature_of(objective))
    sparse = run.taught.sparse(task.signal)
    temperature = make.temperature_of(objective) if sparse or weighed is not None else None
    if weighed is not None:
        reads = [*reads, *(f"teachers/{name}/{task.signal}" for name in weighed.names)]
    ask = make.stored_answers(run.taught, rows.keys, reads or [task.signal], temperature=temperature if sparse else None)
    if weighed is not None and temperature is not None:
        ask = make.weighed_answers(ask, weighed, _labels(run, len(rows)), temperature)
    if not trees and (run.views > 1 or sparse):
        return {}, ask
    if trees and weighed is None:
        return {task.signal: run.taught.gather(task.signal, run.taught.positions(rows.keys), np.zeros(len(rows), dtype=np.int64))}, None
    said = ask(everything, torch.zeros_like(everything), everything)
    return {name: value for name, value in said.items() if not name.startswith("teachers/")}, None


def _labels(run: Run, count: int) -> torch.Tensor:
    """The class of each training row and of those made from them, -1 where there is none."""
    labels = torch.full((count,), -1)
    given = run.rows.part("train").labels
    if given is not None:
        labels[: len(given)] = torch.from_numpy(np.asarray(given))
    return labels


def _one(run: Run, name: str, data: TrainingSet, objective: Any, options: Any, seed: int, folder: Path, fitted_on: torch.Tensor) -> Student:
    recipe = run.recipe
    assert run.loaded is not None
    student = _untrained(run, recipe.student.model, recipe.student.options, fitted_on, seed)
    if not make.is_estimator(recipe.student.model):
        problems = checks.check_student(
            student, run.task, fitted_on[:32], batch_size=options.batch_size, rows=len(data.inputs), teacher_parameters=_larger(run)
        )
        run.warn(checks.raise_errors(problems))
        if objective.reads_layers:
            assert run.speaker is not None
            inputs = _some(run.rows.part("train"), wiring.ROWS)
            keys = None if data.keys is None else torch.from_numpy(np.ascontiguousarray(data.keys))
            wiring.probe(objective, student, inputs, run.speaker.signals(inputs), keys=keys, labels=data.labels, seed=seed)
            counts = ", ".join(f"{term} {count:,}" for term, count in objective.connectors().items())
            run.say("connectors", f"{counts or 'none'} parameters, trained with the student and thrown away")
        _fit(run, student, objective, data, options, seed, folder, f"{name} {seed}")
        return student
    if (folder / "card.json").exists():
        return Student.load(folder, run.task)
    features = student.features(data.inputs)
    signal = data.teacher.get(run.task.signal)
    student.estimator = fit_estimator(
        student.estimator,
        features,
        task=run.task,
        labels=None if data.labels is None else data.labels.numpy(),
        teacher=None if signal is None else signal.numpy(),
        alpha=recipe.objective.alpha,
        temperature=recipe.objective.temperature if recipe.objective.target == "soft" and "temperature" in _set(recipe) else 1.0,
        target=recipe.objective.target,
        answered=None if signal is None or data.answered is None else data.answered.numpy(),
    )
    student.save(folder)
    _write_json(folder / "card.json", {"name": name, "seed": seed, "rows": len(data.inputs), "student": recipe.student.model})
    run.say(name, f"seed {seed}: {recipe.student.model}, {_count(student)}" + _validated(run, student))
    return student


def _beside_control(run: Run, students: dict[int, dict[str, Student]]) -> list[Problem]:
    metric, validate = run.task.metric, _validation(run)
    scores = [validate(pair["control"]).get(metric) for pair in students.values() if "control" in pair]
    known = [score for score in scores if score is not None]
    return checks.check_gain(run.teacher_score, float(np.mean(known)) if known else None, metric)


def _larger(run: Run) -> int | None:
    """The size that the student should stay below; None where it is meant to be the same."""
    return None if run.recipe.generations is not None else _parameters(run.teacher)


def _set(recipe: Recipe) -> set[str]:
    return recipe.objective.model_fields_set


def _parameters(teacher: Any) -> int | None:
    found = getattr(teacher, "parameters", None)
    return found() if callable(found) else None


def _count(student: Student) -> str:
    count = student.parameters()
    what = "parameters" if student.module is not None else "nodes"
    return student.name if count is None else f"{count:,} {what}"


def _validated(run: Run, student: Student) -> str:
    figures = _validation(run)(student)
    return "".join(f" · validation {name} {value:.4f}" for name, value in figures.items())


def _validation(run: Run) -> Callable[[Student], dict[str, float]]:
    rows, task = run.rows.part("validation"), run.task
    taught = None
    if run.held_out is not None:
        taught = run.held_out.gather(task.signal, run.held_out.positions(rows.keys)).float().numpy()

    def validate(student: Student) -> dict[str, float]:
        answers = _answers(student, rows.inputs, task)
        figures: dict[str, float] = {}
        if rows.labels is not None and task.labelled(rows.labels).any():
            figures[task.metric] = cards.quality(answers, rows.labels, task)[task.metric]
        if taught is not None:
            there = _there(taught)
            figures["agreement"] = cards.fidelity(answers[there], taught[there], task)["agreement"]
        return figures

    return validate


def _fit(
    run: Run, student: Student, objective: Any, data: TrainingSet, options: Any, seed: int, folder: Path, name: str, *, alone: bool = False
) -> None:
    validate = _validation(run)
    assert student.module is not None
    done = train(
        student.module,
        objective,
        data,
        task=run.task,
        options=options,
        seed=seed,
        to=folder,
        validate=lambda module: validate(student),
        metric=run.task.metric if data.labels is not None else "agreement",
        name=name,
        alone=alone,
    )
    word, *rest = name.split()
    text = f"{_count(student)}, {done.epochs} epochs, {done.seconds:.0f} s"
    run.say(word, (f"seed {rest[0]}: " if rest else "trained here: ") + text + _validated(run, student))


# --- export and measure ---------------------------------------------------------------------------------------------


def export_best(run: Run, students: dict[int, dict[str, Student]]) -> dict[str, Any]:
    """Export the seed that validation likes best, and have a fresh process answer the test rows from the file."""
    validate = _validation(run)
    scores = {seed: next(iter(validate(pair["student"]).values())) for seed, pair in students.items()}
    seed = max(scores, key=lambda s: scores[s])
    test = run.rows.part("test")
    made = artifact.export(
        students[seed]["student"],
        run.folder / "artifact",
        sample_rows=run.rows.part("train").take(slice(0, 8)),
        test_rows=test,
        teacher={"name": run.teacher.name, "fingerprint": run.teacher.fingerprint()} if run.teacher is not None else None,
        data=run.recipe.data.model_dump(mode="json"),
        tolerance=run.recipe.export.tolerance,
        overwrite=True,
    )
    figures = made.parity
    assert figures is not None
    if (run.folder / "scorecard.json").exists():
        artifact.add_scorecard(made.folder, json.loads((run.folder / "scorecard.json").read_text(encoding="utf-8")))
    run.say("exported", f"{made.folder} · {_bytes(made.folder)} · {figures['sentence']}")
    return {"seed": seed, "answers": made.answers, "parity": {k: v for k, v in figures.items() if k != "answers"}, "folder": made.folder}


def measure_all(run: Run, students: dict[int, dict[str, Student]], exported: dict[str, Any]) -> dict[str, Any]:
    """Open the test rows: teacher, control, student and exported file, with intervals and the verdict."""
    task, recipe = run.task, run.recipe
    test = run.rows.part("test")
    assert run.held_out is not None and run.teacher is not None
    teacher_answers = run.held_out.gather(task.signal, run.held_out.positions(test.keys)).float().numpy()
    # all models are measured on the same rows: those that the teacher has an answer to
    there = _there(teacher_answers)
    test, teacher_answers = test.take(there), teacher_answers[there]
    models: dict[str, list[np.ndarray[Any, Any]]] = {"teacher": [teacher_answers]}
    for name in ("control", "student"):
        answers = [_answers(pair[name], test.inputs, task) for pair in students.values() if name in pair]
        if answers:
            models[name] = answers
    models["exported"] = [exported["answers"][there]]
    best = students[exported["seed"]]
    costs = _costs(run, best, exported, test)
    card = cards.measure(
        models,
        test.labels,
        task,
        teacher_answers=teacher_answers,
        costs=costs,
        names=[test.name(i) for i in range(len(test))],
        resamples=recipe.measure.resamples,
        margin=recipe.measure.margin,
        notes=_middle(run, students, test),
        warnings=run.warnings,
        overrides=run.overrides,
        about={
            "seeds": recipe.seeds,
            "exported_seed": exported["seed"],
            "parity": exported["parity"],
            "teacher": run.teacher_line,
            "student": {"model": recipe.student.model, **recipe.student.options},
            "train_rows": int(np.count_nonzero(run.rows.split == "train")),
        },
    )
    _write_json(run.folder / "scorecard.json", card)
    artifact.add_scorecard(exported["folder"], card)
    return card


def _middle(run: Run, students: dict[int, dict[str, Student]], test: Rows) -> list[str]:
    """A line for each model between teacher and student, or beside the student: its size, and its score on the test rows."""
    said, task, models = run.recipe.generations, run.task, dict(run.middle)
    if said is not None and said.together and models:
        before = [each for all_ in run.middle.values() for each in all_]
        models["all generations together"] = [Ensemble([*before, pair["student"]], task=task) for pair in students.values()]
    lines = []
    for title, all_ in models.items():
        size = f"{_parameters(all_[0]):,} parameters"
        if test.labels is None or not task.labelled(test.labels).any():
            lines.append(f"{title}: {size}, no test row has a label")
            continue
        scores = np.array([cards.quality(_answers(each, test.inputs, task), test.labels, task)[task.metric] for each in all_])
        spread = f" ± {scores.std(ddof=1):.4f} over {len(scores)} seeds" if len(scores) > 1 else ""
        lines.append(f"{title}: {size}, test {task.metric} {scores.mean():.4f}{spread}")
    return lines


def _costs(run: Run, best: dict[str, Student], exported: dict[str, Any], test: Rows) -> dict[str, Any]:
    assert run.teacher is not None
    one, many = test.take(slice(0, 1)).inputs, test.take(np.arange(256) % len(test)).inputs
    seconds = 0.4 if run.recipe.measure.latency else 0.0
    costs: dict[str, Any] = {}
    teacher = None if make.stored_sets(run.teacher) is not None else run.teacher
    for name, model in {"teacher": teacher, "control": best.get("control"), "student": best["student"]}.items():
        if model is not None:
            # a remote teacher's answers come from its cache now, which says nothing of its speed
            timed = 0.0 if remotes(model) else seconds
            costs[name] = cards.cost(model.signals, one, many, seconds=timed, parameters=_parameters(model))
    session = artifact.open_session(exported["folder"])
    encoded = best["student"].encode(many).numpy()
    costs["exported"] = cards.cost(
        session,
        encoded[:1],
        encoded,
        seconds=seconds,
        parameters=_parameters(best["student"]),
        size=artifact.model_bytes(exported["folder"]),
    )
    return costs


def _same_measure(run: Run) -> bool:
    card = json.loads((run.folder / "scorecard.json").read_text(encoding="utf-8"))
    said = run.recipe.measure
    return card.get("margin") == said.margin and card.get("resamples") == said.resamples


def _close(run: Run, card: dict[str, Any]) -> dict[str, Any]:
    run.console.print(cards.render(card))
    gates = cards.require(card, run.recipe.measure.require)
    for gate in gates:
        there = "was not measured" if gate["value"] is None else f"is {gate['value']:.4g}"
        run.console.print(f"{'[green]met[/]' if gate['met'] else '[red]not met[/]'}  {escape(gate['gate'])} ({there})", highlight=False)
    card["requirements"] = gates
    _write_json(run.folder / "scorecard.json", card)
    run.say("artifact", f"{run.folder / 'artifact'} (python predict.py there needs only numpy and onnxruntime)")
    cards.enforce(gates)
    return card


def _write_lock(run: Run) -> None:
    """What it takes to do this again: hashes of data and split, seeds, versions, the teacher's fingerprint."""
    order = np.lexsort(run.rows.keys.T)
    digest = hashlib.blake2b(np.ascontiguousarray(run.rows.keys[order]).tobytes(), digest_size=16)
    split = hashlib.blake2b("".join(map(str, run.rows.split[order])).encode(), digest_size=16) if run.rows.split is not None else digest
    packages = ("understudy", "torch", "numpy", "pandas", "scikit-learn", "lightgbm", "onnx", "onnxruntime", "skl2onnx", "timm")
    _write_json(
        run.folder / "lock.json",
        {
            "rows": len(run.rows),
            "data": digest.hexdigest(),
            "labels": _label_digest(run.rows),
            "split": split.hexdigest(),
            "seeds": run.recipe.seeds,
            "teacher": None if run.teacher is None else run.teacher.fingerprint(),
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in packages},
            "overrides": run.overrides,
        },
    )
