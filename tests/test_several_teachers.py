"""Several teachers as one: numbers by hand, classes that only some know, weights by the labels of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from understudy.answers import UNKNOWN, combined, known_columns
from understudy.ensembles import Ensemble
from understudy.errors import InputError, RecipeError, TeacherError
from understudy.losses.ensembles import confidence_weights, mean_of_probabilities
from understudy.make.lessons import training_set
from understudy.pipeline import distill
from understudy.recipe import parse
from understudy.stages import training
from understudy.tasks import Task
from understudy.teachers import CallableTeacher, Matched, Teacher

TASK = Task("multiclass", ("ant", "bee", "cow"))
ROWS = np.zeros((1, 2), dtype=np.float32)


def says(*chances: float, classes: tuple[str, ...] = TASK.classes) -> Teacher:
    """A teacher that says the same of every row."""
    return CallableTeacher(
        lambda inputs: np.tile(np.float32(chances), (len(inputs), 1)), task=TASK, classes=classes, output="probabilities"
    )


def knows(teacher: Teacher) -> Teacher:
    assert teacher.classes is not None
    return Matched(teacher, known_columns(teacher.classes, TASK), task=TASK)


def chances(ensemble: Ensemble) -> list[float]:
    return [round(chance, 4) for chance in ensemble.signals(ROWS)["logits"].softmax(-1)[0].tolist()]


def test_means_by_hand() -> None:
    members = [says(0.8, 0.1, 0.1), says(0.2, 0.2, 0.6)]
    assert chances(Ensemble(members, task=TASK)) == [0.5, 0.15, 0.35]
    assert chances(Ensemble(members, task=TASK, weights=[3, 1])) == [0.65, 0.125, 0.225]
    roots = np.sqrt([0.16, 0.02, 0.06])
    assert chances(Ensemble(members, task=TASK, combine="logits")) == pytest.approx(roots / roots.sum(), abs=1e-3)
    entropies = [-sum(p * np.log(p) for p in each) for each in ([0.8, 0.1, 0.1], [0.2, 0.2, 0.6])]
    sure = 1 - entropies[0] / sum(entropies)
    assert chances(Ensemble(members, task=TASK, combine="entropy"))[0] == pytest.approx(0.8 * sure + 0.2 * (1 - sure), abs=1e-3)


def test_a_class_is_decided_by_those_who_know_it() -> None:
    members = [knows(says(0.8, 0.2, classes=("ant", "bee"))), knows(says(0.5, 0.5, classes=("cow", "bee")))]
    whole = 0.8 + 0.35 + 0.5
    assert chances(Ensemble(members, task=TASK)) == [round(0.8 / whole, 4), round(0.35 / whole, 4), round(0.5 / whole, 4)]
    whole = 0.8 + (3 * 0.2 + 0.5) / 4 + 0.5
    assert chances(Ensemble(members, task=TASK, weights=[3, 1]))[1] == round((3 * 0.2 + 0.5) / 4 / whole, 4)
    # what an expert gives to something that the data lacks is not shared out among the classes it knows
    members = [says(0.25, 0.25, 0.5), knows(says(0.1, 0.9, classes=("ant", "something else")))]
    whole = (0.25 + 0.1) / 2 + 0.25 + 0.5
    assert chances(Ensemble(members, task=TASK)) == [round(0.175 / whole, 4), round(0.25 / whole, 4), round(0.5 / whole, 4)]


def test_labels_give_their_rows_to_the_teacher_that_is_nearer() -> None:
    said = torch.tensor([[[4.0, 0.0, 0.0]] * 2, [[0.0, 4.0, 0.0]] * 2])
    labels = torch.tensor([0, -1])
    heard = combined(said, TASK, combine="confidence", labels=labels, temperature=2.0)
    wanted = mean_of_probabilities(said, weights=confidence_weights(said, labels), temperature=2.0)
    torch.testing.assert_close((heard / 2).softmax(-1), (wanted / 2).softmax(-1))
    assert heard[0, 0] > heard[0, 1] + 1
    assert heard[1, 0] == pytest.approx(float(heard[1, 1]))
    unknown = torch.tensor([[[0.0, UNKNOWN, UNKNOWN]], [[-1.0, -1.0, -1.0]]])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    assert bool(combined(unknown, TASK, combine="confidence", knows=mask, labels=torch.tensor([1])).isfinite().all())


def test_a_teacher_that_knows_no_class_is_refused() -> None:
    with pytest.raises(TeacherError, match="U358 it knows none of the data's classes: its own are dog, elk, the data's ant, bee, cow"):
        knows(says(0.5, 0.5, classes=("dog", "elk")))
    with pytest.raises(TeacherError, match="U358 no member knows the class 'cow': add a teacher that does"):
        Ensemble([knows(says(0.5, 0.5, classes=("ant", "bee"))), knows(says(0.5, 0.5, classes=("bee", "dog")))], task=TASK)
    with pytest.raises(TeacherError, match="U357 teacher.combine = 'entropy' is for classes that exclude each other"):
        Ensemble([says(0.5, 0.2, 0.3)], task=Task("multilabel", TASK.classes), combine="entropy")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in words, and two estimators that know six of them each."""
    folder = tmp_path_factory.mktemp("experts")
    words = np.array(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
    inputs, labels = load_digits(return_X_y=True)
    frame = pd.DataFrame(inputs, columns=[f"pixel_{n}" for n in range(64)]).assign(digit=words[labels])
    frame.iloc[:900].to_csv(folder / "digits.csv", index=False)
    for name, some in {"low": labels < 6, "high": labels >= 4}.items():
        rows = np.flatnonzero(some)[:700]
        model = LogisticRegression(max_iter=300, C=0.01).fit(frame.iloc[rows].drop(columns="digit"), frame["digit"].iloc[rows])
        joblib.dump(model, folder / f"{name}.joblib")
    return folder


def said(folder: Path, out: Path, **teacher: Any) -> dict[str, Any]:
    members = [{"source": str(folder / f"{name}.joblib"), "trust": True} for name in ("low", "high")]
    return {
        "out": str(out),
        "data": {"train": str(folder / "digits.csv"), "label": "digit"},
        "teacher": {"members": members, **teacher},
        "student": {"model": "mlp", "options": {"hidden": [16]}},
        "train": {"epochs": 2, "lr": 0.01, "batch_size": 32},
        "measure": {"latency": False, "resamples": 100},
        "teaching": {"out_of_fold": 0},
    }


def test_experts_of_some_classes_teach_all_of_them(experts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = distill(parse(said(experts, tmp_path / "mean")))
    teacher = card["models"]["teacher"]["quality"]["accuracy"]["mean"]
    assert teacher > 0.6
    heard: list[dict[str, Tensor]] = []
    made = training_set

    def watched(*given: Any, **options: Any) -> Any:
        heard.append(given[3])
        return made(*given, **options)

    monkeypatch.setattr(training, "training_set", watched)
    distill(parse(said(experts, tmp_path / "near", combine="confidence")))
    distill(parse(said(experts, tmp_path / "again")))
    near, mean = heard[0]["logits"], heard[2]["logits"]
    labels = pd.read_csv(experts / "digits.csv")["digit"]
    assert near.shape == mean.shape and len(labels) > len(near)
    # who does not know the label is not heard, so that fewer rows are decided against it
    assert not torch.allclose(near, mean)
    assert near.log_softmax(-1).amax(-1).mean() > mean.log_softmax(-1).amax(-1).mean()


def test_an_unknown_way_to_combine_and_a_wrong_weight_are_refused() -> None:
    plain = {"out": "x", "data": {"train": "x.csv"}}
    members = [{"source": "a.skops", "weight": 0}, {"source": "b.skops"}]
    with pytest.raises(
        RecipeError, match=r"(?s)weight: Input should be greater than 0.*teacher.combine: .* did you mean 'probabilities'\?"
    ):
        parse({**plain, "teacher": {"members": members, "combine": "probability"}})


def test_an_expert_of_other_things_is_refused_with_its_number(experts: Path, tmp_path: Path) -> None:
    recipe = said(experts, tmp_path / "none")
    recipe["teacher"]["members"][1]["classes"] = ["ape", "bat", "cat", "dog", "elk", "fox"]
    with pytest.raises(InputError, match=r"U358 teacher.members 2 .* it knows none of the data's classes: its own are ape, bat"):
        distill(parse(recipe))
