"""Hugging Face models of texts beyond classifiers: vectors with a fitted head, and language models asked in words."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import texts as made_up
import torch
from sklearn.linear_model import LogisticRegression
from test_text_runs import BAG, TOPICS, TRAIN, card, distill, rows_of

from understudy import recipe
from understudy.adapters import hugging_face, hugging_face_language
from understudy.checks.teachers import check_teacher
from understudy.data.rows import Rows
from understudy.errors import TeacherError
from understudy.tasks import Task

PROMPT = "{text}\nTopic:"
TASK = Task("multiclass", TOPICS)


def asked(frame: pd.DataFrame) -> list[str]:
    """The texts as a language model learns to answer them."""
    return [PROMPT.replace("{text}", text) + " " + topic for text, topic in zip(frame["text"], frame["topic"], strict=True)]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return made_up.sentences(240)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame) -> Path:
    """A tiny GPT-2 that has learned to say topics; its tokenizer has no padding token."""
    return made_up.language_model(tmp_path_factory.mktemp("models") / "gpt2", asked(frame), steps=150)


def plainly(folder: Path, prompt: str, words: list[str], *, mean: bool = False) -> list[float]:
    """Log-likelihoods of words after one prompt, each by a pass of its own without padding."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for said in words:
        before, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + said)["input_ids"]
        with torch.inference_mode():
            chances = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        each = [float(chances[at - 1, whole[at]]) for at in range(len(before), len(whole))]
        found.append(sum(each) / (len(each) if mean else 1))
    return found


# --- language models asked in words ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("mean", [False, True])
def test_scores_are_log_likelihoods_of_the_words_after_the_prompt(tmp_path: Path, frame: pd.DataFrame, kind: str, mean: bool) -> None:
    folder = made_up.language_model(tmp_path / kind, asked(frame), kind=kind)
    # words of one token and of several, two of which begin alike
    words = {"money": " the market", "space": " the moon crew", "sport": " cup"}
    options = {"prompt": PROMPT, "verbalisers": words, "normalise": mean, "batch_size": 3}
    teacher = hugging_face_language.load(f"hf:{folder}", task=TASK, options=options)
    texts = np.array(["goal", "the bank said it was a very new price of the market", *frame["text"][:5]], dtype=object)
    said = teacher.signals(texts)["logits"]
    expected = [plainly(folder, PROMPT.replace("{text}", text), [words[name] for name in TASK.classes], mean=mean) for text in texts]
    np.testing.assert_allclose(said.numpy(), expected, rtol=1e-4, atol=1e-4)
    assert check_teacher(teacher, texts) == []


def test_a_language_model_without_padding_token_teaches_a_bag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], frame: pd.DataFrame, taught: Path
) -> None:
    frame.to_csv(tmp_path / "rows.csv", index=False)
    said = {
        "data": {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topic", "max_length": 16},
        "teacher": {"source": f"hf:{taught}", "options": {"prompt": PROMPT}},
        "objective": {"alpha": 1.0, "temperature": 1.0}, "student": BAG, "train": {**TRAIN, "epochs": 12},
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, said) == 0, capsys.readouterr().err
    models = card(tmp_path)["models"]
    assert models["teacher"]["quality"]["accuracy"]["mean"] > 0.9
    assert models["exported"]["quality"]["accuracy"]["mean"] > 0.8


def test_long_texts_are_cut_and_the_prompt_stays(tmp_path: Path, frame: pd.DataFrame, taught: Path) -> None:
    teacher = hugging_face_language.load(f"hf:{taught}", task=TASK, options={"prompt": PROMPT})
    short = "the goal of the match was a score "
    said = teacher.signals(np.array([short, short * 30], dtype=object))["logits"]
    assert said.argmax(1).tolist() == [TOPICS.index("sport")] * 2
    with pytest.raises(TeacherError, match=r"U386 teacher.options.prompt takes \d+ tokens without a text, and hf:.* reads \d+ beside"):
        hugging_face_language.load(f"hf:{taught}", task=TASK, options={"prompt": "say it " * 90 + "{text}"})


def test_prompts_and_words_that_cannot_be_asked_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], frame: pd.DataFrame, taught: Path
) -> None:
    place = f"hf:{taught}"
    for options, told in (
        ({"prompt": "What is the topic?"}, r"U386 teacher.options.prompt = 'What is the topic\?' has no {text}, where a row's text goes"),
        ({"verbalisers": {"sport": " sport"}}, "U386 teacher.options.prompt = '' has no {text}"),
        ({"prompt": PROMPT, "verbalisers": {"sport": " sport"}}, "U387 .* has words for 1 of 3 classes; missing: 'money', 'space'"),
        ({"prompt": PROMPT, "verbalisers": {"sports": " x"}}, "U387 .* no class 'sports'; did you mean 'sport'"),
        ({"prompt": PROMPT, "verbalisers": dict.fromkeys(TOPICS, " x")}, "U387 the words ' x' for the class 'space' are the same tokens"),
        ({"prompt": PROMPT, "verbalizers": {}}, "U408 teacher.options: there is no 'verbalizers' .*; did you mean 'verbalisers'"),
    ):
        with pytest.raises(TeacherError, match=told):
            hugging_face_language.load(place, task=TASK, options=options)
    with pytest.raises(TeacherError, match="U386 .* has no {second}, where a row's text goes"):
        hugging_face_language.load(place, task=TASK, pairs=True, options={"prompt": "{first}?"})
    with pytest.raises(TeacherError, match="U388 .* asked which one class a text has, and the task is multilabel"):
        hugging_face_language.load(place, task=Task("multilabel", TOPICS), options={"prompt": PROMPT})
    bert = made_up.classifier(tmp_path / "bert", list(TOPICS))
    with pytest.raises(TeacherError, match="U388 hf:.*bert is no language model that reads from left to right"):
        hugging_face_language.load(f"hf:{bert}", task=TASK, options={"prompt": PROMPT})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    data = {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topic"}
    teacher = {"source": place, "options": {"prompt": PROMPT, "verbalisers": {"sport": " sport"}}}
    assert distill(monkeypatch, tmp_path, {"data": data, "teacher": teacher, "student": BAG}) == 2
    assert "U387 teacher.options.verbalisers has words for 1 of 3 classes" in " ".join(capsys.readouterr().err.split())


def test_words_for_classes_of_several_words_are_kept_with_the_run() -> None:
    words = {"New York": " there", "the 2.0": ' a "quote"'}
    teacher = {"source": "hf:x", "options": {"prompt": PROMPT, "verbalisers": words}}
    said = recipe.parse({"out": "x", "data": {"train": "x.csv"}, "teacher": teacher, "student": {"model": "text.bag"}})
    assert recipe.parse(tomllib.loads(recipe.to_toml(said))) == said


def test_pairs_are_asked_in_their_places(tmp_path: Path, frame: pd.DataFrame, taught: Path) -> None:
    task = Task("binary", ("no", "yes"))
    prompt = "{first} and {second}? "
    teacher = hugging_face_language.load(f"hf:{taught}", task=task, pairs=True, options={"prompt": prompt})
    pairs = np.array([["the {second} goal", "a bank"], ["old", "a very new score"]], dtype=object)
    said = teacher.signals(pairs)["logits"].numpy()
    expected = [plainly(taught, f"{first} and {second}?", [" no", " yes"]) for first, second in pairs]
    np.testing.assert_allclose(said, expected, rtol=1e-4, atol=1e-4)


# --- vectors with a fitted head -------------------------------------------------------------------------------------


def states(folder: Path, text: str) -> Any:
    """The last states of one text's tokens, by a pass of its own without padding."""
    from transformers import AutoModel, AutoTokenizer

    with torch.inference_mode():
        said = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
        return AutoModel.from_pretrained(folder).eval()(input_ids=said["input_ids"]).last_hidden_state[0].numpy()


@pytest.mark.parametrize(("pooling", "kind"), [("mean", "bert"), ("first", "bert"), ("last", "gpt2"), ("mean", "llama")])
def test_vectors_are_pooled_states_and_their_head_is_fitted(tmp_path: Path, frame: pd.DataFrame, pooling: str, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "bert":
        made_up.classifier(folder, list(TOPICS), head=False)
    else:
        made_up.language_model(folder, frame["text"].tolist(), kind=kind)
    loaded = rows_of(frame[:90], tmp_path, label="topic")
    options = {"pooling": pooling, "batch_size": 7, "strength": 10.0}
    teacher = hugging_face.load_pooled(f"hf:{folder}", task=loaded.task, rows=loaded.rows, cache=tmp_path / "cache", options=options)
    texts = np.array(["goal", *frame["text"][:4], "the old cup"], dtype=object)
    assert isinstance(teacher.module, hugging_face._Headed)
    with torch.inference_mode():
        found = teacher.module.body(teacher.prepared(texts)).numpy()
    pooled = {"mean": lambda said: said.mean(0), "first": lambda said: said[0], "last": lambda said: said[-1]}[pooling]
    np.testing.assert_allclose(found, [pooled(states(folder, text)) for text in texts], rtol=1e-4, atol=1e-5)
    train = loaded.rows.part("train")
    with torch.inference_mode():
        seen = teacher.module.body(teacher.prepared(train.inputs)).numpy().astype(np.float64)
    middle, scale = seen.mean(0), seen.std(0) * np.sqrt(seen.shape[1])
    expected = LogisticRegression(C=10.0, max_iter=2000).fit((seen - middle) / scale, train.labels).predict_proba((found - middle) / scale)
    np.testing.assert_allclose(teacher.signals(texts)["logits"].softmax(1).numpy(), expected, atol=1e-3)
    assert check_teacher(teacher, loaded.rows.inputs[:12]) == []
    again = hugging_face.load_pooled(f"hf:{folder}", task=loaded.task, rows=loaded.rows, cache=tmp_path / "cache", options=options)
    assert again.fingerprint() == teacher.fingerprint()


def test_an_embedding_model_teaches_by_its_vectors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], frame: pd.DataFrame
) -> None:
    folder = made_up.classifier(tmp_path / "encoder", list(TOPICS), head=False)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    terms = [{"loss": "logits.soft_target", "options": {"temperature": 2.0}}, {"loss": "embeddings.embedding_cosine"}]
    said = {
        "data": {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "topic", "max_length": 16},
        "teacher": {"source": f"hf:{folder}", "options": {"pooling": "mean"}},
        "objective": {"terms": terms}, "student": BAG, "train": TRAIN,
    }  # fmt: skip
    assert distill(monkeypatch, tmp_path, said) == 0, capsys.readouterr().err
    assert "layers" in capsys.readouterr().out
    assert card(tmp_path)["models"]["exported"]["quality"]["accuracy"]["mean"] > 0.6


def test_pairs_are_read_apart_and_their_cosine_needs_no_label(tmp_path: Path) -> None:
    folder = made_up.classifier(tmp_path / "encoder", list(TOPICS), head=False)
    loaded = rows_of(made_up.pairs(40), tmp_path, text=["first", "second"], label="score")
    rows = Rows("text", loaded.rows.inputs, loaded.rows.keys, None, loaded.rows.split)
    teacher = hugging_face.load_pooled(f"hf:{folder}", task=Task("regression"), rows=rows, options={"pooling": "mean"})
    one, other = (states(folder, text).mean(0) for text in rows.inputs[0])
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert float(teacher.signals(rows.inputs[:3])["values"][0, 0]) == pytest.approx(cosine, abs=1e-5)
    same = Task("binary", ("no", "yes"))
    labelled = Rows("text", rows.inputs, rows.keys, np.arange(40) % 2, rows.split)
    teacher = hugging_face.load_pooled(f"hf:{folder}", task=same, rows=labelled, options={"pooling": "first"})
    assert teacher.signals(rows.inputs[:5])["logits"].shape == (5, 2)


def test_models_that_give_no_vectors_are_refused(tmp_path: Path, frame: pd.DataFrame) -> None:
    loaded = rows_of(frame[:60], tmp_path, label="topic")
    said: dict[str, Any] = {"task": loaded.task, "rows": loaded.rows}
    bare = made_up.classifier(tmp_path / "bare", list(TOPICS), head=False, padding=False)
    with pytest.raises(TeacherError, match="U406 the tokenizer of hf:.* has no padding token"):
        hugging_face.load_pooled(f"hf:{bare}", options={"pooling": "mean"}, **said)
    with pytest.raises(TeacherError, match="U408 teacher.options.pooling = 'middle'; there is: mean, first, last"):
        hugging_face.load_pooled(f"hf:{bare}", options={"pooling": "middle"}, **said)
    causal = made_up.language_model(tmp_path / "gpt2", frame["text"].tolist(), padding=True)
    with pytest.raises(
        TeacherError, match=r"U014 hf:.* has no weights for score.weight .* say how to read the model: teacher.options.pool"
    ):
        hugging_face.load(f"hf:{causal}", task=TASK)
    headless = made_up.language_model(tmp_path / "headless", frame["text"].tolist(), headless=True)
    teacher = hugging_face.load_pooled(f"hf:{headless}", options={"pooling": "last"}, **said)
    assert teacher.signals(loaded.rows.inputs[:3])["logits"].shape == (3, 3)


def test_a_classifier_of_gpt2_is_not_told_of_types_that_it_would_take_for_tokens(tmp_path: Path, frame: pd.DataFrame) -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    words = made_up.language_tokenizer(tmp_path / "gpt2", frame["text"].tolist(), padding=True)
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "pad_token_id": words.pad_token_id}
    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=len(words), num_labels=3, **sizes)).eval()
    model.save_pretrained(tmp_path / "gpt2")
    texts = np.array(["goal", *frame["text"][:3]], dtype=object)
    said = hugging_face.load(f"hf:{tmp_path / 'gpt2'}", task=TASK).signals(texts)["logits"]
    with torch.inference_mode():
        alone = [model(input_ids=torch.tensor([words(text)["input_ids"]])).logits[0].numpy() for text in texts]
    np.testing.assert_allclose(said.numpy(), alone, atol=1e-4)
