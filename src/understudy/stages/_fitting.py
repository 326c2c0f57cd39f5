"""A network trained in the folder of a run, watched on the validation rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from understudy.measuring import scorecard as cards
from understudy.stages._run import Run, answered_rows, answers_of
from understudy.students.student import Student
from understudy.training.gradient import TrainingSet, train


def parameters_of(teacher: Any) -> int | None:
    found = getattr(teacher, "parameters", None)
    return found() if callable(found) else None


def count_of(student: Student) -> str:
    count = student.parameters()
    what = "parameters" if student.module is not None else "nodes"
    return student.name if count is None else f"{count:,} {what}"


def told_figures(run: Run, student: Student) -> str:
    figures = validation_of(run)(student)
    return "".join(f" · validation {name} {value:.4f}" for name, value in figures.items())


def validation_of(run: Run) -> Callable[[Student], dict[str, float]]:
    rows, task = run.rows.part("validation"), run.task
    taught = None
    if run.held_out is not None:
        taught = run.held_out.gather(task.signal, run.held_out.positions(rows.keys)).float().numpy()

    def validate(student: Student) -> dict[str, float]:
        answers = answers_of(student, rows.inputs, task)
        figures: dict[str, float] = {}
        if rows.labels is not None and task.labelled(rows.labels).any():
            figures[task.metric] = cards.quality(answers, rows.labels, task)[task.metric]
        if taught is not None:
            there = answered_rows(taught)
            figures["agreement"] = cards.fidelity(answers[there], taught[there], task)["agreement"]
        return figures

    return validate


def fit_network(
    run: Run, student: Student, objective: Any, data: TrainingSet, options: Any, seed: int, folder: Path, name: str, *, alone: bool = False
) -> None:
    validate = validation_of(run)
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
    text = f"{count_of(student)}, {done.epochs} epochs, {done.seconds:.0f} s"
    run.say(word, (f"seed {rest[0]}: " if rest else "trained here: ") + text + told_figures(run, student))
