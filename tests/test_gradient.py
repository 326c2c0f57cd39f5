"""Training by gradient steps: it learns, it is fair to the control, and a killed run ends in the same weights."""

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
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from understudy.errors import InputError, TrainingError
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.students.convnet import convnet
from understudy.students.mlp import mlp
from understudy.students.preprocessing import Rescale
from understudy.tasks import Task
from understudy.training import _checkpoint, gradient
from understudy.training._schedule import progress_of, rate_factor, row_order, steps_of
from understudy.training.gradient import TrainingSet, train

TASK = Task("multiclass", tuple("0123456789"))


@pytest.fixture(scope="module")
def digits() -> dict[str, Tensor]:
    """Training rows with a teacher's logits, and rows to test on."""
    inputs, labels = load_digits(return_X_y=True)
    inputs = (inputs / 16).astype(np.float32)
    teacher = LogisticRegression(max_iter=100).fit(inputs[:1200], labels[:1200])
    logits = teacher.predict_log_proba(inputs).astype(np.float32)
    return {"inputs": torch.tensor(inputs), "labels": torch.tensor(labels, dtype=torch.int64), "logits": torch.tensor(logits)}


def some(digits: dict[str, Tensor], rows: int = 256) -> TrainingSet:
    return TrainingSet(digits["inputs"][:rows], digits["labels"][:rows], None, {"logits": digits["logits"][:rows]})


def soft(alpha: float = 0.9) -> Objective:
    return Objective.soft_labels(alpha=alpha, temperature=2.0, task=TASK)


def options(**said: Any) -> OptimizerSection:
    return OptimizerSection(**{"epochs": 3, "batch_size": 32, "lr": 0.01, "device": "cpu", **said})


def fitted(data: TrainingSet, objective: Objective | None = None, *, module: nn.Module | None = None, **said: Any) -> nn.Module:
    module = mlp(64, 10, hidden=[16], seed=0) if module is None else module
    train(module, objective or soft(), data, task=TASK, options=options(**said), seed=1)
    return module


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def accuracy(module: nn.Module, digits: dict[str, Tensor]) -> float:
    with torch.no_grad():
        return float((module(digits["inputs"][1200:]).argmax(1) == digits["labels"][1200:]).float().mean())


# --- learning -------------------------------------------------------------------------------------------------------


def test_a_student_learns_from_the_teacher_alone(digits: dict[str, Tensor]) -> None:
    data = TrainingSet(digits["inputs"][:1200], None, None, {"logits": digits["logits"][:1200]})
    module = fitted(data, soft(1.0), epochs=15)
    assert accuracy(module, digits) > 0.85


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_both_optimizers_learn_from_labels(digits: dict[str, Tensor], optimizer: str) -> None:
    rate = 0.01 if optimizer == "adamw" else 0.1
    module = fitted(some(digits, 1200), Objective.labels_only(TASK), optimizer=optimizer, lr=rate, epochs=12)
    assert accuracy(module, digits) > 0.85


def test_student_and_control_differ_in_the_teacher_only(digits: dict[str, Tensor]) -> None:
    data = some(digits)
    alone = TrainingSet(data.inputs, data.labels, None, {})
    assert same(fitted(data, soft(0.0)), fitted(alone, Objective.labels_only(TASK)))
    assert not same(fitted(data, soft(0.5)), fitted(alone, Objective.labels_only(TASK)))


def test_training_leaves_the_global_random_state_and_the_mode_alone(digits: dict[str, Tensor]) -> None:
    module = nn.Sequential(mlp(64, 16, dropout=0.3, seed=0), nn.BatchNorm1d(16), nn.Linear(16, 10)).eval()
    module[0].train()
    modes, state = [part.training for part in module.modules()], torch.get_rng_state()
    fitted(some(digits), module=module)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes


def test_unlabelled_rows_learn_from_the_teacher(digits: dict[str, Tensor]) -> None:
    labelled = torch.arange(1200) < 50
    labels = torch.where(labelled, digits["labels"][:1200], -1)
    data = TrainingSet(digits["inputs"][:1200], labels, labelled, {"logits": digits["logits"][:1200]})
    assert accuracy(fitted(data, epochs=10), digits) > accuracy(fitted(data, Objective.labels_only(TASK), epochs=10), digits) + 0.05


def test_a_regression_speaks_the_unit_of_its_label() -> None:
    inputs = torch.rand(512, 3, generator=torch.Generator().manual_seed(0))
    values = 5000.0 + 300.0 * inputs.sum(1, keepdim=True)
    task = Task("regression")
    module = nn.Sequential(mlp(3, 1, hidden=[16], seed=0), Rescale(float(values.mean()), float(values.std())))
    objective = Objective.labels_only(task, scale=float(values.std()))
    train(module, objective, TrainingSet(inputs, values, None, {}), task=task, options=options(epochs=20), seed=0)
    with torch.no_grad():
        assert float((module(inputs) - values).abs().mean()) < 0.1 * float(values.std())


# --- options --------------------------------------------------------------------------------------------------------


def test_accumulating_equals_the_larger_batch(digits: dict[str, Tensor]) -> None:
    data = some(digits, 250)
    whole, pieces = fitted(data, batch_size=64, optimizer="sgd"), fitted(data, batch_size=32, accumulate=2, optimizer="sgd")
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_plain_loop_gives_the_same_weights(digits: dict[str, Tensor]) -> None:
    data = some(digits, 100)
    module = fitted(data, optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0, lr=0.1, clip=0.5, epochs=2)
    plain = mlp(64, 10, hidden=[16], seed=0)
    for epoch in range(2):
        for rows in row_order(100, 1, epoch).split(32):
            logits, teacher = plain(data.inputs[rows]), data.teacher["logits"][rows]
            assert data.labels is not None
            hard = nn.functional.cross_entropy(logits, data.labels[rows])
            gap = nn.functional.kl_div((logits / 2).log_softmax(1), (teacher / 2).log_softmax(1), log_target=True, reduction="batchmean")
            plain.zero_grad()
            (0.1 * hard + 0.9 * 4 * gap).backward()
            nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
            with torch.no_grad():
                for weight in plain.parameters():
                    assert weight.grad is not None
                    weight -= 0.1 * weight.grad
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_decay_as_in_pytorch_but_biases_do_not(digits: dict[str, Tensor], optimizer: str) -> None:
    data = some(digits, 64)
    said = {"lr": 0.1, "weight_decay": 0.3, "schedule": "constant", "warmup": 0.0, "batch_size": 64}
    module = fitted(data, Objective.labels_only(TASK), optimizer=optimizer, epochs=5, **said)
    plain = mlp(64, 10, hidden=[16], seed=0)
    groups = [
        {"params": [w for w in plain.parameters() if w.ndim == 2], "weight_decay": 0.3},
        {"params": [w for w in plain.parameters() if w.ndim == 1], "weight_decay": 0.0},
    ]
    steps = torch.optim.AdamW(groups, lr=0.1) if optimizer == "adamw" else torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True)
    for epoch in range(5):
        rows = row_order(64, 1, epoch)
        assert data.labels is not None
        steps.zero_grad()
        nn.functional.cross_entropy(plain(data.inputs[rows]), data.labels[rows]).backward()
        steps.step()
    for one, other in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_averaged_weights_are_validated_and_kept(digits: dict[str, Tensor]) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(module: nn.Module) -> dict[str, float]:
        assert not module.training
        seen.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        return {"accuracy": 0.5}

    plain, averaged = mlp(64, 10, hidden=[16], seed=0), mlp(64, 10, hidden=[16], seed=0)
    train(plain, soft(), some(digits), task=TASK, options=options(), seed=1, validate=validate)
    assert torch.equal(seen[-1]["0.weight"], plain[0].weight)
    train(averaged, soft(), some(digits), task=TASK, options=options(ema=0.9), seed=1, validate=validate)
    assert torch.equal(seen[-1]["0.weight"], averaged[0].weight)
    assert not same(plain, averaged)
    nothing = fitted(some(digits), ema=1e-9)
    torch.testing.assert_close(nothing.state_dict(), plain.state_dict())


def test_patience_stops_and_best_is_kept(digits: dict[str, Tensor]) -> None:
    scores, kept = iter([0.1, 0.9, 0.3, 0.2, 0.1, 0.1]), []

    def validate(module: nn.Module) -> dict[str, float]:
        kept.append(module[0].weight.detach().clone())
        return {"accuracy": next(scores), "agreement": 0.0}

    module = mlp(64, 10, hidden=[16], seed=0)
    done = train(module, soft(), some(digits), task=TASK, options=options(epochs=6, patience=2, keep="best"), seed=1, validate=validate)
    assert done.epochs == len(done.history) == 4
    assert done.best is not None and done.best["epoch"] == 2 and done.best["accuracy"] == 0.9
    assert torch.equal(module[0].weight, kept[1])


def test_choosing_needs_validation_and_its_figure(digits: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="U037 train.keep = 'best' and train.patience choose by validation rows, and there are none"):
        fitted(some(digits), keep="best")
    with pytest.raises(InputError, match="validation gives agreement; there is no 'accuracy' among them"):
        train(mlp(64, 10), soft(), some(digits), task=TASK, options=options(), seed=0, validate=lambda module: {"agreement": 1.0})


def test_a_budget_of_time_fits_the_schedule(digits: dict[str, Tensor]) -> None:
    module = mlp(64, 10, hidden=[16], seed=0)
    done = train(module, soft(), some(digits), task=TASK, options=options(epochs=100_000, max_time=0.5), seed=1)
    assert 0.5 <= done.seconds < 0.8 and done.epochs > 1
    least = train(module, soft(), some(digits), task=TASK, options=options(epochs=100_000, max_time=1e-6), seed=1)
    assert least.epochs == 1 and least.steps == 8
    slow = options(epochs=1000, max_time=10.0, warmup=0.0)
    assert rate_factor(progress_of(50, 10, slow, 5.0), slow) == pytest.approx(0.5)
    assert progress_of(4, 10, slow, 60.0) == 0.45  # a budget shorter than one epoch is one epoch


def test_schedules() -> None:
    steps = options(schedule="steps", warmup=0.1)
    assert [round(rate_factor(p, steps), 4) for p in (0.05, 0.1, 0.49, 0.5, 0.75)] == [0.5, 1.0, 1.0, 0.1, 0.01]
    assert rate_factor(0.9, options(schedule="constant")) == 1.0
    assert rate_factor(0.999, options()) < 1e-4


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    assert sorted(row_order(50, 3, 2).tolist()) == list(range(50))
    assert torch.equal(row_order(50, 3, 2), row_order(50, 3, 2))
    assert not torch.equal(row_order(50, 3, 2), row_order(50, 3, 3)) and not torch.equal(row_order(50, 3, 2), row_order(50, 4, 2))


def test_a_last_batch_of_one_joins_the_one_before(digits: dict[str, Tensor]) -> None:
    assert [len(batch) for step in steps_of(torch.arange(65), 32, 1) for batch in step] == [32, 33]
    module = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    fitted(some(digits, 65), module=module)
    assert int(module[1].num_batches_tracked) == 6


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_and_plain_precision_follows_in_one_process(digits: dict[str, Tensor], precision: str) -> None:
    module = fitted(some(digits, 1200), precision=precision, epochs=10)
    assert accuracy(module, digits) > 0.8
    assert same(fitted(some(digits)), fitted(some(digits)))


def test_views_are_drawn_anew_each_epoch_with_the_teachers_answer_for_each() -> None:
    keys = np.arange(20).reshape(10, 2)
    seen: list[tuple[int, int]] = []

    def augment(inputs: Tensor, said: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> Tensor:
        seen.extend(zip((said[:, 0] // 2).tolist(), view.tolist(), strict=True))
        return inputs + torch.from_numpy(view)[:, None]

    teacher = torch.arange(10).float()[:, None, None] * 0 + torch.arange(3).float()[None, :, None]
    data = TrainingSet(torch.zeros(10, 1), None, None, {"values": teacher}, keys, 3, augment)
    batch = data.batch(torch.tensor([4, 2]), torch.tensor([2, 1]))
    assert torch.equal(batch.inputs, batch.teacher["values"])
    seen.clear()
    objective = Objective.soft_labels(alpha=1.0, task=Task("regression"))
    module = mlp(1, 1, hidden=[16], seed=0)
    train(module, objective, data, task=Task("regression"), options=options(epochs=60, batch_size=4, weight_decay=0.0), seed=0)
    assert sorted(row for row, _ in seen[-10:]) == list(range(10))
    counts = np.bincount([view for _, view in seen], minlength=3)
    assert counts.min() > 150 and len({tuple(sorted(seen[start : start + 10])) for start in range(4, 604, 10)}) > 50
    with torch.no_grad():
        torch.testing.assert_close(module(torch.tensor([[0.0], [1.0], [2.0]])), torch.tensor([[0.0], [1.0], [2.0]]), atol=0.2, rtol=0)


# --- what must not be silent ----------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_place(digits: dict[str, Tensor]) -> None:
    data = some(digits)
    poisoned = TrainingSet(data.inputs.clone(), data.labels, None, data.teacher)
    poisoned.inputs[row_order(256, 1, 0)[224]] = float("inf")  # read by the eighth step
    with pytest.raises(TrainingError, match=r"U074 student: the loss is nan in epoch 1, step 8: the term .* Lower train.lr"):
        fitted(poisoned)


def test_a_weak_term_is_warned_of_once(digits: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = mlp(64, 10, hidden=[16], seed=0)
    train(module, soft(1e-7), some(digits), task=TASK, options=options(epochs=30), seed=1, to=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    said = [line["warning"] for line in lines if "warning" in line]
    assert len(said) == 1 and "the term 'soft_target' has had less than 0.1 % of the gradient for 50 steps; raise its weight" in said[0]
    assert "soft_target" in capsys.readouterr().err


def test_rows_that_do_not_match_are_refused(digits: dict[str, Tensor]) -> None:
    with pytest.raises(InputError, match="U036 a training set of 1797 rows: logits has 5"):
        TrainingSet(digits["inputs"], digits["labels"], None, {"logits": digits["logits"][:5]})
    with pytest.raises(InputError, match="there is nothing to train on"):
        TrainingSet(digits["inputs"][:0], None, None, {})


# --- the folder -----------------------------------------------------------------------------------------------------


def test_metrics_tell_the_story(digits: dict[str, Tensor], tmp_path: Path) -> None:
    module = mlp(64, 10, hidden=[16], seed=0)
    done = train(
        module, soft(), some(digits), task=TASK, options=options(epochs=20), seed=1, to=tmp_path, validate=lambda m: {"accuracy": 0.5}
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shared = [line for line in lines if line.get("shares")]
    assert [line["step"] for line in shared] == [50, 100, 150]
    assert sum(shared[0]["shares"].values()) == pytest.approx(1.0)
    assert {"step", "epoch", "lr", "loss", "terms", "shares", "seconds"} <= set(shared[0])
    assert shared[0]["loss"] == pytest.approx(0.1 * shared[0]["terms"]["cross_entropy"] + 0.9 * shared[0]["terms"]["soft_target"], rel=1e-4)
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    assert sum("validation" in line for line in lines) == 20


def test_a_complete_folder_is_loaded_and_anything_else_refused(digits: dict[str, Tensor], tmp_path: Path) -> None:
    first, again = mlp(64, 10, hidden=[16], seed=0), mlp(64, 10, hidden=[16], seed=5)
    done = train(first, soft(), some(digits), task=TASK, options=options(), seed=1, to=tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()
    stamp = (tmp_path / "metrics.jsonl").stat().st_mtime_ns
    assert train(again, soft(), some(digits), task=TASK, options=options(), seed=1, to=tmp_path) == done
    assert same(first, again) and (tmp_path / "metrics.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(InputError, match=r"U076 .* holds the training of something else: options.lr was 0.01, is 0.02; seed was 1, is 2"):
        train(again, soft(), some(digits), task=TASK, options=options(lr=0.02), seed=2, to=tmp_path)
    with pytest.raises(InputError, match=r"objective was '0.1 \* cross_entropy.*', is "):
        train(again, soft(0.5), some(digits), task=TASK, options=options(), seed=1, to=tmp_path)


KILLED = """
import os, signal
from pathlib import Path
import numpy as np, torch
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.students.convnet import convnet
from understudy.tasks import Task
from understudy.training import _checkpoint
from understudy.training.gradient import TrainingSet, train

def story(folder, optimizer, kill_at, cost):
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
    data = TrainingSet(images, labels, None, {"logits": torch.randn(40, 2, 3, generator=draw)}, np.arange(80).reshape(40, 2), 2, augment)
    options = OptimizerSection(
        epochs=3, batch_size=8, optimizer=optimizer, lr=0.01, ema=0.9, clip=1.0, accumulate=2, device="cpu", keep="best"
    )
    module = convnet(1, 3, size=(8, 8), width=4, dropout=0.2, seed=0)
    objective = Objective.soft_labels(alpha=0.5, temperature=2.0, task=task)
    validate = lambda module: {"accuracy": float(module(images).var())}
    train(module, objective, data, task=task, options=options, seed=3, to=Path(folder), validate=validate)
"""


@pytest.mark.parametrize(("optimizer", "kill_at", "cost"), [("adamw", 9, 0.0), ("sgd", 15, 1e9)])
def test_a_killed_run_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, kill_at: int, cost: float
) -> None:
    """A new process is killed within an epoch; another goes on from its last step, or from its first checkpoint only."""
    monkeypatch.setattr(_checkpoint, "EVERY", _checkpoint.EVERY)
    monkeypatch.setattr(_checkpoint, "COST", _checkpoint.COST)
    said: dict[str, Any] = {}
    exec(KILLED, said)
    said["story"](tmp_path / "whole", optimizer, 0, cost)
    threads = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
    call = f"story({str(tmp_path / 'killed')!r}, {optimizer!r}, {kill_at}, {cost})"
    killed = subprocess.run([sys.executable, "-c", threads + KILLED + call], capture_output=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "killed" / "checkpoint.pt").exists() and not (tmp_path / "killed" / "card.json").exists()
    said["story"](tmp_path / "killed", optimizer, 0, cost)
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    cards = [json.loads((tmp_path / name / "card.json").read_text()) for name in ("whole", "killed")]
    stories = [
        [{key: value for key, value in epoch.items() if key not in ("seconds", "loss")} for epoch in card["history"]] for card in cards
    ]
    assert stories[0] == stories[1] and cards[0]["steps"] == 9
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


def test_a_checkpoint_of_something_else_is_refused(digits: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(module: nn.Module) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(_checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(_checkpoint, "COST", 0.0)
    with pytest.raises(KeyboardInterrupt):
        train(mlp(64, 10), soft(), some(digits), task=TASK, options=options(), seed=1, to=tmp_path, validate=stop)
    with pytest.raises(InputError, match="options.batch_size was 32, is 64"):
        train(mlp(64, 10), soft(), some(digits), task=TASK, options=options(batch_size=64), seed=1, to=tmp_path)


def test_a_named_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="U037 train.device = 'gpu': say auto, cpu, cuda"):
        gradient.device_named("gpu")


def test_a_convnet_trains_on_small_images() -> None:
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = (images[:, 0].mean((1, 2)) > images[:, 1].mean((1, 2))).long()
    task = Task("binary", ("no", "yes"))
    module = convnet(3, 2, size=(8, 8), width=8, seed=0)
    data = TrainingSet(images, labels, None, {})
    done = train(module, Objective.labels_only(task), data, task=task, options=options(epochs=15, batch_size=16), seed=0)
    assert done.history[-1]["loss"] < 0.5 * done.history[0]["loss"]


def test_the_weights_that_enter_a_unit_keep_within_the_largest_norm(digits: dict[str, Tensor]) -> None:
    free = fitted(some(digits), epochs=2, lr=0.1)
    bound = fitted(some(digits), epochs=2, lr=0.1, max_norm=0.5)
    norms = [torch.cat([weight.norm(dim=1) for weight in module.parameters() if weight.ndim == 2]) for module in (free, bound)]
    assert norms[0].max() > 1.0
    assert norms[1].max() <= 0.5 + 1e-6
