"""What a transfer set promises, seen from a run: the same training as with a live teacher, from a recipe and back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from commands import run
from rich.console import Console
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.naive_bayes import GaussianNB

from understudy import pipeline
from understudy.errors import TransferSetError, UnderstudyError
from understudy.recipe import parse
from understudy.store.transfer_set import TransferSet
from understudy.store.writing import TransferWriter

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
        recipe[section] = recipe.get(section, {}) | values
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
    assert encoding != "sampled" or stored.encoding["stored"]["temperature"] == 2.0


def test_the_columns_of_a_top_k_store_teach_what_the_whole_answer_would(digits: Path) -> None:
    """The same losses step by step; leaving the order of the others to the student is another training."""
    teaching = {"views": 3, "encoding": "top-k", "top": 3}

    def soft(loss: str, **options: Any) -> dict[str, Any]:
        terms = [{"loss": "labels.cross_entropy"}, {"loss": loss, "options": {"temperature": 3.0, **options}}]
        return {"teaching": teaching, "objective": {"terms": terms}}

    whole = trained(digits, "whole", **soft("logits.soft_target"))
    columns = trained(digits, "columns", **soft("stored.top_soft_target"))
    assert len(whole) >= 4
    np.testing.assert_allclose(columns, whole, rtol=1e-4)
    together = trained(digits, "together", **soft("stored.top_soft_target", rest="together"))
    assert together[-1] < together[0] and not np.allclose(together, whole, rtol=1e-3)


@pytest.mark.parametrize(("teaching", "told"), [({"encoding": "dense"}, "encoding = 'dense'"), ({"views": "live"}, "views = 'live'")])
def test_columns_that_will_not_be_there_are_refused_before_teaching(digits: Path, teaching: dict[str, Any], told: str) -> None:
    terms = [{"loss": "stored.top_soft_target"}]
    recipe = said(digits, "no columns", teaching=teaching, objective={"terms": terms})
    with pytest.raises(
        UnderstudyError, match=rf"U482 the loss 'stored.top_soft_target' reads the columns .* the recipe says teaching.{told}"
    ):
        pipeline.distill(parse(recipe), until="teach", console=QUIET)


def test_columns_that_a_copied_store_lacks_are_refused(digits: Path) -> None:
    trained(digits, "dense", teaching={"views": 2})
    recipe = said(digits, "from dense", teaching={"views": 2}, objective={"terms": [{"loss": "stored.top_soft_target"}]})
    recipe["teacher"] = {"source": str(digits / "dense" / "transfer")}
    with pytest.raises(TransferSetError, match=r"U482 a term reads the largest classes as they are stored .* stored as dense"):
        pipeline.distill(parse(recipe), until="train", console=QUIET)


def test_a_run_with_drawn_views_and_a_student_of_its_own_resolution(digits: Path) -> None:
    """Whole, to the exported file: operations by torchvision, mixed pictures and labels, a student that reads half the height."""
    changes: dict[str, Any] = {
        "train": {"augment": {"randaugment": 4, "operations": 1, "mixup": 0.2, "crop": 0.7}},
        "student": {"options": {"hidden": [16], "prepare": {"image_size": [4, 8], "mean": [0.3], "std": [0.35]}}},
    }
    losses = trained(digits, "drawn", **changes)
    assert losses[-1] < losses[0]
    card = pipeline.distill(parse(said(digits, "drawn", **changes)), console=QUIET)
    student, exported = (card["models"][who]["quality"]["accuracy"]["mean"] for who in ("student", "exported"))
    assert exported == pytest.approx(student, abs=0.01) and student > 0.12
    stored = TransferSet.open(digits / "drawn" / "transfer" / "training")
    assert stored.view_spec["randaugment"]["magnitude"] == 4 and stored.view_spec["crop"]["least"] == 0.7


def test_a_picture_of_its_own_is_for_networks_on_images(digits: Path) -> None:
    recipe = said(digits, "own", student={"model": "tree", "options": {"prepare": {"image_size": [4, 4]}}})
    with pytest.raises(UnderstudyError, match=r"U504 options.prepare is for networks on images and sound; 'tree' reads rows of kind"):
        pipeline.distill(parse(recipe), until="teach", console=QUIET)


# --- truth ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table, a fitted model in a .joblib file, and a run that taught and trained from it."""
    folder = tmp_path_factory.mktemp("forest")
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(300, 4))
    frame = pd.DataFrame(inputs, columns=list("abcd"))
    words = np.array(["low", "middle", "high"])[np.digitize(inputs[:, 0] + inputs[:, 1], [-0.7, 0.7])]
    joblib.dump(GaussianNB().fit(frame, words), folder / "teacher.joblib")
    joblib.dump(GaussianNB(var_smoothing=2.0).fit(frame, words), folder / "other.joblib")
    frame.assign(label=words).to_csv(folder / "rows.csv", index=False)
    pipeline.distill(parse(table(folder, "run")), until="train", console=QUIET)
    return folder


def table(folder: Path, name: str, source: str = "teacher.joblib") -> dict[str, Any]:
    return {
        "out": str(folder / name),
        "control": False,
        "data": {"train": str(folder / "rows.csv"), "label": "label"},
        "teacher": {"source": str(folder / source), "trust": True},
        "student": {"model": "mlp", "options": {"hidden": [8]}},
        "train": {"epochs": 3, "batch_size": 32},
        "measure": {"latency": False},
    }


def test_verify_asks_again_and_reports_the_worst(forest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(forest / "run" / "transfer" / "training")
    assert run(monkeypatch, "verify", store, "--rows", "50") == 0
    said = capsys.readouterr().out
    assert "50 of 210 rows asked again" in said.replace("\n", " ") and "from the store" in said and "asked now" in said
    found = pipeline.verify(store, parse(table(forest, "run")), rows=20, console=QUIET)
    assert found["rows"] == 20 and 0 <= found["worst"] < 0.1 and found["moved"] == [] and found["cached"] == found["fresh"]
    assert run(monkeypatch, "verify", store, "--teacher", str(forest / "other.joblib"), "--trust") == 2
    told = capsys.readouterr().err
    assert "U022 the teacher does not say what is stored" in told and "content:" in told and "there" in told and "now" in told


def test_inspect_shows_rows_entropy_and_confused_pairs(
    forest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = forest / "run" / "transfer" / "training"
    assert run(monkeypatch, "inspect", str(store), "--rows", "4") == 0
    said = capsys.readouterr().out
    assert "entropy mean" in said and "row " in said and "line" in said
    found = pipeline.inspect(store, rows=4, console=QUIET)
    taught = TransferSet.open(store)
    chances = taught.gather("logits", np.arange(len(taught))).double().softmax(1).numpy()
    assert found["entropy"]["mean"] == pytest.approx(float(-(chances * np.log(chances)).sum(1).mean()))
    mass: dict[frozenset[str], float] = {}
    for row in chances:
        first, second = np.argsort(-row)[:2]
        pair = frozenset((taught.task.classes[first], taught.task.classes[second]))
        mass[pair] = mass.get(pair, 0.0) + row[second]
    best = max(mass, key=lambda pair: mass[pair])
    assert frozenset(found["pairs"][0]["classes"]) == best and found["pairs"][0]["mass"] == pytest.approx(mass[best])
    for row in found["shown"]:
        top = chances[row["position"]].argmax()
        assert next(iter(row["soft labels"])) == taught.task.classes[top]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (("training",), "U022 the teacher no longer says what is stored in .*training"),
        (("held_out",), r"U326 the stored answers in .*held_out score accuracy 0.\d+ on the validation rows, the teacher itself 0"),
    ],
)
def test_answers_of_other_rows_are_noticed(forest: Path, parts: tuple[str, ...], told: str) -> None:
    """A whole set whose answers stand at the wrong rows: every hash is right, and what it says is not."""
    name = f"shuffled {parts[0]}"
    shutil.copytree(forest / "run", forest / name)
    for part in parts:
        taught = TransferSet.open(forest / "run" / "transfer" / part)
        folder = forest / name / "transfer" / part
        shutil.rmtree(folder)
        with TransferWriter(folder, task=taught.task, teacher=taught.teacher, fingerprint=taught.fingerprint) as writer:
            turned = taught.gather("logits", np.roll(np.arange(len(taught)), 1))
            writer.write(taught.keys, taught.fold, {"logits": turned})
            writer.finish()
    with pytest.raises(TransferSetError, match=told):
        pipeline.distill(parse(table(forest, name)), until="teach", console=QUIET)


# --- the student without the teacher --------------------------------------------------------------------------------

ALONE = """
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name in {"skops", "sklearn.naive_bayes"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Gone())
import json
from rich.console import Console
from understudy import pipeline
from understudy.recipe import parse
pipeline.distill(parse(json.loads(sys.argv[1])), until="train", console=Console(quiet=True))
assert "sklearn.naive_bayes" not in sys.modules
"""


def test_a_student_needs_neither_the_teacher_nor_its_framework(forest: Path, tmp_path: Path) -> None:
    """The store, the data and a recipe are copied elsewhere; there is no teacher file, and its modules cannot be imported."""
    shutil.copytree(forest / "run" / "transfer", tmp_path / "answers")
    shutil.copy(forest / "rows.csv", tmp_path / "rows.csv")
    recipe = table(tmp_path, "alone", "answers")
    subprocess.run([sys.executable, "-c", ALONE, json.dumps(recipe)], check=True, cwd=tmp_path)
    weights = [load_file(folder / "seed-0" / "student" / "model.safetensors") for folder in (forest / "run", tmp_path / "alone")]
    assert weights[0].keys() == weights[1].keys() and all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_stored_answers_say_nothing_of_other_rows_or_views(forest: Path) -> None:
    recipe = table(forest, "other split", "run/transfer") | {"split": {"seed": 7}}
    with pytest.raises(TransferSetError, match=r"U020 .* rows, .* in the transfer set"):
        pipeline.distill(parse(recipe), until="teach", console=QUIET)
    recipe = table(forest, "other views", "run/transfer")
    recipe |= {"teaching": {"views": 3}, "train": recipe["train"] | {"augment": {"noise": 0.1}}}
    with pytest.raises(TransferSetError, match=r"U021 .*holds 1 views of \{\}, the recipe asks for 3"):
        pipeline.distill(parse(recipe), until="teach", console=QUIET)
