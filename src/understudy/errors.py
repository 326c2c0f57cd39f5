"""Every error this package raises on purpose, drawn as a tree.

UnderstudyError
├── InputError            something given is wrong; the command line exits with status 2
│   ├── RecipeError       the recipe itself
│   ├── DataError         rows, labels, splits
│   ├── TeacherError      the teacher, its answers or its class names
│   └── PreflightError    several problems found together, before any training
├── TransferSetError      a transfer set that is damaged or belongs to something else
├── TrainingError         a run that cannot mean anything (dead term, NaN loss)
├── ExportError           the exported file does not say what the student says
├── RequirementError      a `--require` gate was not met; exit status 1
└── MissingExtraError     an optional dependency is not installed; the message says which extra to install

A message says what was asked, what there is and what to do, and carries a code (`U010`) that docs/errors.md explains.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final


class UnderstudyError(Exception):
    """Base of every deliberate error."""

    exit_status = 1

    def __init__(self, message: str, *, code: str = "U000") -> None:
        super().__init__(message)
        self.code = code

    def __str__(self) -> str:
        return f"{self.code} {self.args[0]}"


class InputError(UnderstudyError):
    """Something the user gave is wrong."""

    exit_status = 2


class RecipeError(InputError):
    """The recipe is wrong."""


class DataError(InputError):
    """The rows or labels are wrong."""


class TeacherError(InputError):
    """The teacher, its answers or its class names are wrong."""


class TransferSetError(InputError):
    """The transfer set is damaged, stale or belongs to another teacher."""


class TrainingError(UnderstudyError):
    """The run cannot mean anything."""


class ExportError(UnderstudyError):
    """The exported file does not answer as the student does."""


class RequirementError(UnderstudyError):
    """A required figure was not reached."""


class MissingExtraError(InputError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed. Install it with: pip install 'understudy[{extra}]'",
            code="U001",
        )


@final
@dataclass(frozen=True)
class Problem:
    """One finding of the preflight checks: an error stops the run, a warning is kept in the scorecard."""

    code: str
    message: str
    level: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        return f"{self.code} {self.message}"


@final
class PreflightError(InputError):
    """All errors found before training, together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in problems), code=problems[0].code)

    def __str__(self) -> str:
        return str(self.args[0])


def raise_errors(problems: Sequence[Problem]) -> list[Problem]:
    """The warnings; PreflightError with all errors when there is any."""
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        raise PreflightError(errors)
    return list(problems)


def did_you_mean(asked: str, there: Iterable[str]) -> str:
    """A sentence that names the nearest thing there is, or lists what there is.

    >>> did_you_mean("incme", ["age", "income"])
    "did you mean 'income'?"
    >>> did_you_mean("zzz", ["age", "income"])
    'there is: age, income'
    """
    names = [str(name) for name in there]
    folded = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(asked.casefold(), list(folded), n=1, cutoff=0.6)
    if near:
        return f"did you mean {folded[near[0]]!r}?"
    shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return f"there is: {shown}"
