"""Splits by content: the order of rows does not matter, equal rows stay together, every class is everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.data.splitting import combine, load_split, overlap, same, save_split, some, split_rows
from understudy.errors import DataError
from understudy.tasks import Task

THREE = Task("multiclass", ("a", "b", "c"))
REGRESSION = Task("regression")


def made(contents: list[int], labels: np.ndarray | None = None, split: list[str] | None = None) -> Rows:  # type: ignore[type-arg]
    inputs = pd.DataFrame({"x": contents})
    names = np.array([f"row {at} of x" for at in range(len(contents))])
    return Rows("table", inputs, content_keys(inputs, "table"), labels, None if split is None else np.array(split), names)


def counts(rows: Rows) -> dict[str, int]:
    assert rows.split is not None
    return dict(zip(*np.unique(rows.split, return_counts=True), strict=True))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(-1, 2)), min_size=40, max_size=90), st.integers(0, 3), st.randoms())
def test_order_does_not_matter_and_equal_rows_stay_together(rows: list[tuple[int, int]], seed: int, random: object) -> None:
    labels = np.array([label for _, label in rows])
    contents = [content for content, _ in rows]
    given_rows = made([*contents, *range(100, 130)], np.concatenate([labels, np.arange(30) % 3]))
    split = split_rows(given_rows, THREE, validation=0.2, test=0.2, seed=seed)
    order = list(range(len(given_rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = split_rows(given_rows.take(np.array(order)), THREE, validation=0.2, test=0.2, seed=seed)
    assert split.split is not None
    assert moved.split is not None
    assert (moved.split == split.split[order]).all()
    assert len(overlap(split)) == 0
    assert set(split.split) == {"train", "validation", "test"}


def test_some_rows_are_the_same_whatever_the_order_and_leave_held_out_rows_alone() -> None:
    rows = made(list(range(100)), np.arange(100) % 3)
    few = some(rows, 30, seed=1)
    assert len(few) == 30 and set(some(rows.take(np.arange(100)[::-1]), 30, seed=1).inputs["x"]) == set(few.inputs["x"])
    assert set(some(rows, 30, seed=2).inputs["x"]) != set(few.inputs["x"])
    assert set(few.inputs["x"]) < set(some(rows, 40, seed=1).inputs["x"])  # what is taught for few serves more
    assert some(rows, 100, seed=0) is rows
    marked = made(list(range(40)), np.arange(40) % 3, ["train"] * 20 + ["test"] * 20)
    assert counts(some(marked, 5, seed=0)) == {"train": 5, "test": 20}


@pytest.mark.parametrize("seed", [0, 1, -5])
def test_fractions_hold_in_every_class(seed: int) -> None:
    labels = np.repeat([0, 1, 2], [300, 100, 3])
    rows = split_rows(made(list(range(403)), labels), THREE, validation=0.15, test=0.2, seed=seed)
    assert rows.labels is not None
    for word, part in (("validation", 0.15), ("test", 0.2)):
        there = np.bincount(rows.part(word).labels, minlength=3)  # type: ignore[arg-type]
        assert abs(there[0] - 300 * part) <= 1
        assert abs(there[1] - 100 * part) <= 1
        assert there[2] == 1
    assert counts(rows)["test"] == pytest.approx(403 * 0.2, abs=2)


def test_many_small_classes_keep_the_total() -> None:
    task = Task("multiclass", tuple(map(str, range(60))))
    rows = split_rows(made(list(range(600)), np.arange(600) % 60), task, validation=0.15, test=0.15, seed=0)
    assert counts(rows) == {"train": 420, "validation": 90, "test": 90}
    assert (np.bincount(rows.part("test").labels, minlength=60) >= 1).all()  # type: ignore[arg-type]


def test_classes_of_one_or_two_rows_are_in_train_only() -> None:
    rows = split_rows(made(list(range(43)), np.repeat([0, 1, 2], [40, 2, 1])), THREE, validation=0.2, test=0.2, seed=0)
    for word in ("validation", "test"):
        assert set(rows.part(word).labels.tolist()) == {0}  # type: ignore[union-attr]


def test_seeds_differ() -> None:
    one, other = (split_rows(made(list(range(100))), THREE, validation=0.2, test=0.2, seed=seed).split for seed in (0, 1))
    assert one is not None
    assert (one != other).any()


def test_unlabelled_rows_are_split_as_well() -> None:
    rows = split_rows(made(list(range(200)), np.repeat([-1, 0, 1], [100, 50, 50])), THREE, validation=0.2, test=0.2, seed=0)
    for word in ("validation", "test"):
        assert (rows.part(word).labels == -1).sum() == 20
    assert counts(split_rows(made(list(range(10))), THREE, validation=0.2, test=0.2, seed=0)) == {"train": 6, "validation": 2, "test": 2}


def test_a_regression_is_split_by_quantiles() -> None:
    values = np.exp(np.arange(400, dtype=np.float32) / 40)[:, None]
    rows = split_rows(made(list(range(400)), values), REGRESSION, validation=0.2, test=0.2, seed=0)
    edges = np.quantile(values, [0.25, 0.5, 0.75])
    quarters = np.bincount(np.searchsorted(edges, rows.part("test").labels[:, 0]), minlength=4)  # type: ignore[index]
    assert (np.abs(quarters - 20) <= 4).all()
    few = split_rows(made(list(range(6)), values[:6]), REGRESSION, validation=0.2, test=0.2, seed=0)
    assert counts(few) == {"train": 4, "validation": 1, "test": 1}


def test_a_rare_label_of_a_multilabel_task_is_everywhere() -> None:
    labels = np.zeros((200, 3), dtype=np.float32)
    labels[:, 0] = 1
    labels[:5, 2] = 1
    rows = split_rows(made(list(range(200)), labels), Task("multilabel", ("a", "b", "c")), validation=0.2, test=0.2, seed=0)
    for word in ("train", "validation", "test"):
        assert rows.part(word).labels[:, 2].sum() >= 1  # type: ignore[index]


def test_refused_splits() -> None:
    with pytest.raises(DataError, match=r"U151 split.validation \+ split.test = 1.1 must be below 1"):
        split_rows(made([1, 2, 3]), THREE, validation=0.6, test=0.5, seed=0)
    with pytest.raises(DataError, match="U151 2 different rows cannot be split in 3"):
        split_rows(made([1, 1, 2, 2]), THREE, validation=0.2, test=0.2, seed=0)
    with pytest.raises(DataError, match="U151 3 different rows of 3 classes cannot be split in 3; most classes have one or two rows"):
        split_rows(made([1, 2, 3], np.arange(3)), THREE, validation=0.2, test=0.2, seed=0)


def test_given_parts_are_kept_and_the_missing_one_is_split_off() -> None:
    train, test = made(list(range(50)), np.arange(50) % 2), made([7, 1000, 1001])
    rows = combine(train, None, test, task=THREE, validation_part=0.2, test_part=0.2, seed=0)
    assert counts(rows) == {"train": 40, "validation": 10, "test": 3}
    assert rows.labels is not None
    assert rows.labels[-3:].tolist() == [-1, -1, -1]
    assert rows.name(51) == "row 1 of x"
    shared = overlap(rows)
    assert rows.inputs["x"].iloc[shared].tolist() == [7]
    assert rows.split is not None
    assert set(rows.split[shared]) <= {"train", "validation"}


def test_a_given_split_column_is_kept() -> None:
    words = ["train"] * 20 + ["test"] * 5
    rows = combine(made(list(range(25)), split=words), task=THREE, validation_part=0.2, test_part=0.5, seed=0)
    assert counts(rows) == {"train": 16, "validation": 4, "test": 5}
    assert sorted(rows.part("test").inputs["x"]) == [20, 21, 22, 23, 24]
    with pytest.raises(DataError, match="U152 the test rows are given twice: by data.test and by the split in data.train"):
        combine(made(list(range(25)), split=words), None, made([1]), task=THREE, validation_part=0.2, test_part=0.2, seed=0)
    with pytest.raises(DataError, match="U152 no row of data.train is marked train"):
        combine(made([1, 2], split=["test", "test"]), task=THREE, validation_part=0.2, test_part=0.2, seed=0)


def parts(train: pd.DataFrame, test: pd.DataFrame) -> Rows:
    rows = [Rows("table", frame, content_keys(frame, "table")) for frame in (train, test)]
    return combine(rows[0], None, rows[1], task=THREE, validation_part=0.2, test_part=0.2, seed=0)


def test_columns_of_a_given_part() -> None:
    train = pd.DataFrame({"n": np.arange(10), "t": pd.array(["1", "x"] * 5, dtype="str")})
    rows = parts(train, pd.DataFrame({"more": [0], "t": [1.0], "n": [99]}))
    assert list(rows.inputs.columns) == ["n", "t"]
    assert rows.inputs["t"].iloc[-1] == "1"
    with pytest.raises(DataError, match="U152 the test rows have no column 'n'; did you mean 'N'?"):
        parts(train, pd.DataFrame({"N": [1], "t": ["x"]}))
    with pytest.raises(DataError, match=r"U152 column 'n' holds numbers in train but texts in test, e.g. 'N/A' \(row 1\)"):
        parts(train, pd.DataFrame({"n": pd.array(["5", "N/A"], dtype="str"), "t": ["x", "x"]}))


def test_shapes_and_kinds_of_a_given_part() -> None:
    images = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2, 1)
    train, test = (Rows("image", pixels, content_keys(pixels, "image")) for pixels in (images, images[:2].reshape(2, 4, 1, 1)))
    with pytest.raises(DataError, match=r"U152 train rows have the shape \[2, 2, 1\] but test rows \[4, 1, 1\]. Images can be resized"):
        combine(train, None, test, task=THREE, validation_part=0.2, test_part=0.2, seed=0)
    with pytest.raises(DataError, match="U152 train is image but test is table"):
        combine(train, None, made([1]), task=THREE, validation_part=0.2, test_part=0.2, seed=0)


def test_overlap_of_all_three_parts() -> None:
    rows = made([1, 2, 3, 2, 4, 3, 4], split=["train", "train", "train", "validation", "validation", "test", "test"])
    assert overlap(rows).tolist() == [1, 2, 4]


def test_a_saved_split_is_found_again(tmp_path: Path) -> None:
    rows = split_rows(made(list(range(30))), THREE, validation=0.2, test=0.2, seed=0)
    path = tmp_path / "split.npz"
    save_split(rows, path)
    assert [item.name for item in tmp_path.iterdir()] == ["split.npz"]
    keys, split = load_split(path)
    assert (keys == rows.keys).all()
    assert (split == rows.split).all()
    assert same(rows.take(np.arange(30)[::-1]), path)
    assert not same(rows.take(np.arange(29)), path)
    assert rows.split is not None
    assert not same(replace(rows, split=np.roll(rows.split, 1)), path)
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="U153 .* is no saved split"):
        load_split(path)
