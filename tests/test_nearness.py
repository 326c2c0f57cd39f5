"""Near twins between splits: found where a thing was recorded twice, and not where rows are merely many or low-dimensional."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from understudy.checks.rows import check_rows
from understudy.data.keys import content_keys
from understudy.data.nearness import near_twins
from understudy.data.rows import Rows
from understudy.tasks import Task

YES_NO = Task("binary", ("no", "yes"))


def split(inputs: object, kind: str, counts: tuple[int, int]) -> Rows:
    words = np.repeat(["train", "test"], counts)
    n = sum(counts)
    return Rows(kind, inputs, content_keys(inputs, kind), np.arange(n) % 2, words, np.array([f"row {i}" for i in range(n)]))  # type: ignore[arg-type]


def photographs() -> np.ndarray:
    """65 cut-outs, apart from each other, of a photograph that ships inside scikit-learn."""
    temple = load_sample_images().images[0][144:]
    return np.stack([temple[48 * row : 48 * row + 48, 48 * column : 48 * column + 48] for row in range(5) for column in range(13)])


def saved_again(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=80)
    return np.asarray(Image.open(buffer))


def test_pictures_saved_again_are_found_and_others_are_not() -> None:
    images = photographs()
    again = np.stack([saved_again(image) for image in images[:5]])
    found = near_twins(split(np.concatenate([images, again]), "image", (40, 30)))
    assert found.looked_at == 30
    assert sorted(found.pairs.tolist()) == [[row, 65 + row] for row in range(5)]
    assert found.share == pytest.approx(5 / 30)


def test_a_table_with_rounded_cells_and_texts_written_otherwise() -> None:
    generator = np.random.default_rng(0)
    table = pd.DataFrame(generator.normal(size=(600, 4)), columns=list("abcd"))
    table["town"] = [f"Town {number}" for number in generator.integers(0, 30, 600)]
    twins = table.iloc[:7].copy()
    twins["a"] = twins["a"].round(3)
    twins["town"] = "  " + twins["town"].str.upper() + "."
    found = near_twins(split(pd.concat([table, twins], ignore_index=True), "table", (500, 107)))
    assert sorted(found.pairs.tolist()) == [[row, 600 + row] for row in range(7)]


def test_texts_of_the_same_words() -> None:
    texts = np.array([f"Where is town number {row}?" for row in range(50)] + ["where is  town NUMBER 7", "Where is the sea?"], dtype=object)
    found = near_twins(split(texts, "text", (50, 2)))
    assert found.pairs.tolist() == [[7, 50]] and found.looked_at == 2


def test_rows_that_are_close_because_there_are_many_are_no_twins() -> None:
    generator = np.random.default_rng(0)
    assert not len(near_twins(split(generator.normal(size=(5000, 8)).astype(np.float32), "array", (4000, 1000))).pairs)
    assert not len(near_twins(split(generator.uniform(size=(5000, 1)).astype(np.float32), "array", (4000, 1000))).pairs)
    few = pd.DataFrame({"a": np.arange(500.0), "b": ["x", "y"] * 250, "c": [0.0, 1.0] * 250})
    assert not len(near_twins(split(few.sample(frac=1, random_state=0, ignore_index=True), "table", (400, 100))).pairs)
    digits = load_digits().data.astype(np.float32)
    assert not len(near_twins(split(digits, "array", (1500, len(digits) - 1500))).pairs)


def test_equal_rows_are_the_overlap_checks_matter() -> None:
    inputs = np.random.default_rng(0).normal(size=(300, 5)).astype(np.float32)
    inputs[200:] = inputs[:100]
    assert not len(near_twins(split(inputs, "array", (200, 100))).pairs)


def test_the_check_names_both_rows_and_stays_silent_below_one_percent() -> None:
    inputs = np.random.default_rng(0).normal(size=(600, 6)).astype(np.float32)
    inputs[400:404] = inputs[:4] + 1e-3
    told = [problem for problem in check_rows(split(inputs, "array", (400, 200)), YES_NO) if problem.code == "U232"]
    assert [problem.level for problem in told] == ["warning"]
    assert told[0].message.startswith("2.0% of 200 held-out rows looked at nearly repeat a training row (first: row 400, like row 0); ")
    inputs[401:404] = np.random.default_rng(1).normal(size=(3, 6))
    assert not [problem for problem in check_rows(split(inputs, "array", (400, 200)), YES_NO) if problem.code == "U232"]
