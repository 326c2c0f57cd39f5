"""What a plan foretold beside what came: kept in the run's folder as plan.json and times.json."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

from understudy.recipe import Recipe
from understudy.stages._run import FREE_TO_CHANGE, Run, write_json

PLAN, TIMES = "plan.json", "times.json"
PARTS = {"bytes": "on disk", "memory": "memory", "teacher": "training the teacher", "teaching": "teaching", "student": "student"}
PARTS |= {"control": "control"}


def identity(recipe: Recipe) -> str:
    """A hash of what a plan is for: the recipe without where it is written and how it is measured."""
    said = {name: value for name, value in recipe.model_dump(mode="json").items() if name not in (*FREE_TO_CHANGE, "out")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def peak_memory() -> int:
    """The most bytes that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def note_time(run: Run, part: str, seconds: float) -> None:
    """Keep how long a part took, once: a part that is only resumed says nothing of the whole."""
    path = run.folder / TIMES
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if part not in said:
        write_json(path, said | {part: seconds})


def stored_bytes(folder: Path) -> int:
    """The bytes of all transfer sets below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def seconds_of(folder: Path) -> float:
    """How long the trainings took whose cards are there."""
    cards = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("card.json")]
    return float(sum(card.get("seconds", 0.0) for card in cards))


def looked_back(run: Run) -> dict[str, Any] | None:
    """The plan of this run beside what came, None where it was not planned; `off` is (came - planned) / planned."""
    path, times = run.folder / PLAN, run.folder / TIMES
    if not path.exists():
        return None
    planned = json.loads(path.read_text(encoding="utf-8"))
    if planned["recipe"] != identity(run.recipe):
        return None
    came: dict[str, float] = {"bytes": stored_bytes(run.folder / "transfer"), "memory": peak_memory()}
    came |= json.loads(times.read_text(encoding="utf-8")) if times.exists() else {}
    for name in ("student", "control"):
        came[name] = sum(seconds_of(run.folder / f"seed-{seed}" / name) for seed in run.recipe.seeds)
    parts = [name for name in PARTS if planned["parts"].get(name) and came.get(name)]
    figures = {name: {"planned": planned["parts"][name], "came": came[name]} for name in parts}
    return {name: each | {"off": (each["came"] - each["planned"]) / each["planned"]} for name, each in figures.items()}
