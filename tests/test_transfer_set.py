"""What a transfer set promises, seen from a run: the same training as with a live teacher, from a recipe and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sklearn.datasets import load_digits

from understudy import pipeline
from understudy.errors import TransferSetError, UnderstudyError
from understudy.recipe import parse
from understudy.store.transfer_set import TransferSet

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 300 digits as bytes, and a convnet that answers them."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    images = (data.images[:300, :, :, None] * 15.9).astype(np.uint8)
    np.savez(folder / "digits.npz", X=images, y=data.target[:300])
    pipeline.distill(parse(said(folder, "teacher")), until="check", console=QUIET)
    return folder


def said(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    recipe: dict[str, Any] = {
        "out": str(folder / name),
        "control": False,
        "data": {"train": str(folder / "digits.npz"), "kind": "image"},
        "teacher": {"train": {"model": "convnet", "epochs": 8, "lr": 4e-3, "batch_size": 32, "options": {"width": 8, "depth": 2}}},
        "teaching": {"views": 2},
        "student": {"model": "mlp", "options": {"hidden": [16]}},
        "train": {"epochs": 4, "batch_size": 32, "lr": 3e-3, "augment": {"shift": 1, "flip": True}},
        "measure": {"latency": False},
    }
    for section, values in changes.items():
        recipe[section] = recipe[section] | values
    return recipe


def trained(folder: Path, name: str, **changes: Any) -> list[float]:
    """The losses of a student, with the teacher that was trained before."""
    if not (folder / name).exists():
        shutil.copytree(folder / "teacher", folder / name)
        (folder / name / "recipe.json").unlink()
        recipe = parse(said(folder, name, **changes))
        (folder / name / "recipe.json").write_text(json.dumps(recipe.model_dump(mode="json")))
    pipeline.distill(parse(said(folder, name, **changes)), until="train", console=QUIET)
    lines = (folder / name / "seed-0" / "student" / "metrics.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


def test_a_cache_of_all_views_is_the_same_training_as_a_live_teacher(digits: Path) -> None:
    cached = trained(digits, "cached", teaching={"views": "all", "dtype": "float16"})
    live = trained(digits, "live", teaching={"views": "live"})
    assert len(cached) >= 4 and len(cached) == len(live)
    np.testing.assert_allclose(cached, live, rtol=2e-3)
    stored = TransferSet.open(digits / "cached" / "transfer" / "training")
    assert stored.views == 18 and stored.view_spec == {"how": "enumerated", "shift": 1, "flip": True}
    assert not (digits / "live" / "transfer" / "training").exists()


def test_another_view_is_another_training(digits: Path) -> None:
    """The comparison above can fail: seeded views are other views."""
    seeded = trained(digits, "seeded", teaching={"views": 18})
    assert not np.allclose(seeded, trained(digits, "live", teaching={"views": "live"}), rtol=2e-3)


def test_a_change_of_views_is_refused(digits: Path) -> None:
    trained(digits, "views", teaching={"views": 2})
    recipe = said(digits, "views", teaching={"views": 2}, train={"augment": {"shift": 2}})
    with pytest.raises(TransferSetError, match=r"(?s)U021 .*views: .*'flip': True.* there, .*'shift': 2.* now"):
        pipeline.distill(parse(recipe), until="teach", fresh=True, console=QUIET)


def test_views_that_cannot_be_counted_are_refused_before_teaching(digits: Path) -> None:
    recipe = said(digits, "endless", teaching={"views": "all"}, train={"augment": {"shift": 1, "colour": 0.2}})
    with pytest.raises(UnderstudyError, match=r"U320 teaching.views = 'all' counts through every view, and those of augment.colour cannot"):
        pipeline.distill(parse(recipe), until="teach", console=QUIET)


@pytest.mark.parametrize("encoding", ["top-k", "sampled", "auto"])
def test_a_student_learns_from_an_encoded_set(digits: Path, encoding: str) -> None:
    teaching = {"views": 3, "encoding": encoding, "top": 3, "draws": 4, "max_loss": 0.05}
    losses = trained(digits, f"encoded {encoding}", teaching=teaching)
    assert losses[-1] < losses[0]
    stored = TransferSet.open(digits / f"encoded {encoding}" / "transfer" / "training")
    assert stored.encoding["stored"]["kind"] == {"auto": "dense"}.get(encoding, encoding)
    assert encoding != "sampled" or stored.encoding["stored"]["temperature"] == 4.0
