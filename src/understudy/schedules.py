"""Numbers that move while training goes on: weights of terms, temperatures and any other number among a loss's options.

A schedule is a function of progress, 0 at the first step and 1 at the last, so it depends on nothing that a resume could lose.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, final

from understudy.errors import RecipeError, did_you_mean


@final
@dataclass(frozen=True)
class Schedule:
    """From `start` to `end` in a straight line or half a cosine, over the first `over` of training; then it stays.

    `constant` has its `end` throughout. In the first `warmup` of training the number is multiplied by what rises from 0 to 1.

    >>> [round(Schedule("cosine", start=2.0, end=0.0, over=0.5)(progress), 3) for progress in (0.0, 0.25, 0.5, 1.0)]
    [2.0, 1.0, 0.0, 0.0]
    >>> Schedule("constant", end=4.0, warmup=0.2)(0.1)
    2.0
    """

    schedule: Literal["linear", "cosine", "constant"] = "constant"
    start: float = 0.0
    end: float = 1.0
    warmup: float = 0.0
    over: float = 1.0

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine", "constant"):
            raise RecipeError(
                f"schedule = {self.schedule!r}; {did_you_mean(str(self.schedule), ('linear', 'cosine', 'constant'))}", code="U346"
            )
        if not (0 <= self.warmup < 1 and 0 < self.over <= 1 and all(map(math.isfinite, (self.start, self.end)))):
            raise RecipeError(f"a schedule has 0 <= warmup < 1, 0 < over <= 1 and finite ends (got {self})", code="U346")

    def __call__(self, progress: float) -> float:
        gone = min(1.0, progress / self.over)
        if self.schedule == "constant":
            gone = 1.0
        elif self.schedule == "cosine":
            gone = 0.5 * (1.0 - math.cos(math.pi * gone))
        value = self.start + (self.end - self.start) * gone
        return value * progress / self.warmup if progress < self.warmup else value

    def __str__(self) -> str:
        way = f"{self.end:g}" if self.schedule == "constant" else f"{self.start:g} to {self.end:g}, {self.schedule}"
        over = f" over {self.over:.0%}" if self.over < 1 and self.schedule != "constant" else ""
        return f"[{way}{over}{f', warm-up {self.warmup:.0%}' if self.warmup else ''}]"


@final
@dataclass(frozen=True)
class Own:
    """A function of the user's, `module:function`, of progress from 0 to 1."""

    place: str
    function: Callable[[float], float]

    def __call__(self, progress: float) -> float:
        value = float(self.function(progress))
        if not math.isfinite(value):
            raise RecipeError(f"the schedule {self.place} gives {value:g} at progress {progress:.3f}; it must be finite", code="U346")
        return value

    def __str__(self) -> str:
        return f"[{self.place}(progress)]"


@final
@dataclass(frozen=True)
class Share:
    """A weight that follows the share of the gradient it should have; `start` is where it begins."""

    share: float
    start: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not (self.start > 0 and math.isfinite(self.start)):
            raise RecipeError(f"a share of the gradient lies between 0 and 1, its start above 0 (got {self})", code="U346")

    def __str__(self) -> str:
        return f"[{self.share:.0%} of the gradient]"


@final
@dataclass(frozen=True)
class Learned:
    """A temperature that is learned against the student: 1 + width * sigmoid(x), with the gradient of x reversed (CTKD).

    The reversed gradient grows from 0 to its full size over the first `over` of training. Li et al. 2022, arXiv:2211.16231,
    section 3, published with temperatures of 1 to 21 and 10 of 240 epochs.
    """

    least: float = 1.0
    width: float = 20.0
    over: float = 0.05

    def __post_init__(self) -> None:
        if not (self.least > 0 and self.width > 0 and 0 < self.over <= 1):
            raise RecipeError(f"a learned temperature has least > 0, width > 0 and 0 < over <= 1 (got {self})", code="U346")

    def __str__(self) -> str:
        return f"[learned, {self.least:g} to {self.least + self.width:g}]"


Moving = Schedule | Own
"""A number that is another one at each step."""


def parse_number(said: Any, what: str) -> float | Moving | Share | Learned | Any:
    """A number as it is; a table or `module:function` as what it says; anything else is handed back. RecipeError U346.

    >>> parse_number({"schedule": "linear", "start": 1, "end": 0}, "weight")
    Schedule(schedule='linear', start=1, end=0, warmup=0.0, over=1.0)
    """
    if isinstance(said, str) and ":" in said:
        return _own(said, what)
    if not isinstance(said, Mapping):
        return said
    given = dict(said)
    kind: type[Schedule | Share | Learned] = Schedule
    if "share" in given:
        kind = Share
    elif given.pop("learned", False):
        kind = Learned
    there = [field.name for field in fields(kind)]
    for name, value in given.items():
        if name not in there:
            raise RecipeError(f"{what}: a table with {name!r}; {did_you_mean(name, [*there, 'schedule', 'share', 'learned'])}", code="U346")
        if name != "schedule" and not isinstance(value, int | float):
            raise RecipeError(f"{what}: {name} = {value!r} must be a number", code="U346")
    return kind(**given)


def _own(place: str, what: str) -> Own:
    module_name, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"{what} = {place!r}: {error}; write my_package.my_module:my_function", code="U346") from None
    if not callable(function):
        raise RecipeError(f"{what} = {place!r} is no function of progress", code="U346")
    return Own(place, function)
