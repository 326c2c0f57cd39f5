"""Texts as rows, their tokens, and the small models that read them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import texts as made_up
import torch

from understudy.data.keys import content_keys
from understudy.data.labelling import read_classes, spread
from understudy.data.nearness import near_twins
from understudy.data.rows import Rows
from understudy.data.texts import read_texts
from understudy.data.tokenizing import TextEncoding
from understudy.errors import DataError
from understudy.make.rows import load_rows
from understudy.recipe import parse
from understudy.students import text
from understudy.students.preprocessing import TextPreprocessing, trimmed

# --- rows -----------------------------------------------------------------------------------------------------------


def test_a_csv_a_parquet_and_json_lines_give_the_same_rows(tmp_path: Path) -> None:
    frame = made_up.sentences(9)
    frame.loc[0, "text"] = 'with a "quote", a comma\nand two lines'
    frame.to_csv(tmp_path / "rows.csv", index=False)
    frame.to_parquet(tmp_path / "rows.parquet")
    frame.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress((tmp_path / "rows.csv").read_bytes()))
    found = [read_texts(tmp_path / f"rows.{ending}", label="topic") for ending in ("csv", "csv.gz", "parquet", "jsonl")]
    for source in found:
        assert source.kind == "text"
        assert source.inputs.tolist() == frame["text"].tolist()
        assert list(source.labels) == frame["topic"].tolist()
    assert found[0].names[1] == "rows.csv line 4"  # the first text has two lines
    assert found[3].names[1] == "rows.jsonl line 2"


def test_texts_are_kept_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nNA,1\n 007 ,0\nnull,1\n", encoding="utf-8")
    source = read_texts(tmp_path / "rows.csv", label="label")
    assert source.inputs.tolist() == ["NA", "007", "null"]
    assert source.labels.tolist() == [1, 0, 1]


def test_two_columns_are_a_pair_or_one_joined_text(tmp_path: Path) -> None:
    pd.DataFrame({"title": ["one", "two"], "body": ["rest", ""]}).to_csv(tmp_path / "rows.csv", index=False)
    joined = read_texts(tmp_path / "rows.csv", text=["title", "body"], join=" ")
    assert joined.inputs.tolist() == ["one rest", "two"]
    with pytest.raises(DataError, match=r"U402.* 1 of 2 rows of rows.csv have no text \(rows.csv line 3\)"):
        read_texts(tmp_path / "rows.csv", text=["title", "body"])
    made_up.pairs(4).to_csv(tmp_path / "pairs.csv", index=False)
    assert read_texts(tmp_path / "pairs.csv", text=["first", "second"], label="score").inputs.shape == (4, 2)


def test_folders_of_text_files_are_classes(tmp_path: Path) -> None:
    for topic in ("good", "bad"):
        (tmp_path / topic).mkdir()
        for number in range(2):
            (tmp_path / topic / f"{number}.txt").write_text(f"{topic} film {number}\n", encoding="utf-8")
    source = read_texts(tmp_path)
    assert source.inputs.tolist() == ["bad film 0", "bad film 1", "good film 0", "good film 1"]
    assert source.classes == ("bad", "good")
    assert source.names[0] == "bad/0.txt"


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (b"text,label\ncaf\xe9,1\n", {}, "U102 rows.csv is not utf-8 text: byte 0xe9 in line 2"),
        ("text,label\ncaf\xe9,1\n".encode("utf-16"), {}, "U102 rows.csv is UTF-16 text"),
        (b"text,label\n,1\nb,0\n", {}, "U402 1 of 2 rows of rows.csv have no text"),
        (b"words,label\na,1\n", {"text": "word"}, r"U107 No column 'word' \(data.text\) in rows.csv; did you mean 'words'"),
        (b"a,b\nx,y\n", {}, "U400 which column of rows.csv holds the text"),
        (b"a,b,c\nx,y,z\n", {"text": ["a", "b", "c"]}, "U400 data.text names 3 columns"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, content: bytes, options: dict, told: str) -> None:
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_texts(tmp_path / "rows.csv", **options)


def test_json_lines_that_are_none_and_columns_that_hold_no_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(DataError, match="U403 rows.jsonl line 2 is not JSON"):
        read_texts(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"text": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match="U400 column 'text' of rows.jsonl holds int, not texts"):
        read_texts(tmp_path / "rows.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"U403 no \.txt file"):
        read_texts(tmp_path / "empty")


def test_a_wrong_encoding_that_decodes_is_warned_of_with_its_rows(tmp_path: Path) -> None:
    garbled = "the café’s door".encode().decode("cp1252")
    pd.DataFrame({"text": ["plain", garbled, "naïve café, Ãlysée"], "label": [0, 1, 0]}).to_csv(tmp_path / "rows.csv", index=False)
    (problem,) = read_texts(tmp_path / "rows.csv", label="label").problems
    assert problem.code == "U401" and problem.level == "warning"
    assert "1 texts" in problem.message and "rows.csv line 3" in problem.message


def test_few_empty_texts_are_left_out_with_their_labels(tmp_path: Path) -> None:
    frame = made_up.sentences(150)
    frame.loc[7, "text"] = "  "
    frame.to_csv(tmp_path / "rows.csv", index=False)
    source = read_texts(tmp_path / "rows.csv", label="topic")
    assert len(source.inputs) == len(source.labels) == len(source.names) == 149
    assert list(source.labels) == frame["topic"].drop(7).tolist()
    assert [problem.code for problem in source.problems] == ["U402"]
    assert "rows.csv line 9" in source.problems[0].message


def test_keys_are_those_of_the_texts() -> None:
    texts = np.array(["one", "two", "one", "7"], dtype=object)
    keys = content_keys(texts, "text")
    assert (keys[0] == keys[2]).all() and (keys[0] != keys[1]).any()
    both = np.array([["one", "two"], ["two", "one"]], dtype=object)
    assert (content_keys(both, "text")[0] != content_keys(both, "text")[1]).any()


def test_several_labels_in_one_cell() -> None:
    table = spread(pd.Series(["2,0", None, "1"]), ",", ["joy", "love", "fear"])
    assert list(table.columns) == ["joy", "love", "fear"]
    np.testing.assert_array_equal(table.to_numpy(), [[1, 0, 1], [np.nan] * 3, [0, 1, 0]])
    assert spread(pd.Series(["b|a", "a"]), "|", None).to_numpy().tolist() == [[1, 1], [1, 0]]
    with pytest.raises(DataError, match="U415 row 1 has the label 'hate'"):
        spread(pd.Series(["joy", "hate"]), ",", ["joy", "love"])


def test_classes_are_named_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("\ufeffjoy\nlove\n\n fear \n", encoding="utf-8")
    assert read_classes(tmp_path / "labels.txt") == ["joy", "love", "fear"]
    lines = [f'"0,2",one {n}\n1,two {n}\n2,three {n}\n' for n in range(6)]
    (tmp_path / "rows.csv").write_text("labels,text\n" + "".join(lines), encoding="utf-8")
    data = {"root": str(tmp_path), "train": "rows.csv", "text": "text", "label": "labels", "separator": ","}
    said = {"out": "x", "teacher": {"source": "x"}, "student": {"model": "text.bag"}, "split": {"validation": 0.3, "test": 0.3}}
    loaded = load_rows(parse({**said, "data": {**data, "classes": "labels.txt"}}))
    assert loaded.task.classes == ("joy", "love", "fear") and loaded.task.kind == "multilabel"
    assert loaded.rows.labels is not None
    found = {text.split()[0]: row for text, row in zip(loaded.rows.inputs, loaded.rows.labels.tolist(), strict=True)}
    assert found == {"one": [1, 0, 1], "two": [0, 1, 0], "three": [0, 0, 1]}
    few = load_rows(parse({**said, "data": {**data, "classes": "labels.txt"}, "rows": {"take": 12}}))
    assert len(few.rows) == 12
    with pytest.raises(DataError, match=r"U100 no file label.txt in .*; did you mean 'labels.txt'"):
        load_rows(parse({**said, "data": {**data, "classes": "label.txt"}}))
    (tmp_path / "none.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"U404 .*none.txt \(data.classes\) names no class: write one name per line"):
        load_rows(parse({**said, "data": {**data, "classes": "none.txt"}}))


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_the_vocabulary_is_the_same_whenever_it_is_learned() -> None:
    texts = made_up.sentences(200)["text"].to_numpy(dtype=object)
    first, second = (TextEncoding.fit(texts, vocabulary=120, length=16) for _ in range(2))
    assert first.tokenizer == second.tokenizer
    assert first.size <= 120 and first.padding == 0
    assert TextEncoding.from_json(json.loads(json.dumps(first.to_json()))) == first


def test_tokens_are_positions_filled_up_with_padding() -> None:
    made = TextEncoding.fit(made_up.sentences(200)["text"].to_numpy(dtype=object), vocabulary=300, length=6)
    encoded = made.encode(np.array(["Goal goal", "", "goal " * 50], dtype=object))
    assert encoded.shape == (3, 6) and encoded.dtype == np.int64
    assert [made.words[at] for at in encoded[0, :2]] == ["▁goal", "▁goal"]
    assert (encoded[1] == made.padding).all()
    assert (encoded[2] == encoded[0, 0]).all()
    pairs = made_up.pairs(5)[["first", "second"]].to_numpy(dtype=object)
    both = made.encode(pairs)
    assert both.shape == (5, 2, 6)
    np.testing.assert_array_equal(both[:, 1], made.encode(pairs[:, 1]))
    assert [problem.code for problem in made.check(pairs[:, 0])] == ["U417"]


def test_a_tokenizer_without_padding_or_that_is_none_is_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="U406 the tokenizer .* has no padding token"):
        TextEncoding.read(tmp_path / "tokenizer.json", length=8, pairs=False, special=False)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="U413"):
        TextEncoding.read(tmp_path / "tokenizer.json", length=8, pairs=False, special=False)


# --- models ---------------------------------------------------------------------------------------------------------

TOKENS = torch.tensor([[5, 6, 7, 0, 0, 0], [8, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])


def networks() -> dict[str, torch.nn.Module]:
    vectors = np.random.default_rng(0).normal(size=(20, 8))
    return {
        "bag": text.bag(20, 3, width=8, ngrams=3, buckets=16, seed=1),
        "transformer": text.transformer(20, 3, width=16, depth=2, heads=2, length=6, seed=1),
        "static": text.static(vectors, np.linspace(0.1, 1, 20), 3, seed=1),
    }


@pytest.mark.parametrize("name", ["bag", "transformer", "static"])
def test_padding_and_neighbours_do_not_matter(name: str) -> None:
    network = networks()[name].eval()
    whole = network(TOKENS)
    assert whole.isfinite().all()
    torch.testing.assert_close(network(TOKENS[:1, :3]), whole[:1])
    torch.testing.assert_close(network(TOKENS[1:2, :1]), whole[1:2])
    assert not torch.allclose(whole[0], whole[1])


@pytest.mark.parametrize("name", ["bag", "transformer", "static"])
def test_initial_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    first = networks()[name].state_dict()
    torch.manual_seed(6)
    second = networks()[name].state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_bag_is_the_mean_of_its_tokens_and_pairs_of_tokens() -> None:
    network = text.bag(20, 2, width=4, ngrams=2, buckets=16, seed=0).eval()
    table = network.body.embedding.weight
    pairs = [20 + (5 * 1_000_003 + 6) % 16, 20 + (6 * 1_000_003 + 7) % 16]
    expected = torch.stack([table[at] for at in [5, 6, 7, *pairs]]).mean(dim=0)
    torch.testing.assert_close(network.body(TOKENS[:1])[0], expected)
    one_word_order = text.bag(20, 2, width=4, ngrams=1, seed=0).eval()
    torch.testing.assert_close(one_word_order(torch.tensor([[5, 6]])), one_word_order(torch.tensor([[6, 5]])))
    assert not torch.allclose(network(torch.tensor([[5, 6]])), network(torch.tensor([[6, 5]])))


def test_static_vectors_are_weighted_means_and_their_pair_a_line_through_the_cosine() -> None:
    vectors, weights = np.random.default_rng(0).normal(size=(20, 8)), np.linspace(0.1, 1, 20)
    body = text.static(vectors, weights, 3, seed=0).body
    expected = sum(weights[at] * vectors[at] for at in (5, 6, 7)) / 3
    np.testing.assert_allclose(body(TOKENS[:1]).detach().numpy()[0], expected, rtol=1e-5)
    network = text.static(vectors, weights, 1, pairs=True, seed=0)
    same, other = torch.tensor([[[5, 6], [6, 5]]]), torch.tensor([[[5, 6], [9, 11]]])
    line = network.line
    torch.testing.assert_close(network(same), line.weight + line.bias)
    assert bool(network(other) < network(same))


def test_a_pair_goes_through_one_body() -> None:
    network = text.bag(20, 2, width=4, pairs=True, seed=0).eval()
    pair = torch.stack([TOKENS[0], TOKENS[1]])[None]
    first, second = network.body(TOKENS[:1]), network.body(TOKENS[1:2])
    expected = network.head(torch.cat([first, second, (first - second).abs(), first * second], dim=1))
    torch.testing.assert_close(network(pair), expected)


def test_only_columns_that_are_padding_everywhere_are_cut() -> None:
    assert trimmed(TOKENS, 0).tolist() == TOKENS[:, :3].tolist()
    assert TextPreprocessing(0)(TOKENS[1:]).shape == (2, 1)
    assert trimmed(TOKENS[2:], 0).shape == (1, 1)
    assert trimmed(TOKENS[:, None].expand(-1, 2, -1), 0).shape == (3, 2, 3)


def test_texts_that_differ_in_marks_alone_are_near_twins() -> None:
    texts = np.array(["How far is the moon?", "who is she", "how far is the moon", "who is she", "Who was he?"], dtype=object)
    split = np.array(["train", "train", "test", "test", "validation"])
    rows = Rows("text", texts, content_keys(texts, "text"), None, split)
    found = near_twins(rows)
    assert found.pairs.tolist() == [[0, 2]] and found.looked_at == 3  # the same to the byte is told elsewhere
