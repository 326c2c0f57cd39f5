"""Rows with several named inputs: joined and checked, keyed over all of them, learned from together and answered from one."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from commands import run
from PIL import Image
from published import Case, cases
from rich.console import Console

from understudy.data import pairs, views
from understudy.data._source import Source
from understudy.data.keys import content_keys
from understudy.data.pairs import PairEncoding, Partner
from understudy.data.rows import Paired, Rows
from understudy.errors import DataError, RecipeError
from understudy.make.rows import Loaded
from understudy.make.views import build_views, views_seen
from understudy.measuring import soft_labels
from understudy.measuring.scorecard import fidelity, quality
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.signals import Batch
from understudy.students.fusion import Fusion, fusion_head
from understudy.tasks import Task
from understudy.teaching import teach

WORDS = (("red", "shirt"), ("blue", "jeans"), ("brown", "shoe"), ("gold", "watch"))
ROWS = 160


def picture(label: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """A bright bar whose height tells the class, over noise."""
    pixels = rng.integers(0, 90, (12, 12, 3))
    pixels[label * 3 : (label + 1) * 3] += 150
    return pixels.astype(np.uint8)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of titles, and a zip of photos that it names."""
    root, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    labels = np.arange(ROWS) % 4
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for row, label in enumerate(labels):
            data = io.BytesIO()
            Image.fromarray(picture(int(label), rng)).save(data, "PNG")
            archive.writestr(f"photos/{row:04d}.png", data.getvalue())
    other = ["nice", "new", "men", "women", "brand", "summer"]
    titles = [f"{rng.choice(other)} {rng.choice(WORDS[label])} {rng.choice(other)} {row}" for row, label in enumerate(labels)]
    kinds = [WORDS[label][1] for label in labels]
    pd.DataFrame({"id": [f"{row:04d}" for row in range(ROWS)], "title": titles, "kind": kinds}).to_csv(root / "rows.csv", index=False)
    return root


def recipe(shop: Path, out: Path, *, student: str, teacher: str, data: str = "") -> str:
    """A recipe of the shop, small enough for a test."""
    return f"""
out = {json.dumps(str(out))}
[data]
root = {json.dumps(str(shop))}
train = "rows.csv"
label = "kind"
max_length = 6
inputs = {{ title = "title", photo = {{ train = "photos.zip", by = "id" }} }}
{data}
{teacher}
[student]
{student}
[train]
epochs = 30
batch_size = 32
lr = 5e-2
[measure]
latency = false
resamples = 100
"""


TOGETHER = """
[teacher]
inputs = ["photo", "title"]
[teacher.train]
model = "fusion"
epochs = 12
batch_size = 32
lr = 1e-2
options = { photo = { width = 8, depth = 1 }, title = { width = 16, buckets = 256 }, width = 16, hidden = 16 }
"""
TITLE = 'model = "text.bag"\ninputs = ["title"]\noptions = { width = 16, ngrams = 1 }'


def distill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path, text: str) -> tuple[int, str]:
    """The exit status of `understudy distill` and what it says, in this process."""
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    capsys.readouterr()
    status = run(monkeypatch, "distill", file)
    said = capsys.readouterr()
    return status, " ".join((said.out + said.err).split())


def predicted(artifact: Path, rows: Path, out: Path) -> list[str]:
    """What the artifact's own predict.py answers, without this package."""
    command = [sys.executable, "-I", str(artifact / "predict.py"), str(rows), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with out.open(encoding="utf-8", newline="") as file:
        return [line["prediction"] for line in csv.DictReader(file)]


# --- joining --------------------------------------------------------------------------------------------------------


def source(names: list[str], labels: list[Any] | None = None) -> Source:
    inputs = np.arange(len(names), dtype=np.float32)[:, None]
    return Source("array", inputs, None if labels is None else np.array(labels), np.array(names))


def joined(asked: list[str | None], files: list[str], *, drop: bool = False, **options: Any) -> Source:
    rows = source([f"line {row}" for row in range(len(asked))])
    partner = Partner(source(files), "photos.zip", asked=np.array(asked, dtype=object), **options)
    return pairs.join(rows, {"number": ("array", rows.inputs)}, {"photo": partner}, drop=drop)


def test_files_are_found_by_path_or_name_with_or_without_ending() -> None:
    found = joined(["b", "photos/a.png", "c.png"], ["photos/a.png", "photos/b.png", "photos/c.png"])
    assert found.kind == "pair"
    assert found.inputs["number"].ravel().tolist() == [0, 1, 2]
    assert found.inputs["photo"].ravel().tolist() == [1, 0, 2]
    assert found.inputs.kinds == {"number": "array", "photo": "array"}


def test_rows_without_a_partner_are_named() -> None:
    with pytest.raises(DataError, match=r"U510 2 rows have no input 'photo' in photos.zip:\n  line 1: 'x'\n  line 2: no name"):
        joined(["a", "x", None], ["a.png"])
    kept = joined(["a", "x", None, "b"], ["a.png", "b.png"], drop=True)
    assert kept.inputs["number"].ravel().tolist() == [0, 3]
    assert kept.names is not None
    assert kept.names.tolist() == ["line 0", "line 3"]
    assert [problem.code for problem in kept.problems] == ["U510"]
    assert "left out" in kept.problems[0].message


def test_partners_claimed_twice_are_named() -> None:
    with pytest.raises(DataError, match=r"U511 1 files of input 'photo' .* belong to several rows:\n  a.png: line 0, line 2"):
        joined(["a", "b", "a.png"], ["a.png", "b.png"])
    assert joined(["a", "b", "a"], ["a.png", "b.png"], shared=True).inputs["photo"].ravel().tolist() == [0, 1, 0]


def test_names_that_two_files_have_are_refused() -> None:
    with pytest.raises(DataError, match=r"U511 .* 'a' can be one/a.png and two/a.png"):
        joined(["a"], ["one/a.png", "two/a.png"])


def test_files_that_belong_to_no_row_are_told() -> None:
    (problem,) = joined(["a"], ["a.png", "b.png"]).problems
    assert (problem.code, problem.level) == ("U512", "warning")
    assert "b.png" in problem.message


def test_joined_by_position_needs_as_many() -> None:
    rows = source(["0", "1"])
    with pytest.raises(DataError, match=r"U513 there are 2 rows and 3 of input 'photo' in x.npz"):
        pairs.join(rows, {}, {"photo": Partner(source(["a", "b", "c"]), "x.npz")})


def test_joined_by_class_draws_from_the_same_class() -> None:
    rows, pictures = source(list("abcdef"), [3, 1, 3, 1, 3, 3]), source(list("uvwxy"), ["1", "3", "1", "3", "3"])
    partner = Partner(pictures, "mnist.npz", by_label=True)
    found = pairs.join(rows, {}, {"photo": partner}, seed=1).inputs["photo"].ravel().astype(int)
    assert pictures.labels[found].astype(int).tolist() == rows.labels.tolist()
    assert set(found[[0, 2, 4]]) == {1, 3, 4}  # none again before all were drawn
    with pytest.raises(DataError, match=r"U518 .* no row of the class '3'"):
        pairs.join(rows, {}, {"photo": Partner(source(["a"], [1]), "mnist.npz", by_label=True)})


# --- keys, bytes, views ---------------------------------------------------------------------------------------------


def paired(count: int = 6, seed: int = 0) -> Paired:
    rng = np.random.default_rng(seed)
    photo = rng.integers(0, 255, (count, 5, 4, 3), dtype=np.uint8)
    return Paired({"photo": "image", "number": "array"}, {"photo": photo, "number": rng.normal(size=(count, 2)).astype(np.float32)})


def test_keys_are_those_of_all_inputs() -> None:
    rows = paired()
    keys = content_keys(rows, "pair")
    turned = Paired(dict(reversed(rows.kinds.items())), dict(reversed(rows.parts.items())))
    assert (content_keys(turned, "pair") == keys).all()
    assert (content_keys(rows[np.array([3, 1])], "pair") == keys[[3, 1]]).all()
    swapped = replace(rows, parts={**rows.parts, "photo": rows["photo"][[1, 0, 2, 3, 4, 5]]})
    assert (content_keys(swapped, "pair") != keys).any(axis=1).tolist() == [True, True, False, False, False, False]


def test_bytes_hold_every_input_as_it_is() -> None:
    rows = paired()
    layout = PairEncoding.fit(rows, {})
    encoded = layout.encode(rows)
    assert encoded.dtype == np.uint8
    assert encoded.shape == (6, 5 * 4 * 3 + 2 * 4)
    photo, number = layout.split(torch.from_numpy(encoded))
    assert (photo.numpy() == rows["photo"]).all()
    assert (number.numpy() == rows["number"]).all()
    assert PairEncoding.from_json(json.loads(json.dumps(layout.to_json())), [None, None]) == layout


def test_a_student_sees_the_views_that_the_teacher_saw() -> None:
    rows = paired()
    keys = content_keys(rows, "pair")
    made = views.PairedViews({"photo": views.Views("image", shift=1, flip=True)})
    view = np.arange(6) % 3
    theirs = made(rows, keys, view)
    assert (theirs["number"] == rows["number"]).all()
    assert (theirs["photo"] != rows["photo"]).any()
    layout = PairEncoding.fit(rows, {})
    loaded = Loaded(Rows("pair", rows, keys), Task("binary", ("a", "b")), layout, ())
    both = views_seen(made, loaded.seen_by(["number", "photo"]))
    assert both is not None
    turned = layout.only(["number", "photo"])
    number, photo = turned.split(both(torch.from_numpy(turned.encode(rows)), keys, view))
    assert (photo.numpy() == theirs["photo"]).all()
    assert (number.numpy() == rows["number"]).all()
    one = views_seen(made, loaded.seen_by(["photo"]))
    assert one is not None
    assert (one(torch.from_numpy(rows["photo"]), keys, view).numpy() == theirs["photo"]).all()
    assert views_seen(made, loaded.seen_by(["number"])) is None


def heard(count: int = 6) -> Rows:
    """Rows of a photo, a clip and a title."""
    clip = np.random.default_rng(1).integers(-9000, 9000, (count, 400)).astype(np.int16)
    titles = np.array([f"number {at}" for at in range(count)], dtype=object)
    rows = Paired({"photo": "image", "clip": "audio", "title": "text"}, {"photo": paired(count)["photo"], "clip": clip, "title": titles})
    return Rows("pair", rows, content_keys(rows, "pair"))


def test_each_input_changes_in_its_own_way() -> None:
    rows, view = heard(), np.arange(6)
    said = OptimizerSection(augment={"flip": True, "shift": 1, "clip": {"shift": 9, "speed": 0.2}})
    made = build_views(said, rows, None, counted=True)
    assert made is not None
    assert not made.finite
    assert made.spec == {
        "clip": {"shift": 9, "speed": 0.2, "how": "seeded"},
        "photo": {"flip": True, "shift": 1, "how": "seeded"},
    }
    changed = made(rows.inputs, rows.keys, view)
    assert (changed["title"] == rows.inputs["title"]).all()
    clips = views.Views("audio", shift=9, speed=0.2)(rows.inputs["clip"], rows.keys, view)
    assert (changed["clip"] == clips).all()
    assert (changed["clip"][0] == rows.inputs["clip"][0]).all()
    assert (changed["clip"][1:] != rows.inputs["clip"][1:]).any(axis=1).all()
    assert (changed["photo"] == views.Views("image", shift=1, flip=True)(rows.inputs["photo"], rows.keys, view)).all()
    plain = build_views(OptimizerSection(augment={"speed": 0.2}), rows, None)
    assert plain is not None
    assert list(plain.spec) == ["clip"]  # the one kind that can be faster


def test_pictures_alone_are_counted_through() -> None:
    rows, said = heard(), OptimizerSection(augment={"photo": {"flip": True, "shift": 1}})
    made = build_views(said, rows, None, counted=True)
    assert made is not None
    assert made.count == 18
    seen = {made(rows.inputs, rows.keys, view)["photo"][0].tobytes() for view in range(18)}
    assert len(seen) == 18


WRONG_VIEWS = {
    "shift = 4": "U519 augment.shift could change 'photo' (image) and 'clip' (audio); say whose it is: augment.photo = { shift = ... }",
    "mixup = 0.2": "U519 augment.mixup: it is for rows of one input",
    "crop = 0.5\ntitle = { noise = 0.1 }": "U519 augment.title: inputs of kind 'text' have no views beside others",
    "photo = true": "U519 augment.photo is an input and takes options, such as augment.photo = { noise = 0.1 }",
    "phot = { flip = true }": "U002 augment.phot: neither an option nor an input of these rows; did you mean 'photo'?",
    "clip = { flip = true }": "U320 augment.flip is for images, the rows are of kind 'audio'",
}


@pytest.mark.parametrize("text", WRONG_VIEWS)
def test_views_that_no_input_has_are_refused(text: str) -> None:
    with pytest.raises((RecipeError, DataError)) as found:
        build_views(OptimizerSection(augment=tomllib.loads(text)), heard(), None)
    assert WRONG_VIEWS[text] in str(found.value)


def test_an_option_that_changes_nothing_there_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"U519 augment.flip: it changes none of the inputs clip, title"):
        build_views(OptimizerSection(augment={"flip": True}), heard().only(["clip", "title"]), None)


# --- the network ----------------------------------------------------------------------------------------------------


def fusion() -> Fusion:
    torch.manual_seed(0)
    last = torch.nn.Linear(4, 3)
    torch.nn.init.ones_(last.bias)  # so that an absent picture would not be silent by itself
    branches = {"photo": torch.nn.Sequential(torch.nn.Flatten(), last), "title": torch.nn.Linear(2, 3)}
    return Fusion(branches, fusion_head(6, 2, hidden=0, seed=0), blanks={"photo": 0, "title": None})


def test_an_absent_input_says_nothing() -> None:
    network = fusion().eval()
    title = torch.ones(2, 2)
    photo = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    alone = network.head(torch.cat([torch.zeros(1, 3), network.branches["title"](title[:1])], dim=1))
    assert torch.allclose(network([photo, title])[1:], alone)
    assert not torch.allclose(network([photo, title])[:1], alone)


def test_in_training_one_input_alone_is_kept_of_some_rows() -> None:
    three = {name: torch.nn.Identity() for name in "abc"}
    torch.manual_seed(0)
    network = Fusion(three, torch.nn.Identity(), blanks=dict.fromkeys("abc"), drop=0.5).train()
    kept = network([torch.ones(4000, 1)] * 3)
    assert set(kept.sum(dim=1).tolist()) == {1, 3}
    assert (kept.sum(dim=1) == 3).float().mean() == pytest.approx(0.5, abs=0.05)
    assert kept.mean(dim=0).tolist() == pytest.approx([2 / 3] * 3, abs=0.05)
    assert (network.eval()([torch.ones(9, 1)] * 3) == 1).all()


# --- the whole way --------------------------------------------------------------------------------------------------


def test_a_teacher_of_both_teaches_a_student_of_one(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = distill(monkeypatch, capsys, tmp_path, recipe(shop, tmp_path / "run", teacher=TOGETHER, student=TITLE))
    assert status == 0, said
    assert "160 of kind pair (title: text single texts, photo: image 12 x 12 x 3)" in said
    artifact = tmp_path / "run" / "artifact"
    (read,) = json.loads((artifact / "signature.json").read_text())["inputs"]
    assert (read["name"], read["kind"], read["shape"]) == ("rows", "text", ["rows", 6])
    session = onnxruntime.InferenceSession(str(artifact / "model.onnx"))
    assert [given.name for given in session.get_inputs()] == ["rows"]
    card = json.loads((artifact / "scorecard.json").read_text())
    figures = {name: one["quality"]["accuracy"]["mean"] for name, one in card["models"].items()}
    assert figures["teacher"] > 0.9
    assert figures["student"] > 0.6
    assert figures["exported"] == figures["student"]
    # a file with the titles alone is all that it needs
    pd.DataFrame({"title": ["nice gold watch", "new blue jeans"]}).to_csv(tmp_path / "titles.csv", index=False)
    assert len(predicted(artifact, tmp_path / "titles.csv", tmp_path / "answers.csv")) == 2


def test_two_teachers_teach_one_student_that_answers_from_either(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "epochs = 12\nbatch_size = 32\nlr = 1e-2\n"
    teacher = f"""
[[teacher.members]]
inputs = ["photo"]
[teacher.members.train]
model = "convnet"
options = {{ width = 8, depth = 1 }}
{own}
[[teacher.members]]
inputs = ["title"]
[teacher.members.train]
model = "text.bag"
options = {{ width = 16, buckets = 128 }}
{own}
"""
    branches = "photo = { width = 8, depth = 1 }, title = { width = 16, buckets = 128 }"
    student = f'model = "fusion"\noptions = {{ drop = 0.6, {branches}, width = 16, hidden = 16 }}'
    status, said = distill(monkeypatch, capsys, tmp_path, recipe(shop, tmp_path / "run", teacher=teacher, student=student))
    assert status == 0, said
    assert "given photo alone: test accuracy of the student" in said
    assert "needs only numpy, onnxruntime, tokenizers and pillow" in said
    artifact = tmp_path / "run" / "artifact"
    signature = json.loads((artifact / "signature.json").read_text())
    assert [read["name"] for read in signature["inputs"]] == ["title", "photo"]
    Image.fromarray(picture(3, np.random.default_rng(5))).save(tmp_path / "watch.png")
    lines = [["photo", "title"], ["watch.png", "brand gold watch"], ["watch.png", ""], ["", "brand gold watch"]]
    (tmp_path / "rows.csv").write_text("\n".join(",".join(line) for line in lines))
    assert predicted(artifact, tmp_path / "rows.csv", tmp_path / "answers.csv") == ["watch"] * 3
    card = (artifact / "README.md").read_text()
    assert "`title` and `photo` may be absent" in card
    assert "pip install numpy onnxruntime tokenizers pillow" in card


PHOTO = 'model = "convnet"\ninputs = ["photo"]\noptions = { width = 4, depth = 1 }'
BOTH = "photo = { width = 4, depth = 1 }, title = { width = 8, buckets = 64 }, width = 8, hidden = 8"
FUSION = f'model = "fusion"\noptions = {{ {BOTH} }}'
WITH = {
    "a tree of photos": (TOGETHER, 'model = "tree"\ninputs = ["photo"]', ""),
    "an assistant of both": (TOGETHER, FUSION, f"[[chain]]\n{FUSION}\n"),
    "students of both that learn together": ("", FUSION, f'[cohort]\nmethod = "collaborative"\n[[cohort.members]]\n{FUSION}\n'),
    "the teacher beside the student": (TOGETHER, PHOTO, '[teaching]\nviews = "live"\n'),
}


@pytest.mark.parametrize("case", WITH)
def test_pairs_go_with_every_way_to_learn(
    case: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student, more = WITH[case]
    quick = teacher.replace("epochs = 12", "epochs = 1").replace("[teacher]", "[teacher]\naccept_score = true")
    text = "seeds = [0]\n" + recipe(shop, tmp_path / "run", teacher=quick, student=student).replace("epochs = 30", "epochs = 1") + more
    if "live" in more:
        text = text.replace("lr = 5e-2\n[measure]", "lr = 5e-2\naugment = { shift = 1 }\n[measure]")
    status, said = distill(monkeypatch, capsys, tmp_path, text)
    assert status == 0, said
    assert "exported" in json.loads((tmp_path / "run" / "scorecard.json").read_text())["models"]


REFUSED = {
    "U411": ("", 'model = "tree"\ninputs = ["title"]', "'tree' does not read these rows: they are texts", ""),
    "U510": ("", TITLE, "1 rows have no input 'photo' in photos.zip", "0003"),
    "U514": ("", TITLE.replace('"title"]', '"titel"]'), "student.inputs: no input 'titel'; did you mean 'title'?", ""),
    "U516": ("", 'model = "convnet"\ninputs = ["photo", "title"]', "'convnet' reads one input of these rows", ""),
    "U519": ("", TITLE + "\n[train.augment]\nmixup = 0.1", "augment.mixup: it is for rows of one input", ""),
}


@pytest.mark.parametrize("code", REFUSED)
def test_refused_before_anything_is_trained(
    code: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, student, sentence, gone = REFUSED[code]
    text = recipe(shop, tmp_path / "run", teacher=TOGETHER, student=student, data=data)
    if "[train.augment]" in text:  # a table may be said once
        text = text.replace("[train.augment]\nmixup = 0.1\n", "").replace(
            "lr = 5e-2\n[measure]", "lr = 5e-2\naugment = {mixup = 0.1}\n[measure]"
        )
        text = text.replace("[measure]", "[teaching]\nviews = 2\n[measure]")
    if gone:
        with zipfile.ZipFile(shop / "photos.zip") as all_, zipfile.ZipFile(tmp_path / "photos.zip", "w") as some:
            for name in all_.namelist():
                if gone not in name:
                    some.writestr(name, all_.read(name))
        (tmp_path / "rows.csv").write_bytes((shop / "rows.csv").read_bytes())
        text = text.replace(json.dumps(str(shop)), json.dumps(str(tmp_path)))
    status, said = distill(monkeypatch, capsys, tmp_path, text)
    assert status == 2, said
    assert code in said
    assert sentence in said
    assert not (tmp_path / "run" / "teacher").exists()


def test_inputs_of_data_that_has_one_are_refused(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = recipe(shop, tmp_path / "run", teacher=TOGETHER, student=TITLE)
    text = "\n".join(line for line in text.splitlines() if not line.startswith("inputs = {"))
    status, said = distill(monkeypatch, capsys, tmp_path, text)
    assert status == 2
    assert "U515 student.inputs = ['title'], and the data has one input only" in said


# --- two inputs that find each other --------------------------------------------------------------------------------


def test_recall_by_hand() -> None:
    firsts = np.array([[3.0, 0.0], [0.7, 0.3], [0.9, 0.1]])
    seconds = np.array([[1.0, 0.0], [0.4, 0.1], [0.0, 2.0]])
    answers, task = np.concatenate([firsts, seconds], axis=1), Task("matching", ("photo", "title"), 2)
    figures = quality(answers, np.zeros((3, 1), np.float32), task)
    # photos 0 and 1 find their titles, photo 2 finds title 0; title 0 finds its photo, title 1 finds photo 2 and title 2 photo 1
    assert figures["there_at_1"] == pytest.approx(2 / 3)
    assert figures["back_at_1"] == pytest.approx(1 / 3)
    assert figures["recall_at_1"] == pytest.approx(1 / 2)
    assert figures["recall_at_5"] == 1
    # title 2 lies nearer to both other photos than to its own, which counts once
    far = np.concatenate([[[0.95, 0.3], [0.7, 0.3], [0.9, 0.1]], [[1.0, 0.0], [0.7, 0.3], [0.0, 2.0]]], axis=1)
    assert quality(far, np.zeros((3, 1), np.float32), task)["back_at_1"] == pytest.approx(1 / 3)
    same = np.concatenate([np.eye(2), np.ones((2, 2))], axis=1)
    assert quality(same, np.zeros((2, 1), np.float32), task)["there_at_1"] == 1  # the same text twice is found either way
    assert fidelity(answers, answers, task) == pytest.approx({"agreement": 1, "cosine_distance": 0})


def test_inspect_shows_the_hardest_rows_of_a_matching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = torch.tensor([[1.0, 0, 2, 0], [0, 1, 1, 0], [0.6, 0.8, 0.6, 0.8]])  # the partner of row 1 lies where that of row 0 does

    @final
    class Known:
        name, classes = "known", None

        def signals(self, inputs: Any) -> dict[str, torch.Tensor]:
            return {"vectors": vectors[torch.from_numpy(np.asarray(inputs)[:, 0]).long()]}

        def fingerprint(self) -> dict[str, str]:
            return {"kind": "known"}

    inputs = np.arange(3, dtype=np.float32)[:, None]
    task = Task("matching", ("photo", "title"), 2)
    taught = teach(Known(), Rows("array", inputs, content_keys(inputs, "array")), tmp_path / "set", task=task)
    found = soft_labels.describe(taught, rows=2)
    assert found["recall_at_1"] == pytest.approx(2 / 3)
    places = [row["position"] for row in found["shown"]]
    assert found["shown"][0] == pytest.approx({"position": places[0], "value": 0.0, "nearest": found["shown"][0]["nearest"], "other": 0.8})
    soft_labels.show(found, Console())
    said = " ".join(capsys.readouterr().out.split())
    assert "recall at 1: 0.6667 among 3 rows" in said
    assert "0.000; 0.800 for the partner of row" in said


@pytest.mark.parametrize("case", cases("clip_kd"), ids=lambda case: f"{len(case['student_image'])} rows")
def test_the_terms_of_a_recipe_are_the_published_objective(case: Case) -> None:
    said = case
    student, teacher = (torch.cat([said[f"{who}_image"], said[f"{who}_text"]], dim=1) for who in ("student", "teacher"))
    rows, width = said["student_image"].shape
    scales = {f"{who}_scale": said[f"{who}_scale"].item() for who in ("student", "teacher")}
    terms: list[tuple[Any, Any, dict[str, Any]]] = [
        ("contrastive.in_batch_contrast", 1.0, {"temperature": 1 / said["student_scale"].item()}),
        ("contrastive.contrastive_relation", said["weight_ckd"].item(), scales),
        ("embeddings.embedding_mse", said["weight_fd"].item(), {"normalised": True}),
        ("contrastive.interactive_contrast", said["weight_icl"].item(), {"scale": said["cross_scale"].item()}),
    ]
    task = Task("matching", ("image", "text"), width)
    objective = Objective.from_terms(terms, task)
    batch = Batch(torch.zeros(rows, 1), torch.zeros(rows, 1), None, {"vectors": teacher})
    total, _ = objective({"vectors": student}, batch)
    assert float(total) == pytest.approx(said["loss"].item(), rel=1e-5)
    with pytest.raises(RecipeError, match="U522 the loss 'logits.soft_target' compares no vectors"):
        Objective.from_terms([("logits.soft_target", 1.0, {})], task)


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bars of four colours at four heights, and words that say so."""
    root, rng = tmp_path_factory.mktemp("bars"), np.random.default_rng(0)
    heights, colours = rng.integers(0, 4, ROWS), rng.integers(0, 4, ROWS)
    with zipfile.ZipFile(root / "photos.zip", "w") as archive:
        for row in range(ROWS):
            pixels = rng.integers(0, 60, (12, 12, 3))
            pixels[heights[row] * 3 : heights[row] * 3 + 3, :, [colours[row]] if colours[row] < 3 else [0, 1, 2]] += 180
            data = io.BytesIO()
            Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
            archive.writestr(f"{row}.png", data.getvalue())
    words = [
        f"{('red', 'green', 'blue', 'white')[c]} {('top', 'upper', 'lower', 'bottom')[h]}" for h, c in zip(heights, colours, strict=True)
    ]
    pd.DataFrame({"id": range(ROWS), "title": words}).to_csv(root / "rows.csv", index=False)
    return root


def test_a_large_pair_of_encoders_teaches_a_small_one(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    training = "epochs = 12\nbatch_size = 16\nlr = 2e-2\n"
    text = f"""
out = {json.dumps(str(tmp_path / "run"))}
task = "matching"
width = 8
[data]
root = {json.dumps(str(bars))}
train = "rows.csv"
max_length = 4
inputs = {{ photo = {{ train = "photos.zip", by = "id" }}, title = "title" }}
[teacher.train]
model = "dual"
options = {{ photo = {{ width = 8, depth = 1 }}, title = {{ width = 16, ngrams = 1 }} }}
{training}
[student]
model = "dual"
options = {{ photo = {{ width = 4, depth = 1 }}, title = {{ width = 8, ngrams = 1 }} }}
[train]
{training}
[measure]
latency = false
resamples = 100
"""
    status, said = distill(monkeypatch, capsys, tmp_path, text)
    assert status == 0, said
    assert "matching of photo with title, vectors of 8" in said
    artifact = tmp_path / "run" / "artifact"
    card = json.loads((artifact / "scorecard.json").read_text())
    recall = {name: one["quality"]["recall_at_5"]["mean"] for name, one in card["models"].items()}
    assert recall["teacher"] > 0.7
    assert recall["student"] > 0.4  # 5 of 24 at random: 0.21
    assert card["verdict"]["word"] in ("GAIN", "NO GAIN", "INCONCLUSIVE")
    signature = json.loads((artifact / "signature.json").read_text())
    assert [read["name"] for read in signature["inputs"]] == ["photo", "title"]
    assert signature["outputs"] == [{"name": "vectors", "dtype": "float32", "shape": ["rows", 16]}]


def test_a_matching_is_of_two_inputs(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = f'[data]\nroot = {json.dumps(str(bars))}\ntrain = "rows.csv"\n'
    start = f'out = {json.dumps(str(tmp_path / "run"))}\ntask = "matching"\n'
    inputs = 'inputs = { photo = { train = "photos.zip", by = "id" }, title = "title" }\n'
    status, said = distill(monkeypatch, capsys, tmp_path, f'{start}{data}[teacher.train]\nmodel = "dual"\n')
    assert (status, "U520 task = 'matching' is of two inputs, and data.inputs has none" in said) == (2, True)
    status, said = distill(monkeypatch, capsys, tmp_path, f'{start}{data}{inputs}[teacher]\nsource = "my.module:function"\n')
    assert (status, "U521 task = 'matching': a teacher of a matching is trained here" in said) == (2, True)
