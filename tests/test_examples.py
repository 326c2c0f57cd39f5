"""The programs of examples/ run at a small size and say what they promise."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy.errors import InputError
from understudy.losses.dense import pixel_cross_entropy

ROOT = Path(__file__).parents[1]


def example(name: str) -> Any:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


def test_segmentation_prints_teacher_control_and_students(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--train-rows", "32", "--test-rows", "16", "--epochs", "4", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["segmentation.py", *words, "--json"])
    example("segmentation").main()
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["teacher", "control", "channels", "pixels", "both"]
    assert all(0 < value < 1 for values in found.values() for value in values)
    assert found["teacher"][0] > 0.25 > found["control"][0]  # ground alone has a share below a quarter; four steps are not enough


def test_intersection_over_union_by_hand() -> None:
    segmentation = example("segmentation")
    labels = torch.tensor([[[0, 0, 1, 1]]])
    answers = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 4).movedim(3, 1).float()
    assert segmentation.mean_intersection_over_union(answers, labels) == pytest.approx((1 / 2 + 2 / 3) / 2)
    pictures, truth = segmentation.shapes(6, seed=0)
    assert pictures.shape == (6, 1, 24, 24) and set(truth.unique().tolist()) <= {0, 1, 2, 3}
    assert torch.equal(segmentation.shapes(6, seed=0)[0], pictures) and not torch.equal(segmentation.shapes(6, seed=1)[0], pictures)


def test_a_language_model_teaches_position_by_position(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--characters", "8000", "--rows", "64", "--epochs", "2", "--teacher-epochs", "4", "--width", "16", "--time", "32"]
    monkeypatch.setattr(sys, "argv", ["language_model.py", *words, "--teacher-width", "32", "--top", "4", "--json"])
    example("language_model").main()
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["teacher", "control", "forward_kl", "reverse_kl", "skewed_forward_kl", "jensen_shannon", "top_4"]
    assert all(1 < value < 40 for values in found.values() for value in values)
    assert found["teacher"][0] < found["control"][0]


def test_a_language_model_sees_no_character_that_comes_later_and_stores_its_likeliest() -> None:
    language = example("language_model")
    torch.manual_seed(0)
    model = language.Characters(7, 16, 2, time=8).eval()
    tokens = torch.randint(7, (2, 8))
    later = tokens.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 7
    said, other = language.answers(model, tokens), language.answers(model, later)
    torch.testing.assert_close(said[:, :5], other[:, :5])
    assert not torch.allclose(said[:, 5:], other[:, 5:])
    kept = language.stored(said, 3)
    chances = said.log_softmax(-1)
    assert torch.equal(kept["logits/ids"], chances.topk(3, dim=-1).indices)
    torch.testing.assert_close(kept["logits/top"], chances.topk(3, dim=-1).values, atol=2e-3, rtol=0)
    text = language.windows("abcdefghijkl" * 4, time=4)
    assert torch.equal(text.train[0][:, 1:], text.train[1][:, :-1]) and text.train[0].shape[0] + text.test[0].shape[0] <= 12


def test_labels_of_pixels_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="U073 .*one class index per pixel"):
        pixel_cross_entropy.__wrapped__(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, dtype=torch.int64))
