"""What people give by mistake where texts are expected, each through the command line: refused before training, with the mend."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import texts as made_up
from commands import run
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from test_text_runs import BAG, TOPICS, TRAIN, card, distill, pipeline

Heard = pytest.CaptureFixture[str]


def words_of(text: str) -> list[str]:
    """A tokenizer of a user's own."""
    return text.split()


def given(folder: Path, frame: pd.DataFrame, **data: Any) -> dict[str, Any]:
    """A recipe that would run, on these rows."""
    teacher = {"source": pipeline(folder, made_up.sentences(60)), "trust": True}
    rows = {"root": str(folder), "train": "rows.csv", "text": "text", "label": "topic", "max_length": 16, **data}
    frame.to_csv(folder / "rows.csv", index=False)
    return {"data": rows, "teacher": teacher, "student": BAG, "train": TRAIN}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: Heard, folder: Path, said: dict[str, Any], *told: str) -> None:
    """The command ends with status 2 and these words, having trained nothing."""
    assert distill(monkeypatch, folder, said) == 2
    heard = capsys.readouterr()
    for each in told:
        assert each in " ".join((heard.err + heard.out).split())
    assert "Traceback" not in heard.err
    assert not list((folder / "run").rglob("*.safetensors"))


# --- empty texts ----------------------------------------------------------------------------------------------------


def test_empty_texts_are_refused_with_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard) -> None:
    frame = made_up.sentences(60)
    frame.loc[[3, 8], "text"] = ["", "  "]
    told = ("U402 2 of 60 rows of rows.csv have no text (rows.csv line 5, rows.csv line 10). Fill or remove them",)
    refused(monkeypatch, capsys, tmp_path, given(tmp_path, frame), *told)


def test_half_a_pair_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard) -> None:
    frame = made_up.pairs(60)
    frame.loc[4, "second"] = None
    said = given(tmp_path, frame, text=["first", "second"], label="score")
    refused(monkeypatch, capsys, tmp_path, said, "U402 1 of 60 rows of rows.csv have no text (rows.csv line 6)")


def test_an_empty_file_among_a_folder_of_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard) -> None:
    frame = made_up.sentences(60)
    for number, (text, topic) in enumerate(zip(frame["text"], frame["topic"], strict=True)):
        (tmp_path / "texts" / topic).mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / topic / f"{number:02d}.txt").write_text("\n" if number == 7 else text, encoding="utf-8")
    said = given(tmp_path, frame)
    said["data"] = {"root": str(tmp_path), "train": "texts"}
    refused(monkeypatch, capsys, tmp_path, said, "U402 1 of 60 rows of texts have no text (money/07.txt)")


# --- encodings ------------------------------------------------------------------------------------------------------


def in_csv(folder: Path, words: bytes) -> dict[str, Any]:
    (folder / "rows.csv").write_bytes((folder / "rows.csv").read_bytes() + words + b",sport\n")
    return {"train": "rows.csv"}


def in_lines(folder: Path, words: bytes) -> dict[str, Any]:
    (folder / "rows.jsonl").write_bytes(b'{"text": "one", "topic": "sport"}\n{"text": "' + words + b'", "topic": "sport"}\n')
    return {"train": "rows.jsonl"}


def in_folder(folder: Path, words: bytes) -> dict[str, Any]:
    (folder / "texts" / "sport").mkdir(parents=True)
    (folder / "texts" / "sport" / "1.txt").write_bytes(words)
    return {"train": "texts"}


@pytest.mark.parametrize(
    ("write", "where"),
    [(in_csv, "rows.csv is not utf-8 text"), (in_lines, "rows.jsonl is not utf-8 text"), (in_folder, "1.txt is not utf-8")],
)
def test_another_encoding_is_refused_with_its_line_and_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard, write: Callable[[Path, bytes], dict[str, Any]], where: str
) -> None:
    said = given(tmp_path, made_up.sentences(60))
    place = write(tmp_path, "the café".encode("cp1252"))
    said["data"] = {"root": str(tmp_path), **place, **({"text": "text", "label": "topic"} if place["train"] != "texts" else {})}
    refused(monkeypatch, capsys, tmp_path, said, f"U102 {where}", "data.encoding = 'cp1252'")


def test_utf_16_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard) -> None:
    said = given(tmp_path, made_up.sentences(60))
    (tmp_path / "rows.csv").write_text((tmp_path / "rows.csv").read_text(encoding="utf-8"), encoding="utf-16")
    refused(monkeypatch, capsys, tmp_path, said, "U102 rows.csv is UTF-16 text. Save it as UTF-8, or set data.encoding = 'utf-16'")


def test_texts_that_were_saved_wrong_are_named_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard) -> None:
    frame = made_up.sentences(120)
    frame.loc[2, "text"] += " " + "café".encode().decode("cp1252")
    frame.loc[5, "text"] = ""  # one in 120 may be empty
    said = given(tmp_path, frame)
    distill(monkeypatch, tmp_path, {**said, "student": {"model": "mlp"}})  # refused; the recipe is written
    (tmp_path / "recipe.toml").write_text(
        (tmp_path / "recipe.toml").read_text(encoding="utf-8").replace('model = "mlp"', 'model = "text.bag"'), encoding="utf-8"
    )
    capsys.readouterr()
    assert run(monkeypatch, "check", tmp_path / "recipe.toml") == 0
    heard = " ".join("".join(capsys.readouterr()).split())
    assert "U401 1 texts of rows.csv look as if they were read in a wrong encoding" in heard and "rows.csv line 4" in heard
    assert "U402 1 of 120 rows of rows.csv have no text (rows.csv line 7) and are left out" in heard


# --- tokenizers without a padding token -----------------------------------------------------------------------------


def test_a_students_tokenizer_without_padding_token_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard) -> None:
    made_up.language_tokenizer(tmp_path / "words", made_up.sentences(30)["text"].tolist())
    said = given(tmp_path, made_up.sentences(60), tokenizer=str(tmp_path / "words"))
    refused(monkeypatch, capsys, tmp_path, said, "U406 the tokenizer", "has no padding token", "tokenizer.enable_padding")


@pytest.mark.parametrize("kind", ["hf", "pooled", "sentences"])
def test_a_teachers_tokenizer_without_padding_token_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard, kind: str
) -> None:
    said = given(tmp_path, made_up.sentences(60))
    if kind == "sentences":
        place = f"sentences:{made_up.encoder(tmp_path / 'model')}"
        made_up.tokenizer(tmp_path / "model", padding=False)
    else:
        place = f"hf:{made_up.classifier(tmp_path / 'model', list(TOPICS), padding=False)}"
    said["teacher"] = {"source": place, **({"options": {"pooling": "mean"}} if kind == "pooled" else {})}
    refused(monkeypatch, capsys, tmp_path, said, "U406 the tokenizer of", "has no padding token", "save")


# --- pipelines in .skops --------------------------------------------------------------------------------------------


def test_a_pipeline_in_skops_teaches_without_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard) -> None:
    skops = pytest.importorskip("skops.io")
    frame = made_up.sentences(240)
    said = given(tmp_path, frame)
    fitted = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10)).fit(frame["text"], frame["topic"])
    skops.dump(fitted, tmp_path / "teacher.skops")
    said["teacher"] = {"source": str(tmp_path / "teacher.skops")}
    assert distill(monkeypatch, tmp_path, said) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "scorecard.json").read_text())["models"]["teacher"]["quality"]["accuracy"]["mean"] > 0.9
    assert card(tmp_path)["models"]["exported"]["quality"]["accuracy"]["mean"] > 0.8


def test_a_pipeline_in_skops_with_code_of_its_own_is_refused_until_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Heard
) -> None:
    skops = pytest.importorskip("skops.io")
    frame = made_up.sentences(60)
    said = given(tmp_path, frame)
    own = make_pipeline(TfidfVectorizer(tokenizer=words_of, token_pattern=None), LogisticRegression()).fit(frame["text"], frame["topic"])
    skops.dump(own, tmp_path / "teacher.skops")
    said["teacher"] = {"source": str(tmp_path / "teacher.skops")}
    told = ("U013", "can execute code when loaded", "types that are not known to be safe", "words_of", "teacher.trust = true")
    refused(monkeypatch, capsys, tmp_path, said, *told)
