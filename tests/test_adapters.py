"""Foreign teachers answer as their own framework does, and what cannot be trusted or matched is refused with its fix."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from understudy.adapters import boosters, callables, predictions, timm_models, torch_module
from understudy.adapters import sklearn as estimators
from understudy.adapters._loading import RawPreparation
from understudy.checks.teachers import check_teacher
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.errors import MissingExtraError, TeacherError
from understudy.tasks import Task
from understudy.teachers import FakeTeacher, Matched

torch.set_num_threads(1)
TWO = Task("binary", ("0", "1"))
THREE = Task("multiclass", ("a", "b", "c"))
VALUES = Task("regression")
MANY = Task("multilabel", ("u", "v"))


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {"x": generator.normal(size=120), "colour": generator.choice(["red", "green", "blue"], 120), "n": generator.integers(0, 5, 120)}
    )


@pytest.fixture(scope="module")
def target(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    return ((frame.x > 0) ^ (frame.colour == "red")).astype(np.int64).to_numpy()


def save_pickle(path: Path, held: Any) -> Path:
    path.write_bytes(pickle.dumps(held))
    return path


def logistic(inputs: Any, labels: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(inputs, labels)


# scikit-learn


def test_a_pickle_needs_trust(tmp_path: Path, frame: pd.DataFrame, target: Any) -> None:
    path = save_pickle(tmp_path / "t.joblib", logistic(frame[["x", "n"]], target))
    with pytest.raises(TeacherError, match=r"U013 .*can execute code when loaded; if you made it yourself: --trust / teacher.trust = true"):
        estimators.load(path, task=TWO)
    teacher = estimators.load(path, task=TWO, trust=True)
    assert teacher.classes == ("0", "1") and check_teacher(teacher, frame) == []
    want = logistic(frame[["x", "n"]], target).predict_proba(frame[["x", "n"]])
    np.testing.assert_allclose(teacher.signals(frame)["logits"].softmax(1), want, atol=1e-6)
    assert teacher.parameters() == 3 and not teacher.self_scoring


def test_skops_needs_trust_only_for_unknown_types(tmp_path: Path, frame: pd.DataFrame, target: Any) -> None:
    skops = pytest.importorskip("skops.io")
    skops.dump(logistic(frame[["x"]], target), tmp_path / "t.skops")
    assert estimators.load(tmp_path / "t.skops", task=TWO).classes == ("0", "1")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    skops.dump(make_pipeline(FunctionTransformer(RawPreparation), logistic(frame[["x"]], target)), tmp_path / "u.skops")
    with pytest.raises(TeacherError, match=r"U013 .*not known to be safe: .*RawPreparation"):
        estimators.load(tmp_path / "u.skops", task=TWO)


def test_files_that_are_not_teachers_are_refused(tmp_path: Path, frame: pd.DataFrame, target: Any) -> None:
    from sklearn.linear_model import LinearRegression, LogisticRegression

    save_pickle(tmp_path / "teacher.joblib", {})
    with pytest.raises(TeacherError, match=r"U029 no file .*teecher.joblib; did you mean 'teacher.joblib'"):
        estimators.load(tmp_path / "teecher.joblib", task=TWO, trust=True)
    for held, said in (
        ({"a": 1}, "U032 the file holds a dict"),
        (LogisticRegression(), "U032 LogisticRegression is not fitted"),
        (LinearRegression().fit(frame[["x"]], target), "U032 LinearRegression gives no class scores"),
    ):
        with pytest.raises(TeacherError, match=said):
            estimators.load(save_pickle(tmp_path / "t.pkl", held), task=TWO, trust=True)
    with pytest.raises(TeacherError, match=r"U032 LogisticRegression is a classifier, the task is regression"):
        estimators.SklearnTeacher(logistic(frame[["x"]], target), task=VALUES)
    (tmp_path / "t.pkl").write_bytes(b"nothing of the kind")
    with pytest.raises(TeacherError, match=r"U032 .* cannot be read"):
        estimators.load(tmp_path / "t.pkl", task=TWO, trust=True)


def test_another_version_is_an_error_and_no_stray_warning(tmp_path: Path, frame: pd.DataFrame, target: Any) -> None:
    import sklearn

    state = pickle.dumps(logistic(frame[["x"]], target))
    version = sklearn.__version__.encode()
    (tmp_path / "old.pkl").write_bytes(state.replace(version, b"0" + version[1:]))
    with pytest.raises(TeacherError, match=r"U032 .*Trying to unpickle estimator.*Install the version it was saved with"):
        estimators.load(tmp_path / "old.pkl", task=TWO, trust=True)


def test_columns_are_found_by_name(frame: pd.DataFrame, target: Any) -> None:
    teacher = estimators.SklearnTeacher(logistic(frame[["x", "n"]], target), task=TWO)
    torch.testing.assert_close(teacher.signals(frame[["n", "colour", "x"]]), teacher.signals(frame))
    with pytest.raises(TeacherError, match=r"U031 the teacher was fitted with column 'n' .* did you mean 'nn'"):
        teacher.signals(frame.rename(columns={"n": "nn"}))
    unnamed = estimators.SklearnTeacher(logistic(frame[["x", "n"]].to_numpy(), target), task=TWO)
    torch.testing.assert_close(unnamed.signals(frame[["x", "n"]])["logits"], teacher.signals(frame)["logits"], atol=1e-4, rtol=1e-4)
    with pytest.raises(TeacherError, match=r"U031 the teacher was fitted on 2 columns, the data has 3"):
        unnamed.signals(frame)


def test_classes_are_text_and_margins_are_logits(frame: pd.DataFrame, target: Any) -> None:
    from sklearn.svm import LinearSVC

    margin = LinearSVC().fit(frame[["x", "n"]], target * 2.0 + 1)
    teacher = estimators.SklearnTeacher(margin, task=Task("binary", ("1", "3")))
    assert teacher.classes == ("1", "3")
    logits = teacher.signals(frame)["logits"]
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], margin.decision_function(frame[["x", "n"]]), rtol=1e-5)


@pytest.mark.parametrize("kind", ["forest", "boosted"])
@pytest.mark.parametrize("task", [TWO, VALUES, MANY], ids=lambda task: task.kind)
def test_teachers_trained_here(frame: pd.DataFrame, target: Any, kind: Any, task: Task) -> None:
    generator = np.random.default_rng(0)
    labels = {
        "binary": target,
        "regression": frame[["x"]].to_numpy(np.float32),
        "multilabel": generator.integers(0, 2, (120, 2)).astype(np.float32),
    }[task.kind]
    table = frame.assign(x=frame.x.where(frame.n > 0), colour=frame.colour.where(frame.n < 4))
    options = {"n_estimators": 4, "n_jobs": 1} if kind == "forest" else {"max_iter": 4}
    teacher = estimators.train_estimator(kind, table, labels, task, options=options)
    said = teacher.signals(table.assign(colour="unseen"))[task.signal]
    assert said.shape == (120, task.outputs) and bool(said.isfinite().all())
    assert check_teacher(teacher, table) == [] and teacher.self_scoring
    again = teacher.refit(table.iloc[:100], labels[:100])
    assert again.signals(table)[task.signal].shape == (120, task.outputs)
    assert (teacher.parameters() or 0) > 0


def test_a_trained_teacher_is_kept(tmp_path: Path, frame: pd.DataFrame, target: Any) -> None:
    made = estimators.train_estimator("forest", frame, target, TWO, options={"n_estimators": 3, "n_jobs": 1})
    estimators.save(made, tmp_path / "new" / "forest.joblib")
    kept = estimators.load(tmp_path / "new" / "forest.joblib", task=TWO, trust=True)
    torch.testing.assert_close(kept.signals(frame), made.signals(frame), rtol=0, atol=0)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["forest.joblib"]


def test_images_are_flattened_and_bad_options_are_refused() -> None:
    images = np.random.default_rng(0).integers(0, 255, (30, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(30) % 3
    teacher = estimators.train_estimator("forest", images, labels, THREE, options={"n_estimators": 3, "n_jobs": 1})
    assert teacher.signals(images)["logits"].shape == (30, 3)
    with pytest.raises(TeacherError, match=r"U032 the teacher 'forest' cannot be trained: .*trees"):
        estimators.train_estimator("forest", images, labels, THREE, options={"trees": 3})


def test_refit_understands_the_matched_order(frame: pd.DataFrame) -> None:
    frame = frame[["x"]]
    words = np.where(frame.x > 0.5, "a", np.where(frame.x > -0.5, "c", "b"))
    task = Task("multiclass", ("c", "a", "b"))
    teacher = Matched(estimators.SklearnTeacher(logistic(frame, words), task=task), (2, 0, 1), task=task)
    labels = np.array([task.classes.index(word) for word in words])
    torch.testing.assert_close(teacher.refit(frame, labels).signals(frame), teacher.signals(frame), atol=1e-4, rtol=1e-4)


def test_self_scoring_looks_inside() -> None:
    from sklearn.ensemble import RandomForestClassifier, VotingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert estimators.is_self_scoring(make_pipeline(StandardScaler(), KNeighborsClassifier()))
    assert estimators.is_self_scoring(GridSearchCV(RandomForestClassifier(), {}))
    assert estimators.is_self_scoring(VotingClassifier([("a", LogisticRegression()), ("b", RandomForestClassifier())]))
    assert not estimators.is_self_scoring(make_pipeline(StandardScaler(), LogisticRegression()))


# boosters


@pytest.mark.parametrize("ending", ["json", "ubj"])
def test_xgboost_files(tmp_path: Path, frame: pd.DataFrame, target: Any, ending: str) -> None:
    xgboost = pytest.importorskip("xgboost")
    table = frame.assign(colour=frame.colour.astype("category"))
    model = xgboost.XGBClassifier(n_estimators=5, enable_categorical=True, n_jobs=1).fit(table, target)
    model.save_model(tmp_path / f"t.{ending}")
    teacher = boosters.load(tmp_path / f"t.{ending}", task=TWO)
    # One colour alone has other category codes: the levels in the file must count.
    for part in (frame, frame[frame.colour == "red"], frame.iloc[:1][["n", "colour", "x"]]):
        np.testing.assert_allclose(teacher.signals(part)["logits"].softmax(1), model.predict_proba(table)[part.index], atol=1e-5)
    with pytest.raises(TeacherError, match=r"U031 the teacher was fitted with column 'n', which the data lacks"):
        teacher.signals(frame.drop(columns="n"))
    with pytest.raises(TeacherError, match=r"U032 .* was trained with objective 'binary:logistic', the task is regression"):
        boosters.load(tmp_path / f"t.{ending}", task=VALUES)


def test_lightgbm_files(tmp_path: Path, frame: pd.DataFrame, target: Any) -> None:
    lightgbm = pytest.importorskip("lightgbm")
    table = frame.assign(colour=frame.colour.astype("category"))
    model = lightgbm.LGBMClassifier(n_estimators=5, n_jobs=1, verbose=-1, min_child_samples=5).fit(table, target)
    model.booster_.save_model(tmp_path / "t.txt")
    teacher = boosters.load(tmp_path / "t.txt", task=TWO)
    for part in (frame, frame[frame.colour == "red"], frame.iloc[:1][["n", "colour", "x"]]):
        np.testing.assert_allclose(teacher.signals(part)["logits"].softmax(1), model.predict_proba(table)[part.index], atol=1e-6)
    (tmp_path / "bad.txt").write_text("no model")
    with pytest.raises(TeacherError, match=r"U032 .*bad.txt is no LightGBM model"):
        boosters.load(tmp_path / "bad.txt", task=TWO)


def test_a_missing_package_says_which_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(MissingExtraError, match=r"U001 .*'xgboost'.*pip install 'understudy\[boosters\]'"):
        boosters.load(tmp_path / "t.json", task=TWO)


# torch modules, timm, functions

FACTORIES = """
from torch import nn
def small(width=4):
    return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3))
def softened():
    return nn.Sequential(small(), nn.Softmax(dim=1))
def number():
    return 3
def answer(inputs):
    return inputs[:, :3]
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"my_models_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("ending", ["safetensors", "pt", "nested.pth"])
def test_a_factory_and_its_weights(place: str, tmp_path: Path, ending: str) -> None:
    from safetensors.torch import save_file

    module = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    path = tmp_path / f"w.{ending}"
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    if ending == "safetensors":
        save_file(module.state_dict(), path)
    else:
        torch.save({"state_dict": state} if ending.startswith("nested") else module.state_dict(), path)
    inputs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    teacher = torch_module.load(f"{place}:small", task=THREE, weights=str(path), options={"width": 6})
    torch.testing.assert_close(teacher.signals(inputs)["logits"], module(torch.from_numpy(inputs)).detach())
    assert check_teacher(teacher, inputs) == []
    with pytest.raises(
        TeacherError, match=r"U014 .*does not fit Sequential; other shapes: 0.weight is \(6, 4\) in the file, \(4, 4\) in the module"
    ):
        torch_module.load(f"{place}:small", task=THREE, weights=str(path))


def test_weights_that_are_none_or_do_not_fit_are_refused(place: str, tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"U014 .* has no weights: its answers would be random"):
        torch_module.load(f"{place}:small", task=THREE, weights=None)
    assert torch_module.load(f"{place}:small", task=THREE, weights="factory").parameters() == 35
    torch.save({"0.weight": torch.ones(4, 4), "head": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"missing in the file: 0.bias, 1.weight, 1.bias; not in the module: head"):
        torch_module.load(f"{place}:small", task=THREE, weights=str(tmp_path / "w.pt"))
    zero = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    torch.save({name: value * 0 for name, value in zero.state_dict().items()}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"U014 .*2 of 2 weight matrices are all zero"):
        torch_module.load(f"{place}:small", task=THREE, weights=str(tmp_path / "w.pt"))
    torch.save(zero, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"U013 .*a whole pickled module.*save_file"):
        torch_module.load(f"{place}:small", task=THREE, weights=str(tmp_path / "w.pt"))


def test_places_that_are_wrong_are_refused(place: str) -> None:
    for asked, said in (
        ("small", "is not a place; write package.module:name"),
        ("no_such_module:small", "cannot import 'no_such_module'"),
        (f"{place}:smal", "did you mean 'small'"),
        (f"{place}:number", "gives a int, not a torch module"),
    ):
        with pytest.raises(TeacherError, match=rf"U030 .*{said}"):
            torch_module.load(asked, task=THREE, weights="factory")
    with pytest.raises(TeacherError, match=r"U030 .*cannot be called with options .'depth'."):
        torch_module.load(f"{place}:small", task=THREE, weights="factory", options={"depth": 2})


def test_a_softmax_at_the_end_is_seen(place: str) -> None:
    inputs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    said = torch_module.load(f"{place}:softened", task=THREE, weights="factory").signals(inputs)["logits"]
    torch.testing.assert_close(said.exp().sum(1), torch.ones(9))
    with pytest.raises(TeacherError, match=r"U004 teacher output is already probabilities"):
        torch_module.load(f"{place}:softened", task=THREE, weights="factory", output="logits").signals(inputs)


def test_functions(place: str) -> None:
    inputs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    teacher = callables.load(f"{place}:answer", task=THREE)
    torch.testing.assert_close(teacher.signals(inputs)["logits"], torch.from_numpy(inputs[:, :3]))
    assert place in teacher.fingerprint()["code"]


def test_images_are_prepared() -> None:
    images = np.full((2, 8, 8, 3), 255, dtype=np.uint8)
    said = RawPreparation(image_size=(4, 6), mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))(images)
    torch.testing.assert_close(said, torch.tensor([2.0, 1.0, 0.5]).reshape(1, 3, 1, 1).expand(2, 3, 4, 6))
    assert RawPreparation(channels=3)(images[..., :1]).shape == (2, 3, 8, 8)
    with pytest.raises(TeacherError, match=r"U031 column 'colour' is not numbers"):
        RawPreparation()(pd.DataFrame({"x": [1.0], "colour": ["red"]}))


def test_timm_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm")
    with pytest.raises(TeacherError, match=r"U033 timm has no model 'resnt18'; did you mean 'resnet18'"):
        timm_models.load("timm:resnt18", task=THREE, weights="w.pt")
    with pytest.raises(TeacherError, match=r"U014 .*would be random"):
        timm_models.load("timm:resnet18", task=THREE)
    module = timm_models.build("test_resnet", classes=3, in_chans=1)
    torch.save(module.state_dict(), tmp_path / "w.pt")
    images = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 1), dtype=np.uint8)
    teacher = timm_models.load("timm:test_resnet", task=THREE, weights=str(tmp_path / "w.pt"), options={"in_chans": 1}, image_size=(32, 32))
    assert teacher.signals(images)["logits"].shape == (4, 3) and check_teacher(teacher, images) == []
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(TeacherError, match=r"U015 the published weights of test_resnet cannot be had .*pretrained = false"):
        timm_models.load("timm:test_resnet", task=Task("multiclass", tuple(map(str, range(1000)))), pretrained=True)


# predictions


@pytest.fixture
def rows() -> Rows:
    inputs = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    labels = FakeTeacher(THREE).signals(inputs)["logits"].argmax(1).numpy()
    return Rows("array", inputs, content_keys(inputs, "array"), labels=labels)


def table_of(rows: Rows) -> pd.DataFrame:
    said = FakeTeacher(THREE).signals(rows.inputs)["logits"].softmax(1).numpy()
    return pd.DataFrame(said, columns=list(THREE.classes))


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_predictions_by_row_number_cannot_misalign(rows: Rows, tmp_path: Path, ending: str) -> None:
    shuffled = table_of(rows).assign(row=np.arange(60)).sample(frac=1, random_state=0)
    path = tmp_path / f"p.{ending}"
    shuffled.to_parquet(path) if ending == "parquet" else shuffled.to_csv(path, index=False)
    teacher = predictions.load(path, rows=rows, task=THREE)
    order = np.random.default_rng(1).permutation(60)
    want = FakeTeacher(THREE).signals(rows.inputs[order])["logits"].softmax(1)
    torch.testing.assert_close(teacher.signals(rows.inputs[order])["logits"].softmax(1), want, atol=1e-5, rtol=1e-4)
    assert teacher.classes == THREE.classes and check_teacher(teacher, rows.inputs) == []
    with pytest.raises(TeacherError, match=r"U016 p.* has no prediction for 1 of 1 rows"):
        teacher.signals(rows.inputs[:1] + 1)


def test_predictions_by_order_need_the_labels_to_agree(rows: Rows, tmp_path: Path) -> None:
    table = table_of(rows)
    table.to_csv(tmp_path / "p.csv", index=False)
    assert predictions.load(tmp_path / "p.csv", rows=rows, task=THREE).agreement(rows)[0]
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(
        TeacherError, match=r"U017 .*labels do not show that its order is the data's: .* agreement on 60 labelled rows.*misaligned"
    ):
        predictions.load(tmp_path / "p.csv", rows=rows, task=THREE)
    table.iloc[:57].to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(TeacherError, match=r"U016 .*60 rows, 57 predictions"):
        predictions.load(tmp_path / "p.csv", rows=rows, task=THREE)
    table.iloc[:57].assign(row=np.arange(57)).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(TeacherError, match=r"U016 .*60 rows, 57 predictions found by 'row'; the first without one is row 57"):
        predictions.load(tmp_path / "p.csv", rows=rows, task=THREE)
    table.assign(row=0).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(TeacherError, match=r"U016 .*column 'row' says '0' more than once"):
        predictions.load(tmp_path / "p.csv", rows=rows, task=THREE)


def test_predictions_in_npz(rows: Rows, tmp_path: Path) -> None:
    logits = FakeTeacher(THREE).signals(rows.inputs)["logits"].numpy()
    np.savez(tmp_path / "p.npz", logits=logits[:, [2, 0, 1]], classes=np.array(["c", "a", "b"]), row=np.arange(60))
    teacher = predictions.load(tmp_path / "p.npz", rows=rows, task=THREE)
    assert teacher.classes == ("c", "a", "b")
    np.savez(tmp_path / "q.npz", scores=logits)
    with pytest.raises(TeacherError, match=r"U034 .*has no array logits, probabilities or values"):
        predictions.load(tmp_path / "q.npz", rows=rows, task=THREE)
    (tmp_path / "r.npz").write_bytes(b"PK nothing")
    with pytest.raises(TeacherError, match=r"U034 .*cannot be read"):
        predictions.load(tmp_path / "r.npz", rows=rows, task=THREE)


def test_predicted_values_by_name(rows: Rows, tmp_path: Path) -> None:
    names = np.array([f"{number:03d}.png" for number in range(60)])
    named = Rows(rows.kind, rows.inputs, rows.keys, labels=rows.inputs[:, :1], names=names)
    pd.DataFrame({"id": names[::-1], "prediction": rows.inputs[::-1, 0]}).to_csv(tmp_path / "p.csv", index=False)
    teacher = predictions.load(tmp_path / "p.csv", rows=named, task=VALUES)
    torch.testing.assert_close(teacher.signals(rows.inputs)["values"], torch.from_numpy(rows.inputs[:, :1]))
    pd.DataFrame({"prediction": rows.inputs[:, 1]}).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(TeacherError, match=r"U017 .*mean correlation"):
        predictions.load(tmp_path / "p.csv", rows=named, task=VALUES)
