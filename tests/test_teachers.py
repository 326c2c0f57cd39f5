"""Teachers keep the contract, and check_teacher finds those that do not; columns are matched by name or proved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from understudy.answers import check_answers, looks_like, match_classes, to_logits
from understudy.checks.teachers import check_teacher
from understudy.ensembles import Ensemble
from understudy.errors import TeacherError
from understudy.signals import Signals
from understudy.tasks import Task
from understudy.teachers import CallableTeacher, FakeTeacher, Matched, TorchTeacher

torch.set_num_threads(1)
THREE = Task("multiclass", ("entailment", "neutral", "contradiction"))
TWO = Task("binary", ("no", "yes"))
MANY = Task("multilabel", ("a", "b", "c"))
INPUTS = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)


def torch_teacher(module: nn.Module, task: Task = THREE) -> TorchTeacher:
    return TorchTeacher(module, task=task, classes=task.classes, prepare=torch.from_numpy)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def codes(problems: list[Any]) -> set[str]:
    return {problem.code for problem in problems}


class AlwaysTraining(nn.Module):
    """Refuses to leave training mode, as a module with its own `train` may."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, given: Tensor) -> Tensor:
        self.inner.train()
        said: Tensor = self.inner(given)
        return said


@pytest.mark.parametrize("task", [THREE, TWO, MANY, Task("regression")])
def test_fake_teacher_keeps_the_contract(task: Task) -> None:
    assert check_teacher(FakeTeacher(task), INPUTS) == []
    frame = pd.DataFrame({"x": [1.0, np.nan], "c": ["red", None]})
    assert FakeTeacher(task).signals(frame)[task.signal].shape == (2, task.outputs)


def test_torch_teacher_keeps_the_contract_and_puts_modes_back() -> None:
    module = network()
    module[2].eval()
    module[0].weight.requires_grad_(False)
    teacher = torch_teacher(module)
    assert check_teacher(teacher, INPUTS) == []
    assert [part.training for part in module.modules()] == [True, True, True, False, True]
    assert not module[0].weight.requires_grad and module[3].weight.requires_grad
    assert not teacher.signals(INPUTS)["logits"].requires_grad
    assert teacher.parameters() == 5 * 8 + 8 + 16 + 8 * 3 + 3


def test_dropout_left_on_is_found() -> None:
    found = check_teacher(torch_teacher(AlwaysTraining(nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)))), INPUTS)
    assert {"U008", "U019"} <= codes(found)
    assert any("dropout left on" in problem.message for problem in found)


def test_batch_norm_in_training_mode_is_found() -> None:
    found = check_teacher(torch_teacher(AlwaysTraining(nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)))), INPUTS[:8])
    assert {"U009", "U019"} <= codes(found) or {"U008", "U019"} <= codes(found)
    assert any("changes its own weights or buffers" in problem.message for problem in found)
    assert any("training mode" in problem.message for problem in found)


def faulty(function: Callable[[Any], Any]) -> list[Any]:
    return check_teacher(CallableTeacher(function, task=THREE, output="logits"), INPUTS)


def test_batch_dependence_is_found() -> None:
    assert codes(faulty(lambda x: (x - x.mean(axis=0))[:, :3])) == {"U009"}


def test_nan_is_found_with_its_row() -> None:
    def answer(x: Any) -> Any:
        said = x[:, :3].copy()
        said[x[:, 0] == INPUTS[7, 0]] = np.nan
        return said

    found = faulty(answer)
    assert codes(found) == {"U006"} and found[0].message == "1 of 40 teacher rows are NaN or infinite (first: row 7)"


def test_a_gradient_that_is_left_is_found() -> None:
    weight = torch.ones(5, 3, requires_grad=True)
    assert codes(faulty(lambda x: torch.from_numpy(x) @ weight)) == {"U018"}


def test_randomness_is_found() -> None:
    generator = np.random.default_rng(0)
    assert codes(faulty(lambda x: x[:, :3] + generator.normal(size=(len(x), 3)))) == {"U008"}


def test_a_teacher_that_drops_rows_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"U016 callable gave 39 answers for 40 rows"):
        CallableTeacher(lambda x: x[1:, :3], task=THREE).signals(INPUTS)


def test_ensemble_is_the_mean_of_probabilities_in_the_first_members_order() -> None:
    first = CallableTeacher(lambda x: x[:, :3], task=THREE, classes=THREE.classes, output="logits")
    turned = CallableTeacher(lambda x: x[:, [2, 0, 1]] * 2, task=THREE, classes=("contradiction", "entailment", "neutral"), output="logits")
    said = Ensemble([first, turned], task=THREE).signals(INPUTS)["logits"].softmax(1)
    logits = torch.from_numpy(INPUTS[:, :3])
    torch.testing.assert_close(said, (logits.softmax(1) + (logits * 2).softmax(1)) / 2)
    with pytest.raises(TeacherError, match=r"U010 ensemble member 1 .* has no class 'entailment'; did you mean 'entailmnt'"):
        Ensemble([first, CallableTeacher(lambda x: x, task=THREE, classes=("entailmnt", "neutral", "contradiction"))], task=THREE)


def test_ensemble_of_multilabel_and_of_values() -> None:
    members = [FakeTeacher(MANY, seed) for seed in (0, 1)]
    said = Ensemble(members, task=MANY).signals(INPUTS)["logits"].sigmoid()
    torch.testing.assert_close(said, sum(m.signals(INPUTS)["logits"].sigmoid() for m in members) / 2, rtol=1e-3, atol=1e-6)
    values = Task("regression")
    said = Ensemble([FakeTeacher(values, 0), FakeTeacher(values, 1)], task=values).signals(INPUTS)["values"]
    torch.testing.assert_close(
        said, (FakeTeacher(values, 0).signals(INPUTS)["values"] + FakeTeacher(values, 1).signals(INPUTS)["values"]) / 2
    )


def test_probabilities_become_log_probabilities() -> None:
    given = torch.tensor([[0.0, 0.25, 0.75], [0.5, 0.5, 0.0]])
    said = to_logits(given, "auto", THREE)
    torch.testing.assert_close(said.softmax(1), given, atol=1e-6, rtol=0)
    assert bool(said.isfinite().all())


@pytest.mark.parametrize("output", ["auto", "probabilities"])
def test_one_probability_becomes_two_columns(output: Any) -> None:
    said = to_logits(torch.tensor([[0.2], [1.0]]), output, TWO)
    torch.testing.assert_close(said.softmax(1)[:, 1], torch.tensor([0.2, 1.0]))


def test_one_logit_becomes_two_columns_at_any_temperature() -> None:
    z = torch.tensor([[-3.0], [1.5]])
    said = to_logits(z, "logits", TWO)
    torch.testing.assert_close((said / 4).softmax(1)[:, 1:], (z / 4).sigmoid())


def test_multilabel_probabilities_become_log_odds() -> None:
    given = torch.tensor([[0.1, 0.9, 1.0], [0.6, 0.7, 0.0]])
    torch.testing.assert_close(to_logits(given, "auto", MANY).sigmoid(), given, atol=1e-6, rtol=0)


def test_declared_logits_that_are_probabilities_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"U004 teacher output is already probabilities \(rows sum to 1.000\).*output = 'probabilities'"):
        to_logits(torch.tensor([[0.2, 0.8], [0.7, 0.3]]), "logits", TWO)


def test_declared_probabilities_that_are_not_are_refused_with_the_first_bad_row() -> None:
    with pytest.raises(TeacherError, match=r"U005 .* go from -2 to 3 and the first bad row is 1"):
        to_logits(torch.tensor([[0.2, 0.8], [-2.0, 3.0]]), "probabilities", TWO)
    with pytest.raises(TeacherError, match=r"sums to 0.500"):
        to_logits(torch.tensor([[0.2, 0.3], [0.5, 0.5]]), "probabilities", TWO)


def test_output_of_the_wrong_width_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"U010 the teacher gives one number per row, the data has 3 classes"):
        to_logits(torch.ones(4, 1), "auto", THREE)
    with pytest.raises(TeacherError, match=r"U010 the teacher gives 3 values per row"):
        to_logits(torch.ones(4, 3), "auto", Task("regression"))


def test_log_probabilities_are_logits() -> None:
    given = torch.randn(6, 3).log_softmax(1)
    assert looks_like(given, THREE) == "logits"
    torch.testing.assert_close(to_logits(given, "auto", THREE), given)


def test_auto_is_decided_once() -> None:
    teacher = CallableTeacher(lambda x: x, task=TWO)
    teacher.signals(np.array([[-3.0], [4.0]]))
    torch.testing.assert_close(teacher.signals(np.array([[0.5]]))["logits"], torch.tensor([[0.0, 0.5]]))


def test_answers_that_say_nothing_are_found() -> None:
    bad = torch.randn(50, 3)
    bad[[4, 9]] = float("nan")
    assert (
        str(check_answers(bad, "line {}".format)[0])
        == "U006 2 of 50 teacher rows are NaN or infinite (first: line 4); correct the teacher there"
    )
    assert codes(check_answers(torch.ones(50, 3))) == {"U007"}
    assert check_answers(torch.randn(50, 1) * torch.tensor([[0.0, 1.0]])) == []


def labelled(rows: int, classes: int, right: float, seed: int = 0) -> tuple[Tensor, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    said = np.where(generator.random(rows) < right, labels, generator.integers(0, classes, rows))
    return torch.from_numpy(np.eye(classes, dtype=np.float32)[said] * 3), labels


def test_names_win_whatever_the_order() -> None:
    match = match_classes(("Neutral ", "CONTRADICTION", "entailment", "other"), THREE, None, None)
    assert match.order == (2, 0, 1) and match.proof == "names"
    assert "1 teacher classes that the data lacks are dropped" in match.sentence
    teacher = CallableTeacher(lambda x: x[:, :4], task=Task("multiclass", tuple("abcd")), output="logits")
    torch.testing.assert_close(Matched(teacher, match.order, task=THREE).signals(INPUTS)["logits"], torch.from_numpy(INPUTS[:, [2, 0, 1]]))
    assert match_classes(("1.0", "0.0"), Task("binary", ("0", "1")), None, None).order == (1, 0)


def test_a_class_the_teacher_lacks_is_refused_with_a_table() -> None:
    with pytest.raises(TeacherError, match=r"(?s)U010 the teacher has no class 'neutral'; did you mean 'neutrl'.*neutral -> nothing"):
        match_classes(("entailment", "neutrl", "contradiction"), THREE, None, None)


def test_class_counts_without_names_are_refused() -> None:
    with pytest.raises(TeacherError, match=r"U010 class counts differ: the teacher answers 1000 classes, data has 3"):
        match_classes(None, THREE, torch.zeros(4, 1000), None)


@pytest.mark.parametrize("names", [None, ("LABEL_0", "LABEL_1", "LABEL_2"), ("0", "1", "2")])
def test_an_order_without_names_is_proved_by_labels_or_refused(names: Any) -> None:
    answers, labels = labelled(300, 3, 0.85)
    assert match_classes(names, THREE, answers, labels).proof == "labels"
    with pytest.raises(
        TeacherError,
        match=r"(?s)U011 teacher index 0 is 'contradiction' by its answers, data index 0 is 'entailment': 8. % after re-ordering",
    ):
        match_classes(names, THREE, answers[:, [2, 0, 1]], labels)
    with pytest.raises(TeacherError, match=r'declare teacher.classes = \["contradiction", "entailment", "neutral"\] in that order'):
        match_classes(names, THREE, answers[:, [2, 0, 1]], labels)
    noise, _ = labelled(300, 3, 0.0, seed=5)
    with pytest.raises(TeacherError, match=r"U012 the teacher has no class names and the labels do not settle it"):
        match_classes(names, THREE, noise, labels)
    assert match_classes(names, THREE, noise, labels, accept=True).proof == "accepted"
    with pytest.raises(TeacherError, match=r"U012 .* there are no labelled rows"):
        match_classes(names, THREE, answers, np.full(300, -1))


def test_the_declared_order_is_the_cure() -> None:
    answers, labels = labelled(300, 3, 0.85)
    match = match_classes(("contradiction", "entailment", "neutral"), THREE, answers[:, [2, 0, 1]], labels)
    assert match.order == (1, 2, 0)


def test_declared_names_that_labels_contradict_are_refused() -> None:
    answers, labels = labelled(300, 3, 0.85)
    with pytest.raises(TeacherError, match=r"U011 teacher index 0 is 'contradiction' by its answers, its declared name is 'entailment'"):
        match_classes(THREE.classes, THREE, answers[:, [2, 1, 0]], labels)


def test_two_swapped_among_ten_are_found() -> None:
    task = Task("multiclass", tuple("abcdefghij"))
    answers, labels = labelled(400, 10, 0.9)
    with pytest.raises(TeacherError, match=r"U011 teacher index 3 is 'f'"):
        match_classes(None, task, answers[:, [0, 1, 2, 5, 4, 3, 6, 7, 8, 9]], labels)


def test_a_rare_class_is_proved_by_ranking() -> None:
    generator = np.random.default_rng(0)
    labels = (generator.random(2000) < 0.05).astype(np.int64)
    z = generator.normal(size=2000) + 1.5 * labels - 5
    answers = torch.from_numpy(np.stack([np.zeros(2000), z], axis=1)).float()
    assert match_classes(None, TWO, answers, labels).proof == "labels"


def test_multilabel_columns_are_proved_by_correlation() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (300, 3)).astype(np.float32)
    answers = torch.from_numpy(labels * 4 - 2 + generator.normal(size=(300, 3))).float()
    assert match_classes(None, MANY, answers, labels).proof == "labels"
    with pytest.raises(TeacherError, match=r"U011 teacher index 0 is 'b'"):
        match_classes(None, MANY, answers[:, [1, 0, 2]], labels)


def test_the_fingerprint_knows_the_weights() -> None:
    one, two = network(), network()
    assert torch_teacher(one).fingerprint() == torch_teacher(two).fingerprint()
    with torch.no_grad():
        two[1].running_mean.add_(1e-3)
    moved = {k for k, v in torch_teacher(one).fingerprint().items() if torch_teacher(two).fingerprint()[k] != v}
    assert moved == {"weights"}


def test_a_torch_teacher_answers_in_batches_as_in_one() -> None:
    module = network()
    small = TorchTeacher(module, task=THREE, classes=None, prepare=torch.from_numpy, batch_size=7)
    said: Signals = small.signals(INPUTS)
    torch.testing.assert_close(said["logits"], torch_teacher(module).signals(INPUTS)["logits"])
