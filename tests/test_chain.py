"""Assistants, generations, cohorts and early-stopped teachers, as a user goes them: through the command line or `distill`."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from rich.console import Console
from sklearn.datasets import load_digits

from understudy.errors import InputError, PreflightError, RecipeError
from understudy.pipeline import distill
from understudy.recipe import load, parse, to_toml
from understudy.sections import OptimizerSection
from understudy.training.chain import check_sizes


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    inputs, labels = load_digits(return_X_y=True)
    np.savez(path, inputs=np.float32(inputs / 16)[:800], labels=labels[:800])
    return path


def said(digits: Path, out: Path, **sections: Any) -> dict[str, Any]:
    return {
        "out": str(out),
        "data": {"train": str(digits)},
        "student": {"model": "mlp", "options": {"hidden": [16]}},
        "train": {"epochs": 6, "lr": 0.01, "batch_size": 32, "device": "cpu"},
        "measure": {"latency": False, "resamples": 100},
        **sections,
    }


TEACHER = {"train": {"model": "mlp", "options": {"hidden": [64]}, "epochs": 8, "lr": 0.01, "batch_size": 32, "stop": 0.5}}
CHAIN = [{"model": "mlp", "options": {"hidden": [32]}}]


def command(recipe: Path) -> list[str]:
    return ["understudy", "distill", str(recipe)]


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path) -> str:
    assert run(monkeypatch, *command(recipe)[1:]) == 0
    return capsys.readouterr().out


def test_a_chain_of_one_assistant_from_recipe_to_scorecard(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, path = tmp_path / "run", tmp_path / "recipe.toml"
    path.write_text(to_toml(parse(said(digits, out, teacher=TEACHER, chain=CHAIN))))
    printed = shown(monkeypatch, capsys, path)
    assert "trained here: 4,810 parameters, 4 epochs" in printed  # stopped at half of its eight
    assert "assistant 1: 2,410 parameters, 6 epochs" in printed
    card = json.loads((out / "scorecard.json").read_text())
    assert {"teacher", "control", "student", "exported"} <= set(card["models"])
    assert card["models"]["student"]["quality"]["accuracy"]["mean"] > 0.6
    assert any(note.startswith("assistant 1: 2,410 parameters, test accuracy 0.") for note in card["notes"])
    # each link has a transfer set of its own, made by who spoke
    manifests = [
        json.loads(next(folder.glob("manifest.json")).read_text()) for folder in (out / "transfer" / "training", out / "chain" / "last")
    ]
    assert "teacher" in json.dumps(manifests[0]) and manifests[0]["fingerprint"] != manifests[1]["fingerprint"]
    weights = (out / "seed-0" / "student" / "model.safetensors").read_bytes()
    for name in ("scorecard.json", "seed-0/student/card.json"):
        (out / name).unlink()
    assistant = (out / "chain" / "assistant-1" / "model.safetensors").stat().st_mtime_ns
    shown(monkeypatch, capsys, path)
    assert (out / "seed-0" / "student" / "model.safetensors").read_bytes() == weights
    assert (out / "chain" / "assistant-1" / "model.safetensors").stat().st_mtime_ns == assistant


def test_the_student_hears_the_assistant_and_not_the_teacher(digits: Path, tmp_path: Path) -> None:
    plain, through = (
        distill(parse(said(digits, tmp_path / str(len(chain)), teacher=TEACHER, chain=chain)))
        for chain in ([], [{"options": {"hidden": [24]}}])
    )
    assert plain["models"]["teacher"] == through["models"]["teacher"] | {"cost": plain["models"]["teacher"]["cost"]}
    assert plain["models"]["control"]["quality"] == through["models"]["control"]["quality"]
    assert plain["models"]["student"]["quality"] != through["models"]["student"]["quality"]


def test_generations_run_and_a_killed_run_goes_on_to_the_same_student(digits: Path, tmp_path: Path) -> None:
    generations = {"count": 3, "together": True}
    recipe = said(digits, tmp_path / "whole", generations=generations, control=False)
    card = distill(parse(recipe))
    titles = [note.split(":")[0] for note in card["notes"]]
    assert titles == ["generation 1", "generation 2", "all generations together"]
    assert card["models"]["student"]["quality"]["accuracy"]["mean"] > 0.6
    path = tmp_path / "recipe.toml"
    path.write_text(to_toml(parse({**recipe, "out": str(tmp_path / "killed")})))
    dying = f"""
import os, signal, sys
from understudy.training import _live, _checkpoint
steps = 0
done = _live.Live.step
_checkpoint.EVERY, _checkpoint.COST = 0.0, 0.0
def step(self):
    global steps
    steps += 1
    if steps == 260:
        os.kill(os.getpid(), signal.SIGKILL)
    done(self)
_live.Live.step = step
sys.argv = {command(path)!r}
from understudy.cli import main
main()
"""
    killed = subprocess.run([sys.executable, "-c", dying], capture_output=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "killed" / "chain" / "generation-1" / "card.json").exists()
    assert not (tmp_path / "killed" / "chain" / "generation-2" / "card.json").exists()
    distill(load(path))
    files = [tmp_path / name / "seed-0" / "student" / "model.safetensors" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("method", ["mutual", "collaborative"])
def test_a_cohort_from_recipe_to_scorecard(digits: Path, tmp_path: Path, method: str) -> None:
    recipe = said(digits, tmp_path / "run", seeds=[0, 1], cohort={"method": method, "members": CHAIN})
    printed = io.StringIO()
    card = distill(parse(recipe), console=Console(file=printed, width=140))
    assert card["verdict"]["word"] in ("GAIN", "NO GAIN", "INCONCLUSIVE")
    assert "none came before: measured in its place is the mean of the cohort of seed 0" in printed.getvalue()
    assert len(card["models"]["student"]["quality"]["accuracy"]["seeds"]) == 2
    assert card["models"]["student"]["quality"]["accuracy"]["mean"] > 0.6
    (note,) = (note for note in card["notes"] if note.startswith("member 2"))
    assert "2,410 parameters, test accuracy" in note and "over 2 seeds" in note
    assert distill(parse(recipe), console=Console(file=io.StringIO()))["models"] == card["models"]
    assert distill(load(tmp_path / "run" / "recipe.toml"), console=Console(file=io.StringIO()))["models"] == card["models"]


def test_a_teacher_made_by_hand_needs_no_other(digits: Path, tmp_path: Path) -> None:
    terms = [{"loss": "labels.cross_entropy"}, {"loss": "labels.virtual_teacher", "weight": 0.1}]
    card = distill(parse(said(digits, tmp_path / "run", generations={"count": 1}, objective={"terms": terms})))
    assert card["models"]["student"]["quality"]["accuracy"]["mean"] > 0.6
    assert card["models"]["student"]["quality"] != card["models"]["control"]["quality"]
    with pytest.raises(InputError, match="U203 no objective term with weight reads the teacher"):
        distill(parse(said(digits, tmp_path / "none", generations={"count": 1}, objective={"terms": terms[:1]})))


def test_an_assistant_that_does_not_lie_between_is_said(digits: Path, tmp_path: Path) -> None:
    chain = [{"model": "mlp", "options": {"hidden": [100]}}]
    printed = io.StringIO()
    recipe = parse(said(digits, tmp_path / "run", teacher=TEACHER, chain=chain))
    distill(recipe, until="train", console=Console(file=printed, width=400))
    text = "U354 assistant 1 has 7,510 parameters, the teacher, who teaches it, 4,810: an assistant helps where it lies between"
    assert text in printed.getvalue()
    (problem,) = check_sizes([("the teacher", None), ("assistant 1", 10), ("the student", 20)])
    assert "the student has 20 parameters, assistant 1, who teaches it, 10" in problem.message and problem.level == "warning"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"cohort": {"size": 1}}, "U350 a cohort of 1 has nobody to learn from; give two members or more: cohort.size = 2"),
        ({"cohort": {"members": [{"model": "tree"}]}}, "U355 cohort.members.model = 'tree' is no network"),
        ({"cohort": {}, "objective": {"alpha": 0.3}}, r"U356 \[objective\] says what is learned from a teacher, and a cohort has none"),
        ({"teacher": TEACHER, "chain": [{"model": "boosted"}]}, "U355 chain.model = 'boosted' is no network"),
    ],
)
def test_what_cannot_be_is_refused_before_training(digits: Path, tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(PreflightError, match=message):
        distill(parse(said(digits, tmp_path / "run", **sections)), console=Console(file=io.StringIO()))
    assert not (tmp_path / "run" / "seed-0").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"cohort": {"method": "mutal"}}, r"cohort.method: .* \(got 'mutal'\); did you mean 'mutual'\?"),
        ({"cohort": {}, "teacher": TEACHER}, r"\[cohort\] stands in the place of \[teacher\]: give one of them"),
        ({"cohort": {}, "chain": CHAIN}, r"\[\[chain\]\] and \[generations\] begin with a teacher, and \[cohort\] has none"),
        ({"train": {"stop": 0.5, "max_time": 9}, "cohort": {}}, "stop counts epochs and max_time seconds: give one of them"),
        ({}, "teacher: missing"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(digits: Path, tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(said(digits, tmp_path / "run", **sections))


def test_generations_without_a_teacher_begin_with_the_students_own_model(digits: Path, tmp_path: Path) -> None:
    recipe = parse(said(digits, tmp_path / "run", generations={}))
    first = recipe.teacher.train
    assert first is not None and (first.model, first.options, first.epochs) == ("mlp", {"hidden": [16]}, 6)
    assert (
        isinstance(first, OptimizerSection)
        and parse(said(digits, tmp_path / "run", generations={}, teacher=TEACHER)).teacher.train != first
    )
