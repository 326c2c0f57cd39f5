"""The fourth stage: assistants, generations or a cohort where the recipe has them, then student and control of each seed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy import wiring
from understudy.checks.answers import check_gain
from understudy.checks.students import check_student
from understudy.data.rows import Rows
from understudy.data.views import WITHOUT_END
from understudy.ensembles import Ensemble
from understudy.errors import Problem, RecipeError, TransferSetError, raise_errors
from understudy.make.lessons import (
    build_label_objective,
    build_objective,
    live_answers,
    stored_answers,
    temperature_of,
    training_set,
    trusted_answers,
    weighed_answers,
    with_steps_of,
)
from understudy.make.rows import encode
from understudy.make.students import build_student, is_estimator
from understudy.make.views import build_views, views_seen
from understudy.objectives import Objective
from understudy.recipe import Recipe
from understudy.sections import ObjectiveSection
from understudy.signals import Signals
from understudy.stages._fitting import count_of, fit_network, parameters_of, told_figures, validation_of
from understudy.stages._run import Run, first_inputs, join_rows, write_json
from understudy.stages._speaker import wire_layers
from understudy.students.student import Student
from understudy.teachers import Teacher
from understudy.teaching import teach
from understudy.training.chain import Link, check_sizes, train_chain
from understudy.training.cohort import cohort_objective, train_cohort
from understudy.training.gradient import Ask, Trained, TrainingSet, Validate
from understudy.training.trees import fit_estimator


def train_pair(run: Run, seed: int) -> dict[str, Student]:
    """The student and its control: same initialisation, row order, views and steps; only the teacher differs."""
    recipe, task = run.recipe, run.task
    objective = build_objective(recipe, task, run.rows.part("train").labels)
    wire_layers(run, objective)
    full = _lesson(run, objective)
    student = _one(run, "student", full, objective, recipe.train, seed, run.folder / f"seed-{seed}" / "student", full.inputs)
    return {"student": student, **_control(run, seed, full)}


PAIRS = ((0.9, 4.0), (0.9, 1.0), (0.5, 2.0), (0.5, 1.0))
"""What objective.choose tries, alpha and temperature: much or half of the teacher, softened or as it is."""
TREE_PAIRS = ((1.0, 1.0), (0.9, 1.0), (0.5, 1.0), (0.3, 1.0))
"""The same for trees, which follow the teacher's probabilities as they are."""


def choose_objective(run: Run) -> None:
    """Try pairs of alpha and temperature for a quarter of the epochs each; the run goes on with the best on validation rows.

    The test rows are not looked at. What was tried is kept in choice.json, and is not tried again.
    """
    kept = run.folder / "choice.json"
    if not run.recipe.objective.choose:
        return
    if not kept.exists():
        write_json(kept, _try_pairs(run))
    found = json.loads(kept.read_text(encoding="utf-8"))
    best = found["tried"][found["chosen"]]
    for tried in found["tried"]:
        mark = "  <- taken" if tried is best else ""
        run.say("choose", f"alpha {tried['alpha']:g}, temperature {tried['temperature']:g}: {found['metric']} {tried['score']:.4f}{mark}")
    budget = f", after {found['epochs']} epochs each" if found["epochs"] else ""
    run.say("choose", f"on {found['rows']:,} validation rows{budget}; by hand: {_by_hand(best)}")
    run.recipe = _with_pair(run.recipe, best["alpha"], best["temperature"])
    run.overrides.append(f"objective.choose took {_by_hand(best)}, of {len(found['tried'])} pairs tried on validation rows")


def _try_pairs(run: Run) -> dict[str, Any]:
    recipe, rows = run.recipe, run.rows.part("validation")
    trees = is_estimator(recipe.student.model)
    short = recipe.train.model_copy(update={"epochs": max(1, round(recipe.train.epochs / 4)), "patience": None})
    if short.max_time is not None:
        short = short.model_copy(update={"max_time": short.max_time / 4})
    labelled = rows.labels is not None and bool(run.task.labelled(rows.labels).any())
    metric, tried = run.task.metric if labelled else "agreement", []
    for alpha, temperature in TREE_PAIRS if trees else PAIRS:
        run.recipe = _with_pair(recipe, alpha, temperature)
        objective = build_objective(run.recipe, run.task, run.rows.part("train").labels)
        full, folder = _lesson(run, objective), run.folder / "choice" / f"{alpha:g}-{temperature:g}"
        student = _one(run, "trial", full, objective, short, recipe.seeds[0], folder, full.inputs)
        tried.append({"alpha": alpha, "temperature": temperature, "score": validation_of(run)(student)[metric]})
    run.recipe = recipe
    chosen = int(np.argmax([each["score"] for each in tried]))
    return {"metric": metric, "rows": len(rows), "epochs": 0 if trees else short.epochs, "tried": tried, "chosen": chosen}


def _with_pair(recipe: Recipe, alpha: float, temperature: float) -> Recipe:
    said = ObjectiveSection(**(recipe.objective.model_dump() | {"alpha": alpha, "temperature": temperature}))
    return recipe.model_copy(update={"objective": said})


def _by_hand(pair: dict[str, Any]) -> str:
    return f"objective.alpha = {pair['alpha']:g}, objective.temperature = {pair['temperature']:g}"


def _lesson(run: Run, objective: Objective) -> TrainingSet:
    """The training rows with what the speaker says of them."""
    assert run.loaded is not None
    rows = run.rows.part("train")
    said = rows if run.extra is None else join_rows(rows, run.extra)
    teacher, ask = _evidence(run, said, objective)
    lesson = run.lesson
    augment = views_seen(run.seen, lesson)
    return training_set(lesson, lesson.rows.part("train"), run.extra, teacher, views=run.views, augment=augment, ask=ask)


def _control(run: Run, seed: int, full: TrainingSet) -> dict[str, Student]:
    """The same student on the labels alone, with as many steps; nothing where there is no label."""
    recipe, task, rows = run.recipe, run.task, run.rows.part("train")
    assert run.loaded is not None
    if not recipe.control:
        return {}
    if rows.labels is None or not task.labelled(rows.labels).any():
        run.warn([Problem("U066", "no training row has a label, so no control can be trained: gain unknown", "warning")])
        return {}
    lesson = run.lesson
    augment = views_seen(run.seen, lesson)
    alone = training_set(lesson, lesson.rows.part("train"), None, {}, views=run.views, augment=augment, only_labelled=True)
    options = with_steps_of(recipe.train, len(alone.inputs), len(full.inputs))
    labels_only = build_label_objective(recipe.train, task, rows.labels)
    folder = run.folder / f"seed-{seed}" / "control"
    return {"control": _one(run, "control", alone, labels_only, options, seed, folder, full.inputs[: len(rows)])}


def _untrained(run: Run, model: str, options: dict[str, Any], encoded: torch.Tensor, seed: int) -> Student:
    assert run.loaded is not None
    real = encoded[: int(np.count_nonzero(run.rows.split == "train"))]
    return build_student(model, options, run.lesson, real, run.rows.part("train").labels, seed=seed, name=model)


def train_links(run: Run) -> None:
    """Assistants and earlier generations, each on a transfer set of what the one before it says."""
    recipe, task = run.recipe, run.task
    links = _links(run)
    if not links:
        return
    assert run.teacher is not None
    student = _untrained(run, recipe.student.model, recipe.student.options, _encoded(run), 0)
    assistants = [(link.title, link.student.parameters()) for link in links[: len(recipe.chain)]]
    if assistants:
        run.warn(check_sizes([("the teacher", parameters_of(run.teacher)), *assistants, ("the student", student.parameters())]))

    def lesson(speaker: Teacher, link: Link, folder: Path) -> tuple[Objective, TrainingSet]:
        objective = build_objective(recipe, task, run.rows.part("train").labels)
        wire_layers(run, objective, pupil=link.student, teacher=speaker)
        if speaker is not run.teacher:
            _hear(run, folder)
        data = _lesson(run, objective)
        _connect(run, objective, link.student, data, link.seed)
        return objective, data

    def done(link: Link, trained: Trained) -> None:
        run.middle[link.title] = [link.student]
        run.say("link", f"{link.title}: {count_of(link.student)}, {trained.epochs} epochs{told_figures(run, link.student)}")

    validate = validation_of(run)
    metric = task.metric if run.rows.labels is not None else "agreement"
    run.last = train_chain(run.teacher, links, lesson, task=task, to=run.folder / "chain", validate=validate, metric=metric, done=done)
    wire_layers(run, build_objective(recipe, task, run.rows.part("train").labels))
    _hear(run, run.folder / "chain" / "last")


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
    rows = run.lesson.rows.part("train")
    return encode(rows.inputs, rows.kind, run.lesson.encoding)


def _hear(run: Run, folder: Path) -> None:
    """Ask the speaker about the training rows; what it says is kept in the folder unless it answers in the loop."""
    if run.recipe.teaching.views == "live":
        return
    assert run.speaker is not None
    said, rows = run.recipe.teaching, run.rows.part("train")
    asked = rows if run.extra is None else join_rows(rows, run.extra)
    spec = None if run.seen is None else run.seen.spec
    run.taught = teach(
        run.speaker,
        asked,
        folder,
        task=run.task,
        batch_size=said.batch_size,
        dtype=said.dtype,
        shard_rows=run.recipe.teaching.shard_rows,
        pool=run.pool,
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
    run.seen = build_views(recipe.train, rows, run.loaded.encoding)
    run.views = 1 if run.seen is None else WITHOUT_END
    augment = views_seen(run.seen, run.lesson)
    full = training_set(run.lesson, run.lesson.rows.part("train"), None, {}, views=run.views, augment=augment)
    models = [(recipe.student.model, recipe.student.options)]
    models += [(each.model, each.options) for each in said.members] or models * (said.count - 1)
    objective = cohort_objective(task, said.method, temperature=said.temperature, weight=said.weight)
    made, cohorts = {}, []
    for seed in recipe.seeds:
        students = [_untrained(run, model, options, full.inputs, seed + 1000 * number) for number, (model, options) in enumerate(models)]
        run.warn(raise_errors([each for student in students for each in _fit_to_learn(run, student, full)]))
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
            run.say("cohort", f"seed {seed}: {who}, {count_of(student)}, {done[0].epochs} epochs{told_figures(run, student)}")
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
    return check_student(student, run.task, data.inputs[:32], batch_size=run.recipe.train.batch_size, rows=len(data))


def _watching(run: Run, students: list[Student]) -> list[Validate]:
    validate = validation_of(run)
    return [lambda module, student=student: validate(student) for student in students]  # type: ignore[misc]


def _evidence(run: Run, rows: Rows, objective: Objective) -> tuple[Signals, Ask | None]:
    """The speaker's signals of these rows in memory, or the way to ask for those of a batch.

    Trees take the plain row's answers; so do several views, whose answers are read batch by batch.
    """
    task, trees = run.task, is_estimator(run.recipe.student.model)
    reads = list(objective.hears)
    weighed = run.ensemble if run.ensemble is not None and run.ensemble.combine == "confidence" else None
    if run.speaker is not None and run.speaker is not run.teacher and not isinstance(run.speaker, Ensemble):
        weighed = None  # an assistant has learned what its teachers say together
    lacking = [] if run.taught is None else [name for name in reads if name not in run.taught.names]
    parts = [name for name in reads if name.startswith(f"{task.signal}/")]
    if parts and (run.taught is None or lacking):
        how = "the teacher answers in the loop" if run.taught is None else f"it is stored as {run.taught.encoding['stored']['kind']}"
        raise TransferSetError(
            f'a term reads the largest classes as they are stored ({", ".join(parts)}), and {how}; set teaching.encoding = "top-k" and '
            "teaching.views to a number, or take a loss on logits",
            code="U482",
        )
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
        ask = _believed(run, live_answers(speaker, rows, run.seen))
        return {}, ask if weighed is None else weighed_answers(ask, weighed, _labels(run, len(rows)), temperature_of(objective))
    sparse = run.taught.sparse(task.signal)
    temperature = temperature_of(objective) if sparse or weighed is not None else None
    if weighed is not None:
        reads = [*reads, *(f"teachers/{name}/{task.signal}" for name in weighed.names)]
    ask = stored_answers(run.taught, rows.keys, reads or [task.signal], temperature=temperature if sparse else None)
    ask = _believed(run, ask)
    if weighed is not None and temperature is not None:
        ask = weighed_answers(ask, weighed, _labels(run, len(rows)), temperature)
    if not trees and (run.views > 1 or sparse):
        return {}, ask
    if trees and weighed is None:
        return {task.signal: run.taught.gather(task.signal, run.taught.positions(rows.keys), np.zeros(len(rows), dtype=np.int64))}, None
    said = ask(everything, torch.zeros_like(everything), everything)
    return {name: value for name, value in said.items() if not name.startswith("teachers/") or name in objective.hears}, None


def _believed(run: Run, ask: Ask) -> Ask:
    """What the run's teacher says, but for rows whose label it is too far from; those that it has taught say what they say."""
    if run.word_errors is None or (run.speaker is not None and run.speaker is not run.teacher):
        return ask
    labels = run.rows.part("train").labels
    return trusted_answers(ask, None if labels is None else torch.from_numpy(labels), run.word_errors)


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
    if not is_estimator(recipe.student.model):
        problems = check_student(
            student, run.task, fitted_on[:32], batch_size=options.batch_size, rows=len(data.inputs), teacher_parameters=_larger(run)
        )
        run.warn(raise_errors(problems))
        _connect(run, objective, student, data, seed)
        fit_network(run, student, objective, data, options, seed, folder, f"{name} {seed}")
        return student
    if (folder / "card.json").exists():
        return Student.load(folder, run.task)
    started = time.perf_counter()
    features = student.features(data.inputs)
    softening = recipe.objective.temperature
    soft = recipe.objective.target == "soft" and "temperature" in _set(recipe) and isinstance(softening, int | float)
    signal = data.teacher.get(run.task.signal)
    student.estimator = fit_estimator(
        student.estimator,
        features,
        task=run.task,
        labels=None if data.labels is None else data.labels.numpy(),
        teacher=None if signal is None else signal.numpy(),
        alpha=recipe.objective.alpha,
        temperature=float(softening) if soft else 1.0,  # type: ignore[arg-type]
        target=recipe.objective.target,
        answered=None if signal is None or data.answered is None else data.answered.numpy(),
    )
    student.save(folder)
    about = {"name": name, "seed": seed, "rows": len(data.inputs), "student": recipe.student.model}
    write_json(folder / "card.json", about | {"seconds": time.perf_counter() - started})
    run.say(name, f"seed {seed}: {recipe.student.model}, {count_of(student)}" + told_figures(run, student))
    return student


def _connect(run: Run, objective: Objective, student: Student, data: TrainingSet, seed: int) -> None:
    """Make the connectors and memory banks between this student and the speaker, where terms read layers."""
    if not objective.reads_layers:
        return
    assert run.speaker is not None
    inputs = first_inputs(run.rows.part("train"), wiring.ROWS)
    keys = None if data.keys is None else torch.from_numpy(np.ascontiguousarray(data.keys))
    wiring.probe(objective, student, inputs, run.speaker.signals(inputs), keys=keys, labels=data.labels, seed=seed)
    counts = ", ".join(f"{term} {count:,}" for term, count in objective.connectors().items())
    run.say("connectors", f"{counts or 'none'} parameters, trained with the student and thrown away")


def beside_control(run: Run, students: dict[int, dict[str, Student]]) -> list[Problem]:
    """What the validation rows say of the teacher beside the control."""
    metric, validate = run.task.metric, validation_of(run)
    scores = [validate(pair["control"]).get(metric) for pair in students.values() if "control" in pair]
    known = [score for score in scores if score is not None]
    return check_gain(run.teacher_score, float(np.mean(known)) if known else None, metric)


def _larger(run: Run) -> int | None:
    """The size that the student should stay below; None where it is meant to be the same."""
    return None if run.recipe.generations is not None else parameters_of(run.teacher)


def _set(recipe: Recipe) -> set[str]:
    return recipe.objective.model_fields_set
