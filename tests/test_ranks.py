"""A training of two processes is the training of one: the same curve and weights, written and printed once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

RECIPE = """
out = "unused"
seeds = [0]
[data]
train = "sklearn.datasets:load_digits"
[teacher.train]
model = "mlp"
options = { hidden = [32] }
epochs = 2
[student]
model = "mlp"
options = { hidden = [16] }
[train]
epochs = 3
batch_size = 100
[measure]
latency = false
resamples = 100
"""
ALONE = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"} | {"OMP_NUM_THREADS": "1"}
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def started(launcher: list[str], arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in processes of its own."""
    command = [sys.executable, *launcher, "-m", "understudy", *arguments]
    return subprocess.run(command, env=ALONE | environment, capture_output=True, text=True, timeout=120, check=False)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    one = started([], ["train", str(recipe), "--out", str(tmp_path / "one")])
    two = started(TWO, ["distill", str(recipe), "--out", str(tmp_path / "two")])
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    printed = two.stdout.splitlines()
    for word in ("rows", "taught", "student", "control", "exported", "artifact"):
        told = [line for line in printed if line.startswith(f"{word} ") and (word not in ("student", "control") or "seed 0" in line)]
        assert len(told) == 1, (word, two.stdout)
    assert (tmp_path / "two" / "scorecard.json").exists()
    for name in ("student", "control"):
        folders = [tmp_path / run / "seed-0" / name for run in ("one", "two")]
        curves = [[line["loss"] for line in lines(folder) if "loss" in line] for folder in folders]
        assert len(curves[0]) == len(curves[1]) >= 3
        torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=1e-5)
        weights = [load_file(folder / "model.safetensors") for folder in folders]
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4)


def test_processes_that_cannot_join_are_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    lost = started([], ["train", str(recipe), "--out", str(tmp_path / "run")], WORLD_SIZE="2")
    assert lost.returncode == 2
    assert "U360" in lost.stderr
    assert "torchrun" in lost.stderr
    assert not (tmp_path / "run" / "seed-0").exists()


@pytest.mark.slow
def test_a_cohort_of_several_processes_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    cohort = RECIPE.replace('[teacher.train]\nmodel = "mlp"\noptions = { hidden = [32] }\nepochs = 2', "[cohort]\nsize = 2")
    recipe.write_text(cohort, encoding="utf-8")
    ended = started(TWO, ["train", str(recipe), "--out", str(tmp_path / "run")])
    assert ended.returncode != 0
    assert "U362" in ended.stderr, ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_budget_of_time_is_refused_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.replace("epochs = 3", "epochs = 3\nmax_time = 60"), encoding="utf-8")
    ended = started(TWO, ["train", str(recipe), "--out", str(tmp_path / "run")])
    assert ended.returncode != 0
    assert "U361" in ended.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_two_processes_that_were_killed_go_on_and_hear_a_live_teacher(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    live = RECIPE.replace("epochs = 3\nbatch_size = 100", "epochs = 30\nbatch_size = 100\naugment = { noise = 0.5 }")
    recipe.write_text(live + '[teaching]\nviews = "live"\n', encoding="utf-8")
    one = started([], ["train", str(recipe), "--out", str(tmp_path / "one")])
    assert one.returncode == 0, one.stderr
    arguments = ["train", str(recipe), "--out", str(tmp_path / "two")]
    first = subprocess.Popen([sys.executable, *TWO, "-m", "understudy", *arguments], env=ALONE)
    student = tmp_path / "two" / "seed-0" / "student"
    while not (student / "checkpoint.pt").exists():
        assert first.poll() is None
        os.sched_yield()
    for process in (*psutil.Process(first.pid).children(recursive=True), first):
        process.kill()
    first.wait()
    assert not (student / "card.json").exists()
    two = started(TWO, arguments)
    assert two.returncode == 0, two.stderr
    assert not (tmp_path / "two" / "transfer" / "training").exists()
    curves = [[line["loss"] for line in lines(tmp_path / run / "seed-0" / "student") if "loss" in line] for run in ("one", "two")]
    assert len(curves[0]) == len(curves[1]) >= 30
    torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=1e-5)
