"""objective.choose: pairs of alpha and temperature are tried on validation rows, the best is taken and told, and nothing is tried twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import load_file

from understudy.errors import PreflightError
from understudy.pipeline import distill
from understudy.recipe import parse


def recipe(out: Path, **objective: Any) -> Any:
    said = {
        "out": str(out),
        "data": {"train": "sklearn.datasets:load_digits"},
        "teacher": {"train": {"model": "mlp", "options": {"hidden": [64]}, "epochs": 3, "lr": 0.01}},
        "student": {"model": "mlp", "options": {"hidden": [16]}},
        "train": {"epochs": 4, "lr": 0.01},
        "measure": {"latency": False, "resamples": 100},
        "objective": objective,
    }
    return parse(said)


def weights(run: Path) -> dict[str, Any]:
    (file,) = (run / "seed-0" / "student").glob("*.safetensors")
    return load_file(file)


def test_the_best_pair_on_validation_rows_is_the_one_that_teaches(tmp_path: Path) -> None:
    console = Console(record=True, width=200)
    card = distill(recipe(tmp_path / "chosen", choose=True), console=console)
    found = json.loads((tmp_path / "chosen" / "choice.json").read_text())
    scores = [each["score"] for each in found["tried"]]
    assert len({(each["alpha"], each["temperature"]) for each in found["tried"]}) == 4
    assert found["epochs"] == 1 and scores[found["chosen"]] == max(scores) and min(scores) < max(scores)
    best = found["tried"][found["chosen"]]
    by_hand = f"objective.alpha = {best['alpha']:g}, objective.temperature = {best['temperature']:g}"
    assert by_hand in console.export_text(clear=False) and "<- taken" in console.export_text()
    assert any(by_hand in line for line in card["overrides"])

    distill(recipe(tmp_path / "by_hand", alpha=best["alpha"], temperature=best["temperature"]), console=Console(quiet=True))
    chosen, hand = weights(tmp_path / "chosen"), weights(tmp_path / "by_hand")
    assert all(bool((chosen[name] == hand[name]).all()) for name in hand)


def test_what_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    said = recipe(tmp_path / "run", choose=True)
    distill(said, until="train", console=Console(quiet=True))
    before = (tmp_path / "run" / "choice.json").stat()
    console = Console(record=True, width=200)
    distill(said, console=console)
    after, text = (tmp_path / "run" / "choice.json").stat(), console.export_text()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)
    assert "<- taken" in text and "trial " not in text


def test_trees_try_the_teachers_weight(tmp_path: Path) -> None:
    said = recipe(tmp_path / "run", choose=True).model_dump() | {"student": {"model": "tree", "options": {}}}
    distill(parse(said), until="train", console=Console(quiet=True))
    tried = json.loads((tmp_path / "run" / "choice.json").read_text())["tried"]
    assert len({each["alpha"] for each in tried}) == 4 and {each["temperature"] for each in tried} == {1.0}


def test_it_is_refused_where_there_is_no_such_pair(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"U376 objective.choose tries pairs .*take out \[\[objective.terms\]\]"):
        distill(recipe(tmp_path / "run", choose=True, terms=[{"loss": "logits.soft_target"}]), console=Console(quiet=True))
