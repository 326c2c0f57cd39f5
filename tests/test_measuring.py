"""The scorecard's figures against scikit-learn, under weights, and what is told of them; gates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr
from sklearn import metrics

from understudy.errors import InputError, RequirementError
from understudy.measuring import _bootstrap, _calibration, _cost, _fidelity, _quality, scorecard
from understudy.measuring._answers import probabilities
from understudy.measuring._rendering import remarks
from understudy.measuring.scorecard import compare, cost, enforce, measure, parse_gates, quality, render, require, to_markdown
from understudy.tasks import Task

ABC = Task("multiclass", ("a", "b", "c"))
YES_NO = Task("binary", ("no", "yes"))
TAGS = Task("multilabel", ("x", "y", "z"))
NUMBER = Task("regression")
ROWS = 120


def example(task: Task, *, seed: int = 0, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Answers and labels; the labels do not depend on the seed, answers have ties."""
    generator = np.random.default_rng(seed)
    labels = np.random.default_rng(99)
    if task.kind == "regression":
        true = labels.normal(size=(ROWS, 1)).astype(np.float32) * 3 + 10
        return true + generator.normal(size=true.shape).astype(np.float32) / strength, true
    if task.kind == "multilabel":
        true = (labels.random((ROWS, 3)) < [0.5, 0.2, 0.05]).astype(np.float32)
        return np.round(strength * (2 * true - 1) + 2 * generator.normal(size=true.shape), 1), true
    chosen = labels.integers(0, len(task.classes), ROWS)
    return np.round(strength * np.eye(len(task.classes))[chosen] + generator.normal(size=(ROWS, len(task.classes))), 1), chosen


def spearman(answers: np.ndarray, labels: np.ndarray, weight: np.ndarray | None) -> float:
    """SciPy's, on rows that are repeated as often as their weight says."""
    times = np.ones(len(labels), dtype=int) if weight is None else weight.astype(int)
    return float(spearmanr(np.repeat(answers, times), np.repeat(labels, times)).statistic)


def by_scikit_learn(answers: np.ndarray, labels: np.ndarray, task: Task, weight: np.ndarray | None = None) -> dict[str, float]:
    if task.kind == "regression":
        return {
            "r2": metrics.r2_score(labels, answers, sample_weight=weight),
            "rmse": metrics.root_mean_squared_error(labels, answers, sample_weight=weight),
            "mae": metrics.mean_absolute_error(labels, answers, sample_weight=weight),
            "spearman": spearman(answers.ravel(), labels.ravel(), weight),
        }
    said = probabilities(answers, task)
    if task.kind == "multilabel":
        chosen = (answers > 0).astype(int)
        return {
            "macro_f1": metrics.f1_score(labels, chosen, average="macro", zero_division=np.nan, sample_weight=weight),
            "micro_f1": metrics.f1_score(labels, chosen, average="micro", sample_weight=weight),
            "mean_average_precision": metrics.average_precision_score(labels, answers, average="macro", sample_weight=weight),
            "log_loss": np.mean([metrics.log_loss(labels[:, c], said[:, c], sample_weight=weight) for c in range(3)]),
        }
    found = {
        "accuracy": metrics.accuracy_score(labels, answers.argmax(1), sample_weight=weight),
        "macro_f1": metrics.f1_score(labels, answers.argmax(1), average="macro", sample_weight=weight),
        "log_loss": metrics.log_loss(labels, said, sample_weight=weight),
    }
    if task.kind == "binary":
        found["auroc"] = metrics.roc_auc_score(labels, answers[:, 1] - answers[:, 0], sample_weight=weight)
    return found


@pytest.mark.parametrize("task", [ABC, YES_NO, TAGS, NUMBER], ids=lambda task: task.kind)
def test_metrics_are_those_of_scikit_learn(task: Task) -> None:
    answers, labels = example(task)
    ours = quality(answers, labels, task)
    assert ours == pytest.approx(by_scikit_learn(answers, labels, task), rel=1e-6)
    assert next(iter(ours)) == task.metric
    assert list(ours) == list(_quality.METRICS[task.kind])


@pytest.mark.parametrize("task", [ABC, YES_NO, TAGS, NUMBER], ids=lambda task: task.kind)
def test_metrics_of_resampled_rows_are_those_of_scikit_learn_with_weights(task: Task) -> None:
    answers, labels = example(task)
    figures = _quality.figures(answers, labels, task)
    drawn = _bootstrap.resample(figures, ROWS, resamples=5, seed=4)
    weights = np.concatenate(list(_bootstrap.draws(ROWS, 5, seed=4)))
    assert weights.sum(axis=1).tolist() == [ROWS] * 5
    for index, weight in enumerate(weights):
        theirs = by_scikit_learn(answers, labels, task, weight)
        assert {name: values[index] for name, values in drawn.items()} == pytest.approx(theirs, rel=1e-6)


def test_only_rows_with_a_label_count() -> None:
    answers, labels = example(ABC)
    some = labels.copy()
    some[::2] = -1
    assert quality(answers, some, ABC) == quality(answers[1::2], labels[1::2], ABC)
    assert quality(answers, np.full(ROWS, -1), ABC) == {}
    assert quality(answers, None, ABC) == {}
    card = measure({"teacher": [answers], "student": [answers]}, some, ABC, resamples=100)
    assert (card["rows"], card["labelled_rows"]) == (ROWS, ROWS // 2)


def test_a_probability_of_exactly_zero_costs_much_but_is_finite() -> None:
    answers = np.array([[0.0, -np.inf], [0.0, 0.0]])
    assert quality(answers, np.array([1, 0]), YES_NO)["log_loss"] == pytest.approx((-np.log(np.finfo(float).eps) + np.log(2)) / 2)


def test_metrics_that_have_no_value_are_none_in_the_scorecard() -> None:
    answers, labels = example(YES_NO)
    card = measure({"student": [answers]}, np.zeros_like(labels), YES_NO, resamples=100)
    assert card["models"]["student"]["quality"]["auroc"]["mean"] is None
    flat = quality(np.full((5, 1), 2.0), np.full((5, 1), 2.0), NUMBER)
    assert flat == {"r2": 1.0, "spearman": pytest.approx(np.nan, nan_ok=True), "rmse": 0.0, "mae": 0.0}
    assert quality(np.full((5, 1), 2.5), np.full((5, 1), 2.0), NUMBER)["r2"] == 0.0


def test_fidelity_by_hand() -> None:
    teacher, student = np.log([[0.8, 0.2], [0.4, 0.6]]), np.log([[0.5, 0.5], [0.6, 0.4]])
    seen = {name: _bootstrap.observed(figure, 2) for name, figure in _fidelity.figures(student, teacher, YES_NO).items()}
    kl = [0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5), 0.4 * np.log(0.4 / 0.6) + 0.6 * np.log(0.6 / 0.4)]
    assert seen == pytest.approx({"agreement": 0.5, "kl": np.mean(kl)})
    tags = np.array([[1.0, -1.0, 2.0]])
    seen = {name: _bootstrap.observed(f, 1) for name, f in _fidelity.figures(np.array([[1.0, 1.0, -1.0]]), tags, TAGS).items()}
    p, q = 1 / (1 + np.exp(-tags[0])), 1 / (1 + np.exp(-np.array([1.0, 1.0, -1.0])))
    assert seen == pytest.approx({"agreement": 1 / 3, "kl": np.mean(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))})


def test_fidelity_of_a_regression_is_r2_against_the_teacher() -> None:
    answers, teacher = example(NUMBER)
    seen = {name: _bootstrap.observed(figure, ROWS) for name, figure in _fidelity.figures(answers, teacher, NUMBER).items()}
    rmse = metrics.root_mean_squared_error(teacher, answers)
    assert seen == pytest.approx({"agreement": metrics.r2_score(teacher, answers), "rmse_to_teacher": rmse}, rel=1e-6)


@pytest.mark.parametrize("task", [ABC, YES_NO], ids=lambda task: task.kind)
def test_calibration(task: Task) -> None:
    answers, labels = example(task)
    seen = {name: _bootstrap.observed(figure, ROWS) for name, figure in _calibration.figures(answers, labels, task).items()}
    said = probabilities(answers, task)
    confidence, correct = said.max(axis=1), said.argmax(axis=1) == labels
    ece = 0.0
    for low in np.arange(15) / 15:
        there = (confidence > low) & (confidence <= low + 1 / 15)
        if there.any():
            ece += there.mean() * abs(confidence[there].mean() - correct[there].mean())
    binary = task.kind == "binary"
    brier = metrics.brier_score_loss(labels, said[:, 1]) if binary else metrics.brier_score_loss(labels, said, labels=[0, 1, 2])
    assert seen == pytest.approx({"ece": ece, "nll": metrics.log_loss(labels, said), "brier": brier})


def test_calibration_is_zero_for_honest_coins_and_absent_for_regression() -> None:
    answers, labels = np.zeros((10, 2)), np.array([0, 1] * 5)
    assert _bootstrap.observed(_calibration.figures(answers, labels, YES_NO)["ece"], 10) == pytest.approx(0.0)
    assert _calibration.figures(*example(NUMBER), NUMBER) == {}
    tags, true = example(TAGS)
    said = probabilities(tags, TAGS)
    figures = {name: _bootstrap.observed(figure, ROWS) for name, figure in _calibration.figures(tags, true, TAGS).items()}
    assert figures["brier"] == pytest.approx(np.mean((said - true) ** 2))
    assert 0 < figures["ece"] < 1


def test_latency_measures_one_row_and_a_batch_and_puts_threads_back() -> None:
    before, threads = torch.get_num_threads(), []
    told = _cost.latency(lambda batch: threads.append(torch.get_num_threads()), np.zeros((1, 4)), np.zeros((256, 4)), seconds=0.01)
    assert torch.get_num_threads() == before
    assert threads[0] == 1
    assert 0 < told["latency_p50_us"] <= told["latency_p95_us"]
    assert told["rows_per_second"] > 256
    assert set(_cost.FIGURES) - {"parameters", "bytes"} < set(told)


def test_cost_without_a_stopwatch_is_size_alone() -> None:
    assert cost(len, [1], [1] * 256, seconds=0.0, parameters=12, size=100) == {"parameters": 12.0, "bytes": 100.0}
    assert cost(len, [1], [1] * 256, seconds=0.0) == {}


def whole_card(task: Task = ABC, **given: object) -> dict:
    models = {
        "student": [example(task, seed=seed, strength=2.0)[0] for seed in (1, 2, 3)],
        "teacher": [example(task, seed=0, strength=4.0)[0]],
        "control": [example(task, seed=seed, strength=0.5)[0] for seed in (4, 5, 6)],
        "exported": [example(task, seed=1, strength=2.0)[0]],
    }
    costs = {"student": {"bytes": 5000.0, "parameters": 10.0}, "exported": {"bytes": 2000.0, "latency_p50_us": 12.0}}
    return measure(models, example(task)[1], task, costs=costs, resamples=100, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [ABC, YES_NO, TAGS, NUMBER], ids=lambda task: task.kind)
def test_a_whole_scorecard_is_json_and_can_be_shown(task: Task) -> None:
    card = whole_card(task, warnings=["U999 look [here]"], overrides=["data.overlap = 'allow'"], notes=["a note"])
    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert list(card["models"]) == ["teacher", "control", "student", "exported"]
    student = card["models"]["student"]["quality"][task.metric]
    assert student["mean"] == pytest.approx(np.mean(student["seeds"]))
    assert student["std"] == pytest.approx(np.std(student["seeds"], ddof=1))
    assert student["low"] < student["mean"] < student["high"]
    assert card["models"]["teacher"]["fidelity"] == {}
    assert card["models"]["exported"]["quality"][task.metric]["std"] == 0.0
    assert card["verdict"]["word"] == "GAIN"
    assert 0 < card["gap_closed"] < 1.5
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(card))
    shown = console.export_text().rstrip().splitlines()
    console.file.close()
    assert max(map(len, shown)) <= 100
    assert "U999 look [here]" in "\n".join(shown)
    assert "GAIN +" in "\n".join(shown[-2:])
    marked = to_markdown(card)
    assert marked.startswith("**GAIN +")
    assert f"| {task.metric} |" in marked
    assert "- override: data.overlap = 'allow'" in marked


def test_per_class_recalls_and_the_worst_drop() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2])
    decided = {"teacher": [0, 0, 0, 0, 1, 1, 2], "control": [0, 0, 1, 1, 1, 0, 0], "student": [0, 0, 0, 1, 2, 2, 2]}
    card = measure({name: [np.eye(3)[chosen]] for name, chosen in decided.items()}, labels, ABC, resamples=100)
    assert card["per_class"][0] == {"class": "a", "rows": 4, "teacher": 1.0, "control": 0.5, "student": 0.75, "change": 0.25}
    assert [said["change"] for said in card["per_class"]] == [0.25, -0.5, 1.0]
    assert card["worst_class_drop"] == {"class": "b", "rows": 2, "drop": 1.0}
    assert "largest loss of recall against the teacher: class b, 100.0 points (2 rows)" in to_markdown(card)


def test_a_class_without_rows_has_no_recall() -> None:
    card = measure({"teacher": [np.eye(3)[[0, 1]]], "student": [np.eye(3)[[0, 1]]]}, np.array([0, 1]), ABC, resamples=100)
    assert card["per_class"][2] == {"class": "c", "rows": 0, "teacher": None, "student": None}


def test_disagreements_are_the_farthest_rows_by_name() -> None:
    teacher = np.zeros((40, 2))
    student = teacher.copy()
    student[7] = [4.0, -4.0]
    student[3] = [1.0, -1.0]
    labels = np.array([0, 1] * 20)
    card = measure(
        {"teacher": [teacher], "student": [student]}, labels, YES_NO, names=[f"img{row}.png" for row in range(40)], resamples=100
    )
    assert [said["name"] for said in card["disagreements"]] == ["img7.png", "img3.png"]
    first = card["disagreements"][0]
    assert (first["label"], first["student"]["class"], first["teacher"]["confidence"]) == ("yes", "no", 0.5)


def test_the_gap_is_not_told_when_the_teacher_is_no_better_than_the_control() -> None:
    answers, labels = example(ABC)
    assert measure({"teacher": [answers], "control": [answers], "student": [answers]}, labels, ABC, resamples=100)["gap_closed"] is None


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ({"pupil": [np.zeros((2, 2))]}, "U272 a scorecard holds teacher, control, student, exported; it was given pupil"),
        ({}, "U272 a scorecard holds teacher, control, student, exported; it was given nothing"),
        ({"student": [np.zeros((2, 2))], "teacher": [np.zeros((3, 2))]}, "U272 all answers must be of the same rows; there are"),
        ({"student": [np.full((2, 2), np.nan)]}, "U272 answers that are NaN or infinite cannot be measured: student 0"),
    ],
)
def test_answers_that_cannot_be_measured(models: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        measure(models, None, YES_NO)
    assert str(caught.value).startswith(said)


def test_runs_side_by_side() -> None:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(compare({"first": whole_card(), "second": whole_card(YES_NO)}))
    console.file.close()
    shown = console.export_text()
    assert "first" in shown
    assert "second" in shown
    assert shown.count("GAIN") == 2


def test_gates_read_the_exported_student_first() -> None:
    card = whole_card()
    agreement = card["models"]["exported"]["fidelity"]["agreement"]["mean"]
    gates = ["agreement>=0.1", "student.bytes <= 1e3", "bytes<=3000", "latency_p50_us<=15", "parameters<5", "teacher.brier<2"]
    checked = require(card, gates)
    assert checked[0] == {"gate": "agreement>=0.1", "value": agreement, "met": True}
    assert [(gate["value"], gate["met"]) for gate in checked[1:4]] == [(5000.0, False), (2000.0, True), (12.0, True)]
    assert checked[4] == {"gate": "parameters<5", "value": 10.0, "met": False}
    assert checked[5]["met"]
    with pytest.raises(RequirementError) as caught:
        enforce(checked)
    assert str(caught.value) == "U271 2 of 6 requirements not met: student.bytes <= 1e3: 5000; parameters<5: 10"
    enforce(checked[:1])


def test_gates_on_the_run_and_on_what_was_not_measured() -> None:
    card = whole_card()
    gates = ["gain>0", "gap_closed>0.1", "worst_class_drop<=1", "auroc>=0.5"]
    checked = {gate["gate"]: gate for gate in require(card, gates)}
    assert checked["gain>0"]["value"] == card["verdict"]["difference"]
    assert checked["worst_class_drop<=1"]["value"] == card["worst_class_drop"]["drop"]
    assert checked["auroc>=0.5"] == {"gate": "auroc>=0.5", "value": None, "met": False}
    with pytest.raises(RequirementError, match="auroc>=0.5: not measured"):
        enforce(list(checked.values()))


def test_mistakes_in_gates_are_told_together_and_before_training() -> None:
    with pytest.raises(InputError) as caught:
        parse_gates(["agrement>=0.9", "accuracy=0.9", "pupil.bytes<=1", "student.gain>0", "accuracy>=nan", "agreement>=0.5"])
    said = str(caught.value).splitlines()
    assert said[0] == "U270 gate 'agrement>=0.9': unknown figure 'agrement'; did you mean 'agreement'?"
    assert said[1].startswith("gate 'accuracy=0.9': write figure>=number, such as agreement>=0.95")
    assert said[2] == "gate 'pupil.bytes<=1': unknown model 'pupil'; there is: teacher, control, student, exported"
    assert said[3] == "gate 'student.gain>0': gain belongs to the run, not to one model; write gain>0"
    assert said[4].startswith("gate 'accuracy>=nan': write figure>=number")
    assert len(said) == 5
    assert parse_gates([]) == []


def test_every_figure_of_a_scorecard_may_be_a_gate() -> None:
    for task in (ABC, YES_NO, TAGS, NUMBER):
        student = whole_card(task)["models"]["student"]
        names = [name for group in ("quality", "fidelity", "calibration") for name in student[group]]
        assert len(parse_gates([f"{name}>=0" for name in names])) == len(names)
    assert set(scorecard.__all__) >= {"measure", "compare", "render", "require", "enforce"}


def test_figures_of_one_model_by_hand_and_by_the_pipeline_agree() -> None:
    answers, teacher = example(ABC)[0], example(ABC, seed=5)[0]
    card = measure({"teacher": [teacher], "student": [answers]}, None, ABC, resamples=100)
    told = {name: figure["mean"] for name, figure in card["models"]["student"]["fidelity"].items()}
    assert scorecard.fidelity(answers, teacher, ABC) == told


def test_a_student_below_its_control_closes_no_gap() -> None:
    said = {"gap_closed": -0.25, "worst_class_drop": None, "notes": [], "warnings": [], "overrides": []}
    assert "the student is further from the teacher than the control is, by 25% of their gap" in remarks(said)
    assert "25% of the gap between control and teacher is closed" in remarks(said | {"gap_closed": 0.25})
