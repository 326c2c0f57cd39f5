"""Networks that learn together: they learn, they hear each other, and a killed cohort ends in the same weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from understudy.errors import InputError
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.students.mlp import mlp
from understudy.tasks import Task
from understudy.training import _checkpoint
from understudy.training.cohort import TARGETS, cohort_objective, train_cohort
from understudy.training.gradient import TrainingSet

TASK = Task("multiclass", tuple("0123456789"))


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    inputs, labels = load_digits(return_X_y=True)
    return torch.tensor((inputs / 16).astype(np.float32)), torch.tensor(labels, dtype=torch.int64)


def options(**said: Any) -> OptimizerSection:
    return OptimizerSection(**{"epochs": 10, "batch_size": 32, "lr": 0.01, "device": "cpu", **said})


def members(count: int = 2) -> list[nn.Module]:
    return [mlp(64, 10, hidden=[24 - 4 * seed], seed=seed) for seed in range(count)]


def cohort(digits: tuple[Tensor, Tensor], count: int = 2, rows: int = 512, **said: Any) -> list[nn.Module]:
    inputs, labels = digits
    made = members(count)
    method = said.pop("method", "mutual")
    train_cohort(
        made,
        cohort_objective(TASK, method),
        TrainingSet(inputs[:rows], labels[:rows], said.pop("labelled", None), {}),
        task=TASK,
        options=options(**said.pop("options", {})),
        seed=1,
        method=method,
        **said,
    )
    return made


@pytest.mark.parametrize(
    ("count", "said"),
    [(2, {}), (3, {})] + [(2, {"method": "collaborative", "target": target}) for target in TARGETS],
    ids=["two", "three", *TARGETS],
)
def test_all_members_learn(digits: tuple[Tensor, Tensor], count: int, said: dict[str, Any]) -> None:
    for module in cohort(digits, count, **said):
        accuracy = float((module(digits[0][1000:]).argmax(1) == digits[1][1000:]).float().mean())
        assert accuracy > 0.8


def test_one_step_of_mutual_learning_by_hand(digits: tuple[Tensor, Tensor]) -> None:
    """The second hears what the first says after its step."""
    inputs, labels = digits[0][:32], digits[1][:32]
    plain = options(epochs=1, optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0, lr=0.5)
    made, mine = members(3), members(3)
    train_cohort(made, cohort_objective(TASK), TrainingSet(inputs, labels, None, {}), task=TASK, options=plain, seed=1)
    for number, module in enumerate(mine):
        answer = module(inputs)
        loss = functional.cross_entropy(answer, labels)
        for other in mine:
            if other is not module:
                soft = other(inputs).detach().log_softmax(1)
                loss = loss + functional.kl_div(answer.log_softmax(1), soft, log_target=True, reduction="batchmean") / 2
        loss.backward()
        with torch.no_grad():
            for weight in module.parameters():
                assert weight.grad is not None
                weight -= 0.5 * weight.grad
                weight.grad = None
        for learned, wanted in zip(made[number].parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(learned, wanted, rtol=1e-4, atol=1e-6)


def test_the_others_are_felt(digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """A member becomes sure with its peer, and stays unsure when each row is given what the peer says of its neighbour."""
    from understudy.training.cohort import _Cohort

    told = cohort(digits, options={"epochs": 6})
    heard = _Cohort.heard
    monkeypatch.setattr(_Cohort, "heard", lambda self, number, said, batch: heard(self, number, [s.roll(1, 0) for s in said], batch))
    misled = cohort(digits, options={"epochs": 6})
    unsure = []
    for made in (told, misled):
        with torch.no_grad():
            said = made[0](digits[0][1000:]).log_softmax(1)
        unsure.append(float(-(said.exp() * said).sum(1).mean()))
    assert unsure[0] < 0.7 * unsure[1], unsure


def test_rows_without_a_label_are_learned_from_the_others(digits: tuple[Tensor, Tensor]) -> None:
    labels, few = digits[1].clone(), torch.arange(len(digits[1])) < 100
    labels[~few] = -1
    for said in ({}, {"method": "collaborative"}):
        with_rest = cohort((digits[0], labels), labelled=few[:512], **said)
        accuracy = float((with_rest[0](digits[0][1000:]).argmax(1) == digits[1][1000:]).float().mean())
        assert accuracy > 0.7


def test_members_see_views_of_their_own(digits: tuple[Tensor, Tensor]) -> None:
    seen: list[np.ndarray[Any, Any]] = []

    def augment(inputs: Tensor, keys: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> Tensor:
        seen.append(view)
        return inputs + 0.01 * torch.from_numpy(view)[:, None]

    keys = np.arange(128).reshape(64, 2)
    data = TrainingSet(digits[0][:64], digits[1][:64], None, {}, keys, 5, augment)
    for own in (False, True):
        seen.clear()
        said: dict[str, Any] = {"task": TASK, "options": options(epochs=1), "seed": 1, "own_views": own}
        train_cohort(members(), cohort_objective(TASK), data, **said)
        assert len(seen) == (6 if own else 3)  # two steps and the test before them
        assert not own or not np.array_equal(seen[-1], seen[-2])


KILLED = """
import os, signal
from pathlib import Path
import numpy as np, torch
from understudy.sections import OptimizerSection
from understudy.students.convnet import convnet
from understudy.tasks import Task
from understudy.training import _checkpoint
from understudy.training.cohort import cohort_objective, train_cohort
from understudy.training.gradient import TrainingSet

def story(folder, method, kill_at, cost):
    _checkpoint.EVERY, _checkpoint.COST = 0.0, cost
    calls = 0

    def augment(inputs, keys, view):
        nonlocal calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.where(torch.from_numpy(view)[:, None, None, None] > 0, inputs.flip(1), inputs)

    draw = torch.Generator().manual_seed(0)
    task = Task("multiclass", ("a", "b", "c"))
    images = torch.rand(40, 1, 8, 8, generator=draw)
    labels = (images.mean((1, 2, 3)) * 100).long() % 3
    data = TrainingSet(images, labels, None, {}, np.arange(80).reshape(40, 2), 2, augment)
    options = OptimizerSection(epochs=3, batch_size=8, lr=0.01, ema=0.9, clip=1.0, accumulate=2, device="cpu", keep="best")
    modules = [convnet(1, 3, size=(8, 8), width=4, dropout=0.2, seed=seed) for seed in range(2)]
    validate = [lambda module: {"accuracy": float(module(images).var())}] * 2
    how = {"task": task, "options": options, "seed": 3, "method": method, "own_views": True, "validate": validate}
    train_cohort(modules, cohort_objective(task, method), data, to=Path(folder), **how)
"""


@pytest.mark.parametrize(("method", "kill_at", "cost"), [("mutual", 19, 0.0), ("collaborative", 29, 1e9)])
def test_a_killed_cohort_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kill_at: int, cost: float
) -> None:
    monkeypatch.setattr(_checkpoint, "EVERY", _checkpoint.EVERY)
    monkeypatch.setattr(_checkpoint, "COST", _checkpoint.COST)
    said: dict[str, Any] = {}
    exec(KILLED, said)
    said["story"](tmp_path / "whole", method, 0, cost)
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    call = f"story({str(tmp_path / 'killed')!r}, {method!r}, {kill_at}, {cost})"
    killed = subprocess.run([sys.executable, "-c", threads + KILLED + call], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "killed" / "checkpoint.pt").exists() and not (tmp_path / "killed" / "card.json").exists()
    said["story"](tmp_path / "killed", method, 0, cost)
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "killed" / "card.json").read_text())["members"][1]["steps"] == 9
    lines = (tmp_path / "killed" / "member-2" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)


def test_a_finished_cohort_is_read_back_and_another_is_refused(digits: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    first, again = (cohort(digits, to=tmp_path, options={"epochs": 1}) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.raises(InputError, match="U076 .* cohort was 'mutual minlogit False', is 'collaborative minlogit False'"):
        cohort(digits, to=tmp_path, options={"epochs": 1}, method="collaborative")


def test_what_is_no_cohort_is_refused(digits: tuple[Tensor, Tensor]) -> None:
    data = TrainingSet(digits[0][:64], digits[1][:64], None, {})
    blind = TrainingSet(digits[0][:64], None, None, {})
    how: dict[str, Any] = {"task": TASK, "options": options(), "seed": 0}
    with pytest.raises(InputError, match=r"U350 a cohort of 1 has nobody to learn from; give two members or more"):
        train_cohort(members(1), cohort_objective(TASK), data, **how)
    with pytest.raises(InputError, match="U351 cohort.method = 'mutal' is unknown; did you mean 'mutual'?"):
        train_cohort(members(), cohort_objective(TASK), data, method="mutal", **how)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="U351 cohort.target = 'min' is unknown"):
        train_cohort(members(), cohort_objective(TASK), data, method="collaborative", target="min", **how)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="U352 no term of the objective hears the other members"):
        train_cohort(members(), Objective.labels_only(TASK), data, **how)
    with pytest.raises(InputError, match=r"U352 cohort.method = 'collaborative' .* no row has one; use 'mutual'"):
        train_cohort(members(), cohort_objective(TASK, "collaborative"), blind, method="collaborative", **how)
    with pytest.raises(InputError, match="U353 members 1 and 2 start from the same weights"):
        train_cohort([mlp(64, 10, seed=0), mlp(64, 10, seed=0)], cohort_objective(TASK), data, **how)
    with pytest.raises(InputError, match="U353 members of a cohort share weights"):
        train_cohort([members()[0]] * 2, cohort_objective(TASK), data, **how)


@pytest.mark.parametrize("method", ["mutual", "collaborative"])
def test_what_stands_in_the_place_of_a_missing_label_is_never_heard(digits: tuple[Tensor, Tensor], method: str) -> None:
    inputs, labels = digits[0][:96], digits[1][:96]
    labelled = torch.arange(96) % 3 > 0
    weights = []
    for filling in (-1, 4):
        made = members()
        data = TrainingSet(inputs, labels.masked_fill(~labelled, filling), labelled, {})
        train_cohort(
            made, cohort_objective(TASK, method), data, task=TASK, options=options(epochs=2), seed=1, method=method, progress=False
        )  # type: ignore[arg-type]
        weights.append(torch.cat([weight.detach().flatten() for module in made for weight in module.parameters()]))
    assert torch.equal(*weights)
    only = cohort((inputs[labelled], labels[labelled]), rows=64, method=method, options={"epochs": 2})
    alone = torch.cat([weight.detach().flatten() for module in only for weight in module.parameters()])
    assert not torch.equal(weights[0], alone)  # rows without a label do teach: what the others say of them
