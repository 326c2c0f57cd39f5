"""Keras on its three backends, each in a process of its own, and Keras models among the teachers and students of a run."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_model, save_model
from sklearn.datasets import load_digits

from understudy import Objective, Task, check, distill, recipe
from understudy.adapters import _keras_models as models
from understudy.adapters import keras as adapter
from understudy.errors import InputError, TeacherError
from understudy.signals import Batch

# importing Keras here would choose its backend
if not all(map(importlib.util.find_spec, ("keras", "tensorflow", "jax"))):
    pytest.skip("needs keras, tensorflow and jax", allow_module_level=True)

DIGITS = Task("multiclass", tuple("0123456789"))
ROOT = Path(__file__).parents[1]
CASES = {"multiclass": Task("multiclass", tuple("abcd")), "multilabel": Task("multilabel", tuple("abc")), "regression": Task("regression")}


def case(kind: str) -> dict[str, np.ndarray]:
    """Six rows, one or two of them without a label."""
    random, outputs = np.random.default_rng(0), CASES[kind].outputs
    student, teacher = (3 * random.normal(size=(6, outputs)).astype(np.float32) for _ in range(2))
    if kind == "multiclass":
        labels = np.array([0, 1, -1, 3, 2, -1])
    else:
        labels = (random.random((6, outputs)) > 0.5).astype(np.float32)
        labels[2] = np.nan
    return {"student": student, "teacher": teacher, "labels": labels}


def defined(kind: str) -> float:
    """The same by the objective of this package, which test_objectives.py holds to its formula."""
    given, task = {name: torch.from_numpy(value) for name, value in case(kind).items()}, CASES[kind]
    labelled = torch.from_numpy(task.labelled(case(kind)["labels"]))
    batch = Batch(given["student"], given["labels"], labelled, {task.signal: given["teacher"]})
    return float(Objective.soft_labels(alpha=0.3, temperature=2.0, task=task)({task.signal: given["student"]}, batch)[0])


def process(backend: str, folder: Path, *steps: str) -> dict[str, Any]:
    """What keras_process.py says on this backend."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "keras_process.py"), str(folder), *steps],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert said["backend"] == backend
    return said


def cases_in(folder: Path) -> Path:
    for kind in CASES:
        np.savez(folder / f"{kind}.npz", **case(kind))
    return folder


def check_losses(said: dict[str, Any]) -> None:
    for kind, value in said["loss"].items():
        assert value == pytest.approx(defined(kind), rel=1e-5), kind


@pytest.mark.slow
def test_tensorflow_from_a_teacher_to_a_scorecard(tmp_path: Path) -> None:
    said = process("tensorflow", cases_in(tmp_path), "loss", "fit", "check", "saved")
    check_losses(said)
    assert said["saved"]["same"]
    assert said["saved"]["problems"] == []
    assert said["saved"]["parameters"] == 64 * 8 + 8 + 8 * 10 + 10
    trust, scale, signature = said["saved"]["told"]
    assert trust.startswith("U013") and "is a SavedModel, which is a program" in trust
    assert scale.startswith("U443") and "a SavedModel does not say on which scale" in scale
    assert signature.startswith("U442") and "has no signature 'serving'; there is: " in signature
    assert said["check"] == []
    fit = said["fit"]
    assert fit["same"]
    assert fit["teacher"] > 0.85
    assert fit["student"] > 0.75  # by the teacher's signal alone; chance is 0.1
    assert fit["card"] == pytest.approx(fit["student"], abs=1e-6)
    assert fit["metric"] == pytest.approx(fit["train"], abs=0.05)  # the mean over the last epoch beside its end
    assert fit["files"] == pytest.approx({"onnx": fit["student"], "tflite": fit["student"]}, abs=0.01)
    assert fit["rows"] > 1390
    assert fit["parameters"] == 64 * 64 + 64 + 64 * 10 + 10
    assert {"weights", "preparation", "keras", "output"} <= set(fit["fingerprint"])
    assert json.loads((tmp_path / "scorecard.json").read_text())["models"]["control"]


@pytest.mark.slow
def test_jax_and_its_files(tmp_path: Path) -> None:
    said = process("jax", cases_in(tmp_path), "loss", "files")
    check_losses(said)
    model = said["files"].pop("model")
    assert model > 0.85
    assert said["files"] == pytest.approx({"onnx": model, "tflite": model}, abs=0.01)


@pytest.mark.slow
def test_the_teachers_signal_alone_teaches_where_the_stock_default_stays_at_chance(tmp_path: Path) -> None:
    said = process("torch", cases_in(tmp_path), "loss", "alone", "stock")
    check_losses(said)
    assert said["alone"]["accuracy"] > 0.75
    assert said["stock"] < 0.2  # it takes raw logits for probabilities, and has no gradient
    assert said["alone"]["loss"] == [1.0, 3.0]  # a compiled student comes back with its loss


@pytest.mark.slow
def test_the_textbook_example_runs(tmp_path: Path) -> None:
    """ResNet50 and MobileNetV2 at 32 x 32 with random weights, on torch: TensorFlow takes a minute to trace them."""
    example = ROOT / "docs" / "keras_example.py"
    assert len(example.read_text().splitlines()) <= 40
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "photos.npz", images=pixels, labels=np.arange(20) % 3)
    environment = {**os.environ, "KERAS_BACKEND": "torch", "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(example), "photos.npz", "1"], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "'tflite':" in done.stdout
    card = json.loads((tmp_path / "runs" / "keras_example" / "scorecard.json").read_text())
    assert set(card["models"]) == {"teacher", "control", "student"}


# --- Keras on the torch backend, in this process ---------------------------------------------------------------------


@pytest.fixture
def keras() -> Any:
    """Keras on torch, unless this session began with another backend."""
    found = models.keras_package()
    if found.backend.backend() != "torch":
        pytest.skip(f"this process has Keras on {found.backend.backend()}")
    return found


def network(keras: Any, *, activation: str | None = None, width: int = 16, scaled: bool = True) -> Any:
    layers = keras.layers
    inside = [keras.Input((8, 8, 1)), *([layers.Rescaling(1 / 255)] if scaled else []), layers.Flatten()]
    return keras.Sequential([*inside, layers.Dense(width, activation="relu"), layers.Dense(10, activation=activation)])


def test_what_a_model_ends_in(keras: Any) -> None:
    layers = keras.layers
    assert models.ending(network(keras)) == "linear"
    assert models.ending(network(keras, activation="softmax")) == "softmax"
    inputs = keras.Input((4,))
    assert models.ending(keras.Model(inputs, layers.Softmax()(layers.Dense(3)(inputs)))) == "softmax"
    assert models.ending(keras.Model(inputs, layers.Activation("sigmoid")(layers.Dense(3)(inputs)))) == "sigmoid"
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="softmax")])
    assert models.ending(keras.Sequential([keras.Input((4,)), inner])) == "softmax"
    assert models.ending(keras.Model(inputs, layers.Reshape((3,))(layers.Dense(3, activation="softmax")(inputs)))) == "softmax"


def test_probabilities_are_seen_and_a_wrong_word_is_refused(keras: Any) -> None:
    soft, plain = network(keras, activation="softmax"), network(keras)
    pixels = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 1), dtype=np.uint8)
    said = adapter.KerasTeacher.from_model(soft, task=DIGITS).signals(pixels)["logits"]
    expected = np.log(np.asarray(soft.predict_on_batch(pixels.astype(np.float32))))
    np.testing.assert_allclose(said.numpy(), expected, atol=1e-4)
    with pytest.raises(
        TeacherError, match=r"U440 teacher.output = 'logits', but .* ends in softmax: .* Say teacher.output = 'probabilities'"
    ):
        adapter.KerasTeacher.from_model(soft, task=DIGITS, output="logits")
    with pytest.raises(TeacherError, match="U440 teacher.output = 'probabilities', but .* without softmax"):
        adapter.KerasTeacher.from_model(plain, task=DIGITS, output="probabilities")
    with pytest.raises(InputError, match="U441 student .* ends in softmax, and the losses expect logits"):
        adapter.SoftLabels(0.5, 2.0, student=soft)
    with pytest.raises(InputError, match="U441"):
        models.as_network(soft)
    with pytest.raises(InputError, match="U440 the teacher's answers are probabilities"):
        adapter.together([0, 1], [[0.2, 0.8], [0.5, 0.5]])
    with pytest.raises(InputError, match=r"U445 labels of shape \[2, 2\]"):
        adapter.together([[0, 1], [1, 0]], [[0.2, 2.8], [0.5, 0.5]])
    with pytest.raises(InputError, match=r"U445 y_true has 3 columns, a multiclass student of 3 outputs needs 1 .* and 3"):
        adapter.SoftLabels()(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(InputError, match="U032 alpha must lie between 0 and 1"):
        adapter.SoftLabels(alpha=2)


def test_published_weights_without_a_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    task = Task("multiclass", tuple(map(str, range(1000))))
    told = r"U015 the published weights of MobileNetV3Small cannot be had \(.*\). Without network: a .keras file as source"
    with pytest.raises(TeacherError, match=told):
        adapter.load("keras:MobileNetV3Small", task=task, pretrained=True, image_size=(32, 32))


def test_models_of_another_shape_are_refused(keras: Any) -> None:
    layers, rows = keras.layers, np.zeros((4, 8, 8, 1), dtype=np.uint8)
    flat = keras.Sequential([keras.Input((64,), name="flat"), layers.Dense(10)])
    with pytest.raises(TeacherError, match=r"U452 .* reads rows of shape \[64\], these are \[8, 8, 1\]"):
        adapter.KerasTeacher.from_model(flat, task=DIGITS).signals(rows)
    first = keras.Sequential([keras.Input((1, 8, 8)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10)])
    with pytest.raises(TeacherError, match=r"U452 the model reads 8 channels, counted last.*Permute\(\(3, 1, 2\)\)"):
        adapter.KerasTeacher.from_model(first, task=DIGITS).signals(rows)
    right = keras.Sequential([keras.Input((8, 8, 1)), layers.Permute((3, 1, 2)), *first.layers])  # the fix that is named
    assert adapter.KerasTeacher.from_model(right, task=DIGITS).signals(rows)["logits"].shape == (4, 10)
    one, other = keras.Input((4,), name="one"), keras.Input((4,), name="other")
    both = keras.Model([one, other], layers.Dense(10, name="said")(layers.Concatenate()([one, other])))
    with pytest.raises(TeacherError, match=r"U452 .* has 2 inputs \(one, other\), a teacher has one"):
        adapter.KerasTeacher.from_model(both, task=DIGITS)
    two = keras.Model(one, [layers.Dense(10)(one), layers.Dense(3)(one)])
    with pytest.raises(TeacherError, match="U452 .* has 2 outputs .*, a teacher has one"):
        adapter.KerasTeacher.from_model(two, task=DIGITS)


def test_the_scale_of_pixels_is_never_guessed(keras: Any, tmp_path: Path) -> None:
    bare = network(keras, scaled=False)
    with pytest.raises(TeacherError, match="U443 .* does not say on which scale: it has no Rescaling"):
        adapter.KerasTeacher.from_model(bare, task=DIGITS)
    pixels = np.full((2, 8, 8, 1), 255, dtype=np.uint8)
    unit = adapter.KerasTeacher.from_model(bare, task=DIGITS, scale="unit").signals(pixels)["logits"]
    np.testing.assert_allclose(unit.numpy(), np.asarray(bare.predict_on_batch(np.ones((2, 8, 8, 1), np.float32))), atol=1e-5)
    with pytest.raises(TeacherError, match="U443 teacher.options.scale = 'unitt': did you mean 'unit'"):
        adapter.KerasTeacher.from_model(bare, task=DIGITS, scale="unitt")
    caffe = models.KerasPreparation(scale="ResNet50", channels=3)(np.zeros((1, 2, 2, 3), np.uint8))
    np.testing.assert_allclose(caffe[0, 0, 0], [-103.939, -116.779, -123.68], atol=1e-3)
    (tmp_path / "broken.keras").write_bytes(b"no")
    with pytest.raises(TeacherError, match="U442 .*broken.keras cannot be read by Keras"):
        adapter.load(str(tmp_path / "broken.keras"), task=DIGITS)
    with pytest.raises(TeacherError, match="U442 keras.applications has no 'ResNet5'; did you mean 'ResNet50'"):
        adapter.load("keras:ResNet5", task=DIGITS, weights="x")
    with pytest.raises(TeacherError, match="U014 keras:ResNet50 has no weights"):
        adapter.load("keras:ResNet50", task=DIGITS)
    lambdas = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: x * 2), keras.layers.Dense(10)])
    lambdas.save(tmp_path / "lambda.keras")
    with pytest.raises(TeacherError, match="U013 .* holds code"):
        adapter.load(str(tmp_path / "lambda.keras"), task=DIGITS)


def test_weights_keep_their_places_whatever_layers_are_called(keras: Any, tmp_path: Path) -> None:
    first, second = (models.as_network(network(keras)) for _ in range(2))  # `dense` and `dense_2` inside
    rows = torch.rand(3, 1, 8, 8) * 255
    assert not torch.allclose(first(rows), second(rows))
    save_model(first, str(tmp_path / "student.safetensors"))
    load_model(second, str(tmp_path / "student.safetensors"), strict=True)
    torch.testing.assert_close(first(rows), second(rows))
    torch.testing.assert_close(copy.deepcopy(first)(rows), first(rows))


FACTORY = """
import keras


def build(width=12):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((8, 8, 1)), layers.Conv2D(width, 3, activation="relu"), layers.BatchNormalization(), layers.Dropout(0.1),
        layers.Flatten(), layers.Dense(10),
    ])


def soft():
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")])


def unbuilt():
    return keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)])
"""


@pytest.mark.slow
def test_a_run_from_a_keras_teacher_to_a_keras_student(keras: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    pixels = (digits.images[..., None] * 15).astype(np.uint8)
    np.savez("digits.npz", images=pixels, labels=digits.target)
    teacher = network(keras, activation="softmax", width=64)
    teacher.compile("adam", "sparse_categorical_crossentropy")
    teacher.fit(pixels[:1200].astype(np.float32), digits.target[:1200], epochs=6, verbose=0)
    teacher.save("teacher.keras")
    Path("keras_students_for_a_test.py").write_text(FACTORY)
    said: dict[str, Any] = {
        "out": "run",
        "data": {"train": "digits.npz", "kind": "image"},
        "teacher": {"source": "teacher.keras"},
        "student": {"model": "keras_students_for_a_test:build"},
        "objective": {"alpha": 0.9, "temperature": 2.0},
        "train": {"epochs": 3, "lr": 0.01, "batch_size": 64, "device": "cpu"},
        "measure": {"latency": False},
    }
    card = distill(recipe.parse(said), console=Console(quiet=True))
    models_said = card["models"]
    assert models_said["teacher"]["quality"]["accuracy"]["mean"] > 0.8
    assert models_said["student"]["quality"]["accuracy"]["mean"] > 0.7
    assert models_said["exported"]["quality"]["accuracy"]["mean"] == pytest.approx(
        models_said["student"]["quality"]["accuracy"]["mean"], abs=0.01
    )
    assert (tmp_path / "run" / "artifact" / "model.onnx").exists()
    for factory, words in {"soft": "U441 student .* ends in softmax", "unbuilt": "U444 .* has no weights yet"}.items():
        with pytest.raises(InputError, match=words):
            check(recipe.parse(said | {"out": f"run-{factory}", "student": {"model": f"keras_students_for_a_test:{factory}"}}))


def test_a_run_continues_with_its_keras_student(keras: Any) -> None:
    """A student is built anew from its place when a run goes on; the same seed gives the same weights."""
    with models.seeded(3):
        first = network(keras).get_weights()
    before = random.getstate()
    with models.seeded(3):
        second = network(keras).get_weights()
    assert random.getstate() == before
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
