"""The whole way, through the command line, as a user goes it: a table and a trained model in, a measured artifact out."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from commands import run
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder


def table(folder: Path, rows: int = 500) -> Path:
    """A CSV with numbers, a category and missing cells; labels are words."""
    data = load_breast_cancer(as_frame=True)
    frame = data.data.iloc[:rows, :6].copy()
    frame.columns = [column.replace(" ", "_") for column in frame.columns]
    rng = np.random.default_rng(0)
    frame["site"] = np.where(frame["mean_area"] > 600, "left", np.where(rng.random(len(frame)) < 0.5, "right", "middle"))
    frame.loc[frame.index % 17 == 0, "site"] = "?"
    frame.loc[frame.index % 23 == 0, "mean_texture"] = np.nan
    frame["diagnosis"] = np.where(data.target.iloc[:rows] == 0, "malignant", "benign")
    frame.to_csv(folder / "cells.csv", index=False)
    return folder / "cells.csv"


def forest(folder: Path, path: Path) -> Path:
    """A fitted pipeline that reads the raw columns of `table`."""
    frame = pd.read_csv(path, na_values=["?"])
    inputs, labels = frame.drop(columns="diagnosis"), frame["diagnosis"]
    columns = ColumnTransformer([("site", OneHotEncoder(handle_unknown="ignore"), ["site"])], remainder="passthrough")
    model = make_pipeline(columns, RandomForestClassifier(60, random_state=0)).fit(inputs.iloc[:350], labels.iloc[:350])
    joblib.dump(model, folder / "forest.joblib")
    return folder / "forest.joblib"


def test_table_and_trained_model_to_measured_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path)
    teacher = forest(tmp_path, path)
    out = tmp_path / "runs" / "cells"
    said = ["distill", "--teacher", str(teacher), "--trust", "--data", str(path), "--label", "diagnosis", "--student", "tree"]
    said += ["--out", str(out), "--set", "rows.synthetic=3", "--set", "measure.latency=false"]
    assert run(monkeypatch, *said) == 0
    printed = capsys.readouterr().out
    assert "classes" in printed and "by name" in printed
    card = json.loads((out / "scorecard.json").read_text())
    assert {"teacher", "control", "student", "exported"} <= set(card["models"])
    assert card["verdict"]["word"] in ("GAIN", "NO GAIN", "INCONCLUSIVE")
    accuracy = card["models"]["student"]["quality"]["accuracy"]["mean"]
    assert accuracy > 0.85
    assert card["models"]["exported"]["quality"]["accuracy"]["mean"] == pytest.approx(accuracy, abs=0.02)
    artifact = out / "artifact"
    there = {entry.name for entry in artifact.iterdir()}
    assert {
        "model.onnx",
        "signature.json",
        "labels.json",
        "preprocessing.json",
        "README.md",
        "scorecard.json",
        "checksums.json",
        "predict.py",
    } <= there

    assert run(monkeypatch, *said) == 0
    assert "was complete" in capsys.readouterr().out
    assert run(monkeypatch, *said, "--set", "student.options.leaves=7") == 2
    assert "holds another run" in capsys.readouterr().err

    before = (out / "recipe.json").read_text()
    (out / "recipe.json").write_text(before[:40])
    assert run(monkeypatch, *said) == 2
    assert "U050" in (heard := " ".join(capsys.readouterr().err.split())) and "cannot be read" in heard
    (out / "recipe.json").write_text(before)

    frame = pd.read_csv(path).drop(columns="diagnosis").head(20)
    frame.drop(columns="site").to_csv(tmp_path / "less.csv", index=False)
    assert run(monkeypatch, "predict", str(artifact), str(tmp_path / "less.csv"), "--out", str(tmp_path / "answers.csv")) == 2
    assert "U047 there is no column 'site'; there is: mean_area" in " ".join(capsys.readouterr().err.split())
    frame.to_csv(tmp_path / "new.csv", index=False)
    answers = tmp_path / "answers.csv"
    assert run(monkeypatch, "predict", str(artifact), str(tmp_path / "new.csv"), "--out", str(answers)) == 0
    with answers.open() as file:
        read = list(csv.DictReader(file))
    assert len(read) == 20
    assert {row["prediction"] for row in read} <= {"benign", "malignant"}


def test_further_seeds_go_on_where_those_before_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = table(tmp_path, rows=400), tmp_path / "run"
    said = ["distill", "--teacher", "train:forest", "--data", str(path), "--label", "diagnosis", "--student", "tree", "--out", str(out)]
    said += ["--set", "measure.latency=false"]
    assert run(monkeypatch, *said, "--set", "seeds=[4]") == 0
    before = {file: file.stat().st_mtime_ns for file in (out / "seed-4").rglob("*") if file.is_file()}
    kept = json.loads((out / "recipe.json").read_text())
    del kept["rows"]["take"]  # as a version wrote it that had no such option
    (out / "recipe.json").write_text(json.dumps(kept))
    assert before and run(monkeypatch, *said, "--set", "seeds=[4, 5]") == 0
    assert before == {file: file.stat().st_mtime_ns for file in (out / "seed-4").rglob("*") if file.is_file()}
    card = json.loads((out / "scorecard.json").read_text())
    assert card["about"]["seeds"] == [4, 5] and card["verdict"]["seeds"] == 2
    capsys.readouterr()
    assert run(monkeypatch, *said, "--set", "seeds=[5, 4]") == 2
    assert "seeds was [4, 5], now [5, 4]" in " ".join(capsys.readouterr().err.split())


def test_a_teacher_of_another_normalisation_is_stopped_and_told_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    pictures = np.clip(rng.normal(np.array([60, 125, 190])[labels][:, None, None, None], 30, (300, 6, 6, 3)), 0, 255).astype(np.uint8)
    np.savez(tmp_path / "pictures.npz", images=pictures, labels=labels)
    (tmp_path / "by_light.py").write_text(
        "import torch\n\n\nclass ByLight(torch.nn.Module):\n"
        '    """Dark, grey or bright: it knows pixels from -1 to 1."""\n\n'
        "    def __init__(self):\n        super().__init__()\n        self.middle = torch.nn.Parameter(torch.tensor([-0.5, 0.0, 0.5]))\n\n"
        "    def forward(self, pixels):\n        return -20 * (pixels.mean((1, 2, 3))[:, None] - self.middle) ** 2\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    said = ["check", "--teacher", "by_light:ByLight", "--data", str(tmp_path / "pictures.npz"), "--student", "convnet"]
    said += ["--set", "teacher.weights=factory", "--set", "teacher.classes=['0', '1', '2']", "--set", "data.overlap=drop"]
    assert run(monkeypatch, *said, "--out", str(tmp_path / "wrong"), "--set", "teacher.expect=0.9") == 2
    heard = " ".join(capsys.readouterr().err.split())
    assert "U241" in heard and "U247 with teacher.mean = [0.5] and teacher.std = [0.5] the teacher's accuracy" in heard
    assert run(monkeypatch, *said, "--out", str(tmp_path / "right"), "--set", "teacher.mean=[0.5]", "--set", "teacher.std=[0.5]") == 0


def test_unmet_requirement_is_exit_status_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path, rows=400)
    out = tmp_path / "run"
    said = ["distill", "--teacher", "train:forest", "--data", str(path), "--label", "diagnosis", "--student", "tree", "--out", str(out)]
    said += ["--set", "measure.latency=false"]
    assert run(monkeypatch, *said, "--require", "accuracy>=0.5") == 0
    assert run(monkeypatch, *said, "--require", "agreement>=1.01") == 1
    captured = capsys.readouterr()
    assert "not met" in captured.out and "agreement" in captured.err
    assert run(monkeypatch, *said, "--require", "agrement>=0.5") == 2
    assert "did you mean 'agreement'" in capsys.readouterr().err


def test_recipe_refused_by_the_checks_can_be_mended_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, rows=400)
    said = ["distill", "--teacher", "train:forest", "--data", str(path), "--label", "diagnosis", "--student", "tree"]
    said += ["--out", str(tmp_path / "run"), "--set", "measure.latency=false"]
    assert run(monkeypatch, *said, "--set", "objective.alpha=0.0") == 2
    assert "error" in capsys.readouterr().err
    assert run(monkeypatch, *said) == 0


def test_regression(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_diabetes(as_frame=True)
    data.frame.to_csv(tmp_path / "diabetes.csv", index=False)
    joblib.dump(RandomForestRegressor(60, random_state=0).fit(data.data.iloc[:250], data.target.iloc[:250]), tmp_path / "forest.joblib")
    said = [
        "distill",
        "--teacher",
        str(tmp_path / "forest.joblib"),
        "--trust",
        "--data",
        str(tmp_path / "diabetes.csv"),
        "--label",
        "target",
    ]
    for student in ("tree", "mlp"):
        out = tmp_path / student
        assert (
            run(monkeypatch, *said, "--student", student, "--out", str(out), "--set", "train.epochs=40", "--set", "measure.latency=false")
            == 0
        )
        card = json.loads((out / "scorecard.json").read_text())
        assert card["task"]["kind"] == "regression"
        assert card["models"]["exported"]["quality"]["r2"]["mean"] > 0.0


def test_ensemble_of_a_forest_and_a_file_of_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path, rows=400)
    model = joblib.load(forest(tmp_path, path))
    frame = pd.read_csv(path, na_values=["?"])
    said = pd.DataFrame(model.predict_proba(frame.drop(columns="diagnosis"))[:, ::-1], columns=model.classes_[::-1])
    said.insert(0, "row", range(len(said)))
    said.to_csv(tmp_path / "said.csv", index=False)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        out = "{tmp_path / "run"}"
        [data]
        train = "{path}"
        label = "diagnosis"
        [[teacher.members]]
        source = "{tmp_path / "forest.joblib"}"
        trust = true
        [[teacher.members]]
        source = "{tmp_path / "said.csv"}"
        [student]
        model = "boosted"
        options = {{rounds = 10, leaves = 4}}
        [measure]
        latency = false
        """
    )
    assert run(monkeypatch, "distill", str(recipe)) == 0
    assert capsys.readouterr().out.count("matched by name") >= 2
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    assert card["models"]["exported"]["fidelity"]["agreement"]["mean"] > 0.85


def test_labels_may_be_missing_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = table(tmp_path)
    teacher = forest(tmp_path, path)
    pd.read_csv(path).drop(columns="diagnosis").to_csv(tmp_path / "plain.csv", index=False)
    out = tmp_path / "run"
    said = ["distill", "--teacher", str(teacher), "--trust", "--data", str(tmp_path / "plain.csv"), "--student", "tree", "--out", str(out)]
    said += ["--set", "measure.latency=false", "--set", 'data.classes=["benign","malignant"]']
    assert run(monkeypatch, *said) == 0
    card = json.loads((out / "scorecard.json").read_text())
    assert card["verdict"]["word"] == "UNKNOWN"
    assert card["models"]["student"]["fidelity"]["agreement"]["mean"] > 0.85


def test_images_with_views_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    digits = load_digits()
    for i in range(420):
        folder = tmp_path / "digits" / f"digit {digits.target[i]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[i] * 15.9).astype(np.uint8)).resize((12, 12)).save(folder / f"{i}.png")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f"""
        out = "{tmp_path / "run"}"
        [data]
        train = "{tmp_path / "digits"}"
        image_size = [12, 12]
        grey = true
        [teacher.train]
        model = "convnet"
        epochs = 12
        lr = 4e-3
        batch_size = 32
        options = {{width = 12, depth = 2}}
        [teaching]
        views = 3
        [student]
        model = "convnet"
        options = {{width = 6, depth = 2}}
        [train]
        epochs = 30
        lr = 8e-3
        batch_size = 32
        augment = {{shift = 1}}
        [measure]
        latency = false
        """
    )
    assert run(monkeypatch, "distill", str(recipe)) == 0
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    assert card["models"]["exported"]["quality"]["accuracy"]["mean"] > 0.5
    answers = tmp_path / "answers.csv"
    assert run(monkeypatch, "predict", str(tmp_path / "run" / "artifact"), str(tmp_path / "digits"), "--out", str(answers)) == 0
    frame = pd.read_csv(answers)
    assert len(frame) == 420
    assert np.mean(frame["prediction"] == [Path(name).parent.name for name in frame["row"]]) > 0.5


RECIPE = """
out = "{out}"
[data]
train = "sklearn.datasets:load_digits"
[teacher.train]
model = "mlp"
epochs = 4
options = {{hidden = [64], dropout = 0.2}}
[student]
model = "mlp"
options = {{hidden = [24], dropout = 0.1}}
[train]
epochs = 40
[measure]
latency = false
"""


def test_killed_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    """Killed with SIGKILL at three places and started again: same weights, same scorecard as a run left alone."""

    def command(out: Path) -> list[str]:
        recipe = tmp_path / f"{out.name}.toml"
        recipe.write_text(RECIPE.format(out=out))
        return [sys.executable, "-m", "understudy", "distill", str(recipe)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    subprocess.run(command(alone), check=True, env=environment, capture_output=True)
    for mark in ("teacher/metrics.jsonl", "transfer/training/manifest.json", "seed-0/student/metrics.jsonl"):
        process = subprocess.Popen(command(killed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ends = time.monotonic() + 120
        while not (killed / mark).exists() and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(killed), check=True, env=environment, capture_output=True)
    for name in ("seed-0/student", "seed-0/control"):
        one, other = ((folder / name / "model.safetensors").read_bytes() for folder in (alone, killed))
        assert one == other, name
    scores = [json.loads((folder / "scorecard.json").read_text())["models"]["exported"]["quality"] for folder in (alone, killed)]
    assert scores[0] == scores[1]
