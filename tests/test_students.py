"""Students: what they do to raw rows, how they are built, and that they come back from their folder as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import Tensor, nn
from torch.nn import functional

from understudy.data.encoding import TableEncoding
from understudy.errors import InputError, RecipeError
from understudy.students.convnet import convnet
from understudy.students.mlp import mlp
from understudy.students.preprocessing import (
    ImagePreprocessing,
    Rescale,
    TablePreprocessing,
    as_asked,
    assemble,
    fit_preprocessing,
    from_spec,
)
from understudy.students.student import FLOOR, Student, evaluating
from understudy.tasks import Task

TASK = Task("multiclass", ("bear", "cat", "dog"))
TABLE = pd.DataFrame(
    {"age": [1.0, 3.0, np.nan, 5.0], "city": ["Rome", "Oslo", None, "Rome"], "height": [2.0, 2.0, 2.0, 2.0]},
)


def exported(module: nn.Module, inputs: Tensor, folder: Path) -> np.ndarray[Any, Any]:
    """What ONNX Runtime answers for inputs of another number of rows than was exported."""
    rows = {0: torch.export.Dim("rows", min=1)}
    program = torch.onnx.export(module.eval(), (inputs[:2],), dynamo=True, dynamic_shapes=(rows,), verbose=False)
    assert program is not None
    program.save(str(folder / "model.onnx"))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return np.asarray(session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0])


# --- preprocessing --------------------------------------------------------------------------------------------------


def table(*, scale: bool) -> tuple[TableEncoding, Any]:
    encoding = TableEncoding.fit(TABLE, 64)
    return encoding, fit_preprocessing(encoding.encode(TABLE), "table", encoding, scale=scale, flatten=True)


def test_a_table_by_hand() -> None:
    encoding, prepared = table(scale=True)
    assert prepared.features == ["age", "height", "age (missing)", "city=Oslo", "city=Rome"]
    spread = np.std([1, 3, 3, 5])
    said = prepared(torch.from_numpy(encoding.encode(TABLE))).numpy()
    np.testing.assert_allclose(
        said,
        [[-2 / spread, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 0, 1, 0, 0], [2 / spread, 0, 0, 0, 1]],
        rtol=1e-6,
    )
    new = pd.DataFrame({"age": [1e9], "city": ["Paris"], "height": [np.nan]})
    assert prepared(torch.from_numpy(encoding.encode(new))).tolist() == [[10.0, 0.0, 0.0, 0.0, 0.0]]


def test_trees_read_numbers_as_they_are() -> None:
    encoding, prepared = table(scale=False)
    assert prepared(torch.from_numpy(encoding.encode(TABLE)))[:, 0].tolist() == [1.0, 3.0, 3.0, 5.0]
    numbers = TABLE[["height"]]
    plain = TableEncoding.fit(numbers, 64)
    alone = fit_preprocessing(plain.encode(numbers), "table", plain, scale=False, flatten=True)
    given = torch.from_numpy(plain.encode(numbers))
    assert alone(given) is given


@pytest.mark.parametrize("scale", [True, False])
def test_a_table_exports_to_onnx(tmp_path: Path, scale: bool) -> None:
    encoding, prepared = table(scale=scale)
    encoded = torch.from_numpy(encoding.encode(TABLE))
    module = assemble(prepared, mlp(5, 3, seed=0)).eval()
    np.testing.assert_allclose(exported(module, encoded, tmp_path), module(encoded).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_images_export_to_onnx_from_bytes(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (5, 9, 11, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    module = assemble(fit_preprocessing(images, "image", None, scale=True, flatten=False), convnet(3, 4, size=(9, 11), width=4, seed=0))
    expected = module.eval()(images).detach().numpy()
    np.testing.assert_allclose(exported(module, images, tmp_path), expected, rtol=1e-4, atol=1e-5)


def test_arrays_and_images_are_standardised_over_the_training_rows() -> None:
    draw = np.random.default_rng(0)
    rows = draw.normal(7.0, 3.0, (200, 4, 2)).astype(np.float32)
    rows[:, 0, 0] = 5.0
    flat = fit_preprocessing(rows, "array", None, scale=True, flatten=True)(torch.from_numpy(rows))
    assert flat.shape == (200, 8) and bool((flat[:, 0] == 0).all())
    torch.testing.assert_close(flat[:, 1:].std(0, correction=0), torch.ones(7))
    shaped = fit_preprocessing(rows, "array", None, scale=False, flatten=False)(torch.from_numpy(rows))
    assert torch.equal(shaped, torch.from_numpy(rows))

    images = draw.integers(0, 256, (1500, 5, 6, 3), dtype=np.uint8)
    prepared = fit_preprocessing(images, "image", None, scale=True, flatten=False)
    assert isinstance(prepared, ImagePreprocessing)
    said = prepared(torch.from_numpy(images))
    assert said.shape == (1500, 3, 5, 6) and said.dtype == torch.float32
    torch.testing.assert_close(said.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(said.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    raw = fit_preprocessing(images, "image", None, scale=False, flatten=True)(torch.from_numpy(images[:1]))
    assert raw.shape == (1, 90) and float(raw[0, 31]) == images[0, 0, 1, 1]


def test_a_preprocessing_comes_back_from_its_spec() -> None:
    encoding, prepared = table(scale=True)
    again = from_spec(json.loads(json.dumps(prepared.spec)))
    assert isinstance(again, TablePreprocessing) and again.features == prepared.features
    encoded = torch.from_numpy(encoding.encode(TABLE))
    assert torch.equal(again(encoded), prepared(encoded))


def test_a_regression_answers_in_its_unit() -> None:
    module = assemble(nn.Identity(), nn.Linear(2, 1), values=np.array([[100.0], [300.0], [np.nan]]))
    assert isinstance(module.rescale, Rescale)
    assert module.rescale(torch.tensor([[0.0], [1.0]])).tolist() == [[200.0], [300.0]]
    assert Rescale(3.0, 0.0)(torch.ones(1)).tolist() == [4.0]


# --- networks -------------------------------------------------------------------------------------------------------


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    for build in (lambda seed: mlp(6, 3, seed=seed), lambda seed: convnet(1, 3, size=(8, 8), width=4, seed=seed)):
        torch.rand(3)
        state = torch.get_rng_state()
        one = build(4)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(7)
        other, third = build(4), build(5)
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert not torch.equal(next(one.parameters()), next(third.parameters()))


def test_without_a_seed_the_global_generator_decides() -> None:
    torch.manual_seed(1)
    one = mlp(6, 3)
    torch.manual_seed(1)
    other = mlp(6, 3)
    assert torch.equal(one[0].weight, other[0].weight) and not torch.equal(one[0].weight, mlp(6, 3)[0].weight)


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 32), (3, 3), (1, 1)])
@pytest.mark.parametrize(
    "options", [{}, {"separable": True}, {"norm": "group"}, {"norm": "none", "dropout": 0.1}, {"depth": 5, "width": 2}]
)
def test_convnets_take_any_size(size: tuple[int, int], options: dict[str, Any]) -> None:
    module = convnet(3, 7, size=size, seed=0, **{"width": 8, **options}).eval()
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    said = module(images)
    assert said.shape == (2, 7) and bool(said.isfinite().all())
    torch.testing.assert_close(module(images[:1]), said[:1], rtol=1e-4, atol=1e-5)


def test_separable_convolutions_are_smaller() -> None:
    count = {kind: sum(w.numel() for w in convnet(3, 10, size=(32, 32), separable=kind, seed=0).parameters()) for kind in (True, False)}
    assert count[True] < count[False] / 4


def test_an_mlp_has_the_layers_it_was_asked_for() -> None:
    assert [type(layer).__name__ for layer in mlp(4, 2, hidden=[3], dropout=0.1, input_dropout=0.2, activation="gelu")] == [
        "Dropout",
        "Linear",
        "GELU",
        "Dropout",
        "Linear",
    ]
    assert [tuple(w.shape) for w in mlp(4, 2, hidden=[]).parameters()] == [(2, 4), (2,)]


# --- students -------------------------------------------------------------------------------------------------------


def network() -> Student:
    encoding, prepared = table(scale=True)
    return Student("mlp", TASK, encoding=encoding, module=assemble(prepared, mlp(5, 3, hidden=[4], dropout=0.5, seed=0)))


def test_a_network_answers_raw_rows_alone_or_together() -> None:
    student = network()
    assert student.module is not None
    student.module.train()
    whole, pieces = student.signals(TABLE)["logits"], student.signals(TABLE, batch_size=3)["logits"]
    assert whole.shape == (4, 3) and whole.dtype == torch.float32 and not whole.requires_grad
    torch.testing.assert_close(whole, pieces)
    assert all(part.training for part in student.module.modules())
    assert student.signals(TABLE.iloc[:0])["logits"].shape == (0, 3)
    assert student.parameters() == 5 * 4 + 4 + 4 * 3 + 3 and student.classes == TASK.classes


def test_evaluating_restores_each_part() -> None:
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    module[1].eval()
    with evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False]


def test_a_network_comes_back_from_its_folder(tmp_path: Path) -> None:
    student = network()
    student.save(tmp_path)
    fresh = network().module
    assert fresh is not None
    for weight in fresh.parameters():
        nn.init.zeros_(weight)
    again = Student.load(tmp_path, TASK, module=fresh)
    assert torch.equal(again.signals(TABLE)["logits"], student.signals(TABLE)["logits"])
    assert again.fingerprint() == student.fingerprint()
    with pytest.raises(InputError, match="U077 .* belong to another network"):
        Student.load(tmp_path, TASK, module=mlp(5, 3))
    with pytest.raises(InputError, match="is a network: build the same module"):
        Student.load(tmp_path, TASK)
    with pytest.raises(InputError, match="asked for"):
        Student.load(tmp_path, Task("regression"), module=fresh)
    with pytest.raises(InputError, match="there is no student.json"):
        Student.load(tmp_path / "nowhere", TASK)


def test_a_read_only_memory_map_is_read_in_place(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    student = Student("mlp", TASK, module=mlp(4, 3, seed=0))
    rows = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert student.encode(rows).data_ptr() == rows.ctypes.data
    assert student.signals(rows)["logits"].shape == (3, 3)


@pytest.mark.parametrize(
    "model", [DecisionTreeClassifier(max_depth=3), HistGradientBoostingClassifier(max_iter=3), RandomForestClassifier(3)]
)
@pytest.mark.parametrize("names", [True, False])
def test_an_estimator_answers_in_the_order_of_the_task_and_comes_back(tmp_path: Path, model: Any, names: bool) -> None:
    encoding, prepared = table(scale=False)
    frame = pd.concat([TABLE] * 15, ignore_index=True)
    student = Student("tree", TASK, encoding=encoding, preprocessing=prepared, estimator=model)
    features = student.features(student.encode(frame))
    assert features.dtype == np.float32 and features.shape == (60, 5)
    codes = np.tile([0, 2, 2, 0], 15)  # no row is a cat
    model.fit(features, np.array(TASK.classes)[codes] if names else codes)
    said = student.signals(frame)["logits"]
    assert said.dtype == torch.float32 and said.argmax(1).tolist() == codes.tolist()
    torch.testing.assert_close(said[:, 1], torch.full((60,), float(np.log(FLOOR))))
    torch.testing.assert_close(said.exp()[:, [0, 2]], torch.tensor(model.predict_proba(features), dtype=torch.float32), atol=2e-7, rtol=0)
    assert (student.parameters() or 0) > 0
    student.save(tmp_path)
    again = Student.load(tmp_path, TASK)
    assert torch.equal(again.signals(frame)["logits"], said) and again.parameters() == student.parameters()


def test_a_tree_regresses_in_the_unit_of_the_label() -> None:
    rows = np.arange(20, dtype=np.float32).reshape(10, 2)
    prepared = fit_preprocessing(rows, "array", None, scale=False, flatten=True)
    model = DecisionTreeRegressor().fit(rows, np.arange(10) * 100.0)
    said = Student("tree", Task("regression"), preprocessing=prepared, estimator=model).signals(rows)
    torch.testing.assert_close(said["values"], torch.arange(10).float()[:, None] * 100)


def test_a_multilabel_tree_gives_one_logit_per_class() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    labels = np.stack([rows[:, 0] > 3, np.zeros(8), np.ones(8)], axis=1).astype(int)
    prepared = fit_preprocessing(rows, "array", None, scale=False, flatten=True)
    model = DecisionTreeClassifier(max_depth=1).fit(rows, labels)
    said = Student("tree", Task("multilabel", ("a", "b", "c")), preprocessing=prepared, estimator=model).signals(rows)["logits"]
    torch.testing.assert_close(said.sigmoid(), torch.from_numpy(labels).float(), atol=2e-7, rtol=0)
    assert bool(said.isfinite().all())


def test_a_student_is_a_module_or_an_estimator() -> None:
    with pytest.raises(InputError, match="exactly one of the two"):
        Student("both", TASK, module=nn.Identity(), estimator=DecisionTreeClassifier())


# --- a picture of its own ---------------------------------------------------------------------------------------------


def test_a_student_resizes_and_normalises_inside_its_graph() -> None:
    """As torch resizes with averaging, smaller and larger, and normalised as it was asked for."""
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 10, 3), dtype=np.uint8)
    fitted = fit_preprocessing(images, "image", None, scale=True, flatten=False)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    for size in ([4, 5], [7, 3], [20, 16]):
        made = as_asked(fitted, {"image_size": size, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]})
        wanted = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True) / 255
        wanted = (wanted - torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1)) / torch.tensor([0.2, 0.25, 0.5]).view(1, 3, 1, 1)
        torch.testing.assert_close(made(torch.from_numpy(images)), wanted, rtol=1e-4, atol=1e-4)
        again = from_spec(made.spec)
        torch.testing.assert_close(again(torch.from_numpy(images)), made(torch.from_numpy(images)))
    flat = as_asked(fit_preprocessing(images, "image", None, scale=True, flatten=True), {"image_size": [4, 5]})
    assert flat(torch.from_numpy(images)).shape == (5, 60) and len(flat.features) == 60
    kept = as_asked(fitted, {"image_size": [12, 10]})
    torch.testing.assert_close(kept(torch.from_numpy(images)), fitted(torch.from_numpy(images)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"image_size": 16}, r"image_size = 16: height and width in pixels"),
        ({"mean": [0.5]}, r"mean = \[0.5\]: one number per channel, 3 here"),
        ({"std": [0.2, 0.2, 0]}, r"std = .*one number per channel"),
        ({"imagesize": [4, 4]}, r"no 'imagesize'; did you mean 'image_size'"),
    ],
)
def test_pictures_that_cannot_be_made(asked: dict[str, Any], told: str) -> None:
    fitted = fit_preprocessing(np.zeros((2, 4, 4, 3), dtype=np.uint8), "image", None, scale=True, flatten=False)
    with pytest.raises(RecipeError, match=f"U504 options.prepare.*{told}"):
        as_asked(fitted, asked)
