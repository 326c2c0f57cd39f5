"""The second stage: the teacher loaded or trained, its classes matched by name, scored on validation rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from understudy.answers import is_placeholder, known_columns, match_classes
from understudy.checks.answers import check_answers
from understudy.checks.teachers import check_teacher
from understudy.data.rows import Rows
from understudy.data.views import WITHOUT_END
from understudy.errors import InputError, PreflightError, Problem, RecipeError, TeacherError, raise_errors
from understudy.make.lessons import build_label_objective, build_objective, training_set
from understudy.make.rows import Loaded
from understudy.make.students import build_student, is_estimator
from understudy.make.teachers import build_ensemble, load_teacher, train_estimator_teacher
from understudy.make.views import build_views, views_seen
from understudy.measuring import scorecard as cards
from understudy.sections import TeacherMember, TeacherTrainSection
from understudy.signals import Signals, is_written
from understudy.stages._fitting import fit_network, validation_of
from understudy.stages._foresight import note_time
from understudy.stages._run import Run, answered_rows, answers_of, first_inputs, problems_of, write_json
from understudy.students.student import Student
from understudy.teachers import Matched, Teacher, check_missing, max_missing, remotes
from understudy.terms import OnFrames

PIXELS: tuple[tuple[list[float] | None, list[float] | None], ...] = (
    (None, None),
    ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ([0.5], [0.5]),
    ([0.0], [1 / 255]),
)
"""Mean and standard deviation of the usual scales of pixels: 0 to 1, ImageNet's, -1 to 1, 0 to 255."""
SOME, CLEARLY = 512, 0.1


def prepare_teacher(run: Run) -> None:
    """Load or train the teacher, match its classes by name, score it on the validation rows, test its manners."""
    said, task = run.recipe.teacher, run.task
    if said.cohort:
        return  # nobody comes before a cohort: learn_together makes one
    validation = run.rows.part("validation")
    if said.train is not None:
        started = time.perf_counter()
        teacher = train_teacher(run, said, run.folder / "teacher")
        note_time(run, "teacher", time.perf_counter() - started)
    else:
        loaded = load_teachers(run)
        teacher = loaded[0]
        if said.members:
            members = [_member(run, each, validation, number) for number, each in enumerate(loaded, 1)]
            teacher = run.ensemble = build_ensemble(members, task, said.members, said.combine)
    try:
        run.teacher = _matched(run, teacher, validation)
    except TeacherError as error:
        # one that answers at random shows a wrong order of classes too: say first what is behind it
        manners = check_teacher(teacher, first_inputs(validation, 64))
        raise (PreflightError([*manners, *problems_of(error)]) if manners else error) from None
    problems = check_teacher(run.teacher, first_inputs(validation, 64))
    answers, validation = _scored(run, validation)
    _refuse_times(run, answers)
    figures = cards.quality(answers, validation.labels, task) if validation.labels is not None else {}
    score = figures.get(task.metric)
    found = check_answers(answers, task, validation, score=score, expect=said.expect, accept_score=said.accept_score)
    problems = [problem for problem in problems if problem.code not in {other.code for other in found}] + found
    if score is not None and any(problem.code in ("U240", "U241", "U007") for problem in problems):
        problems += _other_pixels(run, validation, score)
    run.warn(raise_errors(problems))
    trusted = said.trust or any(member.trust for member in said.members)
    given = {"trust": trusted, "accept_score": said.accept_score, "accept_mapping": said.accept_mapping}
    run.overrides += [f"teacher.{name} = true" for name, there in given.items() if there]
    shown = " · ".join(f"{name} {value:.4f}" for name, value in figures.items()) or "no labels to score it on"
    run.teacher_score = score
    run.teacher_line = f"{run.teacher.name}: validation {shown}"
    run.say("teacher", run.teacher_line)


def _refuse_times(run: Run, answers: np.ndarray[Any, Any]) -> None:
    """Note whether the teacher writes text; terms that look at single frames are refused then."""
    task = run.task
    run.writes = task.kind == "recognition" and is_written(torch.from_numpy(answers))
    if not run.writes:
        return
    timed = [term.name for term in build_objective(run.recipe, task, None).active if isinstance(term, OnFrames)]
    if timed:
        raise RecipeError(
            f"{run.teacher.name if run.teacher else 'the teacher'} writes text and does not say when its words were said, and the term "
            f"{timed[0]!r} compares frames. Give terms that do not: [[objective.terms]] loss = 'sequences.ctc_labels' and "
            "[[objective.terms]] loss = 'sequences.best_path'",
            code="U435",
        )


def load_teachers(run: Run) -> list[Teacher]:
    """The teachers of the recipe; those asked over a network say what that will take before they are asked anything."""
    said, rows = run.recipe.teacher, run.rows
    loaded = [
        load_teacher(member, run.task, rows, run.folder / "cache", rate=16000 if run.loaded is None else run.loaded.rate)
        if member.train is None
        else train_teacher(run, member, run.folder / "teacher" / str(number))
        for number, member in enumerate(said.members or [said], 1)
    ]
    further = int(np.count_nonzero(rows.split == "train")) * run.recipe.rows.synthetic
    for teacher in loaded:
        for remote in remotes(teacher):
            run.say("quote", remote.quote(rows.inputs, further))
    return loaded


def _scored(run: Run, rows: Rows) -> tuple[np.ndarray[Any, Any], Rows]:
    """The teacher's answers to these rows, and the rows; those it has no answer to are left out, and said."""
    assert run.teacher is not None
    answers = answers_of(run.teacher, rows.inputs, run.task)
    if not remotes(run.teacher):
        return answers, rows
    check_missing(torch.from_numpy(answers), max_missing(run.teacher), run.teacher.name, "validation rows")
    there = answered_rows(answers)
    return answers[there], rows.take(there)


def _other_pixels(run: Run, validation: Rows, score: float) -> list[Problem]:
    """What a teacher of images that scores too little would score, had it been given pixels on another usual scale."""
    said, task = run.recipe.teacher, run.task
    if validation.kind != "image" or said.source is None or said.is_remote or not task.single_label:
        return []
    some = validation.take(slice(0, SOME))
    scores: dict[int, float] = {}
    for number, (mean, std) in enumerate(PIXELS):
        if (mean, std) == (said.mean, said.std):
            continue
        try:
            other = load_teacher(said.model_copy(update={"mean": mean, "std": std}), task, run.rows)
            other = Matched(other, run.teacher.order, task=task) if isinstance(run.teacher, Matched) else other
            scores[number] = cards.quality(answers_of(other, some.inputs, task), some.labels, task)[task.metric]
        except InputError:
            continue  # not a model that is given pixels
    best = max(scores, key=lambda number: scores[number], default=None)
    if best is None or scores[best] < score + CLEARLY:
        return []
    mean, std = PIXELS[best]
    told = f"teacher.mean = {mean} and teacher.std = {std}" if mean is not None else "teacher.mean and teacher.std left out"
    return [
        Problem(
            "U247",
            f"with {told} the teacher's {task.metric} on {len(some):,} of these rows is {scores[best]:.4f}, as it is given now "
            f"{score:.4f}: it was trained with another normalisation",
            "warning" if said.accept_score else "error",
        )
    ]


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
    if task.kind in ("regression", "recognition", "matching"):
        return teacher
    known = np.zeros(0, dtype=np.int64) if validation.labels is None else np.flatnonzero(task.labelled(validation.labels))[:2000]
    some = validation.take(known if len(known) else slice(0, 8))
    answers = teacher.signals(some.inputs)[task.signal]
    if remotes(teacher):
        there = answered_rows(answers.numpy())
        answers, some = answers[torch.from_numpy(there)], some.take(there)
    match = match_classes(teacher.classes, task, answers, some.labels if len(known) else None, accept=run.recipe.teacher.accept_mapping)
    run.say("classes", match.sentence)
    if match.order == tuple(range(answers.shape[1])) and answers.shape[1] == task.outputs:
        return teacher
    return Matched(teacher, match.order, task=task)


def train_teacher(run: Run, member: TeacherMember, folder: Path) -> Teacher:
    """A teacher from the labels, with the same loop as the student."""
    said = member.train
    assert said is not None and run.loaded is not None
    loaded = run.loaded.seen_by(member.inputs)
    rows = loaded.rows.part("train")
    if rows.labels is None:
        raise RecipeError("[teacher.train] needs labels, and no row has one; give teacher.source instead", code="U078")
    if said.model in ("forest", "boosted"):
        return train_estimator_teacher(said, run.task, rows, folder, reads=loaded.reads)
    return _stopped_at_best(run, said, loaded, folder) if said.stops else _trained(run, said, loaded, folder)


def _trained(run: Run, said: TeacherTrainSection, loaded: Loaded, folder: Path) -> Student:
    rows = loaded.rows.part("train")
    seen = views_seen(build_views(said, run.rows.part("train"), None if loaded.reads else loaded.encoding), loaded)
    everything = training_set(loaded, rows, None, {}, views=1 if seen is None else WITHOUT_END, augment=seen, only_labelled=True)
    teacher = build_student(
        said.model, said.options, loaded, everything.inputs, rows.labels, seed=said.seed, name=f"teacher ({said.model})"
    )
    objective = build_label_objective(said, run.task, rows.labels)
    fit_network(run, teacher, objective, everything, said, said.seed, folder, "teacher", alone=True)
    return teacher


def _stopped_at_best(run: Run, said: TeacherTrainSection, loaded: Loaded, folder: Path) -> Teacher:
    """Teachers that stop at several points of one schedule: the one whose student is best on validation rows.

    A teacher that is trained to its end may be the better network and the worse teacher (Cho & Hariharan 2019, On the Efficacy of
    Knowledge Distillation, arXiv:1910.01348, section 4). Each student here learns as the run's first one will, from plain rows; the
    test rows are not looked at.
    """
    tried: dict[float, float] = {}
    made: dict[float, Student] = {}
    for stop in sorted(said.stops):
        there = folder / f"stop-{stop:g}"
        there.mkdir(parents=True, exist_ok=True)
        made[stop] = _trained(run, said.model_copy(update={"stop": stop, "stops": []}), loaded, there)
        tried[stop] = _score_of_pupil(run, made[stop].signals(loaded.rows.part("train").inputs), there / "pupil")
    best = max(tried, key=lambda stop: tried[stop])
    metric = run.task.metric
    for stop, score in tried.items():
        run.say("stop", f"at {stop:g}: its student has validation {metric} {score:.4f}" + ("  <- taken" if stop == best else ""))
    write_json(folder / "stops.json", {"metric": metric, "tried": {f"{stop:g}": score for stop, score in tried.items()}, "taken": best})
    run.overrides.append(f"teacher.train.stops took stop = {best:g}, of {len(tried)} tried on validation rows")
    return made[best]


def _score_of_pupil(run: Run, taught: Signals, folder: Path) -> float:
    """The validation metric of a student that learns from this teacher's answers to the plain training rows."""
    recipe, task, rows = run.recipe, run.task, run.rows.part("train")
    assert run.loaded is not None
    objective = build_objective(recipe, task, rows.labels)
    if objective.reads_layers or is_estimator(recipe.student.model) or objective.hears != (task.signal,):
        raise RecipeError(
            "teacher.train.stops tries teachers on a network that learns from their answers, and this objective or student reads something "
            "else; set teacher.train.stop to one number",
            code="U486",
        )
    data = training_set(run.loaded, rows, None, {task.signal: taught[task.signal]}, views=1, augment=None)
    seed = recipe.seeds[0]
    pupil = build_student(
        recipe.student.model, recipe.student.options, run.loaded, data.inputs, rows.labels, seed=seed, name=recipe.student.model
    )
    folder.mkdir(parents=True, exist_ok=True)
    fit_network(run, pupil, objective, data, recipe.train, seed, folder, f"pupil {seed}", alone=True)
    return validation_of(run)(pupil)[task.metric]
