"""From raw labels to a task: every kind, every refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from understudy.data.labelling import decide, to_names
from understudy.errors import DataError
from understudy.tasks import Task

NAMES = np.array([f"a.csv line {line}" for line in range(2, 60)])


def refusal(word: Any, raw: Any, classes: list[str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        decide(word, raw, classes, NAMES)
    return str(caught.value)


@pytest.mark.parametrize(
    ("raw", "kind", "classes"),
    [
        (["no", "yes", "no"], "binary", ("no", "yes")),
        ([True, False, True], "binary", ("False", "True")),
        ([1.0, 0.0, np.nan, 1.0], "binary", ("0", "1")),
        ([-1, 1, 1], "binary", ("-1", "1")),
        (["b", "c", "a"], "multiclass", ("a", "b", "c")),
        ([10, 2, 3, 2], "multiclass", ("2", "3", "10")),
        ([10.0, 2.0, 3.0], "multiclass", ("2", "3", "10")),
        (["10", "2", "9"], "multiclass", ("2", "9", "10")),
        (list(range(40)) * 5, "multiclass", tuple(map(str, range(40)))),
        (list(range(17, 60)), "regression", ()),
        (list(range(40)), "regression", ()),
        ([0.5, 1.0, 1.5, 2.0], "regression", ()),
        (np.array([[1.5], [2.5], [3.5]]), "regression", ()),
    ],
)
def test_auto(raw: Any, kind: str, classes: tuple[str, ...]) -> None:
    task, labels, _ = decide("auto", np.asarray(raw), None)
    assert (task.kind, task.classes) == (kind, classes)
    assert labels is not None
    assert labels.dtype == (np.float32 if kind == "regression" else np.int64)


def test_every_container_says_the_same() -> None:
    values = ["x", None, "y", " x "]
    for raw in (
        np.array(values, dtype=object),
        pd.Series(values, index=[9, 8, 7, 6]),
        pd.Series(values, dtype="category"),
        pd.DataFrame({"y": values}),
    ):
        task, labels, _ = decide("auto", raw, None)
        assert task == Task("binary", ("x", "y"))
        assert labels is not None
        assert labels.tolist() == [0, -1, 1, 0]


def test_declared_classes_give_the_order() -> None:
    task, labels, _ = decide("auto", np.array(["yes", "no", ""], dtype=object), ["yes", "no"])
    assert task == Task("binary", ("yes", "no"))
    assert labels is not None
    assert labels.tolist() == [0, 1, -1]
    task, labels, _ = decide("auto", np.array([True, False]), ["true", "false"])
    assert labels is not None
    assert labels.tolist() == [0, 1]


def test_integers_are_positions_among_names_that_are_no_numbers() -> None:
    task, labels, problems = decide("auto", np.array([2, 0, -1, 2, 0], dtype=np.int8), ["cat", "dog", "owl"])
    assert task == Task("multiclass", ("cat", "dog", "owl"))
    assert labels is not None
    assert labels.tolist() == [2, 0, -1, 2, 0]
    assert [str(problem) for problem in problems] == ["U138 no row has the class 'dog'"]
    said = refusal("auto", np.array([1, 2, 3]), ["cat", "dog", "owl"])
    assert (
        "U130 integer labels are positions among the 3 declared classes, 0 to 2 (-1: missing); a.csv line 4 says 3 (1 such rows)." in said
    )
    assert "Labels that count from 1 must have 1 taken off" in said
    _, labels, _ = decide("auto", np.array([3, 2]), ["3", "2"])
    assert labels is not None
    assert labels.tolist() == [0, 1]


def test_minus_one_is_a_class_with_a_warning() -> None:
    task, _, problems = decide("auto", np.array([-1, 0, 1, -1, 0, 1]), None)
    assert task.classes == ("-1", "0", "1")
    assert "U139 the label -1 is taken as a class. If it means missing, leave those labels empty" in str(problems[0])
    assert decide("auto", np.array([-1, 1, -1, 1]), None)[2] == []


def test_a_class_with_one_row_is_a_warning() -> None:
    problems = decide("auto", np.array(["a", "a", "b", "b", "c"]), None)[2]
    assert [(problem.level, str(problem)) for problem in problems] == [
        ("warning", "U138 only one row has the class 'c'; it can be learned or measured, not both")
    ]


def test_strangers_are_listed_with_rows_and_counts() -> None:
    said = refusal("auto", np.array(["cat", "dgo", "dog", "dgo", "bird"]), ["cat", "dog"])
    assert said.startswith("U130 labels that are not among the declared classes:")
    assert "'dgo': 2 rows, first a.csv line 3; did you mean 'dog'?" in said
    assert "'bird': 1 rows, first a.csv line 6; there is: cat, dog" in said


def test_multilabel() -> None:
    frame = pd.DataFrame({"cat": [1, 0, None], "dog": [True, False, True]}, index=[5, 6, 7])
    task, labels, problems = decide("auto", frame, None)
    assert task == Task("multilabel", ("cat", "dog"))
    np.testing.assert_array_equal(labels, np.array([[1, 1], [0, 0], [np.nan, 1]], dtype=np.float32))
    assert problems == []
    task, labels, _ = decide("multilabel", frame, ["dog", "cat"])
    assert task.classes == ("dog", "cat")
    assert labels is not None
    assert labels[0].tolist() == [1, 1]
    assert decide("auto", np.array([[0, 1], [1, 0]]), ["a", "b"])[0].classes == ("a", "b")
    assert decide("auto", np.array([[0, 1], [1, 0]]), None)[0].classes == ("0", "1")
    same = decide("auto", pd.DataFrame({"a": [0, 1], "b": [0, 0]}), None)[2]
    assert "U138 the label columns b hold the same value in every row" in str(same[0])


def test_without_labels_the_classes_must_be_said() -> None:
    nothing = np.array([None, None], dtype=object)
    for raw in (None, nothing):
        assert decide("auto", raw, ["a", "b"]) == (Task("binary", ("a", "b")), None, [])
        assert decide("auto", raw, ["a", "b", "c"])[0].kind == "multiclass"
        assert decide("multilabel", raw, ["a"])[0] == Task("multilabel", ("a",))
        assert decide("regression", raw, None)[0] == Task("regression")
        assert "U132 there are no labels, so the classes must be said in order: data.classes = ['no', 'yes']" in refusal("auto", raw)


@pytest.mark.parametrize(
    ("word", "raw", "classes", "says"),
    [
        ("auto", ["a", "a"], None, "U136 every label is 'a'; a classifier needs two classes"),
        ("regression", [2.0, 2.0], None, "U136 every label is 2; there is nothing to learn"),
        (
            "regression",
            ["1.5", "high", "low"],
            None,
            "U135 task = 'regression' needs numbers; a.csv line 3 has the label 'high' (2 such rows)",
        ),
        ("regression", [1.0, np.inf], None, "U135 a.csv line 3 has an infinite label (1 such rows)"),
        ("regression", [1.0, 1e300], None, "U135 a.csv line 3 has an infinite label"),
        ("regression", [1.0, 2.0], ["a", "b"], "U131 task = 'regression' has no classes; remove data.classes"),
        ("multiclass", [1.0, np.inf], None, "U135 a.csv line 3 has an infinite label"),
        (
            "multiclass",
            np.linspace(0, 1, 1500),
            None,
            "U133 task = 'multiclass', but the labels are 1500 different numbers. Say task = 'regression'",
        ),
        ("binary", ["a", "b", "c"], None, "U133 task = 'binary' needs 2 classes; there are 3: a, b, c. Use task = 'multiclass'"),
        ("binary", ["a", "b"], ["a", "b", "c"], "U133 task = 'binary' needs 2 classes; there are 3"),
        ("auto", ["a", "b"], ["a", "b", "a"], "U130 the declared classes name 'a' more than once"),
        ("auto", [f"id {row}" for row in range(40)], None, "U134 the label '0' has 40 different texts in 40 rows: an id or free text?"),
        ("auto", [[0, 1], [1, 2]], None, "U137 multilabel columns hold 0 and 1; column '1' has '2' in a.csv line 3 (1 such cells)"),
        ("auto", [[0, 1], [1, 0]], ["a"], "U137 1 classes are declared but there are 2 label columns"),
        ("multiclass", [[0, 1], [1, 0]], None, "U131 2 label columns are task = 'multilabel', but task is 'multiclass'; name one column"),
        ("auto", np.zeros((2, 2, 2)), None, "U131 labels have the shape [2, 2, 2]"),
    ],
)
def test_refusals(word: str, raw: Any, classes: list[str] | None, says: str) -> None:
    assert says in refusal(word, np.asarray(raw), classes)


def test_more_refusals() -> None:
    frame = pd.DataFrame({"cat": [0, 1], "dog": [1, 0]})
    assert "U137 no label column for the declared class 'dgo'; did you mean 'dog'?" in refusal("auto", frame, ["cat", "dgo"])
    assert "U131 the label 'd' holds dates" in refusal("auto", pd.Series(pd.to_datetime(["2020-01-01"] * 2), name="d"))


def test_names_of_labels() -> None:
    assert to_names(np.array([1, -1, 0]), Task("binary", ("no", "yes"))).tolist() == ["yes", None, "no"]
    several = np.array([[1, 1], [0, 0], [np.nan, 1]], dtype=np.float32)
    assert to_names(several, Task("multilabel", ("a", "b"))).tolist() == ["a|b", "", None]
    assert to_names(np.array([[1.5], [np.nan]]), Task("regression")).tolist() == [1.5, None]
