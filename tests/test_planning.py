"""A plan is the run itself on a few rows: what it says is what comes, and too little of something is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from understudy import pipeline
from understudy.errors import RecipeError
from understudy.make.rows import load_rows
from understudy.measuring import scorecard as cards
from understudy.planning import Probed, foretold, refused
from understudy.recipe import Recipe, parse
from understudy.stages._run import Run

QUIET = Console(quiet=True)


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    said: dict[str, Any] = {
        "out": str(folder),
        "data": {"train": "sklearn.datasets:load_digits"},
        "teacher": {"train": {"model": "mlp", "options": {"hidden": [32]}, "epochs": 8}},
        "teaching": {"views": 3, "dtype": "float16"},
        "student": {"model": "mlp", "options": {"hidden": [16]}},
        "train": {"epochs": 8, "augment": {"noise": 0.1}},
        "measure": {"latency": False, "resamples": 100},
    }
    return parse(said | changes)


def test_a_plan_says_what_comes_and_the_scorecard_how_far_off_it_was(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path / "run", teaching={"views": 3, "dtype": "float16", "store": (tmp_path / "shared").as_uri()})
    plan = pipeline.plan(recipe, seconds=4, console=QUIET)
    assert not (tmp_path / "shared").exists()
    assert plan["counts"] == {"rows": 1797, "training": 1257, "synthetic": 0, "views": 3}
    assert plan["parts"].keys() == {"bytes", "memory", "teacher", "teaching", "student", "control"}
    card = pipeline.distill(recipe, console=QUIET)
    found = card["plan"]
    assert found.keys() == plan["parts"].keys()
    assert abs(found["bytes"]["off"]) < 0.05  # three views of float16, and held-out rows
    assert abs(found["memory"]["off"]) < 0.25
    taught = sum(path.stat().st_size for path in (tmp_path / "run" / "transfer").rglob("*") if path.is_file())
    assert found["bytes"]["came"] == taught
    console = Console(width=300, file=(tmp_path / "said").open("w", encoding="utf-8"))
    console.print(cards.render(card))
    console.file.close()
    told = (tmp_path / "said").read_text(encoding="utf-8")
    assert "plan: bytes" in told and "memory" in told
    # seconds depend on what else the machine does: that they are there, and are those of the cards, is what can be asserted
    seconds = json.loads((tmp_path / "run" / "seed-0" / "student" / "card.json").read_text(encoding="utf-8"))["seconds"]
    assert found["student"]["came"] == pytest.approx(seconds)


def test_a_control_is_planned_with_the_epochs_that_give_it_as_many_steps(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, rows={"synthetic": 2}, train={"epochs": 8}, teaching={})
    run = Run(recipe, tmp_path, QUIET)
    run.loaded = load_rows(recipe)
    seconds, fixed = {"teacher": 1.0, "teaching": 1.0, "student": 3.0, "control": 1.0}, {"teacher": 0.0, "student": 0.0, "control": 0.0}
    parts = foretold(run, [Probed(1257, 540, 1, 1, seconds, fixed, 9.0)])["parts"]
    assert parts["student"] == pytest.approx(8 * 3.0)
    assert parts["control"] == pytest.approx(26 * 1.0)  # 29 batches of all rows in 8 epochs, 9 batches of the rows alone


def test_another_recipe_is_not_held_against_the_plan(tmp_path: Path) -> None:
    pipeline.plan(recipe_of(tmp_path), seconds=1, console=QUIET)
    other = recipe_of(tmp_path, student={"model": "tree", "options": {"leaves": 8}})
    assert "plan" not in pipeline.distill(other, console=QUIET)


def test_too_little_is_refused_and_what_cannot_be_probed_is_said(tmp_path: Path) -> None:
    run = Run(recipe_of(tmp_path), tmp_path, QUIET)
    assert [problem.code for problem in refused(run, {"bytes": 1e18, "memory": 1e18})] == ["U208", "U468"]
    assert refused(run, {"bytes": 1.0, "memory": 1.0}) == []
    chained = recipe_of(tmp_path / "chain", chain=[{"model": "mlp", "options": {"hidden": [8]}}])
    with pytest.raises(RecipeError, match=r"U469 a plan probes a teacher, a student and a control"):
        pipeline.plan(chained, console=QUIET)


def test_the_probe_knows_every_class() -> None:
    from understudy import planning

    labels = np.repeat([0, 1, 2], [900, 90, 10])
    some = planning._first(np.arange(1000), 0.05, labels)
    assert set(labels[some]) == {0, 1, 2}
    assert len(some) == len(set(some)) == 50
    assert (np.bincount(labels[some]) >= 6).all()
