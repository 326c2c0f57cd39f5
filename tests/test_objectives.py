"""Terms and objectives: the formula by hand, missing labels, what is refused, and the test of the signal before training."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from understudy.errors import InputError, RecipeError, TrainingError
from understudy.losses.ensembles import confidence_weights, entropy_weights
from understudy.losses.labels import cross_entropy
from understudy.losses.logits import ensemble_soft_target, logit_mse, soft_target
from understudy.losses.regression import teacher_bounded, teacher_squared_error
from understudy.objectives import Objective
from understudy.signals import Batch, Signals
from understudy.tasks import Task
from understudy.terms import OnLabels, OnLogits, OnValues, OnValuesAndLabels, Term

ROWS, FEATURES = 8, 4
MULTICLASS = Task("multiclass", ("a", "b", "c"))
BINARY = Task("binary", ("no", "yes"))
MULTILABEL = Task("multilabel", ("a", "b", "c"))
REGRESSION = Task("regression")
TASKS = [MULTICLASS, BINARY, MULTILABEL, REGRESSION]
every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_for(task: Task) -> Tensor:
    values = normal(3, ROWS, task.outputs)
    if task.single_label:
        return values.argmax(1)
    return (values > 0).double() if task.kind == "multilabel" else values


def batch_for(task: Task, *, labelled: list[bool] | None = None) -> Batch:
    """A batch; rows that are not labelled hold -1 or NaN, as understudy.tasks says."""
    labels, mask = labels_for(task), None
    if labelled is not None:
        mask = torch.tensor(labelled)
        labels[~mask] = -1 if task.single_label else math.nan
    return Batch(normal(1, ROWS, FEATURES), labels, mask, {task.signal: normal(2, ROWS, task.outputs)})


def said_by(task: Task) -> Tensor:
    return normal(4, ROWS, task.outputs).requires_grad_()


def student_for(task: Task) -> nn.Module:
    module = nn.Linear(FEATURES, task.outputs).double()
    with torch.no_grad():
        module.weight.copy_(normal(5, task.outputs, FEATURES))
        module.bias.zero_()
    return module


def speaking(module: nn.Module, task: Task) -> Callable[[Batch], Signals]:
    return lambda batch: {task.signal: module(batch.inputs)}


def row_values(task: Task, student: Tensor, batch: Batch, temperature: float, scale: float) -> tuple[Tensor, Tensor]:
    """The hard and soft part of each row, in plain torch."""
    teacher, labels = batch.teacher[task.signal], batch.labels
    assert labels is not None
    if task.kind == "regression":
        return ((student - labels) / scale).square().mean(1), ((student - teacher) / scale).square().mean(1)
    if task.kind == "multilabel":
        p, q = (student / temperature).sigmoid(), (teacher / temperature).sigmoid()
        hard = functional.binary_cross_entropy_with_logits(student, labels, reduction="none").mean(1)
        return hard, temperature**2 * (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).mean(1)
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    return -student.log_softmax(1).gather(1, labels[:, None])[:, 0], temperature**2 * (q * (q / p).log()).sum(1)


# --- the formula ------------------------------------------------------------------------------------------------------


@every_task
def test_soft_labels_is_the_formula(task: Task) -> None:
    batch, student = batch_for(task), said_by(task)
    total, values = Objective.soft_labels(alpha=0.3, temperature=2.0, task=task, scale=5.0)({task.signal: student}, batch)
    hard, soft = (part.mean() for part in row_values(task, student, batch, 2.0, 5.0))
    torch.testing.assert_close(total, 0.7 * hard + 0.3 * soft)
    torch.testing.assert_close(torch.stack(list(values.values())), torch.stack([hard, soft]).detach())
    assert not any(value.requires_grad for value in values.values())


@every_task
def test_rows_without_a_label_take_no_part_in_the_hard_term(task: Task) -> None:
    known = [True, False, True, True, False, False, True, False]
    student = said_by(task)
    batch = batch_for(task, labelled=known)
    objective = Objective.soft_labels(alpha=0.5, temperature=2.0, task=task)
    total, _ = objective({task.signal: student}, batch)
    hard, soft = row_values(task, student, batch_for(task), 2.0, 1.0)
    expected = 0.5 * hard[torch.tensor(known)].mean() + 0.5 * soft.mean()
    torch.testing.assert_close(total, expected)
    gradients = [torch.autograd.grad(value, student, retain_graph=True)[0] for value in (total, expected)]
    torch.testing.assert_close(*gradients)


@every_task
def test_no_label_at_all_gives_zero_with_the_graph_intact(task: Task) -> None:
    objective = Objective.labels_only(task)
    for batch in (batch_for(task, labelled=[False] * ROWS), replace(batch_for(task), labels=None)):
        student = said_by(task)
        total, _ = objective({task.signal: student}, batch)
        total.backward()
        assert total.item() == 0
        assert student.grad is not None
        assert not student.grad.any()


def test_labels_that_are_all_there_are_the_plain_mean() -> None:
    student, batch = said_by(MULTICLASS), batch_for(MULTICLASS)
    objective = Objective.labels_only(MULTICLASS)
    plain, _ = objective({"logits": student}, batch)
    masked, _ = objective({"logits": student}, replace(batch, labelled=torch.ones(ROWS, dtype=torch.bool)))
    torch.testing.assert_close(plain, masked)


def test_a_loss_that_knows_nothing_of_missing_labels_is_safe() -> None:
    def own(student: Tensor, labels: Tensor) -> Tensor:
        return (student - labels).square().sum(1)

    student = said_by(REGRESSION)
    batch = batch_for(REGRESSION, labelled=[True] * 3 + [False] * 5)
    term = OnLabels(own, weight=1.0, name="own", signal="values")
    value = term({"values": student}, batch)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.isfinite()
    assert gradient[:3].all()
    assert not gradient[3:].any()


def test_a_term_of_weight_zero_is_not_computed() -> None:
    def refuses(student: Tensor, teacher: Tensor) -> Tensor:
        raise AssertionError("computed")

    objective = Objective([OnLabels(cross_entropy, weight=1.0, name="hard"), OnLogits(refuses, weight=0.0, name="off")])
    _, values = objective({"logits": said_by(MULTICLASS)}, replace(batch_for(MULTICLASS), teacher={}))
    assert list(values) == ["hard"]
    assert objective.reads == ("labels",)
    assert not objective.needs_teacher


@pytest.mark.parametrize(("alpha", "reads"), [(0.0, ("labels",)), (0.5, ("labels", "logits")), (1.0, ("logits",))])
def test_what_an_objective_reads(alpha: float, reads: tuple[str, ...]) -> None:
    objective = Objective.soft_labels(alpha=alpha, task=MULTICLASS)
    assert objective.reads == reads
    assert objective.needs_teacher == (alpha > 0)


def test_low_precision_gives_a_total_in_float32() -> None:
    student = said_by(MULTICLASS).detach().bfloat16()
    batch = batch_for(MULTICLASS)
    batch = replace(batch, teacher={"logits": batch.teacher["logits"].half()})
    total, _ = Objective.soft_labels(task=MULTICLASS)({"logits": student}, batch)
    assert total.dtype == torch.float32


def test_the_formula_in_words() -> None:
    objective = Objective.soft_labels(alpha=0.9, temperature=4, task=MULTICLASS, label_smoothing=0.1, class_weights=[1, 2, 0.5])
    assert objective.formula() == (
        "0.1 * cross_entropy(student, labels, label_smoothing=0.1, class_weights=[1, 2, 0.5])"
        " + 0.9 * soft_target(student, teacher, temperature=4)"
    )
    bounded = Objective.from_terms([("regression.teacher_bounded", 2, {})], REGRESSION)
    assert bounded.formula() == "2 * teacher_bounded(student, teacher, labels, margin=0, scale=1)"


# --- the control ------------------------------------------------------------------------------------------------------


@every_task
@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_the_control_is_the_same_without_the_teacher(task: Task, alpha: float) -> None:
    options: dict[str, Any] = {"scale": 3.0} if task.kind == "regression" else {"label_smoothing": 0.1}
    student, batch = said_by(task), batch_for(task)
    control = Objective.soft_labels(alpha=alpha, task=task, **options).without_teacher(task)
    assert not control.needs_teacher
    assert control.formula() == Objective.labels_only(task, **options).formula()
    torch.testing.assert_close(
        control({task.signal: student}, batch)[0], Objective.labels_only(task, **options)({task.signal: student}, batch)[0]
    )


def test_the_control_of_teacher_terms_alone_learns_from_labels() -> None:
    objective = Objective.from_terms([("logits.logit_mse", 1.0, {})], MULTICLASS)
    assert objective.without_teacher(MULTICLASS).formula() == Objective.labels_only(MULTICLASS).formula()


def test_the_control_leaves_the_objective_as_it_was() -> None:
    objective = Objective.soft_labels(alpha=0.9, task=MULTICLASS)
    before = objective.formula()
    objective.without_teacher(MULTICLASS)
    assert objective.formula() == before


def test_class_weights_follow_the_objective() -> None:
    objective = Objective.labels_only(MULTICLASS, class_weights=[1.0, 2.0, 3.0])
    student, batch = said_by(MULTICLASS), batch_for(MULTICLASS)
    hard, _ = row_values(MULTICLASS, student, batch, 1.0, 1.0)
    assert batch.labels is not None
    expected = (torch.tensor([1.0, 2, 3])[batch.labels] * hard).mean()
    torch.testing.assert_close(objective({"logits": student}, batch)[0], expected)
    assert objective.to("meta").active[0].options["class_weights"].device.type == "meta"
    assert not objective.state_dict()


# --- terms from a recipe ----------------------------------------------------------------------------------------------


def test_terms_by_place() -> None:
    objective = Objective.from_terms(
        [
            ("labels.cross_entropy", 0.25, {"class_weights": [1.0, 1.0, 2.0]}),
            ("logits.soft_target", 0.5, {"temperature": 2.0}),
            ("logits.soft_target", 0.5, {"temperature": 8.0}),
            (logit_mse, 0.0, {"centred": False}),
        ],
        MULTICLASS,
    )
    assert [term.name for term in objective.active] == ["cross_entropy", "soft_target", "soft_target_2"]
    assert [type(term) for term in objective.active] == [OnLabels, OnLogits, OnLogits]
    student, batch = said_by(MULTICLASS), batch_for(MULTICLASS)
    total, values = objective({"logits": student}, batch)
    torch.testing.assert_close(total.detach(), 0.25 * values["cross_entropy"] + 0.5 * values["soft_target"] + 0.5 * values["soft_target_2"])
    torch.testing.assert_close(values["soft_target_2"], soft_target(student, batch.teacher["logits"], temperature=8.0).mean().detach())


def test_regression_terms_are_bound_by_their_arguments() -> None:
    places = ["regression.squared_error", "regression.teacher_squared_error", "regression.teacher_bounded"]
    objective = Objective.from_terms([(place, 1.0, {}) for place in places], REGRESSION)
    assert [type(term) for term in objective.active] == [OnLabels, OnValues, OnValuesAndLabels]
    assert objective.reads == ("labels", "values")
    student, batch = said_by(REGRESSION), batch_for(REGRESSION, labelled=[True] * 5 + [False] * 3)
    _, values = objective({"values": student}, batch)
    assert batch.labels is not None
    expected = teacher_bounded(student[:5], batch.teacher["values"][:5], batch.labels[:5]).mean()
    torch.testing.assert_close(values["teacher_bounded"], expected.detach())


def test_a_loss_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_losses.py").write_text(
        "def distance(student, teacher, *, power=1.0):\n    return ((student - teacher).abs() ** power).sum(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    student, batch = said_by(MULTICLASS), batch_for(MULTICLASS)
    objective = Objective.from_terms([("my_losses:distance", 2.0, {"reads": "logits", "power": 2.0})], MULTICLASS)
    total, _ = objective({"logits": student}, batch)
    torch.testing.assert_close(total, 2 * (student - batch.teacher["logits"]).square().sum(1).mean())
    assert objective.formula() == "2 * distance(student, teacher, power=2)"
    for place, options, said in (
        (
            "my_losses:distance",
            {},
            "do not say what it reads; reads is one of: labels, logits, logits_and_labels, teachers, values, values_and_labels",
        ),
        ("my_losses:distance", {"reads": "logit"}, "reads = 'logit' is unknown"),
        ("my_losses:distance", {"reads": "values"}, "compares values, but a multiclass student gives logits"),
        ("my_losses:distanc", {"reads": "logits"}, "my_losses has no function 'distanc'; did you mean 'distance'?"),
        ("my_loses:distance", {"reads": "logits"}, "cannot import 'my_loses'"),
        ("my_losses:distance", {"reads": "logits", "powr": 2}, "has no option 'powr'; did you mean 'power'?"),
    ):
        with pytest.raises(RecipeError) as caught:
            Objective.from_terms([(place, 1.0, options)], MULTICLASS)
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("task", "place", "options", "said"),
    [
        (MULTICLASS, "soft_target", {}, "did you mean 'logits.soft_target'?"),
        (MULTICLASS, "logits.soft_targets", {}, "did you mean 'logits.soft_target'?"),
        (MULTICLASS, "logits.soft_target", {"temprature": 2.0}, "has no option 'temprature'; did you mean 'temperature'?"),
        (MULTICLASS, "regression.teacher_squared_error", {}, "a multiclass student gives logits; use 'logits.soft_target'"),
        (MULTICLASS, "labels.binary_cross_entropy", {}, "is not for a multiclass task; use 'labels.cross_entropy'"),
        (MULTILABEL, "labels.cross_entropy", {}, "is not for a multilabel task; use 'labels.binary_cross_entropy'"),
        (MULTILABEL, "logits.soft_target", {}, "use 'logits.binary_soft_target'"),
        (REGRESSION, "logits.soft_target", {}, "a regression student gives values; use 'regression.teacher_squared_error'"),
        (REGRESSION, "labels.cross_entropy", {}, "use 'regression.squared_error'"),
        (BINARY, "regression.squared_error", {}, "use 'labels.cross_entropy'"),
        (MULTILABEL, "logits.decoupled", {}, "use 'logits.binary_soft_target'"),
        (MULTILABEL, "correlations.correlation", {}, "use 'logits.binary_soft_target'"),
        (MULTILABEL, "labels.virtual_teacher", {}, "use 'labels.binary_cross_entropy'"),
        (REGRESSION, "correlations.multi_level", {}, "a regression student gives values"),
        (REGRESSION, "logits.normalized", {}, "a regression student gives values"),
        (MULTICLASS, "topk.sampled_cross_entropy", {}, "the loss 'topk.sampled_cross_entropy' is for code of your own"),
        (MULTICLASS, "ensembles.mean_of_logits", {}, "is for code of your own"),
    ],
)
def test_a_wrong_term_is_refused_with_the_right_one(task: Task, place: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Objective.from_terms([(place, 1.0, options)], task)
    assert said in str(caught.value)
    assert caught.value.code == "U075"


@pytest.mark.parametrize("place", ["logits.decoupled", "logits.normalized"])
def test_losses_among_the_other_classes_need_two_of_them(place: str) -> None:
    with pytest.raises(RecipeError, match=r"with two classes there is .*use 'logits\.soft_target'"):
        Objective.from_terms([(place, 1.0, {})], BINARY)


FAMILIES = ("labels", "logits", "correlations", "regression")
REFUSED = {
    "labels.binary_cross_entropy": "use 'labels.cross_entropy'",
    "labels.soft_cross_entropy": "use 'labels.cross_entropy'",
    "logits.ensemble_soft_target": "takes teachers = a list of the names of teacher.members",
    "regression.smooth_absolute_error": "use 'labels.cross_entropy'",
    "regression.squared_error": "use 'labels.cross_entropy'",
    "regression.teacher_bounded": "use 'logits.soft_target'",
    "regression.teacher_squared_error": "use 'logits.soft_target'",
}
"""The losses that a multiclass recipe cannot name, and what it is told."""


def every_place() -> list[str]:
    modules = {family: importlib.import_module(f"understudy.losses.{family}") for family in FAMILIES}
    return [f"{family}.{name}" for family, module in modules.items() for name in module.__all__]


@pytest.mark.parametrize("place", every_place())
def test_every_loss_of_a_multiclass_recipe_trains_or_is_refused(place: str) -> None:
    if place in REFUSED:
        with pytest.raises(RecipeError) as caught:
            Objective.from_terms([(place, 1.0, {})], MULTICLASS)
        assert REFUSED[place] in str(caught.value)
        return
    objective = Objective.from_terms([(place, 1.0, {})], MULTICLASS)
    module, batch = student_for(MULTICLASS), batch_for(MULTICLASS, labelled=[True] * 6 + [False] * 2)
    findings = objective.signal_test(speaking(module, MULTICLASS), batch, module.parameters())
    assert [finding.level for finding in findings] == ["fine"]
    total, _ = objective({"logits": module(batch.inputs)}, batch)
    total.backward()
    torch.optim.SGD(module.parameters(), lr=0.01).step()
    assert objective({"logits": module(batch.inputs)}, batch)[0] < total
    taught = replace(batch, teacher={"logits": batch.teacher["logits"].roll(1, 0)})
    heard = not torch.allclose(
        objective({"logits": module(batch.inputs)}, taught)[0], objective({"logits": module(batch.inputs)}, batch)[0]
    )
    assert heard == objective.needs_teacher == (not place.startswith("labels."))


@pytest.mark.parametrize("place", ["logits.decoupled", "logits.normalized", "logits.weighted_soft_label"])
def test_terms_of_teacher_and_labels_leave_out_rows_without_a_label(place: str) -> None:
    objective = Objective.from_terms([(place, 1.0, {})], MULTICLASS)
    assert objective.reads == ("labels", "logits")
    assert "(student, teacher, labels, " in objective.formula()
    student, known = said_by(MULTICLASS), [True] * 3 + [False] * 5
    total, _ = objective({"logits": student}, batch_for(MULTICLASS, labelled=known))
    whole = batch_for(MULTICLASS)
    assert whole.labels is not None
    alone = replace(whole, inputs=whole.inputs[:3], labels=whole.labels[:3], teacher={"logits": whole.teacher["logits"][:3]})
    torch.testing.assert_close(total, objective({"logits": student[:3]}, alone)[0])


@pytest.mark.parametrize("weigh", [None, "entropy", "confidence"])
def test_several_teachers_are_heard_one_by_one(weigh: str | None) -> None:
    options = {"teachers": ["one", "two"], "temperature": 2.0, "weigh": weigh}
    objective = Objective.from_terms([("logits.ensemble_soft_target", 1.0, options)], MULTICLASS)
    assert objective.reads == (*["labels"] * (weigh == "confidence"), "teachers/one/logits", "teachers/two/logits")
    module, batch = student_for(MULTICLASS), batch_for(MULTICLASS, labelled=[True] * 6 + [False] * 2)
    teachers = normal(7, 2, ROWS, 3)
    batch = replace(batch, teacher={"teachers/two/logits": teachers[1], "teachers/one/logits": teachers[0]})
    assert objective.signal_test(speaking(module, MULTICLASS), batch, module.parameters())[0].level == "fine"
    student = said_by(MULTICLASS)
    rows = slice(6 if weigh == "confidence" else None)
    weights: dict[str, Any] = {}
    if weigh is not None and batch.labels is not None:
        weights["weights"] = entropy_weights(teachers) if weigh == "entropy" else confidence_weights(teachers, batch.labels)
    wanted = ensemble_soft_target(student, teachers, temperature=2.0, **weights)[rows].mean()
    torch.testing.assert_close(objective({"logits": student}, batch)[0], wanted)
    with pytest.raises(InputError, match="reads the teachers' 'teachers/one/logits', but there is: logits"):
        objective({"logits": student}, batch_for(MULTICLASS))
    for wrong in ({"teachers": "one"}, {"teachers": ["one"], "weigh": "height"}):
        with pytest.raises(RecipeError, match="takes teachers = a list of the names"):
            Objective.from_terms([("logits.ensemble_soft_target", 1.0, wrong)], MULTICLASS)


def test_wrong_weights_are_refused() -> None:
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(RecipeError, match="weight of the term 'soft_target' must be 0 or more"):
            Objective.from_terms([("logits.soft_target", weight, {})], MULTICLASS)
    with pytest.raises(RecipeError, match="no term of weight above 0"):
        Objective.from_terms([("logits.soft_target", 0.0, {})], MULTICLASS)
    with pytest.raises(RecipeError, match="two terms have one name"):
        Objective([OnLogits(soft_target, weight=1.0, name="same"), OnLogits(logit_mse, weight=1.0, name="same")])
    with pytest.raises(RecipeError, match=r"alpha must lie between 0 and 1 \(got 1.1\)"):
        Objective.soft_labels(alpha=1.1, task=MULTICLASS)


def test_shapes_and_signals_are_checked() -> None:
    student, batch = said_by(MULTICLASS), batch_for(MULTICLASS)
    objective = Objective.soft_labels(alpha=1.0, task=MULTICLASS)
    with pytest.raises(InputError, match=r"the student's logits are \[8, 3\], the teacher's \[1, 3\]"):
        objective({"logits": student}, replace(batch, teacher={"logits": batch.teacher["logits"][:1]}))
    with pytest.raises(InputError, match="reads the teacher's 'logits', but there is: values"):
        objective({"logits": student}, replace(batch, teacher={"values": batch.teacher["logits"]}))
    with pytest.raises(InputError, match="reads the student's 'logits', but there is: nothing"):
        objective({}, batch)
    unreduced = Objective([OnLogits(lambda s, t: (s - t) ** 2, weight=1.0, name="unreduced")])
    with pytest.raises(InputError, match=r"must give one value per row; there are 8 rows, and it gave \[8, 3\]"):
        unreduced({"logits": student}, batch)


# --- shares of the gradient -------------------------------------------------------------------------------------------


@every_task
def test_shares_add_to_one_and_are_the_gradients(task: Task) -> None:
    student, batch = said_by(task), batch_for(task)
    objective = Objective.soft_labels(alpha=0.3, temperature=2.0, task=task)
    shares = objective.shares(student, batch)
    hard, soft = row_values(task, student, batch, 2.0, 1.0)
    norms = [torch.autograd.grad(part, student)[0].norm().item() for part in (0.7 * hard.mean(), 0.3 * soft.mean())]
    assert list(shares.values()) == pytest.approx([norm / sum(norms) for norm in norms])
    assert sum(shares.values()) == pytest.approx(1)
    assert student.grad is None
    with torch.no_grad():
        assert objective.shares(student, batch) == shares


def test_shares_of_terms_without_a_gradient() -> None:
    batch = replace(batch_for(MULTICLASS), labels=None)
    assert Objective.soft_labels(task=MULTICLASS).shares(said_by(MULTICLASS), batch) == {"cross_entropy": 0.0, "soft_target": 1.0}
    assert Objective.labels_only(MULTICLASS).shares(said_by(MULTICLASS), batch) == {"cross_entropy": 0.0}


# --- the test of the signal -------------------------------------------------------------------------------------------


@every_task
def test_a_live_objective_passes(task: Task) -> None:
    module = student_for(task)
    findings = Objective.soft_labels(alpha=0.5, task=task).signal_test(speaking(module, task), batch_for(task), module.parameters())
    assert [finding.level for finding in findings] == ["fine", "fine"]
    assert all(finding.value > 0 for finding in findings)
    assert all(finding.gradient > 0 for finding in findings)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert str(findings[0]).endswith(": fine")


def test_a_parameter_that_the_batch_does_not_use_is_fine() -> None:
    module = student_for(MULTICLASS)
    unused = nn.Parameter(torch.ones(2))
    findings = Objective.soft_labels(task=MULTICLASS).signal_test(
        speaking(module, MULTICLASS), batch_for(MULTICLASS), [unused, *module.parameters()]
    )
    assert {finding.level for finding in findings} == {"fine"}


def dead(objective: Objective, forward: Callable[[Batch], Signals], batch: Batch, module: nn.Module) -> str:
    with pytest.raises(TrainingError) as caught:
        objective.signal_test(forward, batch, module.parameters())
    assert caught.value.code == "U072"
    return str(caught.value)


def test_a_detached_student_is_caught() -> None:
    module = student_for(MULTICLASS)
    said = dead(
        Objective.soft_labels(task=MULTICLASS), lambda batch: {"logits": module(batch.inputs).detach()}, batch_for(MULTICLASS), module
    )
    assert "'cross_entropy'" in said  # every dead term is named
    assert "'soft_target'" in said
    assert "no gradient reaches the student" in said


def test_a_frozen_student_is_caught() -> None:
    module = student_for(MULTICLASS).requires_grad_(False)
    assert "no gradient reaches the student" in dead(
        Objective.labels_only(MULTICLASS), speaking(module, MULTICLASS), batch_for(MULTICLASS), module
    )


def test_a_gradient_of_zero_is_caught() -> None:
    module = student_for(MULTICLASS)
    said = dead(
        Objective([OnLogits(lambda s, t: (s * 0 + t).square().sum(1), weight=1.0, name="stuck")]),
        speaking(module, MULTICLASS),
        batch_for(MULTICLASS),
        module,
    )
    assert "'stuck'" in said
    assert "gradient in the student's parameters is zero" in said


def test_a_gradient_that_is_not_finite_is_caught() -> None:
    module = student_for(MULTICLASS)

    def rooted(student: Tensor, teacher: Tensor) -> Tensor:
        return (student - student).abs().sqrt().sum(1) + teacher.square().sum(1)

    said = dead(Objective([OnLogits(rooted, name="rooted")]), speaking(module, MULTICLASS), batch_for(MULTICLASS), module)
    assert "gradient in the student's parameters is not finite" in said


def test_a_value_of_zero_is_caught() -> None:
    module = student_for(MULTICLASS)
    zero = Objective([OnLogits(lambda s, t: (s - t).sum(1) * 0, weight=1.0, name="nothing")])
    assert "not above 0" in dead(zero, speaking(module, MULTICLASS), batch_for(MULTICLASS), module)


def test_a_value_that_is_not_finite_is_caught() -> None:
    module, batch = student_for(MULTICLASS), batch_for(MULTICLASS)
    batch.teacher["logits"][2, 1] = math.nan
    said = dead(Objective.soft_labels(task=MULTICLASS), speaking(module, MULTICLASS), batch, module)
    assert "'soft_target'" in said
    assert "is not finite" in said
    assert "'cross_entropy'" not in said


@every_task
def test_a_student_that_is_its_teacher_is_told_so(task: Task) -> None:
    module, batch = student_for(task), batch_for(task)
    with torch.no_grad():
        batch = replace(batch, teacher={task.signal: module(batch.inputs)})
    said = dead(Objective.soft_labels(task=task), speaking(module, task), batch, module)
    assert "the student already says exactly what the teacher says" in said


@every_task
def test_a_teacher_that_says_the_same_of_every_row_is_caught(task: Task) -> None:
    module, batch = student_for(task), batch_for(task)
    batch = replace(batch, teacher={task.signal: batch.teacher[task.signal][:1].expand(ROWS, -1).contiguous()})
    said = dead(Objective.soft_labels(task=task), speaking(module, task), batch, module)
    assert "the teacher says the same of every row" in said


def test_a_loss_that_does_not_listen_to_the_teacher_is_caught() -> None:
    module = student_for(MULTICLASS)
    deaf = Objective([OnLogits(lambda s, t: s.square().sum(1), weight=1.0, name="deaf")])
    assert "does not change when the teacher's answers go to other rows" in dead(
        deaf, speaking(module, MULTICLASS), batch_for(MULTICLASS), module
    )


def test_a_student_that_begins_by_saying_nothing_is_fine() -> None:
    """A last layer of zeros makes the mean deaf to any permutation; the rows are not."""
    module = student_for(MULTICLASS)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    findings = Objective.soft_labels(task=MULTICLASS).signal_test(speaking(module, MULTICLASS), batch_for(MULTICLASS), module.parameters())
    assert {finding.level for finding in findings} == {"fine"}


def test_a_bound_that_every_row_misses_is_fine() -> None:
    module, batch = student_for(REGRESSION), batch_for(REGRESSION)
    assert batch.labels is not None
    batch = replace(batch, teacher={"values": batch.labels + normal(6, ROWS, 1) / 1000})
    objective = Objective.from_terms([("regression.teacher_bounded", 1.0, {})], REGRESSION)
    assert [finding.level for finding in objective.signal_test(speaking(module, REGRESSION), batch, module.parameters())] == ["fine"]


def test_no_label_in_the_batch_is_a_warning_and_none_at_all_an_error() -> None:
    module = student_for(MULTICLASS)
    objective = Objective.soft_labels(task=MULTICLASS)
    findings = objective.signal_test(speaking(module, MULTICLASS), batch_for(MULTICLASS, labelled=[False] * ROWS), module.parameters())
    assert [(finding.term, finding.level) for finding in findings] == [("cross_entropy", "warning"), ("soft_target", "fine")]
    assert "no row of this batch has a label" in findings[0].note
    said = dead(objective, speaking(module, MULTICLASS), replace(batch_for(MULTICLASS), labels=None), module)
    assert "no row has a label; give labels" in said


def test_one_row_cannot_be_permuted() -> None:
    module, batch = student_for(MULTICLASS), batch_for(MULTICLASS)
    assert batch.labels is not None
    one = Batch(batch.inputs[:1], batch.labels[:1], None, {"logits": batch.teacher["logits"][:1]})
    findings = Objective.soft_labels(task=MULTICLASS).signal_test(speaking(module, MULTICLASS), one, module.parameters())
    assert {finding.level for finding in findings} == {"fine"}


@pytest.mark.parametrize("passes", [True, False])
def test_asking_changes_nothing(passes: bool) -> None:
    module = nn.Sequential(nn.BatchNorm1d(FEATURES), nn.Dropout(0.5), nn.Linear(FEATURES, 3)).double()
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    batch = batch_for(MULTICLASS)
    if not passes:
        batch = replace(batch, teacher={"logits": torch.zeros(ROWS, 3, dtype=torch.float64)})
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    objective = Objective.soft_labels(task=MULTICLASS)
    asked = (speaking(module, MULTICLASS), batch, list(module.parameters()))
    if passes:
        objective.signal_test(*asked, buffers=module.buffers())
    else:
        with pytest.raises(TrainingError):
            objective.signal_test(*asked, buffers=module.buffers())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is not None and (parameter.grad == 1).all() for parameter in module.parameters())


def test_a_term_is_abstract() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Term(teacher_squared_error, weight=1.0, name="term")  # type: ignore[abstract]
