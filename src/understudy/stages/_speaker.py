"""Who is asked about the training rows when terms read layers: the teacher, giving those layers too."""

from __future__ import annotations

from understudy import wiring
from understudy.checks.teachers import check_teacher
from understudy.errors import raise_errors
from understudy.make.rows import encode
from understudy.make.students import build_student
from understudy.objectives import Objective
from understudy.stages._run import Run, first_inputs
from understudy.students.student import Student
from understudy.teachers import Teacher


def wire_layers(run: Run, objective: Objective, *, pupil: Student | None = None, teacher: Teacher | None = None) -> None:
    """Settle the layers that the terms read; who teaches is asked for them from here on, as `run.speaker`.

    The teacher is the run's, or the last of its chain when that is trained; the pupil is who learns from it first, made here only
    for its layers unless it is given.
    """
    teacher = teacher or run.last or run.teacher
    assert teacher is not None and run.loaded is not None
    first = run.speaker is None
    run.speaker = teacher
    if not objective.reads_layers:
        return
    rows = run.rows.part("train")
    wired = wiring.wire(objective, pupil or _pupil(run), teacher, first_inputs(rows, wiring.ROWS))
    run.speaker = wired.teacher
    if first:
        run.warn(raise_errors(check_teacher(run.speaker, first_inputs(rows, 16))))
    if first or teacher is not run.teacher:
        for line in wired.pairs:
            if line not in run.wired:
                run.wired.append(line)
                run.say("layers", line)


def _pupil(run: Run) -> Student:
    """Who learns from the speaker next, untrained: the first assistant before the chain is trained, else the student."""
    lesson, recipe = run.lesson, run.recipe
    said = recipe.chain[0] if recipe.chain and run.last is None else recipe.student
    some = lesson.rows.part("train").take(slice(0, 256))
    encoded = encode(some.inputs, some.kind, lesson.encoding)
    return build_student(said.model, said.options, lesson, encoded, some.labels, seed=0, name=said.model)


def numbers_of(run: Run) -> int:
    """How many numbers the speaker says of a row and view: its answers, those of named members, and layers."""
    assert run.speaker is not None
    if run.speaker is run.teacher or not run.wired:
        return run.task.outputs * (1 + (len(run.ensemble.names) if run.ensemble is not None else 0))
    said = run.speaker.signals(first_inputs(run.rows.part("train"), 1))
    return sum(value[0].numel() for value in said.values())
