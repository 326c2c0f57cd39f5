"""Small models that stand in for big ones, with proof.

The public names below are loaded when they are first used (PEP 562), so that `import understudy` costs nothing.
Adding one: a line in the table, and the same line for type checkers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from understudy.checks.teachers import check_teacher
    from understudy.data.rows import Rows
    from understudy.errors import (
        DataError,
        ExportError,
        InputError,
        MissingExtraError,
        PreflightError,
        Problem,
        RecipeError,
        RequirementError,
        TeacherError,
        TrainingError,
        TransferSetError,
        UnderstudyError,
    )
    from understudy.exporting.artifact import export
    from understudy.exporting.predict_template import predict
    from understudy.measuring.scorecard import measure
    from understudy.objectives import Objective
    from understudy.pipeline import check, distill, explain, inspect, plan, verify
    from understudy.store.transfer_set import TransferSet
    from understudy.tasks import Task
    from understudy.teachers import FakeTeacher, Teacher
    from understudy.teaching import teach
    from understudy.training.gradient import train

__version__ = "0.1.0"

_HOME = {
    "DataError": "errors",
    "ExportError": "errors",
    "FakeTeacher": "teachers",
    "InputError": "errors",
    "MissingExtraError": "errors",
    "Objective": "objectives",
    "PreflightError": "errors",
    "Problem": "errors",
    "RecipeError": "errors",
    "RequirementError": "errors",
    "Rows": "data.rows",
    "Task": "tasks",
    "Teacher": "teachers",
    "TeacherError": "errors",
    "TrainingError": "errors",
    "TransferSet": "store.transfer_set",
    "TransferSetError": "errors",
    "UnderstudyError": "errors",
    "check": "pipeline",
    "check_teacher": "checks.teachers",
    "distill": "pipeline",
    "explain": "pipeline",
    "export": "exporting.artifact",
    "inspect": "pipeline",
    "measure": "measuring.scorecard",
    "plan": "pipeline",
    "predict": "exporting.predict_template",
    "teach": "teaching",
    "train": "training.gradient",
    "verify": "pipeline",
}

__all__ = [
    "DataError",
    "ExportError",
    "FakeTeacher",
    "InputError",
    "MissingExtraError",
    "Objective",
    "PreflightError",
    "Problem",
    "RecipeError",
    "RequirementError",
    "Rows",
    "Task",
    "Teacher",
    "TeacherError",
    "TrainingError",
    "TransferSet",
    "TransferSetError",
    "UnderstudyError",
    "__version__",
    "check",
    "check_teacher",
    "distill",
    "explain",
    "export",
    "inspect",
    "measure",
    "plan",
    "predict",
    "teach",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'understudy' has no attribute {name!r}")
    value = getattr(import_module(f"understudy.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
