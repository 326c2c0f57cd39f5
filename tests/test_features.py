"""Terms that read layers: taps, connectors, banks and schedules, and a run that is cut off."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run
from safetensors import safe_open
from sklearn.datasets import load_digits
from torch import nn

from understudy.errors import InputError, RecipeError
from understudy.losses.layers import hint
from understudy.objectives import Objective
from understudy.schedules import Schedule
from understudy.signals import Batch
from understudy.students.convnet import convnet
from understudy.taps import pair_stages, taps, trace
from understudy.tasks import Task

TASK = Task("multiclass", ("a", "b", "c"))


def small(width: int = 4, seed: int = 0) -> nn.Sequential:
    return convnet(1, 3, size=(8, 8), width=width, depth=2, seed=seed)


def images(rows: int = 6) -> torch.Tensor:
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_taps_read_layers_with_gradients_and_leave_nothing_behind() -> None:
    network, inputs = small(), images()
    plain = network(inputs)
    with taps(network, ["stage2", "head:input"]) as outer, taps(network, ["stage2"]) as inner:
        answer = network(inputs)
        torch.testing.assert_close(network.head(outer["head:input"]), answer)
        (gradient,) = torch.autograd.grad(answer.sum(), inner["stage2"])
    assert gradient.abs().sum() > 0 and outer["stage2"].shape == (6, 8, 4, 4)
    torch.testing.assert_close(plain, answer)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())
    with pytest.raises(InputError, match="U340 there is no layer 'stage3'.*did you mean 'stage"), taps(network, ["stage3"]):
        pass


def test_stages_are_paired_by_resolution() -> None:
    pairs = pair_stages(trace(small(), images()), trace(small(8), images()))
    assert [(one.shape, other.shape) for one, other in pairs] == [((4, 8, 8), (8, 8, 8)), ((8, 4, 4), (16, 4, 4))]


def bound(place: str, **options: Any) -> Objective:
    return Objective.from_terms([(place, 1.0, options)], TASK)


def test_a_connector_makes_shapes_alike_and_is_trained() -> None:
    objective = bound("layers.hint", student="stage2", teacher="stage2")
    ours, theirs = torch.rand(6, 8, 4, 4), torch.rand(6, 16, 4, 4)
    student, teacher = {"features/stage2": ours}, {"features/stage2": theirs}
    objective.connect(student, teacher)
    total, _ = objective(student, Batch(images(), None, None, teacher))
    torch.testing.assert_close(total, hint(objective.terms[0].connectors[0](ours), theirs).mean())  # type: ignore[operator,union-attr,index]
    total.backward()
    assert all(weight.grad is not None for weight in objective.parameters())
    assert objective.connectors() == {"hint": 8 * 16 + 2 * 16}


def test_what_cannot_be_bound_is_refused() -> None:
    flat = {"features/a": torch.rand(4, 3)}
    objective = bound("layers.hint", student="a", teacher="a")
    with pytest.raises(InputError, match="U342 .*no connector goes from 1 axes to 3"):
        objective.connect(flat, {"features/a": torch.rand(4, 3, 2, 2)})
    with pytest.raises(InputError, match="U342 .*needs equal sizes"):
        bound("layers.hint", student="a", teacher="a", connector="none").connect(flat, {"features/a": torch.rand(4, 5)})
    with pytest.raises(InputError, match="U343 .*there is one"):
        bound("relations.relational_distance", student="a", teacher="a")(flat, Batch(torch.rand(1, 2), None, None, flat))
    with pytest.raises(RecipeError, match="U344 .*2 layers of the student and 1"):
        bound("layers.hint", student=["a", "b"], teacher="a")
    with pytest.raises(RecipeError, match="U346 .*did you mean 'linear'"):
        Objective.from_terms([("logits.soft_target", {"schedule": "linaer"}, {})], TASK)


def test_weights_and_temperatures_move_and_a_learned_one_climbs() -> None:
    options = {"temperature": {"learned": True, "over": 0.1}}
    moving = {"schedule": "linear", "start": 0.0, "end": 2.0}
    objective = Objective.from_terms([("logits.soft_target", moving, options), ("labels.cross_entropy", 1.0, {})], TASK)
    objective.move_to(0.5)
    assert objective.terms[0].weight == Schedule("linear", 0.0, 2.0)(0.5) == 1.0
    logits = {"logits": torch.tensor([[2.0, 0.0, 1.0]])}
    batch = Batch(torch.rand(1, 2), torch.tensor([0]), None, {"logits": torch.tensor([[0.0, 3.0, 1.0]])})
    before, _ = objective(logits, batch)
    before.backward()
    (weight,) = objective.parameters()
    with torch.no_grad():
        weight -= weight.grad
    assert objective(logits, batch)[0] > before  # the gradient is reversed: it makes the task harder


PROGRAM = """
import sys, torch
from pathlib import Path
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.students.convnet import convnet
from understudy.tasks import Task
from understudy.training import _checkpoint, gradient
_checkpoint.EVERY, _checkpoint.COST = 0.0, 0.0
task = Task("multiclass", ("a", "b", "c"))
draw = torch.Generator().manual_seed(0)
inputs, labels = torch.rand(96, 1, 8, 8, generator=draw), torch.randint(3, (96,), generator=draw)
embedding, keys = torch.rand(96, 5, generator=draw), torch.arange(192).reshape(96, 2)
terms = [("labels.cross_entropy", 1.0, {}), ("contrastive.contrastive_representation", {"share": 0.3, "start": 0.1},
    {"student": "pool", "teacher": "embedding", "width": 8, "negatives": 16})]
objective, network = Objective.from_terms(terms, task), convnet(1, 3, size=(8, 8), width=4, depth=2, seed=0)
objective.connect({"features/pool": torch.rand(2, 8)}, {"embedding": embedding}, keys=keys, labels=labels)
data = gradient.TrainingSet(inputs, labels, None, {"embedding": embedding}, keys=keys.numpy())
options = OptimizerSection(epochs=int(sys.argv[2]), batch_size=16, device="cpu")
steps = []
if sys.argv[3] == "kill":
    import os, signal
    saved = _checkpoint.Checkpoints.save
    def save(self, state):
        saved(self, state)
        steps.append(1)
        if len(steps) == 57:
            os.kill(os.getpid(), signal.SIGKILL)
    _checkpoint.Checkpoints.save = save
gradient.train(network, objective, data, task=task, options=options, seed=0, to=Path(sys.argv[1]), progress=False)
"""


def test_a_killed_run_with_a_memory_bank_ends_in_the_same_weights(tmp_path: Path) -> None:
    def start(folder: str, how: str) -> int:
        return subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path / folder), "12", how], check=False).returncode

    assert start("whole", "run") == 0
    assert start("cut", "kill") == -signal.SIGKILL
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    assert start("cut", "run") == 0
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "cut/model.safetensors").read_bytes()


RECIPE = """
out = "run"
data = {train = "digits.npz", kind = "image"}
teacher.train = {model = "convnet", options = {width = 12}, epochs = 6, lr = 0.01, batch_size = 32}
student = {model = "convnet", options = {width = 4}}
train = {epochs = 2, batch_size = 32}
measure.latency = false
[[objective.terms]]
loss = "logits.soft_target"
weight = {schedule = "linear", start = 0.5, end = 1.0}
[[objective.terms]]
loss = "layers.hint"
student = "stage2"
teacher = "stage2"
[[objective.terms]]
loss = "attention_maps.attention_transfer"
weight = 100
features = "auto"
"""


@pytest.mark.slow
def test_layers_through_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    digits = load_digits()
    np.savez(tmp_path / "digits.npz", X=(digits.images[:600] / 16 * 255).astype(np.uint8), y=digits.target[:600])
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for verb in ("explain", "distill"):
        assert run(monkeypatch, verb, "recipe.toml") == 0
    printed = capsys.readouterr().out
    assert "total = [0.5 to 1, linear] * soft_target(student, teacher, temperature=4)" in printed
    assert "reads: features/stage2" in printed and "connectors hint" in printed
    assert (tmp_path / "run/transfer").exists() and (tmp_path / "run/artifact/model.onnx").exists()
    with safe_open(str(tmp_path / "run/seed-0/student/model.safetensors"), "pt") as kept:
        assert all(name.startswith(("preprocessing", "network")) for name in kept.keys())  # noqa: SIM118
