"""Chains: each network learns from the one before it, and the last before the student becomes the student's teacher.

Assistants stand between a teacher and a student that is far smaller (Mirzadeh et al. 2020, Improved Knowledge Distillation via
Teacher Assistant, arXiv:1902.03393). Generations have the student's own architecture (Furlanello et al. 2018, Born-Again
Neural Networks, arXiv:1805.04770). Every link is trained by `train`, on a transfer set of its own that carries the
fingerprint of who spoke, so that a chain killed anywhere goes on where it stopped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from understudy.errors import InputError, Problem
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.students.student import Student
from understudy.tasks import Task
from understudy.teachers import Teacher
from understudy.training.gradient import Trained, TrainingSet, train


@final
@dataclass(frozen=True)
class Link:
    """A network between the teacher and the student: `title` for people, `folder` for its place on the disk."""

    title: str
    folder: str
    student: Student
    options: OptimizerSection
    seed: int = 0


Lesson = Callable[[Teacher, Link, Path], tuple[Objective, TrainingSet]]
"""(who speaks, who learns, folder) -> what is learned, and the training rows with what is said of them, kept in the folder."""


def train_chain(
    teacher: Teacher,
    links: Sequence[Link],
    lesson: Lesson,
    *,
    task: Task,
    to: Path,
    validate: Callable[[Student], dict[str, float]] | None = None,
    metric: str = "accuracy",
    done: Callable[[Link, Trained], object] = lambda link, trained: None,
) -> Teacher:
    """Train each link on what the one before it says; gives the last, who speaks to the student.

    A link whose card is there is read back. `done` is told of each link when it is ready.
    """
    speaker = teacher
    for link in links:
        student = link.student
        if student.module is None:
            raise InputError(f"{link.title} must be a network, and {student.name!r} is none: choose mlp, convnet or a module", code="U355")
        objective, data = lesson(speaker, link, to / link.folder / "transfer")
        trained = train(
            student.module,
            objective,
            data,
            task=task,
            options=link.options,
            seed=link.seed,
            to=to / link.folder,
            validate=None if validate is None else lambda module, student=student: validate(student),  # type: ignore[misc]
            metric=metric,
            name=link.title,
        )
        done(link, trained)
        speaker = student
    return speaker


def check_sizes(sizes: Sequence[tuple[str, int | None]]) -> list[Problem]:
    """Whether a chain grows smaller from the teacher, through its assistants, to the student; sizes may be unknown."""
    known = [(name, size) for name, size in sizes if size]
    told = "an assistant helps where it lies between its teacher and its pupil"
    return [
        Problem("U354", f"{name} has {size:,} parameters, {before}, who teaches it, {above:,}: {told}; change chain.options", "warning")
        for (before, above), (name, size) in itertools.pairwise(known)
        if size >= above
    ]
