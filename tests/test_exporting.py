from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from understudy.data.encoding import TableEncoding
from understudy.data.images import read_images
from understudy.data.rows import Rows
from understudy.data.tables import read_table
from understudy.errors import ExportError
from understudy.exporting import _ensembles, _graphs, artifact, predict_template
from understudy.exporting.predict_template import PredictError, predict
from understudy.students.preprocessing import Rescale, fit_preprocessing
from understudy.students.student import Student
from understudy.students.trees import boosted, tree
from understudy.tasks import Task
from understudy.training.trees import fit_estimator

THREE = Task("multiclass", ("a", "b", "c"))
TWO = Task("binary", ("no", "yes"))
TAGS = Task("multilabel", ("x", "y", "z"))
VALUE = Task("regression")
TASKS = {"multiclass": THREE, "binary": TWO, "multilabel": TAGS, "regression": VALUE}


def numbers(n=300, columns=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)


def teacher_of(task, features):
    """Logits or values that depend on the features."""
    weights = np.random.default_rng(7).normal(size=(features.shape[1], task.outputs))
    return (3 * np.tanh(features @ weights)).astype(np.float32)


def as_rows(inputs, kind, labels=None):
    return Rows(kind, inputs, np.arange(2 * len(inputs), dtype=np.int64).reshape(-1, 2), labels)


def array_student(estimator, task, features, **options):
    fitted = fit_estimator(estimator, features, task=task, labels=None, teacher=teacher_of(task, features), **options)
    prepared = fit_preprocessing(features, "array", None, scale=False, flatten=True)
    return Student("small", task, preprocessing=prepared, estimator=fitted)


def session_answers(student, features, path):
    exporter = _graphs.to_onnx(student, torch.from_numpy(features[:2]), path)
    return exporter, _graphs.open_session(path).run(None, {"rows": features})[0]


def our_probabilities(student, inputs):
    said = student.signals(inputs)[student.task.signal]
    if student.task.kind == "regression":
        return said.numpy()
    return (said.sigmoid() if student.task.kind == "multilabel" else said.softmax(1)).numpy()


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    n = 150
    return pd.DataFrame(
        {
            "age": rng.integers(18, 90, n),
            "income": np.where(rng.random(n) < 0.2, np.nan, rng.gamma(2.0, 1000.0, n)),
            "colour": np.where(rng.random(n) < 0.1, None, rng.choice(["red", "green", "blå"], n)),
            "member": rng.random(n) < 0.5,
        }
    )


def table_student(table, kind="tree", task=THREE):
    encoding = TableEncoding.fit(table, 8)
    encoded = encoding.encode(table)
    filled = np.nan_to_num(encoded)
    said = teacher_of(task, (filled - filled.mean(0)) / (filled.std(0) + 1e-9))
    if kind == "tree":
        prepared = fit_preprocessing(encoded, "table", encoding, scale=False, flatten=True)
        student = Student("small", task, encoding, preprocessing=prepared, estimator=tree(task, leaves=16))
        student.estimator = fit_estimator(
            tree(task, leaves=16), student.features(torch.from_numpy(encoded)), task=task, labels=None, teacher=said
        )
        return student
    prepared = fit_preprocessing(encoded, "table", encoding, scale=True, flatten=True)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(len(prepared.features), 8), nn.ReLU(), nn.Linear(8, task.outputs))
    return Student(
        "small", task, encoding, module=nn.Sequential(prepared, network, *([Rescale(5.0, 2.0)] if task.kind == "regression" else []))
    )


# --- trees ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("make", [tree, boosted])
def test_a_tree_is_one_node_and_says_what_the_student_says(make, task, tmp_path):
    features = numbers()
    student = array_student(make(task, leaves=16), task, features)
    exporter, said = session_answers(student, features, tmp_path / "model.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node] == ["TreeEnsembleRegressor"]
    assert exporter == "one TreeEnsemble node"
    assert said.shape == (300, task.outputs)
    np.testing.assert_allclose(said, our_probabilities(student, features), atol=2e-6)


@pytest.mark.parametrize("make", [tree, boosted])
def test_a_class_that_the_estimator_never_saw_has_no_chance(make, tmp_path):
    features = numbers()
    logits = teacher_of(THREE, features)
    logits[:, 1] = -60
    fitted = fit_estimator(make(THREE), features, task=THREE, labels=None, teacher=logits)
    student = Student("small", THREE, preprocessing=nn.Identity(), estimator=fitted)
    _, said = session_answers(student, features, tmp_path / "model.onnx")
    assert said[:, 1].max() < 1e-6
    np.testing.assert_allclose(said, our_probabilities(student, features), atol=2e-6)


@pytest.mark.parametrize("make", [tree, boosted])
def test_a_label_that_is_never_or_always_there(make, tmp_path):
    features = numbers()
    logits = teacher_of(TAGS, features)
    logits[:, 0], logits[:, 1] = -60, 60
    fitted = fit_estimator(make(TAGS), features, task=TAGS, labels=None, teacher=logits)
    student = Student("small", TAGS, preprocessing=nn.Identity(), estimator=fitted)
    _, said = session_answers(student, features, tmp_path / "model.onnx")
    np.testing.assert_allclose(said, our_probabilities(student, features), atol=2e-6)


@pytest.mark.parametrize("kind", ["tree", "forest", "lightgbm"])
def test_cells_at_a_threshold_go_where_the_estimator_sends_them(kind, tmp_path):
    features, codes = numbers(2000, 3), np.random.default_rng(1).integers(0, 3, 2000)
    estimator = {
        "tree": tree(THREE),
        "forest": RandomForestClassifier(5, max_leaf_nodes=64, random_state=0),
        "lightgbm": boosted(THREE, rounds=5),
    }[kind]
    student = Student("small", THREE, preprocessing=nn.Identity(), estimator=estimator.fit(features, codes))
    node = _ensembles.tree_node(student.estimator, THREE, reads="rows", gives="probabilities")
    values = next(list(a.floats) for a in node.attribute if a.name == "nodes_values")
    columns = next(list(a.ints) for a in node.attribute if a.name == "nodes_featureids")
    edge = np.repeat(features[:1], 3 * len(values), axis=0)
    for at, (value, column) in enumerate(zip(values, columns, strict=True)):
        here = np.float32(value)
        edge[3 * at : 3 * at + 3, column] = [np.nextafter(here, np.float32(-np.inf)), here, np.nextafter(here, np.float32(np.inf))]
    _, said = session_answers(student, edge, tmp_path / "model.onnx")
    np.testing.assert_allclose(said, our_probabilities(student, edge), atol=2e-6)


@pytest.mark.parametrize("missing", [False, True], ids=["none in training", "some in training"])
@pytest.mark.parametrize("kind", ["tree", "forest", "lightgbm"])
def test_missing_cells_go_where_the_estimator_sends_them(kind, missing, tmp_path):
    features, codes = numbers(600, 3), np.random.default_rng(1).integers(0, 3, 600)
    gaps = np.where(np.random.default_rng(2).random(features.shape) < 0.3, np.nan, features).astype(np.float32)
    estimator = {"tree": tree(THREE), "forest": RandomForestClassifier(5, random_state=0), "lightgbm": boosted(THREE, rounds=5)}[kind]
    student = Student("small", THREE, preprocessing=nn.Identity(), estimator=estimator.fit(gaps if missing else features, codes))
    _, said = session_answers(student, gaps, tmp_path / "model.onnx")
    np.testing.assert_allclose(said, our_probabilities(student, gaps), atol=2e-6)


def test_thresholds_are_rounded_down():
    above_a_float32 = np.array([0.1, 1.0, -0.1, 16777217.0, 1e-35])
    down = _ensembles._rounded_down(above_a_float32)
    assert down.dtype == np.float32
    assert (down.astype(np.float64) <= above_a_float32).all()
    assert (np.nextafter(down, np.float32(np.inf)).astype(np.float64) > above_a_float32).all()


def test_a_tree_with_one_leaf(tmp_path):
    features = numbers(20)
    estimator = DecisionTreeClassifier(max_depth=1, min_samples_leaf=20).fit(features, np.arange(20) % 3)
    student = Student("small", THREE, preprocessing=nn.Identity(), estimator=estimator)
    _, said = session_answers(student, features, tmp_path / "model.onnx")
    np.testing.assert_allclose(said, our_probabilities(student, features), atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "task"),
    [(LogisticRegression(), THREE), (LogisticRegression(), TWO), (LogisticRegression(), TAGS), (LinearRegression(), VALUE)],
)
def test_other_estimators_go_through_skl2onnx(estimator, task, tmp_path):
    features = numbers()
    student = array_student(estimator, task, features)
    exporter, said = session_answers(student, features, tmp_path / "model.onnx")
    assert exporter == "skl2onnx"
    np.testing.assert_allclose(said, our_probabilities(student, features), atol=1e-5)


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_network_says_probabilities_and_logits_at_any_batch_size(task, table, tmp_path):
    student = table_student(table, "network", task)
    made = artifact.export(student, tmp_path / "artifact", sample_rows=as_rows(table, "table"), test_rows=as_rows(table, "table"))
    names = [output["name"] for output in json.loads((made.folder / "signature.json").read_text())["outputs"]]
    assert names == (["values"] if task.kind == "regression" else ["probabilities", "logits"])
    np.testing.assert_allclose(made.answers, student.signals(table)[task.signal].numpy(), atol=1e-4)
    assert set(made.parity["microseconds"]) == {"1", "2", "7"}
    assert made.parity["agreement"] >= 0.9999


def test_the_students_module_is_left_as_it_was(table, tmp_path):
    student = table_student(table, "network")
    student.module.train()
    _graphs.to_onnx(student, student.encode(table), tmp_path / "model.onnx")
    assert student.module.training


def test_exporting_prints_nothing(table, tmp_path, capfd):
    _graphs.to_onnx(table_student(table, "network"), table_student(table).encode(table), tmp_path / "model.onnx")
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_when_dynamo_fails_the_older_exporter_is_used_and_named(table, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("this operator is not known")

    student = table_student(table, "network")
    monkeypatch.setattr(_graphs, "_dynamo", fails)
    assert _graphs.to_onnx(student, student.encode(table), tmp_path / "model.onnx") == "torch.onnx torchscript"
    monkeypatch.setattr(_graphs, "_torchscript", fails)
    with pytest.raises(ExportError, match=r"U041(.|\n)*dynamo: RuntimeError: this operator(.|\n)*torchscript"):
        _graphs.to_onnx(student, student.encode(table), tmp_path / "other.onnx")


# --- the folder -----------------------------------------------------------------------------------------------------


def test_an_artifact_of_a_table_runs_alone(table, tmp_path):
    student = table_student(table)
    rows = as_rows(table, "table")
    teacher = {"name": "big forest", "fingerprint": {"weights": "abc123"}}
    made = artifact.export(student, tmp_path / "artifact", sample_rows=rows, test_rows=rows, teacher=teacher, data={"missing": ["?"]})
    there = {path.name for path in made.folder.iterdir()}
    assert there == {
        *("model.onnx", "signature.json", "labels.json", "preprocessing.json", "predict.py", "README.md", "export.json", "checksums.json")
    }
    np.testing.assert_allclose(made.answers, student.signals(table)["logits"].numpy(), atol=1e-4)
    assert made.parity["agreement"] == 1.0
    artifact.verify_checksums(made.folder)
    card = (made.folder / "README.md").read_text()
    for word in (
        "big forest",
        "abc123",
        "`colour` (category)",
        "`a`, `b`, `c`",
        "python predict.py rows.csv",
        "100.00 %",
        "Not measured yet",
    ):
        assert word in card
    table.to_csv(tmp_path / "rows.csv", index=False)
    code = "import sys; sys.modules['understudy'] = None; sys.path.insert(0, '.'); import predict; sys.exit(predict.main())"
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out.csv"), "--batch", "7"]
    ran = subprocess.run(command, cwd=made.folder, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == f"150 rows answered in {tmp_path / 'out.csv'}\n"
    with open(tmp_path / "out.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["row", "prediction", "probability_a", "probability_b", "probability_c"]
    wanted = our_probabilities(student, table)
    assert [line["prediction"] for line in read] == [THREE.classes[best] for best in wanted.argmax(axis=1)]
    np.testing.assert_allclose([float(line["probability_b"]) for line in read], wanted[:, 1], atol=1e-6)


def test_a_scorecard_can_be_added_later(table, tmp_path):
    made = artifact.export(table_student(table), tmp_path / "artifact", sample_rows=as_rows(table, "table"))
    assert made.parity is made.answers is None
    figures = {"quality": {"accuracy": {"mean": 0.875}}, "fidelity": {}}
    scorecard = {"rows": 40, "models": {"student": figures}, "verdict": {"text": "GAIN +1.0"}}
    artifact.add_scorecard(made.folder, scorecard)
    artifact.verify_checksums(made.folder)
    assert json.loads((made.folder / "scorecard.json").read_text()) == scorecard
    card = (made.folder / "README.md").read_text()
    assert "| student | 0.8750 |" in card
    assert "GAIN +1.0" in card


def test_a_changed_file_is_found(table, tmp_path):
    made = artifact.export(table_student(table), tmp_path / "artifact", sample_rows=as_rows(table, "table"))
    (made.folder / "labels.json").write_text("{}")
    (made.folder / "predict.py").unlink()
    with pytest.raises(ExportError, match=r"U046.*predict\.py is gone, labels\.json changed"):
        artifact.verify_checksums(made.folder)
    (made.folder / "checksums.json").unlink()
    with pytest.raises(ExportError, match="no complete artifact"):
        artifact.verify_checksums(made.folder)


def test_a_folder_is_overwritten_only_when_told_and_only_an_artifact(table, tmp_path):
    student, rows = table_student(table), as_rows(table, "table")
    made = artifact.export(student, tmp_path / "artifact", sample_rows=rows)
    with pytest.raises(ExportError, match="U045.*is not empty"):
        artifact.export(student, made.folder, sample_rows=rows)
    artifact.export(student, made.folder, sample_rows=rows, overwrite=True)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="no artifact, which is not overwritten"):
        artifact.export(student, tmp_path / "papers", sample_rows=rows, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"artifact", "papers"}


def test_a_file_that_says_something_else_is_refused_and_nothing_is_left(table, tmp_path, monkeypatch):
    written = _graphs.to_onnx

    def turned(student, sample, path):
        other = table_student(table.iloc[::-1].reset_index(drop=True).sample(frac=1, random_state=0).assign(age=table["age"]))
        other.estimator.tree_.value[:] = np.roll(other.estimator.tree_.value, 1, axis=2)
        return written(other, sample, path)

    monkeypatch.setattr(_graphs, "to_onnx", turned)
    with pytest.raises(ExportError, match=r"U040 the exported file does not say what the student says: [\d.]+ % of 150 rows"):
        artifact.export(table_student(table), tmp_path / "artifact", sample_rows=as_rows(table, "table"), test_rows=as_rows(table, "table"))
    assert list(tmp_path.iterdir()) == []


def test_raw_rows_that_predict_reads_otherwise_are_refused(table, tmp_path, monkeypatch):
    described = artifact._describe

    def wrong(folder, *args):
        described(folder, *args)
        said = json.loads((folder / "preprocessing.json").read_text())
        said["columns"][2]["levels"].reverse()
        (folder / "preprocessing.json").write_text(json.dumps(said))

    monkeypatch.setattr(artifact, "_describe", wrong)
    student = table_student(table.assign(age=40, income=1.0, member=True))
    with pytest.raises(ExportError, match="U043"):
        artifact.export(student, tmp_path / "artifact", sample_rows=as_rows(table, "table"), test_rows=as_rows(table, "table"))


def test_open_session_answers_encoded_rows(table, tmp_path):
    student = table_student(table)
    made = artifact.export(student, tmp_path / "artifact", sample_rows=as_rows(table, "table"))
    said = artifact.open_session(made.folder)(student.encode(table).numpy())
    np.testing.assert_allclose(said, our_probabilities(student, table), atol=2e-6)
    assert artifact.model_bytes(made.folder) == (made.folder / "model.onnx").stat().st_size


# --- predict.py -----------------------------------------------------------------------------------------------------


def test_a_csv_is_encoded_as_the_student_encodes_it(table, tmp_path):
    text = "colour,extra,age,income,member\n red ,1,30,1e3,True\n?,2,-1,,False\nviolet,3, 5 ,nan,True\nblå,4,1.5,?,\n"
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8")
    encoding = TableEncoding.fit(table, 8)
    said = {**encoding.to_json(), "missing": ["?"], "encoding": "utf-8"}
    wanted = encoding.encode(read_table(tmp_path / "rows.csv").inputs)
    np.testing.assert_array_equal(predict_template._read_csv(tmp_path / "rows.csv", said)[1], wanted)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(text.encode("utf-8-sig")))
    np.testing.assert_array_equal(predict_template._read_csv(tmp_path / "rows.csv.gz", said)[1], wanted)


def test_records_are_answered_too(table, tmp_path):
    student = table_student(table)
    made = artifact.export(student, tmp_path / "artifact", sample_rows=as_rows(table, "table"))
    some = table.head(5)
    records = some.astype(object).where(some.notna(), None).to_dict("records")
    np.testing.assert_allclose(predict(made.folder, records)["probabilities"], our_probabilities(student, some), atol=2e-6)
    assert predict(made.folder, [])["prediction"] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age,colour,member\n1,red,True\n", "there is no column 'income'; there is: age, colour, member"),
        ("age,income,colour,member\n1,2,red,True\nold,2,red,True\n", "rows.csv line 3, column 'age': 'old' is not a number"),
        ("age,income,colour,member\n1,inf,red,True\n", "not a finite number"),
        ("age,income,colour,member\n1,2,red\n", "line 2 has 3 fields where the header has 4"),
        ("", "is empty"),
    ],
)
def test_rows_that_are_wrong_are_named_and_end_with_status_two(text, said, table, tmp_path, monkeypatch, capsys):
    made = artifact.export(table_student(table), tmp_path / "artifact", sample_rows=as_rows(table, "table"))
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(PredictError) as caught:
        predict(made.folder, tmp_path / "rows.csv")
    assert said in str(caught.value)
    monkeypatch.setattr(predict_template, "__file__", str(made.folder / "predict.py"))
    assert predict_template.main([str(tmp_path / "rows.csv"), "--out", str(tmp_path / "out.csv")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_arrays_of_another_shape_or_type_are_refused(tmp_path):
    features = numbers()
    student = array_student(tree(VALUE, leaves=8), VALUE, features)
    made = artifact.export(student, tmp_path / "artifact", sample_rows=as_rows(features, "array"), test_rows=as_rows(features, "array"))
    np.testing.assert_allclose(predict(made.folder, features)["prediction"], student.signals(features)["values"][:, 0], atol=1e-5)
    np.savez(tmp_path / "rows.npz", X=features[:9], y=np.zeros(9))
    assert predict_template.write_predictions(made.folder, tmp_path / "rows.npz", tmp_path / "out.csv") == 9
    assert (tmp_path / "out.csv").read_text().splitlines()[0] == "row,prediction"
    np.savez(tmp_path / "odd.npz", a=features, b=features)
    for rows, said in [
        (features[:, :3], r"shape \[5\], these are of shape \[3\]"),
        (features.astype(str), "the model reads numbers"),
        (tmp_path / "odd.npz", "odd.npz holds a, b"),
        (tmp_path / "none.csv", "there is no"),
        (tmp_path / "out.csv", "this model reads an .npz file"),
    ]:
        with pytest.raises(PredictError, match=said):
            predict(made.folder, rows)
    with pytest.raises(PredictError, match="no model in"):
        predict(tmp_path, features)


@pytest.mark.parametrize("grey", [False, True])
def test_an_artifact_of_images_reads_files_as_the_student_does(grey, tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for at, mode in enumerate(["RGB", "L", "RGBA", "P", "LA"]):
        Image.fromarray(rng.integers(0, 256, (12, 10, 4), dtype=np.uint8)).convert(mode).save(folder / f"{at}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / "turned.jpg", exif=turned)
    Image.fromarray(rng.integers(0, 65536, (9, 9), dtype=np.uint16)).save(folder / "zdeep.png")
    images = np.asarray(read_images(folder, image_size=(8, 8), grey=grey).inputs)
    prepared = fit_preprocessing(images, "image", None, scale=True, flatten=False)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(images.shape[-1], 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    student = Student("small", THREE, module=nn.Sequential(prepared, network))
    rows = as_rows(images, "image")
    made = artifact.export(student, tmp_path / "artifact", sample_rows=rows, test_rows=rows)
    done = predict(made.folder, folder)
    assert done["rows"] == ["0.png", "1.png", "2.png", "3.png", "4.png", "turned.jpg", "zdeep.png"]
    np.testing.assert_allclose(done["probabilities"], our_probabilities(student, images), atol=1e-5)
    with pytest.raises(PredictError, match="whole numbers 0 to 255"):
        predict(made.folder, images.astype(np.float32))
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(PredictError, match=r"broken\.png is not an image"):
        predict(made.folder, folder)


def test_flat_pixels_of_images_reach_a_tree(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (80, 4, 4, 1), dtype=np.uint8)
    prepared = fit_preprocessing(images, "image", None, scale=False, flatten=True)
    features = prepared(torch.from_numpy(images)).numpy()
    fitted = fit_estimator(tree(TWO, leaves=8), features, task=TWO, labels=None, teacher=teacher_of(TWO, features / 255 - 0.5))
    student = Student("small", TWO, preprocessing=prepared, estimator=fitted)
    made = artifact.export(student, tmp_path / "artifact", sample_rows=as_rows(images, "image"), test_rows=as_rows(images, "image"))
    assert made.exporter == "one TreeEnsemble node after torch.onnx dynamo"
    assert made.parity["agreement"] == 1.0


def test_predict_needs_only_numpy_and_onnxruntime():
    source = predict_template.__file__
    with open(source, encoding="utf-8") as file:
        imported = {line.split()[1].split(".")[0] for line in map(str.strip, file) if line.startswith(("import ", "from "))}
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "PIL", "tokenizers"}
    assert onnxruntime.get_available_providers()
