"""Texts from their file to an artifact, through the command line: each kind of teacher with each kind of student, and bad inputs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import texts as made_up
import torch
from commands import run
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from understudy.adapters import _heads, hugging_face, sentences
from understudy.checks.teachers import check_teacher
from understudy.data.rows import Rows
from understudy.errors import TeacherError
from understudy.make.rows import Loaded, load_rows
from understudy.recipe import parse
from understudy.tasks import Task

TOPICS = tuple(sorted(made_up.TOPICS))
QUICK = {"measure": {"latency": False, "resamples": 100}, "split": {"validation": 0.25, "test": 0.25}}


def distill(monkeypatch: pytest.MonkeyPatch, folder: Path, said: dict[str, Any]) -> int:
    """The exit status of `understudy distill` on a recipe with these sections."""
    lines = [f"out = {json.dumps(str(folder / 'run'))}"]
    for section, options in {**QUICK, **said}.items():
        lines += [f"[{section}]", *(f"{name} = {value(each)}" for name, each in options.items())]
    (folder / "recipe.toml").write_text("\n".join(lines), encoding="utf-8")
    return run(monkeypatch, "distill", folder / "recipe.toml")


def value(each: Any) -> str:
    """A value as TOML."""
    if isinstance(each, dict):
        return "{" + ", ".join(f"{name} = {value(inner)}" for name, inner in each.items()) + "}"
    return "[" + ", ".join(map(value, each)) + "]" if isinstance(each, list) else json.dumps(each)


def card(folder: Path) -> Any:
    return json.loads((folder / "run" / "scorecard.json").read_text(encoding="utf-8"))


def pipeline(folder: Path, frame: pd.DataFrame) -> str:
    """A fitted scikit-learn pipeline over the texts, in a file."""
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10)).fit(frame["text"], frame["topic"])
    joblib.dump(fitted, folder / "teacher.joblib")
    return str(folder / "teacher.joblib")


BAG = {"model": "text.bag", "options": {"width": 16, "buckets": 200}}
TRAIN = {"epochs": 6, "batch_size": 32, "lr": 0.02}


def test_a_pipeline_of_texts_on_a_table_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = made_up.sentences(120, seed=3)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    data = {"train": str(tmp_path / "rows.csv"), "label": "topic"}
    teacher = {"source": pipeline(tmp_path, frame), "trust": True}
    assert distill(monkeypatch, tmp_path, {"data": data, "teacher": teacher, "student": {"model": "tree"}}) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "U031" in told and "vectorizer of texts: name their column, data.text = 'COLUMN'" in told and "Traceback" not in told


def test_a_pipeline_teaches_a_bag_and_its_file_reads_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = made_up.sentences(300)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    more = made_up.sentences(60, seed=9)[["text"]]
    pd.concat([more, frame[["text"]].head(20)]).rename(columns={"text": "other"}).to_csv(tmp_path / "more.csv", index=False)
    said = {
        "data": {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topic", "max_length": 16},
        "rows": {"unlabelled": [{"path": "more.csv", "text": "other"}]},
        "teacher": {"source": pipeline(tmp_path, frame), "trust": True},
        "student": BAG, "train": TRAIN,
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, said) == 0, capsys.readouterr().err
    assert "360 rows, 60 of them" in " ".join(capsys.readouterr().out.split())
    assert card(tmp_path)["models"]["exported"]["quality"]["accuracy"]["mean"] > 0.9
    artifact = tmp_path / "run" / "artifact"
    assert (artifact / "tokenizer.json").is_file()
    assert "pip install numpy onnxruntime tokenizers" in (artifact / "README.md").read_text(encoding="utf-8")
    (tmp_path / "question.txt").write_text("the coach said the team was new to the league", encoding="utf-8")
    blocked = "import sys; sys.modules.update(dict.fromkeys(['understudy', 'torch', 'transformers', 'pandas'])); "
    code = f"{blocked}sys.path.insert(0, {str(artifact)!r}); from predict import predict; print(predict({str(artifact)!r}, sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "question.txt")], capture_output=True, text=True, check=False)
    assert "'prediction': ['sport']" in done.stdout, done.stderr


def test_the_page_on_texts_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "text.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    recipe = re.findall(r"^```toml\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)[0]
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    (tmp_path / "news.toml").write_text(recipe, encoding="utf-8")
    assert run(monkeypatch, "distill", "news.toml", "--set", "measure.latency=false") == 0
    assert json.loads(Path("runs/news/scorecard.json").read_text())["models"]["exported"]["quality"]["accuracy"]["mean"] > 0.9
    (command,) = re.findall(r"^```bash\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    done = subprocess.run([sys.executable, *command.split()[1:]], capture_output=True, text=True, check=False)
    assert "240 rows answered in predictions.csv" in done.stdout, done.stderr


def test_a_bag_has_a_rate_and_a_batch_of_its_own_where_the_recipe_says_none() -> None:
    said: dict[str, Any] = {"out": "x", "data": {"train": "x.csv"}, "teacher": {"source": "x"}, "student": {"model": "text.bag"}}
    assert (parse(said).train.lr, parse(said).train.batch_size) == (5e-3, 32)
    asked = parse({**said, "train": {"lr": 1e-3, "epochs": 3}}).train
    assert (asked.lr, asked.batch_size, asked.epochs) == (1e-3, 32, 3)
    other = parse({**said, "student": {"model": "text.transformer"}}).train
    assert (other.lr, other.batch_size) == (1e-3, 128)
    taught = parse({**said, "teacher": {"train": {"model": "text.bag"}}, "student": {"model": "text.transformer"}})
    assert taught.teacher.train is not None and taught.teacher.train.lr == 5e-3 and taught.train.lr == 1e-3


def test_predict_reads_texts_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = made_up.sentences(200)
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    said = {
        "data": {"root": str(tmp_path), "train": "rows.jsonl", "label": "topic", "max_length": 16},
        "teacher": {"source": pipeline(tmp_path, frame), "trust": True},
        "student": BAG, "train": TRAIN,
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, said) == 0
    spec = importlib.util.spec_from_file_location("predict_texts", tmp_path / "run" / "artifact" / "predict.py")
    assert spec is not None and spec.loader is not None
    predict = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "predict_texts", predict)
    spec.loader.exec_module(predict)
    model = predict.load(tmp_path / "run" / "artifact")
    texts = frame["text"].tolist()
    expected = predict.predict(model, texts)["probabilities"]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    (tmp_path / "texts").mkdir()
    for number, text in enumerate(texts):
        (tmp_path / "texts" / f"{number:03d}.txt").write_text(text, encoding="utf-8")
    for form in (tmp_path / "rows.csv", tmp_path / "rows.jsonl", tmp_path / "texts", [{"text": text} for text in texts]):
        np.testing.assert_allclose(predict.predict(model, form, batch=7)["probabilities"], expected, atol=1e-6)
    with pytest.raises(predict.PredictError, match="has no 'text'; there is: words"):
        predict.predict(model, [{"words": "x"}])
    with pytest.raises(predict.PredictError, match="has 2 texts, the model reads 1"):
        predict.predict(model, [("x", "y")])


def test_a_hugging_face_classifier_teaches_a_transformer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.sentences(120).to_csv(tmp_path / "rows.csv", index=False)
    made_up.classifier(tmp_path / "teacher", list(TOPICS))
    said = {
        "data": {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topic", "max_length": 16},
        "teacher": {"source": f"hf:{tmp_path / 'teacher'}", "accept_score": True, "accept_mapping": True},
        "student": {"model": "text.transformer", "options": {"width": 16, "depth": 1, "heads": 2}},
        "train": {"epochs": 2, "batch_size": 32},
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, said) == 0, capsys.readouterr().err
    assert set(card(tmp_path)["models"]) == {"teacher", "control", "student", "exported"}


def test_a_student_is_cut_from_its_teachers_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.sentences(120).to_csv(tmp_path / "rows.csv", index=False)
    place = f"hf:{made_up.classifier(tmp_path / 'teacher', list(TOPICS))}"
    cut = hugging_face.cut(place, [1], padding=0, length=16)
    assert sum(len(part) for part in cut.modules() if isinstance(part, torch.nn.ModuleList)) == 1
    with pytest.raises(TeacherError, match=r"U408 options.cut = \[2\]: hf:.* has the layers 0 to 1; list some, or say 'all'"):
        hugging_face.cut(place, [2], padding=0, length=16)
    with pytest.raises(TeacherError, match="U408 options.cut = 'al': hf:.* has the layers 0 to 1"):
        hugging_face.cut(place, "al", padding=0, length=16)
    with pytest.raises(TeacherError, match="U408 data.max_length is 64, and hf:.* reads 40 tokens; set data.max_length = 40"):
        hugging_face.cut(place, [1], padding=0, length=64)
    said = {
        "data": {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topic", "max_length": 16},
        "teacher": {"source": place, "accept_score": True},
        "student": {"model": "text.transformer", "options": {"cut": [0]}},
        "train": {"epochs": 2, "batch_size": 32},
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, said) == 0, capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / "artifact" / "preprocessing.json").read_text(encoding="utf-8"))
    assert kept["special"] and kept["padding"] == 0


def test_a_teacher_that_is_trained_whole_begins_with_the_encoder_that_its_student_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.sentences(120).to_csv(tmp_path / "rows.csv", index=False)
    first, second = (f"hf:{made_up.classifier(tmp_path / name, list(TOPICS))}" for name in ("first", "second"))
    trained = {"model": "text.transformer", "options": {"cut": "all", "encoder": second}, "epochs": 8, "batch_size": 16, "lr": 5e-3}
    said = {
        "data": {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topic", "max_length": 16},
        "teacher": {"train": trained},
        "student": {"model": "text.transformer", "options": {"cut": [0], "encoder": first}},
        "train": {"epochs": 8, "batch_size": 16, "lr": 5e-3},
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, said) == 2
    told = f"U409 teacher and student begin with different encoders, {first} and {second}: the rows have one tokenizer"
    assert told in capsys.readouterr().err.replace("\n", "")
    trained["options"] = {"cut": "all"}
    assert distill(monkeypatch, tmp_path, said) == 0, capsys.readouterr().err
    found = card(tmp_path)["models"]
    assert found["teacher"]["cost"]["parameters"] > found["student"]["cost"]["parameters"]
    assert found["teacher"]["quality"]["accuracy"]["mean"] > 0.6 and found["exported"]["quality"]["accuracy"]["mean"] > 0.6


def test_a_sentence_encoder_teaches_static_vectors_of_its_own_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up.pairs(160).to_parquet(tmp_path / "rows.parquet")
    place = f"sentences:{made_up.encoder(tmp_path / 'encoder')}"
    said = {
        "data": {"root": str(tmp_path), "train": "rows.parquet", "text": ["first", "second"], "label": "score", "max_length": 24},
        "teacher": {"source": place, "accept_score": True},
        "student": {"model": "text.static", "options": {"width": 16, "corpus_epochs": 2, "relations": 1.0}},
        "train": {"epochs": 2, "batch_size": 32},
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, {**said, "objective": {"alpha": 1.0}}) == 0, capsys.readouterr().err
    assert "spearman" in card(tmp_path)["models"]["exported"]["quality"]
    assert len(list((tmp_path / "run" / "cache").glob("static-*.npz"))) == 1


def test_several_labels_in_a_cell_are_a_multilabel_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = made_up.sentences(240)
    other = np.roll(frame["topic"], 1)
    both = np.arange(len(frame)) % 4 == 0
    frame["text"] = np.where(both, frame["text"] + " " + np.roll(frame["text"], 1), frame["text"])
    labels = np.stack([(frame["topic"] == topic) | (both & (other == topic)) for topic in TOPICS], axis=1)
    frame["topics"] = [",".join(np.array(TOPICS)[row]) for row in labels]
    frame[["text", "topics"]].to_csv(tmp_path / "rows.csv", index=False)
    fitted = make_pipeline(TfidfVectorizer(), OneVsRestClassifier(LogisticRegression(C=10))).fit(frame["text"], labels.astype(int))
    joblib.dump(fitted, tmp_path / "teacher.joblib")
    said = {
        "data": {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topics", "separator": ",", "classes": list(TOPICS)},
        "teacher": {"source": str(tmp_path / "teacher.joblib"), "trust": True, "accept_mapping": True},
        "student": BAG, "train": {**TRAIN, "epochs": 20},
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, said) == 0, capsys.readouterr().err
    assert card(tmp_path)["models"]["exported"]["quality"]["macro_f1"]["mean"] > 0.7


# --- teachers -------------------------------------------------------------------------------------------------------


def rows_of(frame: pd.DataFrame, tmp_path: Path, **data: Any) -> Loaded:
    frame.to_csv(tmp_path / "rows.csv", index=False)
    said = {"root": str(tmp_path), "train": "rows.csv", "kind": "text", **data}
    return load_rows(parse({"out": "x", "data": said, "teacher": {"source": "x"}, "student": {"model": "text.bag"}}))


def test_teachers_of_texts_keep_the_contract(tmp_path: Path) -> None:
    loaded = rows_of(made_up.sentences(90), tmp_path, label="topic")
    place = f"sentences:{made_up.encoder(tmp_path / 'encoder')}"
    teacher = sentences.load(place, task=loaded.task, rows=loaded.rows, cache=tmp_path / "cache")
    assert check_teacher(teacher, loaded.rows.inputs[:12]) == []
    again = sentences.load(place, task=loaded.task, rows=loaded.rows, cache=tmp_path / "cache")
    assert again.fingerprint() == teacher.fingerprint()
    labels = np.roll(loaded.rows.labels, 1)
    assert teacher.refit(loaded.rows.inputs, labels).fingerprint() != teacher.fingerprint()
    folder = made_up.classifier(tmp_path / "classifier", list(TOPICS))
    classifier = hugging_face.load(f"hf:{folder}", task=loaded.task)
    assert classifier.classes == TOPICS
    assert check_teacher(classifier, loaded.rows.inputs[:12]) == []


def test_a_head_is_fitted_again_as_it_was_and_each_text_is_asked_once(tmp_path: Path) -> None:
    loaded = rows_of(made_up.sentences(60), tmp_path, label="topic")
    place = f"sentences:{made_up.encoder(tmp_path / 'encoder')}"
    teacher = sentences.load(place, task=loaded.task, rows=loaded.rows, options={"strength": 0.5})
    train = loaded.rows.part("train")
    assert train.labels is not None
    same = teacher.refit(train.inputs, train.labels)
    np.testing.assert_allclose(same.head.weight, teacher.head.weight, atol=1e-4)

    asked: list[str] = []

    class Counting:
        def vectors(self, texts: np.ndarray) -> np.ndarray:
            asked.extend(texts.ravel().tolist())
            return teacher.encoder.vectors(texts)

    remembered = sentences.Remembered(Counting())  # type: ignore[arg-type]
    some = train.inputs[[3, 1, 3, 0]]
    np.testing.assert_array_equal(remembered.vectors(some), remembered.vectors(some))
    np.testing.assert_allclose(remembered.vectors(some), teacher.encoder.vectors(some), atol=1e-5)
    assert asked == train.inputs[[3, 1, 0]].tolist()
    assert remembered.vectors(some.reshape(2, 2)).shape[:2] == (2, 2)


def test_a_head_on_two_classes_or_several_labels_says_what_scikit_learn_says(tmp_path: Path) -> None:
    vectors, rng = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32), np.random.default_rng(1)
    labels = (vectors[:, 0] + 0.3 * rng.normal(size=80) > 0).astype(np.int64)
    expected = LogisticRegression(C=10.0).fit(vectors, labels).predict_proba(vectors)
    said = _heads.fit_head(vectors, labels, Task("binary", ("no", "yes")), strength=10.0)(vectors)
    np.testing.assert_allclose(said.softmax(dim=1).numpy(), expected, atol=1e-3)
    several = np.stack([labels, 1 - labels], axis=1).astype(np.float32)
    said = _heads.fit_head(vectors, several, Task("multilabel", ("a", "b")), strength=10.0)(vectors)
    np.testing.assert_allclose(said.sigmoid().numpy(), expected[:, ::-1], atol=1e-3)


def test_the_cosine_of_a_pair_is_what_an_encoder_says_without_labels(tmp_path: Path) -> None:
    loaded = rows_of(made_up.pairs(40), tmp_path, text=["first", "second"], label="score")
    place = f"sentences:{made_up.encoder(tmp_path / 'encoder')}"
    rows = Rows("text", loaded.rows.inputs, loaded.rows.keys, None, loaded.rows.split)
    teacher = sentences.load(place, task=Task("regression"), rows=rows)
    first, second = np.moveaxis(teacher.encoder.vectors(rows.inputs), 1, 0)
    cosine = (first * second).sum(axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    np.testing.assert_allclose(teacher.signals(rows.inputs)["values"].numpy()[:, 0], cosine, atol=1e-5)
    with pytest.raises(TeacherError, match="U410 a sentence encoder gives vectors, and its head needs labels"):
        sentences.load(place, task=Task("binary", ("a", "b")), rows=rows)


def test_models_that_cannot_teach_are_refused(tmp_path: Path) -> None:
    task = Task("multiclass", TOPICS)
    folder = made_up.classifier(tmp_path / "plain", list(TOPICS), padding=False)
    with pytest.raises(TeacherError, match="U406 the tokenizer of hf:.* has no padding token"):
        hugging_face.load(f"hf:{folder}", task=task)
    folder = made_up.classifier(tmp_path / "headless", list(TOPICS), head=False)
    with pytest.raises(TeacherError, match="U014 hf:.* has no weights for classifier"):
        hugging_face.load(f"hf:{folder}", task=task)
    with pytest.raises(TeacherError, match="U407 'hf:nobody/nothing' cannot be had: It is not on this machine, and nothing is downloaded"):
        hugging_face.load("hf:nobody/nothing", task=task)
    with pytest.raises(TeacherError, match="U407 no model at 'hf:.*plane'; did you mean 'plain'"):
        hugging_face.load(f"hf:{tmp_path / 'plane'}", task=task)
    with pytest.raises(TeacherError, match="U407 .* holds no model"):
        hugging_face.load(f"hf:{tmp_path}", task=task)
    with pytest.raises(TeacherError, match="U408 teacher.options: there is no 'length'"):
        hugging_face.load(f"hf:{folder}", task=task, options={"length": 3})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"student": {"model": "mlp"}}, "U411 the model 'mlp' does not read these rows"),
        ({"train": {**TRAIN, "augment": {"noise": 0.1}}}, "U412 train.augment changes images and numbers"),
        ({"rows": {"synthetic": 2}}, "U061 rows.synthetic makes rows of tables and arrays; for texts"),
        ({"data": {"text": "words"}}, "U107 No column 'words'"),
        (
            {"student": {"model": "text.bag", "options": {"wide": 3}}},
            "U063 student.options for bag: there is no 'wide'; did you mean 'width'",
        ),
        ({"student": {"model": "text.static"}}, "U416 text.static begins with the vectors of a sentence encoder"),
        ({"teacher": {"train": {"model": "boosted"}}}, "U411 [teacher.train] model = 'boosted' reads tables and arrays"),
    ],
)
def test_what_does_not_fit_texts_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: dict[str, Any], told: str
) -> None:
    frame = made_up.sentences(60)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    data = {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topic"} | change.get("data", {})
    said = {"teacher": {"source": pipeline(tmp_path, frame), "trust": True}, "student": BAG, "train": TRAIN, **change, "data": data}
    if "rows" in change:
        said["teaching"] = {"views": 1}
    assert distill(monkeypatch, tmp_path, said) == 2
    heard = capsys.readouterr()
    assert told in " ".join((heard.err + heard.out).split())


def test_models_of_texts_are_for_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"x": range(60), "y": [0, 1] * 30}).to_csv(tmp_path / "rows.csv", index=False)
    said = {
        "data": {"root": str(tmp_path), "train": "rows.csv", "label": "y"},
        "teacher": {"source": f"hf:{tmp_path}"},
        "student": {"model": "text.bag"},
    }
    assert distill(monkeypatch, tmp_path, said) == 2
    heard = capsys.readouterr().err
    assert "U411 the model 'text.bag' does not read these rows" in " ".join(heard.split())
    assert "reads texts, the rows are of kind 'table'" in " ".join(heard.split())
