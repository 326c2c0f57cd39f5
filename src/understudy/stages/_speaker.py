"""Who is asked about the training rows when terms read layers: the teacher, giving those layers too."""

from __future__ import annotations

from understudy import make, wiring
from understudy.checks.teachers import check_teacher
from understudy.errors import RecipeError, raise_errors
from understudy.objectives import Objective
from understudy.stages._run import Run, first_inputs


def wire_layers(run: Run, objective: Objective) -> None:
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
    wired = wiring.wire(objective, student, run.teacher, first_inputs(rows, wiring.ROWS))
    run.speaker = wired.teacher
    if first:
        run.warn(raise_errors(check_teacher(run.speaker, first_inputs(rows, 16))))
        for line in wired.pairs:
            run.say("layers", line)


def _refuse_together(run: Run) -> None:
    """Terms that read layers hear one teacher: what an assistant or a generation says is its answers."""
    several = "[[chain]]" if run.recipe.chain else "[generations]" if run.recipe.generations is not None else None
    if several is not None:
        raise RecipeError(f"terms that read layers cannot be combined with {several}; take one of the two out", code="U347")
