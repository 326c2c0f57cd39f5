"""A function as a teacher: `module:function` takes raw inputs (DataFrame or array) and gives an array, tensor or dictionary."""

from __future__ import annotations

from collections.abc import Sequence

from understudy.adapters._loading import import_place, source_digest
from understudy.answers import Output
from understudy.errors import TeacherError
from understudy.tasks import Task
from understudy.teachers import CallableTeacher


def load(place: str, *, task: Task, classes: Sequence[str] | None = None, output: Output = "auto") -> CallableTeacher:
    """The function at a place, as a teacher."""
    function = import_place(place)
    if not callable(function):
        raise TeacherError(f"{place} is a {type(function).__name__}, not a function from inputs to answers", code="U030")
    return CallableTeacher(function, task=task, classes=classes, output=output, name=place, source=f"{place} {source_digest(function)}")
