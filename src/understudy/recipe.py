"""The recipe: one TOML file that says everything about a run. Imports no torch, so that `--help` and mistakes are fast.

Paths are relative to the folder where the command runs; those of the data, to `data.root`.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from understudy.errors import RecipeError, did_you_mean
from understudy.sections import (
    ChainLink,
    CohortSection,
    DataSection,
    ExportSection,
    GenerationsSection,
    MeasureSection,
    ObjectiveSection,
    OptimizerSection,
    RowsSection,
    Section,
    SplitSection,
    StudentSection,
    TeacherSection,
    TeachingSection,
    with_own,
)


class Recipe(Section):
    """Everything about a run."""

    out: str = Field(description="the run's folder")
    task: Literal["auto", "multiclass", "binary", "multilabel", "regression", "recognition", "matching"] = Field(
        "auto", description="found from the labels; matching: two inputs of a row find each other among those of other rows"
    )
    width: int = Field(128, ge=1, description="matching: numbers in a vector, the same for teacher and student")
    seeds: list[int] = Field(
        default_factory=lambda: [0],
        min_length=1,
        description="one student and one control each; those added later go on in the same folder",
    )
    control: bool = True
    data: DataSection
    split: SplitSection = Field(default_factory=SplitSection)
    rows: RowsSection = Field(default_factory=RowsSection)
    teacher: TeacherSection
    teaching: TeachingSection = Field(default_factory=TeachingSection)
    cohort: CohortSection | None = Field(None, description="in the place of [teacher]")
    chain: list[ChainLink] = Field(default_factory=list, description="assistants, the teacher's pupil first")
    generations: GenerationsSection | None = None
    student: StudentSection = Field(default_factory=StudentSection)
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    train: OptimizerSection = Field(default_factory=OptimizerSection)
    measure: MeasureSection = Field(default_factory=MeasureSection)
    export: ExportSection = Field(default_factory=ExportSection)

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, said: Any) -> Any:
        if not isinstance(said, dict) or not isinstance(said.get("student"), dict):
            return said
        return {**said, "train": with_own(said["student"].get("model"), said.get("train", {}))}

    @model_validator(mode="before")
    @classmethod
    def _teacher_of_its_own(cls, said: Any) -> Any:
        """Who teaches where no teacher is named: the cohort itself, or a first network of the student's model."""
        if not isinstance(said, dict) or "teacher" in said:
            return said
        if said.get("cohort") is not None:
            return {**said, "teacher": {"cohort": True}}
        student = said.get("student", {})
        if said.get("generations") is not None and isinstance(student, dict) and isinstance(said.get("train", {}), dict):
            same = {name: student[name] for name in ("model", "options") if name in student}
            # a seed that no student has: with a student's, it would be its control
            return {**said, "teacher": {"train": {**said.get("train", {}), **same, "seed": 1000}}}
        return said

    @model_validator(mode="after")
    def _one_school(self) -> Recipe:
        if self.teacher.cohort != (self.cohort is not None):
            raise ValueError("[cohort] stands in the place of [teacher]: give one of them")
        if self.cohort is not None and self.objective.terms:
            raise ValueError("[cohort] brings its own objective, so [[objective.terms]] would not be heard: give one of them")
        if self.cohort is not None and (self.chain or self.generations is not None):
            raise ValueError("[[chain]] and [generations] begin with a teacher, and [cohort] has none: give one of them")
        return self


def parse(said: dict[str, Any]) -> Recipe:
    """The recipe these nested dictionaries say; RecipeError lists every mistake with the nearest right word."""
    try:
        return Recipe.model_validate(said)
    except ValidationError as error:
        raise RecipeError("\n  ".join(["the recipe has mistakes:", *map(_sentence, error.errors())]), code="U002") from None


def load(path: str | Path, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file; `overrides` are `section.option=value` with the value in TOML."""
    path = Path(path)
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}. Write one, or give --teacher, --data, --student and --out", code="U003") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}", code="U003") from None
    for override in overrides or []:
        apply_override(said, override)
    return parse(said)


def apply_override(said: dict[str, Any], override: str) -> None:
    """Set one value in place.

    >>> said = {}
    >>> apply_override(said, "train.epochs=3"); apply_override(said, "student.model=tree"); said
    {'train': {'epochs': 3}, 'student': {'model': 'tree'}}
    """
    place, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override!r}: write section.option=value", code="U002")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, option = place.strip().split(".")
    for section in sections:
        said = said.setdefault(section, {})
    said[option] = value


def to_toml(recipe: Recipe) -> str:
    """The effective recipe as TOML, defaults included, empty options left out."""
    lines: list[str] = []
    _write(recipe.model_dump(mode="json", exclude_none=True), (), lines)
    return "\n".join(lines).lstrip("\n") + "\n"


def _write(said: dict[str, Any], place: tuple[str, ...], lines: list[str]) -> None:
    plain = {key: value for key, value in said.items() if not _is_table(value)}
    if place and plain:
        lines += ["", f"[{'.'.join(map(_key, place))}]"]
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    for key, value in said.items():
        if isinstance(value, dict) and value:
            _write(value, (*place, key), lines)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _sentence(error: Any) -> str:
    place = [part for part in error["loc"] if isinstance(part, str)]
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown option; {did_you_mean(place[-1], _fields_at(place[:-1]))}"
    if error["type"] == "missing":
        return f"{where}: missing"
    said = error["msg"].removeprefix("Value error, ")
    given = "" if isinstance(error["input"], dict) or "(got " in said else f" (got {error['input']!r})"
    if error["type"] == "literal_error" and isinstance(error["input"], str):
        near = did_you_mean(error["input"], re.findall(r"'([^']*)'", error["ctx"]["expected"]))
        given += f"; {near}" if near.startswith("did you mean") else ""
    meaning = _meaning(place) if error["type"] in _OUTSIDE else ""
    return f"{where or 'recipe'}: {said}{given}{meaning}"


_OUTSIDE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _meaning(place: list[str]) -> str:
    """What the option means, for a number that is out of its range."""
    field = _section_at(place[:-1]).model_fields.get(place[-1])
    return f"; it is the {field.description}" if field is not None and field.description else ""


def _fields_at(place: list[str]) -> list[str]:
    return list(_section_at(place).model_fields)


def _section_at(place: list[str]) -> type[Section]:
    section: Any = Recipe
    for part in place:
        found = section.model_fields.get(part)
        inner = found.annotation if found else None
        candidates = [inner, *getattr(inner, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), section)
    assert issubclass(section, Section)
    return section
