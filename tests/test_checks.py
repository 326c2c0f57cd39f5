"""Every check of the preflight: fires with its sentence on bad input, and is silent on good input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from understudy.checks.answers import check_answers, check_in_sample
from understudy.checks.recipes import check_disk, check_recipe, check_writable
from understudy.checks.rows import check_rows
from understudy.checks.students import check_student
from understudy.data.rows import Rows
from understudy.errors import InputError, PreflightError, Problem, raise_errors
from understudy.measuring.scorecard import parse_gates
from understudy.recipe import Recipe, parse
from understudy.students.student import Student
from understudy.tasks import Task

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]
YES_NO = Task("binary", ("no", "yes"))
DIGITS = Task("multiclass", tuple("0123456789"))
TAGS = Task("multilabel", ("x", "y"))
NUMBER = Task("regression")


def recipe(tmp_path: Path, **said: Any) -> Recipe:
    whole = {"out": str(tmp_path / "run"), "data": {"train": "a.csv"}, "teacher": {"source": "a.skops"}, **said}
    return parse(whole)


def told(problems: list[Problem], code: str) -> Problem:
    """The one problem with this code."""
    found = [problem for problem in problems if problem.code == code]
    assert len(found) == 1, [str(problem) for problem in problems]
    return found[0]


# --- the recipe -----------------------------------------------------------------------------------------------------


def test_a_good_recipe_has_no_problem(tmp_path: Path) -> None:
    assert check_recipe(recipe(tmp_path), gates=parse_gates, raising=True) == []
    assert check_recipe(recipe(tmp_path, objective={"alpha": 1.0}, seeds=[0, 1, 2])) == []
    soft = {"terms": [{"loss": "logits.soft_target"}, {"loss": "labels.cross_entropy", "weight": 0.1}]}
    assert check_recipe(recipe(tmp_path, objective=soft)) == []
    assert check_recipe(recipe(tmp_path, train={"augment": {"shift": 2}}, teaching={"views": 8})) == []
    assert check_recipe(recipe(tmp_path, train={"augment": {"shift": 0, "flip": False}})) == []
    assert check_recipe(recipe(tmp_path, objective={"terms": [{"loss": "my.module:loss"}]})) == []


def test_trees_have_no_learning_rate_or_epochs(tmp_path: Path) -> None:
    for model in ("tree", "boosted", "sklearn:sklearn.linear_model.LogisticRegression"):
        assert check_recipe(recipe(tmp_path, student={"model": model}, train={"lr": 0, "epochs": 0, "batch_size": 1})) == []


@pytest.mark.parametrize(
    ("said", "level", "sentence"),
    [
        ({"train": {"lr": 0}}, "error", "U200 train.lr is 0: the network 'mlp' would keep its random weights; set train.lr = 1e-3"),
        ({"train": {"epochs": 0}}, "error", "U201 train.epochs is 0: the network 'mlp' would not be trained; set train.epochs = 30"),
        (
            {"teacher": {"train": {"model": "convnet", "lr": 0}}},
            "error",
            "U200 teacher.train.lr is 0: the network 'convnet' would keep its random weights; set teacher.train.lr = 1e-3",
        ),
        (
            {"train": {"batch_size": 1}},
            "warning",
            "U206 train.batch_size is 1: each step sees one row, so gradients are noisy and slow; set train.batch_size = 128",
        ),
        (
            {"objective": {"terms": [{"loss": "logits.soft_target", "weight": 0.0}]}},
            "error",
            "U202 all weights of objective.terms are 0: nothing would be learned; give one term weight = 1.0",
        ),
        (
            {"objective": {"terms": [{"loss": "labels.cross_entropy"}, {"loss": "logits.soft_target", "weight": 0.0}]}},
            "error",
            "U203 no objective term with weight reads the teacher: student and control would be the same training; "
            "add [[objective.terms]] with loss = 'logits.soft_target'",
        ),
        (
            {"objective": {"alpha": 0.0}},
            "error",
            "U203 objective.alpha is 0: the teacher is not used, student and control would be the same training; "
            "alpha is the weight of the teacher, set objective.alpha = 0.5",
        ),
        (
            {"objective": {"temperature": 50.0}},
            "warning",
            "U204 objective.temperature is 50: soft labels become nearly flat; published values are 1 to 20, try 4.0",
        ),
        (
            {"objective": {"temperature": 0.1}},
            "warning",
            "U204 objective.temperature is 0.1: soft labels become nearly one-hot; published values are 1 to 20, try 4.0",
        ),
        (
            {"train": {"augment": {"shift": 2}}},
            "error",
            "U205 train.augment changes the rows in every epoch, but the teacher answers only the plain ones (teaching.views = 1): "
            "its answers would belong to other rows; set teaching.views = 8, or remove train.augment",
        ),
        (
            {"teaching": {"views": 4}},
            "warning",
            "U205 teaching.views is 4 without train.augment: every view is the plain image; "
            "set train.augment = {shift = 2, flip = true}, or teaching.views = 1",
        ),
        (
            {"seeds": [1, 1, 2]},
            "error",
            "U209 seeds = [1, 1, 2] repeats a seed: the same run would count twice in the verdict; "
            "give different ones, such as seeds = [0, 1, 2]",
        ),
        (
            {"control": False},
            "warning",
            "U210 control = false: nothing is trained without the teacher, so the verdict will be UNKNOWN; "
            "set control = true to know the gain",
        ),
        (
            {"measure": {"require": ["agrement>=0.9"]}},
            "error",
            "U270 measure.require: gate 'agrement>=0.9': unknown figure 'agrement'; did you mean 'agreement'?",
        ),
    ],
)
def test_a_recipe_that_cannot_mean_anything(tmp_path: Path, said: dict[str, Any], level: str, sentence: str) -> None:
    problems = check_recipe(recipe(tmp_path, **said), gates=parse_gates)
    assert [str(problem) for problem in problems] == [sentence]
    assert problems[0].level == level


def test_all_errors_are_told_at_once_and_warnings_handed_on(tmp_path: Path) -> None:
    bad = recipe(tmp_path, train={"lr": 0, "epochs": 0}, objective={"alpha": 0.0}, control=False)
    with pytest.raises(PreflightError) as caught:
        check_recipe(bad, raising=True)
    assert [problem.code for problem in caught.value.problems] == ["U200", "U201", "U203"]
    assert [line[:4] for line in str(caught.value).splitlines()] == ["U200", "U201", "U203"]
    warning = Problem("U210", "a warning", "warning")
    assert raise_errors([warning]) == [warning]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    sentence = f"U207 out = {str(folder)!r} cannot be a folder: {tmp_path / 'file'} is a file; choose another out"
    assert str(told(check_recipe(recipe(tmp_path, out=str(folder))), "U207")) == sentence
    with pytest.raises(InputError) as caught:
        check_writable(folder)
    assert str(caught.value) == sentence
    check_writable(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_too_small(tmp_path: Path) -> None:
    assert check_disk(tmp_path / "not" / "yet", 1000) == []
    problem = told(check_disk(tmp_path, 10**18), "U208")
    assert problem.level == "error"
    assert problem.message.startswith("the transfer set needs about 1000000000.00 GB and ")
    assert problem.message.endswith("GB free; free some space, choose another out, or set teaching.dtype = 'float16'")


# --- the rows -------------------------------------------------------------------------------------------------------


def rows_of(
    labels: np.ndarray | None = None, *, counts: tuple[int, int, int] = (200, 120, 120), inputs: Any = None, kind: Any = "array"
) -> Rows:
    """Different rows with balanced labels in three splits."""
    n = sum(counts)
    split = np.repeat(["train", "validation", "test"], counts)
    inputs = np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32) if inputs is None else inputs
    keys = np.stack([np.arange(n), np.arange(n) * 7], axis=1).astype(np.int64)
    names = np.array([f"line {row + 2}" for row in range(n)])
    return Rows(kind, inputs, keys, np.arange(n) % 2 if labels is None else labels, split, names)


def with_keys(rows: Rows, changed: dict[int, int]) -> Rows:
    keys = rows.keys.copy()
    for row, other in changed.items():
        keys[row] = keys[other]
    return Rows(rows.kind, rows.inputs, keys, rows.labels, rows.split, rows.names)


def test_good_rows_have_no_problem() -> None:
    assert check_rows(rows_of(), YES_NO) == []
    values = np.random.default_rng(0).normal(size=(440, 1)).astype(np.float32)
    assert check_rows(rows_of(values), NUMBER) == []
    tags = np.stack([np.arange(440) % 2, np.arange(440) % 3 == 0], axis=1).astype(np.float32)
    assert check_rows(rows_of(tags), TAGS) == []
    table = pd.DataFrame({"a": np.arange(440.0), "b": ["x", "y"] * 220, "c": [np.nan, 1.0] * 220})
    assert check_rows(rows_of(inputs=table, kind="table"), YES_NO) == []
    images = np.random.default_rng(0).integers(0, 256, (440, 2, 2, 1), dtype=np.uint8)
    assert check_rows(rows_of(inputs=images, kind="image"), YES_NO) == []


def test_rows_must_be_split_first() -> None:
    with pytest.raises(InputError, match="rows are checked after they are split"):
        check_rows(Rows("array", np.zeros((2, 2)), np.zeros((2, 2), dtype=np.int64)), YES_NO)


def test_exact_overlap_is_refused_with_the_first_rows_and_the_fix() -> None:
    rows = with_keys(rows_of(), {3: 210, 4: 210, 9: 400})
    problems = check_rows(rows, YES_NO)
    assert [str(problem) for problem in problems] == [
        "U225 2 train rows are also validation rows, to the byte (first: line 5, line 6): scores would count what was learned by heart; "
        "set data.overlap = 'drop' to take them out of training, or 'allow'",
        "U225 1 train rows are also test rows, to the byte (first: line 11): scores would count what was learned by heart; "
        "set data.overlap = 'drop' to take them out of training, or 'allow'",
    ]
    assert {problem.level for problem in problems} == {"error"}
    allowed = check_rows(rows, YES_NO, overlap="allow")
    assert {problem.level for problem in allowed} == {"warning"}
    assert allowed[0].message.endswith("(first: line 5, line 6); kept because data.overlap = 'allow'")


def test_copies_inside_one_split_are_no_overlap() -> None:
    assert check_rows(with_keys(rows_of(), {3: 4, 210: 211}), YES_NO) == []


def test_small_and_empty_splits() -> None:
    problems = check_rows(rows_of(counts=(200, 37, 60)), YES_NO)
    assert [(str(problem), problem.level) for problem in problems] == [
        ("U226 validation has 37 rows: ±16 points at 95 %; give data.validation or a larger split.validation", "warning"),
        ("U227 test has 60 rows: ±13 points at 95 %; give data.test or a larger split.test", "warning"),
    ]
    empty = told(check_rows(rows_of(counts=(200, 120, 0)), YES_NO), "U220")
    assert (empty.level, empty.message) == ("error", "no row is in the test split; give data.test or a larger share in [split]")
    few = rows_of(np.random.default_rng(0).normal(size=(270, 1)), counts=(200, 20, 50))
    expected = "test has 50 rows: figures on so few rows are uncertain; give data.test or a larger split.test"
    assert told(check_rows(few, NUMBER), "U227").message == expected


def test_constant_columns() -> None:
    table = pd.DataFrame({"a": np.arange(440.0), "same": 1, "empty": [None] * 440})
    problem = told(check_rows(rows_of(inputs=table, kind="table"), YES_NO), "U228")
    assert problem.message == "2 columns have one value only (same, empty) and cannot help; name what should be left out in data.ignore"
    assert problem.level == "warning"
    nothing = told(check_rows(rows_of(inputs=table[["same", "empty"]], kind="table"), YES_NO), "U230")
    assert nothing.message == "all 440 rows have the same inputs: nothing can be learned from them; check data.train"
    array = told(check_rows(rows_of(inputs=np.ones((440, 2), dtype=np.float32)), YES_NO), "U230")
    assert array.message == "all 440 inputs are identical: nothing can be learned from them; check data.train"


@pytest.mark.parametrize(
    ("pixels", "code", "level", "sentence"),
    [
        (np.zeros((440, 2, 2, 1)), "U230", "error", "all 440 images looked at are black; check how they were saved"),
        (np.full((440, 2, 2, 1), 9), "U230", "error", "all 440 images looked at are identical; check data.train"),
        (
            np.arange(1760).reshape(440, 2, 2, 1) % 3 == 0,
            "U231",
            "error",
            "no pixel is above 1: images held as fractions were rounded to 0 and 1; save them as 0 to 255 (uint8)",
        ),
        (
            np.arange(1760).reshape(440, 2, 2, 1) % 200 * (np.arange(440) > 9)[:, None, None, None],
            "U231",
            "warning",
            "10 of 440 images looked at are black; check how they were saved",
        ),
    ],
)
def test_images_that_show_nothing(pixels: np.ndarray, code: str, level: str, sentence: str) -> None:
    problem = told(check_rows(rows_of(inputs=pixels.astype(np.uint8), kind="image"), YES_NO), code)
    assert (problem.message, problem.level) == (sentence, level)


def test_labels_that_are_missing() -> None:
    unlabelled = rows_of()
    none = Rows("array", unlabelled.inputs, unlabelled.keys, None, unlabelled.split, unlabelled.names)
    assert str(told(check_rows(none, YES_NO), "U229")) == (
        "U229 no row has a label: quality cannot be measured, only fidelity to the teacher, and there is no control; "
        "label some validation and test rows (data.label)"
    )
    labels = np.arange(440) % 2
    labels[320:] = -1
    problem = told(check_rows(rows_of(labels), YES_NO), "U229")
    assert problem.level == "warning"
    why = "quality and gain cannot be measured, only fidelity to the teacher"
    assert problem.message == f"no test row has a label: {why}; label some of them"
    labels = np.arange(440) % 10
    labels[4:200] = -1
    few = told(check_rows(rows_of(labels), DIGITS), "U224")
    assert few.message == "4 training rows have a label and there are 10 classes: the control cannot learn them all; label more rows"


def test_one_class_and_one_value() -> None:
    problem = told(check_rows(rows_of(np.zeros(440, dtype=np.int64)), YES_NO), "U223")
    assert problem.level == "error"
    assert problem.message == "all labelled training rows are of one class, 'no': there is nothing to tell apart; check data.label"
    constant = told(check_rows(rows_of(np.full((440, 1), 2.5)), NUMBER), "U223")
    assert constant.message == "all 200 training labels are 2.5: there is nothing to predict; check data.label"


def test_a_class_absent_from_a_split_is_shown_in_a_table() -> None:
    labels = np.arange(440) % 3
    labels[200:320] %= 2
    problem = told(check_rows(rows_of(labels), Task("multiclass", ("a", "b", "c"))), "U221")
    first, head, row = problem.message.splitlines()
    assert first == "1 of 3 classes are absent from a split, their figures are undefined there; give more rows or another split.seed"
    assert head.split() == ["class", "train", "validation", "test"]
    assert row.split() == ["c", "66", "0", "40"]
    assert problem.level == "warning"


def test_severe_imbalance_is_shown_in_a_table() -> None:
    labels = np.zeros(440, dtype=np.int64)
    labels[[0, 1, 2, 300, 400]] = 1
    problem = told(check_rows(rows_of(labels), YES_NO), "U222")
    lines = problem.message.splitlines()
    assert lines[0] == (
        "classes are severely imbalanced: 197 training rows of 'no', 3 of 'yes'; "
        "look at macro_f1 beside accuracy, or set train.class_weights = 'balanced'"
    )
    assert [line.split() for line in lines[2:]] == [["yes", "3", "1", "1"], ["no", "197", "119", "119"]]


# --- the teacher ----------------------------------------------------------------------------------------------------


def taught(task: Task, *, right: float = 0.9, rows: int = 400, seed: int = 0) -> tuple[np.ndarray, Rows]:
    """Soft answers that are right this often, and their rows."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(task.classes), rows)
    decided = np.where(generator.random(rows) < right, labels, generator.integers(0, len(task.classes), rows))
    answers = 2.0 * np.eye(len(task.classes))[decided] + generator.normal(size=(rows, len(task.classes)))
    return answers.astype(np.float32), rows_of(labels, counts=(0, rows, 0))


@pytest.mark.parametrize("task", [YES_NO, DIGITS], ids=lambda task: task.kind)
def test_a_good_teacher_has_no_problem(task: Task) -> None:
    answers, rows = taught(task)
    assert check_answers(answers, task, rows, score=0.8, expect=0.8) == []
    assert check_answers(answers, task, Rows("array", rows.inputs, rows.keys, None, rows.split, rows.names)) == []


def test_a_teacher_that_only_ranks_rare_positives_is_accepted() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(400) < 0.05).astype(np.int64)
    answers = np.stack([np.zeros(400), -4 + 2.0 * labels + generator.normal(size=400)], axis=1)
    assert (answers.argmax(axis=1) == 0).mean() > 0.99
    assert check_answers(answers, YES_NO, rows_of(labels, counts=(0, 400, 0)), score=0.95) == []


def test_a_good_teacher_of_other_tasks() -> None:
    values = np.random.default_rng(0).normal(size=(400, 1))
    assert check_answers(values + 0.1, NUMBER, rows_of(values, counts=(0, 400, 0)), score=0.99) == []
    tags = (np.random.default_rng(0).random((400, 2)) < 0.3).astype(np.float32)
    soft = tags * 2 + np.random.default_rng(1).normal(size=tags.shape)
    assert check_answers(soft, TAGS, rows_of(tags, counts=(0, 400, 0))) == []


def test_answers_that_are_not_finite_or_constant_name_the_first_row() -> None:
    answers, rows = taught(DIGITS)
    answers[[5, 9], 2] = [np.nan, np.inf]
    assert str(told(check_answers(answers, DIGITS, rows), "U006")) == (
        "U006 2 of 400 teacher rows are NaN or infinite (first: line 7); correct the teacher there"
    )
    constant = np.tile([[1.0, 2.0]], (400, 1))
    assert told(check_answers(constant, YES_NO, taught(YES_NO)[1]), "U007").message.startswith(
        "the teacher gives the same answer for all 400 rows"
    )


def test_answers_of_a_wrong_shape() -> None:
    answers, rows = taught(DIGITS)
    problem = told(check_answers(answers[:, :3], DIGITS, rows), "U246")
    assert problem.message == "the teacher answered [400, 3] for 400 rows and 10 outputs; check teacher.classes and the task"


def test_a_teacher_near_chance_is_refused_unless_accepted() -> None:
    answers, rows = taught(DIGITS, right=0.0)
    problem = told(check_answers(answers, DIGITS, rows, score=0.1), "U240")
    assert problem.level == "error"
    share = (answers.argmax(axis=1) == rows.labels).mean()
    assert problem.message.startswith(f"the teacher scores {100 * share:.1f} %, chance is 10.")
    assert problem.message.endswith(" %: it has nothing to teach here; check its weights, preprocessing and class order")
    accepted = told(check_answers(answers, DIGITS, rows, score=0.1, accept_score=True), "U240")
    assert accepted.level == "warning"
    assert accepted.message.endswith("; accepted (teacher.accept_score)")


def test_chance_for_numbers_and_tags() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=(400, 1))
    problem = told(check_answers(generator.normal(size=(400, 1)), NUMBER, rows_of(values, counts=(0, 400, 0))), "U240")
    assert re.match(r"the teacher's R2 is -\d\.\d{3}, the mean of the labels scores 0: it has nothing to teach", problem.message)
    tags = (generator.random((400, 2)) < 0.4).astype(np.float32)
    problem = told(check_answers(generator.normal(size=(400, 2)), TAGS, rows_of(tags, counts=(0, 400, 0))), "U240")
    assert re.match(r"the teacher ranks rows with an area under the curve of 0\.[45]\d\d, chance is 0\.5: it has nothing", problem.message)


def test_a_teacher_below_what_was_expected() -> None:
    answers, rows = taught(DIGITS)
    problem = told(check_answers(answers, DIGITS, rows, score=0.82, expect=0.92), "U241")
    assert problem.level == "error"
    assert problem.message == (
        "the teacher's validation accuracy is 0.8200, teacher.expect = 0.92: it is not the model it is thought to be; "
        "check its weights, preprocessing and class order"
    )
    assert check_answers(answers, DIGITS, rows, score=0.88, expect=0.92) == []
    assert told(check_answers(answers, DIGITS, rows, score=0.5, expect=0.92, accept_score=True), "U241").level == "warning"


def test_a_label_smoothed_teacher() -> None:
    _, rows = taught(DIGITS)
    smoothed = np.log(0.9 * np.eye(10)[rows.labels] + 0.01) + np.random.default_rng(0).normal(size=(400, 10)) * 0.02
    problem = told(check_answers(smoothed, DIGITS, rows), "U242")
    assert problem.level == "warning"
    expected = "the teacher's runner-up probabilities are flat (label smoothing? mean confidence 91.0%): soft labels say"
    assert problem.message.startswith(expected)


def test_a_saturated_teacher() -> None:
    _, rows = taught(DIGITS)
    hard = np.random.default_rng(0).normal(size=(400, 10)) + 30 * np.eye(10)[rows.labels]
    problem = told(check_answers(hard, DIGITS, rows), "U243")
    assert problem.level == "warning"
    assert problem.message == (
        "100% of the teacher's scores are 0 or 1 to six digits: decisions, soft labels carry nothing more; "
        "give probabilities or logits, or an over-confident teacher a higher objective.temperature"
    )
    tags = (np.random.default_rng(0).random((400, 2)) < 0.3).astype(np.float32)
    decided = 32 * tags - 16 + np.random.default_rng(1).normal(size=tags.shape) * 0.01
    assert told(check_answers(decided, TAGS, rows_of(tags, counts=(0, 400, 0))), "U243").level == "warning"


def test_an_over_tempered_teacher() -> None:
    answers, rows = taught(DIGITS)
    problem = told(check_answers(answers / 100, DIGITS, rows), "U244")
    expected = "the teacher's answers are nearly uniform (100.0% of the largest entropy): over-tempered?; give its logits"
    assert problem.message.startswith(expected)


def test_a_teacher_that_knows_its_rows_by_heart() -> None:
    problem = told(check_in_sample(0.999, 0.83, "accuracy"), "U245")
    assert problem.level == "warning"
    assert problem.message == (
        "teacher accuracy is 99.9% on the training rows, 83.0% held-out: its answers to rows it learned by heart are little more than "
        "their labels; take fresh rows (rows.unlabelled), fewer epochs for it, or of an estimator out-of-fold answers "
        "(teaching.out_of_fold = 5)"
    )
    assert check_in_sample(0.90, 0.88, "accuracy") == []


# --- the student ----------------------------------------------------------------------------------------------------

SAMPLE = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))


def problems_of(module: nn.Module, task: Task = YES_NO, **given: Any) -> list[Problem]:
    said: dict[str, Any] = {"batch_size": 32, "rows": 100, **given}
    return check_student(Student("net", task, module=module), task, SAMPLE, **said)


def network(outputs: int = 2, *last: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs), *last)


def test_a_good_student_has_no_problem_and_is_left_as_it_was() -> None:
    module = network()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert problems_of(module, teacher_parameters=10**6, teachers=[network()], student_bytes=10, teacher_bytes=20) == []
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())
    assert problems_of(network(1), NUMBER) == []
    assert problems_of(network(2), TAGS) == []


@pytest.mark.parametrize(
    ("last", "task"),
    [(nn.Softmax(dim=1), YES_NO), (nn.Sigmoid(), TAGS), (nn.Sequential(nn.Sigmoid(), nn.Identity()), YES_NO)],
    ids=["softmax", "sigmoid", "sigmoid before identity"],
)
def test_a_student_that_ends_in_an_activation(last: nn.Module, task: Task) -> None:
    problem = told(problems_of(network(2, last), task), "U250")
    name = "Softmax" if isinstance(last, nn.Softmax) else "Sigmoid"
    assert str(problem) == f"U250 student 'net' ends in {name}; losses expect logits and would soften twice; remove the last activation"


class HiddenSoftmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, encoded: torch.Tensor) -> torch.Tensor:
        return self.inner(encoded).softmax(dim=1)


def test_probabilities_made_without_a_layer_are_found_too() -> None:
    problem = told(problems_of(HiddenSoftmax()), "U250")
    assert problem.message.startswith("student 'net' gives probabilities (all in [0, 1]); losses expect logits")


def test_log_probabilities_are_logits() -> None:
    assert problems_of(network(2, nn.LogSoftmax(dim=1))) == []


def test_a_student_of_a_wrong_width() -> None:
    problem = told(problems_of(network(3)), "U251")
    assert problem.message == "student 'net' gives [16, 3] for 16 rows, a binary task needs [16, 2]; set the width of its last layer to 2"


def test_a_student_that_cannot_learn() -> None:
    frozen = network().requires_grad_(False)
    assert told(problems_of(frozen), "U252").message == (
        "student 'net' cannot learn: all parameters are frozen; set requires_grad on what should be trained"
    )
    assert "it has no parameters" in told(problems_of(nn.Flatten(), DIGITS), "U252").message
    half = network()
    half[0].requires_grad_(False)
    assert problems_of(half) == []


def test_batch_norm_on_single_rows() -> None:
    for given in ({"batch_size": 1}, {"rows": 1}):
        assert told(problems_of(network(), **given), "U253").message == (
            "student 'net' has BatchNorm (layer '1') and would see one row at a time, which has no variance; "
            "set train.batch_size = 32, or student.options.norm = 'group'"
        )
    assert problems_of(nn.Linear(3, 2), batch_size=1) == []


def test_a_student_that_is_no_smaller() -> None:
    problem = told(problems_of(nn.Linear(3, 2), teacher_parameters=8), "U254")
    assert problem.level == "warning"
    assert problem.message.startswith("student 'net' has 8 parameters, the teacher 8: it is no smaller; choose a smaller student")
    heavy = told(problems_of(nn.Linear(3, 2), student_bytes=112_000_000, teacher_bytes=98_000_000), "U254")
    assert heavy.message.startswith("student 'net' (112.0 MB) is no smaller than the teacher (98.0 MB); choose a smaller student")


def test_a_student_that_answers_nan() -> None:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight[0, 0] = torch.nan
    expected = "student 'net' answers NaN or infinite for 16 of 16 rows before training; scale its inputs"
    assert told(problems_of(module), "U255").message == expected


def test_a_student_that_shares_weights_with_the_teacher() -> None:
    student = network()
    teacher = nn.Sequential(nn.Linear(2, 2), student[3])
    assert told(problems_of(student, teachers=[teacher]), "U256").message == (
        "student 'net' and teacher share weights ('1.weight'): training would change the teacher; give the student a copy of its own"
    )


def test_an_estimator_is_only_weighed() -> None:
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_depth=2).fit([[0.0], [1.0]], [0, 1])
    student = Student("tree", YES_NO, preprocessing=nn.Identity(), estimator=tree)
    assert check_student(student, YES_NO, SAMPLE, batch_size=1, rows=2, teacher_parameters=10**6) == []


# --- codes ----------------------------------------------------------------------------------------------------------


def test_every_code_of_the_package_is_explained_and_no_other() -> None:
    used = {code for path in (ROOT / "src").rglob("*.py") for code in re.findall(r'"(U\d{3})"', path.read_text(encoding="utf-8"))}
    explained = re.findall(r"^\| (U\d{3}) \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(set(explained)) == len(explained)
    assert set(explained) == used
