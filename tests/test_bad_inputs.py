"""The thirty bad inputs that people give to tools like this one, each fed through the command line as a user would.

Refused means: exit status 2, a sentence that says what, where and the mend, all errors at once, nothing trained or taught,
and a folder that goes on when the mistake is mended. Numbers are those of the project's list of misuses. Not here, for want
of texts among the kinds of data: 19 (tokenizers differ), 20 but for its images (chat templates), 21 (masked tokens).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import final

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from commands import run
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LinearRegression, LogisticRegression
from torch import nn

NETWORKS = '''
"""Models and functions of a user, some of them bad."""
import numpy as np
import torch
from torch import nn


def network(end=None, frozen=False, norm=False, width=3, reads=4):
    layers = [nn.Linear(reads, 3), nn.BatchNorm1d(3) if norm else nn.Identity(), nn.ReLU(), nn.Linear(3, width)]
    module = nn.Sequential(*layers, *{"softmax": [nn.Softmax(1)], "sigmoid": [nn.Sigmoid()]}.get(end, []))
    return module.requires_grad_(not frozen)


def by_first_number():
    last = nn.Linear(4, 3)
    with torch.no_grad():
        last.bias.zero_()
        last.weight.copy_(torch.tensor([[-3.0, -1.5, 0, 0], [0, 0, 0.1, 0], [3.0, 1.5, 0, 0]]))
    return last


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = by_first_number()

    def forward(self, rows):
        return nn.functional.dropout(self.last(rows), 0.5, training=True)


class Training(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.last = by_first_number()

    def forward(self, rows):
        return self.last(self.norm.train()(rows))


class Unexportable(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, rows):
        said = self.last(rows)
        return said + torch.linalg.eigvals(said.T @ said + torch.eye(3)).real.sum() * 0.01


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = by_first_number()
        with torch.no_grad():
            self.head.weight[1, 2] = float("nan")

    def forward(self, rows):
        return self.head(torch.relu(self.body(rows)))


SHARED = by_first_number()


def shared():
    return SHARED


def random(rows):
    return np.random.default_rng().normal(size=(len(rows), 3))


def constant(rows):
    return np.tile([[1.0, 2.0, 3.0]], (len(rows), 1))


def one_score(rows):
    return 1 / (1 + np.exp(-rows.to_numpy()[:, :1]))


def failing(rows):
    return rows["petals"]
'''
KINDS = ["ash", "beech", "oak"]
TABLE = ["--data", "trees.csv", "--label", "kind", "--set", "measure.latency=false"]
TEACHER = ["--teacher", "forester.joblib", "--trust"]
GOOD = [*TABLE, *TEACHER, "--student", "tree"]
MADE = ("teacher", "transfer", "artifact", "seed-0", "scorecard.json")


def setting(*options: str) -> list[str]:
    """`--set` before each."""
    return [word for option in options for word in ("--set", option)]


def trees() -> pd.DataFrame:
    """Four numbers and the kind of a tree, told by two of them."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(400, 4)).round(4), columns=list("abcd"))
    order = np.argsort(np.argsort(frame["a"] + 0.5 * frame["b"] + 0.1 * rng.normal(size=400)))
    frame["kind"] = np.array(KINDS)[order * 3 // 400]
    return frame


def pictures(folder: Path, count: int, broken: dict[int, str]) -> None:
    """Small pictures in a folder per class; some files are empty, cut off or no picture at all."""
    rng = np.random.default_rng(1)
    for number in range(count):
        pixels = rng.integers(0, 90, (12, 12, 3))
        pixels[:, (number % 2) * 6 :][:, :6] += 120
        file = BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
        data = {"empty": b"", "cut": file.getvalue()[:200], "text": b"hello"}.get(broken.get(number, ""), file.getvalue())
        place = folder / ("cat", "dog")[number % 2] / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def write_predictions(place: Path, frame: pd.DataFrame) -> None:
    numbered = frame.copy()
    numbered.insert(0, "row", range(len(numbered)))
    numbered.to_csv(place, index=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything good and everything bad, in one folder."""
    here = tmp_path_factory.mktemp("given")
    frame = trees()
    inputs = frame[list("abcd")]
    frame.to_csv(here / "trees.csv", index=False)
    model = LogisticRegression().fit(inputs, frame["kind"])
    joblib.dump(model, here / "forester.joblib")
    joblib.dump(LinearRegression().fit(frame[list("abc")], frame["d"]), here / "numbers.joblib")
    (here / "networks_of_bad_inputs.py").write_text(NETWORKS)
    bad_predictions(here, model, frame)
    bad_weights(here)
    bad_tables(here, frame)
    rng = np.random.default_rng(2)
    fractions = rng.random((60, 8, 8)).astype(np.float32)
    np.savez(here / "fractions.npz", images=fractions, labels=np.arange(60) % 2)
    np.savez(here / "rounded.npz", images=fractions.round().astype(np.uint8), labels=np.arange(60) % 2)
    np.savez(here / "from_one.npz", X=rng.normal(size=(90, 4)), y=np.arange(90) % 3 + 1, class_names=np.array(KINDS))
    pictures(here / "pictures", 60, {4: "empty", 7: "cut", 9: "text"})
    pictures(here / "good_pictures", 60, {})
    pictures(here / "one_broken", 120, {7: "empty"})
    return here


def bad_predictions(here: Path, model: LogisticRegression, frame: pd.DataFrame) -> None:
    inputs = frame[list("abcd")]
    chances = pd.DataFrame(model.predict_proba(inputs), columns=KINDS)
    scores = pd.DataFrame(model.decision_function(inputs), columns=KINDS)
    best = chances.to_numpy().argmax(axis=1)
    rng = np.random.default_rng(7)
    random = pd.DataFrame(rng.dirichlet(np.ones(3), len(frame)), columns=KINDS)
    nan = chances.copy()
    nan.iloc[5:9, 1] = np.nan
    blind = chances.assign(oak=0.0)
    named = {
        "chances": chances, "scores": scores, "nan": nan, "random": random, "short": chances.iloc[:372], "two": chances[["ash", "oak"]],
        "blind": blind.div(blind.sum(axis=1), axis=0), "constant": pd.DataFrame(np.tile([[0.2, 0.3, 0.5]], (400, 1)), columns=KINDS),
        "smooth": pd.DataFrame(np.where(np.eye(3)[best] == 1, 0.9, 0.05), columns=KINDS),
        "hard": pd.DataFrame(np.eye(3)[best], columns=KINDS),
    }  # fmt: skip
    for name, predictions in named.items():
        write_predictions(here / f"{name}.csv", predictions)
    chances.iloc[:372].to_csv(here / "short_unnamed.csv", index=False)
    chances.sample(frac=1, random_state=0).to_csv(here / "shuffled.csv", index=False)
    chances.to_csv(here / "unnamed.csv", index=False)
    turned = scores.to_numpy()[:, [1, 2, 0]]
    np.savez(here / "turned.npz", row=np.arange(400), logits=turned)
    np.savez(here / "four.npz", row=np.arange(400), logits=np.column_stack([turned, turned[:, :1]]))


def bad_weights(here: Path) -> None:
    state = nn.Sequential(nn.Linear(4, 3), nn.Identity(), nn.ReLU(), nn.Linear(3, 3)).state_dict()
    save_file({name: value for name, value in state.items() if name != "3.weight"}, here / "part.safetensors")
    save_file({name: torch.zeros_like(value) for name, value in state.items()}, here / "zeros.safetensors")


def bad_tables(here: Path, frame: pd.DataFrame) -> None:
    text = frame.to_csv(index=False)
    frame.assign(kind=frame["kind"].map({"ash": 1, "beech": 2, "oak": 3})).to_csv(here / "numbered.csv", index=False)
    misspelt = frame.copy()
    misspelt.loc[[7, 9], "kind"] = "okey"
    misspelt.to_csv(here / "misspelt.csv", index=False)
    minus = frame.assign(kind=frame["kind"].map({"ash": 0, "beech": 1, "oak": 2}))
    minus.loc[[7, 8, 9, 10], "kind"] = -1
    minus.to_csv(here / "minus.csv", index=False)
    pd.concat([frame[frame["kind"] != "oak"], frame[frame["kind"] == "oak"].head(2)]).to_csv(here / "rare.csv", index=False)
    frame.iloc[:100].to_csv(here / "test.csv", index=False)
    frame.assign(x=(frame["a"] > 0) * 1, y=(frame["b"] > 0) * 1).drop(columns="kind").to_csv(here / "tags.csv", index=False)
    (here / "cp1252.csv").write_bytes(text.replace("oak", "érable").encode("cp1252"))
    (here / "lost.csv").write_text(text.replace("oak", "\ufffdrable"), encoding="utf-8")
    (here / "misread.csv").write_text(text.replace("oak", "Ã©rable"), encoding="utf-8")
    near = frame.iloc[:100].assign(a=frame["a"] + 1e-4)
    near.to_csv(here / "near.csv", index=False)
    (here / "marked.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (here / "semicolons.csv").write_text(text.replace(",", ";"))
    lines = text.split("\n")
    (here / "slipped.csv").write_text("\n".join([*lines[:3], lines[3] + ",x", *lines[4:]]))
    (here / "nul.csv").write_text(text[:500] + "\0" + text[500:])
    (here / "empty.csv").write_text("")
    (here / "file").write_text("")


# --- refused --------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Bad:
    """A bad input: its number, what is bad about it, the command that gives it, what must be said, and the mended command."""

    number: int
    name: str
    said: list[str]
    told: tuple[str, ...]
    mended: list[str]


def teacher(*words: str) -> list[str]:
    """A tree taught by another teacher than the good one."""
    return [*TABLE, "--student", "tree", "--teacher", *words]


def student(*words: str) -> list[str]:
    return [*TABLE, *TEACHER, "--student", *words]


def data(*words: str) -> list[str]:
    """The good teacher and other data."""
    return [*TEACHER, "--student", "tree", "--label", "kind", "--data", *words]


def images(place: str, *words: str) -> list[str]:
    return ["--data", place, "--teacher", "train:mlp", "--student", "mlp", *words]


OWN = "networks_of_bad_inputs:"
PROVED = setting("teacher.accept_mapping=true", "teacher.accept_score=true")
KINDS_SAID = 'data.classes=["ash", "beech", "oak"]'
SOFT = 'objective.terms=[{loss="logits.soft_target", weight=%s, options={temperature=%s}}]'
REFUSED = [
    Bad(1, "probabilities are declared as logits", teacher("chances.csv", *setting("teacher.output=logits")),
        ("U004 teacher output is already probabilities (rows sum to 1.000)", "a teacher that is sure would seem 57.6% sure of 3 classes",
         "say teacher.output = 'probabilities'"), teacher("chances.csv", *setting("teacher.output=probabilities"))),
    Bad(2, "the student ends in softmax", student(OWN + "network", *setting('student.options={end="softmax"}')),
        (f"U250 student '{OWN}network' ends in Softmax", "expect logits and would soften twice; remove the last activation"), GOOD),
    Bad(2, "the student ends in sigmoid", student(OWN + "network", *setting('student.options={end="sigmoid"}')),
        ("ends in Sigmoid", "remove the last activation"), GOOD),
    Bad(3, "logits are declared as probabilities", teacher("scores.csv", *setting("teacher.output=probabilities")),
        ("U005 teacher.output = 'probabilities', but its answers go from -", "the first bad row is 0, which sums to ",
         "say teacher.output = 'logits'"), teacher("scores.csv", *setting("teacher.output=logits"))),
    Bad(4, "some answers are NaN", teacher("nan.csv"),
        ("U006 nan.csv: 4 of 400 predictions are NaN or infinite (first: trees.csv line 7)", "predict these rows again"),
        teacher("chances.csv")),
    Bad(4, "a layer of the teacher gives NaN", teacher(OWN + "Broken", "--weights", "factory", *PROVED),
        ("U006 60 of 60 teacher rows are NaN or infinite (first: trees.csv line ",
         f"U375 layer 'head' of {OWN}Broken is the first that gives NaN or infinite numbers; look at its weights"), GOOD),
    Bad(4, "all answers are the same", teacher(OWN + "constant", *PROVED),
        ("U007 the teacher gives the same answer for all 60 rows; are its weights and preprocessing right?",), teacher("chances.csv")),
    Bad(4, "the teacher's own code fails", teacher(OWN + "failing", *PROVED),
        (f"U370 {OWN}failing fails on these rows: KeyError: 'petals' (networks_of_bad_inputs.py line", "gets the raw rows"), GOOD),
    Bad(5, "the teacher is random", teacher(OWN + "random", *PROVED),
        (f"U008 {OWN}random answers the same rows differently when asked twice",), GOOD),
    Bad(5, "dropout is on in the teacher", teacher(OWN + "Dropping", "--weights", "factory", *PROVED),
        (f"U008 {OWN}Dropping answers the same rows differently when asked twice (dropout left on, or random?)",), GOOD),
    Bad(5, "the teacher is in training mode", teacher(OWN + "Training", "--weights", "factory", *PROVED),
        (f"U019 {OWN}Training runs in training mode (norm); call its eval()", "U009", "depends on its batch"), GOOD),
    Bad(6, "teacher and student are the same module", [*TABLE, "--teacher", OWN + "shared", "--weights", "factory", *PROVED, "--student",
        OWN + "shared"], (f"U256 student '{OWN}shared' and teacher share weights ('weight')", "give the student a copy"), GOOD),
    Bad(7, "weights of the teacher are missing", teacher(OWN + "network", "--weights", "part.safetensors"),
        ("U014 part.safetensors does not fit Sequential; missing in the file: 3.weight. Its answers would be random",), GOOD),
    Bad(7, "weights of the teacher are zero", teacher(OWN + "network", "--weights", "zeros.safetensors"),
        ("U014 zeros.safetensors: 2 of 2 weight matrices are all zero; this is no trained teacher",), GOOD),
    Bad(7, "a torch teacher without weights", teacher(OWN + "network"), (f"U370 {OWN}network fails", "needs teacher.weights"), GOOD),
    Bad(7, "the file of the teacher may run code", [*TABLE, "--teacher", "forester.joblib"],
        ("U013 forester.joblib can execute code when loaded; if you made it yourself: --trust / teacher.trust = true",), GOOD),
    Bad(8, "the teacher is no better than chance", teacher("random.csv"),
        ("U240 the teacher scores ", "chance is ", "check its weights, preprocessing and class order"),
        teacher("random.csv", *setting("teacher.accept_score=true"))),
    Bad(8, "the teacher is worse than was expected", [*GOOD, *setting("teacher.expect=1.2")],
        ("U241 the teacher's validation accuracy is 0.", "teacher.expect = 1.2: it is not the model it is thought to be"), GOOD),
    Bad(10, "the teacher lacks a class", teacher("two.csv"),
        ("U010 class counts differ: the teacher answers 2 classes, data has 3; the teacher has no class 'beech'", "beech -> nothing",
         "Name the teacher's columns with the data's words in teacher.classes"), GOOD),
    Bad(10, "the teacher has more classes, without names", teacher("four.npz"),
        ("U010 class counts differ: the teacher answers 4 classes, data has 3 (ash, beech, oak). Map them by name with teacher.classes",),
        GOOD),
    Bad(11, "the teacher's classes are in another order", teacher("turned.npz"),
        ("U011 teacher index 0 is 'beech' by its answers, data index 0 is 'ash': ", " % after re-ordering, ",
         'declare teacher.classes = ["beech", "oak", "ash"] in that order'),
        teacher("turned.npz", *setting('teacher.classes=["beech", "oak", "ash"]'))),
    Bad(11, "the teacher's classes are declared in a wrong order", teacher("turned.npz",
        *setting('teacher.classes=["ash", "beech", "oak"]')),
        ("U011 teacher index 0 is 'beech' by its answers, its declared name is 'ash'",), GOOD),
    Bad(12, "there are fewer predictions than rows", teacher("short.csv"),
        ("U016 short.csv: 400 rows, 372 predictions found by 'row'; the first without one is trees.csv line 374",
         "Predict these 28 rows too"), teacher("chances.csv")),
    Bad(12, "there are fewer predictions than rows, without ids", teacher("short_unnamed.csv"),
        ("U016 short_unnamed.csv: 400 rows, 372 predictions, and no column key, row or id", "Add `row`"), teacher("chances.csv")),
    Bad(13, "predictions are in another order than the rows", teacher("shuffled.csv"),
        ("U017 shuffled.csv has no column key, row or id, and the labels do not show that its order is the data's: ",
         "by chance. Rows may be misaligned; add a column `row` (0, 1, ...) or `id`"), teacher("unnamed.csv")),
    Bad(16, "rows are augmented and the teacher answers the plain ones", student("mlp", *setting("train.augment={noise=0.1}")),
        ("U205 train.augment changes the rows in every epoch", "(teaching.views = 1)", "set teaching.views = 8, or remove train.augment"),
        student("mlp", *setting("train.augment={noise=0.1}", "teaching.views=8"))),
    *(Bad(17, f"the temperature is {value}", [*GOOD, *setting(f"objective.temperature={value}")],
          (f"objective.temperature: temperature must be > 0 (got {value})", "use objective.target = 'hard'"), GOOD)
      for value in ("0", "-1", "nan")),
    Bad(17, "the temperature is absurd", [*GOOD, *setting("objective.temperature=1000")],
        ("temperature must lie between 0.05 and 100 (got 1000); published values are 1 to 20",), GOOD),
    Bad(17, "the temperature of one term is 0", student("mlp", *setting(SOFT % (1, 0))),
        ("objective.terms.0.options: temperature must be > 0 (got 0)",), student("mlp", *setting(SOFT % (1, 4)))),
    Bad(18, "alpha is above 1", [*GOOD, *setting("objective.alpha=1.3")],
        ("objective.alpha: Input should be less than or equal to 1 (got 1.3); it is the weight of the teacher",), GOOD),
    Bad(18, "a weight is negative", student("mlp", *setting(SOFT % (-1, 4))),
        ("objective.terms.0.weight: Input should be greater than or equal to 0 (got -1)",), GOOD),
    Bad(18, "all weights are 0", student("mlp", *setting(SOFT % (0, 4))),
        ("U202 all weights of objective.terms are 0: nothing would be learned; give one term weight = 1.0",), GOOD),
    Bad(18, "alpha is meant as the weight of the labels", [*GOOD, *setting("objective.alpha=0")],
        ("U203 objective.alpha is 0: the teacher is not used", "alpha is the weight of the teacher, set objective.alpha = 0.5"), GOOD),
    Bad(18, "a weight has another tool's name", [*GOOD, *setting("objective.alpa=0.5")],
        ("objective.alpa: unknown option; did you mean 'alpha'?",), GOOD),
    Bad(20, "images hold fractions", images("fractions.npz"),
        ("U122 'images' of fractions.npz holds float32 from ", "images are uint8 from 0 to 255",
         "Save (images * 255).round().astype('uint8')"), images("good_pictures")),
    Bad(20, "images were rounded to 0 and 1", images("rounded.npz"),
        ("U231 no pixel is above 1: images held as fractions were rounded to 0 and 1; save them as 0 to 255 (uint8)",),
        images("good_pictures")),
    Bad(22, "BatchNorm on batches of one row", student(OWN + "network", *setting("student.options={norm=true}", "train.batch_size=1")),
        (f"U253 student '{OWN}network' has BatchNorm (layer 'network.1') and would see one row at a time", "set train.batch_size = 32"),
        student(OWN + "network", *setting("student.options={norm=true}", "train.batch_size=32"))),
    Bad(23, "labels count from 1 and classes are named", data("numbered.csv", *setting(KINDS_SAID)),
        ("U130 integer labels are positions among the 3 declared classes, 0 to 2 (-1: missing); numbered.csv line ",
         "says 3 (133 such rows)",
         "Labels that count from 1 must have 1 taken off"), GOOD),
    Bad(23, "labels of an array count from 1", ["--data", "from_one.npz", "--teacher", "train:forest"],
        ("U130 integer labels are positions among the 3 declared classes, 0 to 2", "from_one.npz row 2 says 3 (30 such rows)"), GOOD),
    Bad(23, "a label is misspelt in two rows", data("misspelt.csv", *setting(KINDS_SAID)),
        ("U130 labels that are not among the declared classes:", "'okey': 2 rows, first misspelt.csv line 9", "Correct these labels"),
        GOOD),
    Bad(23, "labels are other words than the teacher's", data("numbered.csv"),
        ("U010 the teacher has no class '1'; there is: ash, beech, oak", "1 -> nothing", "in teacher.classes"),
        data("numbered.csv", *setting('teacher.classes=["1", "2", "3"]'))),
    Bad(24, "the label column is misspelt", [*TEACHER, "--student", "tree", "--data", "trees.csv", "--label", "knd"],
        ("U107 No column 'knd' (data.label) in trees.csv; did you mean 'kind'? Distillation does not need labels, evaluation does",), GOOD),
    Bad(24, "a column to ignore is misspelt", [*GOOD, *setting('data.ignore=["B"]')],
        ("U107 No column 'B' (data.ignore) in trees.csv; did you mean 'b'?",), GOOD),
    Bad(25, "the teacher never thinks of a class that rows have", teacher("blind.csv"),
        ("U371 the teacher gives the class 'oak' no probability in any row, and 20 labelled validation rows have it",),
        teacher("blind.csv", *setting("teacher.accept_score=true"))),
    Bad(26, "test rows are training rows", [*GOOD, "--test", "test.csv"],
        ("train rows are also test rows, to the byte (first: trees.csv line 2, ", "scores would count what was learned by heart",
         "U225 12 validation rows are also test rows", "set data.overlap = 'drop' to take them out of training, or 'allow'"),
        [*GOOD, "--test", "test.csv", *setting("data.overlap=drop")]),
    Bad(27, "images are empty, cut off or no images", images("pictures"),
        ("U165 3 of 60 images of pictures cannot be read:", "cat/004.png: empty file", "dog/007.png: image file is truncated",
         "dog/009.png: not an image", "Copy or save them again, or remove them"), images("good_pictures")),
    Bad(28, "the table is not UTF-8", data("cp1252.csv"),
        ("U102 cp1252.csv is not utf-8 text: byte 0xe9 in line ", "data.encoding = 'cp1252'"),
        data("cp1252.csv", *setting("data.encoding=cp1252", 'teacher.classes=["ash", "beech", "érable"]'))),
    Bad(28, "the table has NUL bytes", data("nul.csv"), ("U102 nul.csv has a NUL byte in line 16: it is not a text file",), GOOD),
    Bad(28, "the table is separated by semicolons", data("semicolons.csv"),
        ("U103 semicolons.csv has one column by commas, but its header is separated by semicolons: 'a;b;c;d;kind'",
         "Save it with commas: "),
        GOOD),
    Bad(28, "a line of the table has a field too many", data("slipped.csv"),
        ("U103 slipped.csv line 4 has 6 fields where the header has 5 (1 such lines)", "needs double quotes around it"), GOOD),
    Bad(28, "the table is empty", data("empty.csv"), ("U105 empty.csv is empty",), GOOD),
    Bad(29, "one score per row for three classes", teacher(OWN + "one_score"),
        ("U010 the teacher gives one number per row, the data has 3 classes (ash, beech, oak). One number decides between two classes "
         "(task = 'binary'); give a column per class",), GOOD),
    Bad(29, "a regressor teaches classes", teacher("numbers.joblib", "--trust"),
        ("U032 LinearRegression gives no class scores", "the task is multiclass. Use a classifier"), GOOD),
    Bad(29, "a classifier teaches numbers", [*TEACHER, "--student", "tree", "--data", "trees.csv", "--label", "d",
        *setting('data.ignore=["kind"]')], ("U032 LogisticRegression is a classifier, the task is regression; give a regressor",), GOOD),
    Bad(29, "numbers are taken for classes", [*TEACHER, "--student", "tree", "--data", "trees.csv", "--label", "d", "--task", "multiclass"],
        ("U133 task = 'multiclass', but the labels are 400 different numbers. Say task = 'regression'",), GOOD),
    Bad(29, "words are taken for numbers", [*GOOD, "--task", "regression"],
        ("U135 task = 'regression' needs numbers; trees.csv line 2 has the label '", "(400 such rows)"), GOOD),
    Bad(29, "several labels per row are taken for one", [*TEACHER, "--student", "tree", "--data", "tags.csv", "--task", "multiclass",
        *setting('data.label=["x", "y"]')], ("U131 2 label columns are task = 'multilabel', but task is 'multiclass'",), GOOD),
    Bad(29, "three classes are taken for two", [*GOOD, "--task", "binary"],
        ("U133 task = 'binary' needs 2 classes; there are 3: ash, beech, oak. Use task = 'multiclass'",), GOOD),
    Bad(30, "the student is frozen", student(OWN + "network", *setting("student.options={frozen=true}")),
        (f"U252 student '{OWN}network' cannot learn: all parameters are frozen; set requires_grad",), GOOD),
    Bad(30, "the student has a wrong width", student(OWN + "network", *setting("student.options={width=5}")),
        ("U251", "gives [32, 5] for 32 rows, a multiclass task needs [32, 3]; set the width of its last layer to 3"), GOOD),
    Bad(30, "the student reads other rows", student(OWN + "network", *setting("student.options={reads=7}")),
        (f"U374 student '{OWN}network' fails on rows of shape [4]: RuntimeError: ", "mat1 and mat2 shapes",
         "its first layer must read"), GOOD),
    Bad(30, "the student's own code fails", student(OWN + "network", *setting("student.options={width=-1}")),
        (f"U030 {OWN}network fails with options {{'width': -1}}: RuntimeError: ",), GOOD),
    Bad(30, "the learning rate and the epochs are 0", student("mlp", *setting("train.lr=0", "train.epochs=0")),
        ("U200 train.lr is 0: the network 'mlp' would keep its random weights; set train.lr = 1e-3",
         "U201 train.epochs is 0: the network 'mlp' would not be trained; set train.epochs = 30"), GOOD),
    Bad(30, "the student cannot be exported", student(OWN + "Unexportable"),
        (f"U041 student '{OWN}Unexportable' could be trained but not exported", "aten::linalg_eigvals", "take a built-in student"), GOOD),
    Bad(30, "the student cannot learn soft targets", student("sklearn:sklearn.neighbors.KNeighborsClassifier"),
        ("U064 KNeighborsClassifier cannot learn from a soft target: its fit() takes no sample_weight. Use tree, boosted",), GOOD),
    Bad(30, "an option of the student is misspelt", student("mlp", *setting("student.options={hiden=[3]}")),
        ("U063 student.options for mlp: there is no 'hiden'; did you mean 'hidden'?",), GOOD),
    Bad(30, "the student is misspelt", student("tre"), ("U063 no model 'tre'; did you mean 'tree'?",), GOOD),
    Bad(30, "the loss is misspelt", student("mlp", *setting('objective.terms=[{loss="logits.soft_targt"}]')),
        ("U075 there is no loss 'logits.soft_targt' in understudy.losses", "did you mean 'logits.soft_target'?"), GOOD),
    Bad(30, "the device is not there", student("mlp", *setting("train.device=tpux")),
        ("U037 train.device = 'tpux': say auto, cpu, cuda, cuda:1 or mps",), GOOD),
]  # fmt: skip


@pytest.mark.parametrize("bad", REFUSED, ids=lambda bad: f"{bad.number:02} {bad.name}")
def test_refused_before_training_with_the_mend_and_mended_in_place(
    bad: Bad, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    out = tmp_path / "run"
    assert run(monkeypatch, "distill", *bad.said, "--out", str(out)) == 2
    shown, printed = capfd.readouterr()
    assert printed.startswith("error  U")
    assert "Traceback" not in printed and "graph" not in shown
    for sentence in bad.told:
        assert sentence in printed, printed
    assert len(set(printed.splitlines())) == len(printed.splitlines()), printed
    assert not out.exists() or not [entry.name for entry in out.iterdir() if entry.name in MADE]
    assert run(monkeypatch, "check", *bad.mended, "--out", str(out)) == 0, capfd.readouterr().err


def test_every_number_within_reach_is_here() -> None:
    numbers = {bad.number for bad in REFUSED} | {each.number for each in WARNED} | {14, 15}
    assert numbers == set(range(1, 31)) - {19, 21}


# --- warned ---------------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Doubtful:
    """An input that may be meant: goes on with a warning."""

    number: int
    name: str
    said: list[str]
    told: tuple[str, ...]


WARNED = [
    Doubtful(9, "the teacher's labels were smoothed", teacher("smooth.csv"),
             ("U242 the teacher's runner-up probabilities are flat (label smoothing? mean confidence 90.0%)",)),
    Doubtful(9, "the teacher decides and does not weigh", teacher("hard.csv"), ("U243 100% of the teacher's scores are 0 or 1",)),
    Doubtful(17, "the temperature is very low", [*GOOD, *setting("objective.temperature=0.1")],
             ("U204 objective.temperature is 0.1: soft labels become nearly one-hot; published values are 1 to 20, try 4.0",)),
    Doubtful(22, "one row per step", student("mlp", *setting("train.batch_size=1")),
             ("U206 train.batch_size is 1: each step sees one row",)),
    Doubtful(23, "a label is -1", ["--data", "minus.csv", "--label", "kind", "--teacher", "train:forest", "--student", "tree"],
             ("U139 the label -1 is taken as a class. If it means missing, leave those labels empty (NaN)",)),
    Doubtful(25, "a class is rare and absent from a split", data("rare.csv"),
             ("U221 1 of 3 classes are absent from a split", "U222 classes are severely imbalanced", "oak                              2")),
    Doubtful(26, "overlap is allowed", [*GOOD, "--test", "test.csv", *setting("data.overlap=allow")],
             ("U225", "train rows are also test rows", "kept because data.overlap = 'allow'")),
    Doubtful(26, "test rows repeat training rows but for the last digits", [*GOOD, "--test", "near.csv"],
             ("U232", "held-out rows looked at nearly repeat a training row (first: ")),
    Doubtful(27, "one image of 120 is broken", images("one_broken"),
             ("U165 1 of 120 images of one_broken cannot be read and are left out: dog/007.png (empty file)",)),
    Doubtful(28, "letters were lost", data("lost.csv", *setting('teacher.classes=["ash", "beech", "\ufffdrable"]')),
             ("U373 column 'kind' of lost.csv holds letters that were lost or changed", "133 such cells); save it again as UTF-8")),
    Doubtful(28, "letters were read in a wrong encoding", data("misread.csv", *setting('teacher.classes=["ash", "beech", "Ã©rable"]')),
             ("U373 column 'kind' of misread.csv holds letters that were lost or changed", "save it again as UTF-8")),
    Doubtful(28, "the table has a byte order mark, which is no harm", data("marked.csv"), ("nothing stands in the way",)),
    Doubtful(30, "the student is larger than the teacher", student("mlp"), ("U254 student 'mlp' has 1,027 parameters, the teacher 15",)),
    Doubtful(30, "there are few validation and test rows", GOOD, ("U226 validation has 60 rows: ±13 points at 95 %", "U227 test has 60")),
]  # fmt: skip


@pytest.mark.parametrize("doubtful", WARNED, ids=lambda each: f"{each.number:02} {each.name}")
def test_warned_and_goes_on(
    doubtful: Doubtful, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert run(monkeypatch, "check", *doubtful.said, "--out", str(tmp_path / "run")) == 0
    printed = capfd.readouterr().out
    for sentence in doubtful.told:
        assert sentence in printed, printed


# --- the whole way --------------------------------------------------------------------------------------------------


def test_14_data_that_changed_is_refused_and_only_new_rows_are_taught_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    frame, place = trees(), tmp_path / "trees.csv"
    frame.to_csv(place, index=False)
    said = ["distill", *data(str(place), *setting("measure.latency=false")), "--out", str(tmp_path / "run")]
    assert run(monkeypatch, *said) == 0
    frame.loc[3, "a"] = 9.0
    frame.drop(index=5).to_csv(place, index=False)
    assert run(monkeypatch, *said) == 2
    printed = capfd.readouterr().err
    assert "U051 the data changed since this run began: 1 rows are new, 2 are gone. Choose another --out, or --fresh" in printed
    assert (tmp_path / "run" / "scorecard.json").exists()
    assert run(monkeypatch, *said, "--fresh") == 0
    assert json.loads((tmp_path / "run" / "lock.json").read_text())["rows"] == 399
    frame.loc[frame["kind"] == "oak", "kind"] = "ash"
    frame.drop(index=5).to_csv(place, index=False)
    assert run(monkeypatch, *said) == 2
    assert "U051 " in capfd.readouterr().err


def test_14_labels_that_changed_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    frame, place = trees().assign(part=np.repeat(["train", "validation", "test"], [240, 80, 80])), tmp_path / "trees.csv"
    frame.to_csv(place, index=False)
    said = ["distill", *data(str(place), *setting("measure.latency=false", "data.split=part")), "--out", str(tmp_path / "run")]
    assert run(monkeypatch, *said) == 0
    frame.sample(frac=1, random_state=0).to_csv(place, index=False)
    assert run(monkeypatch, *said) == 0
    frame.loc[399, "kind"] = "oak" if frame.loc[399, "kind"] == "ash" else "ash"
    frame.to_csv(place, index=False)
    assert run(monkeypatch, *said) == 2
    assert "U051 labels changed since this run ended. Choose another --out, or --fresh" in capfd.readouterr().err


def test_15_a_teacher_that_changed_is_refused_by_name_of_what_moved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    frame, place = trees(), tmp_path / "forester.joblib"
    for strength in (1.0, 0.01):
        joblib.dump(LogisticRegression(C=strength).fit(frame[list("abcd")], frame["kind"]), place)
        (tmp_path / "recipe.toml").write_text(
            f'out = "{tmp_path / "run"}"\ndata = {{train = "trees.csv", label = "kind"}}\n'
            f'teacher = {{source = "{place}", trust = true}}\nstudent = {{model = "tree"}}\n'
        )
        status = run(monkeypatch, "teach", str(tmp_path / "recipe.toml"))
        assert status == (0 if strength == 1.0 else 2)
    printed = capfd.readouterr().err
    assert "U021 the transfer set" in printed and "was taught by something else:\n  content: '" in printed
    assert "Give the teacher that was used, or teach into another folder" in printed


def test_22_a_last_batch_of_one_row_does_not_reach_batch_norm(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    said = student(OWN + "network", *setting("student.options={norm=true}", "train.batch_size=31", "train.epochs=1"))
    out = tmp_path / "run"
    assert run(monkeypatch, "distill", *said, "--out", str(out)) == 0
    assert json.loads((out / "scorecard.json").read_text())["about"]["train_rows"] % 31 == 1


def test_overrides_and_warnings_are_kept_in_the_scorecard(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also 8: a teacher that is worse than the control is named when both are known."""
    monkeypatch.chdir(folder)
    out = tmp_path / "run"
    said = [*teacher("random.csv", *PROVED), "--trust", "--test", "test.csv", *setting("data.overlap=allow"), "--out", str(out)]
    monkeypatch.chdir(folder)
    pd.read_csv("random.csv").iloc[[*range(400), *range(100)]].assign(row=range(500)).to_csv(tmp_path / "random.csv", index=False)
    said[said.index("random.csv")] = str(tmp_path / "random.csv")
    assert run(monkeypatch, "distill", *said) == 0
    card = json.loads((out / "scorecard.json").read_text())
    wanted = {"data.overlap = 'allow'", "teacher.trust = true", "teacher.accept_score = true", "teacher.accept_mapping = true"}
    assert set(card["overrides"]) == wanted
    assert set(json.loads((out / "lock.json").read_text())["overrides"]) == wanted
    codes = {warning[:4] for warning in card["warnings"]}
    assert {"U225", "U226", "U240", "U372"} <= codes, codes
    assert "the teacher can only hurt accuracy; train a better teacher, or use the control" in capfd.readouterr().out


def test_a_folder_that_cannot_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(folder)
    assert run(monkeypatch, "distill", *GOOD, "--out", "file/run") == 2
    assert "U207 out = 'file/run' cannot be a folder: " in capfd.readouterr().err


# --- all at once ----------------------------------------------------------------------------------------------------


def test_all_mistakes_of_a_recipe_are_told_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    mistakes = setting("objective.temperature=0", "objective.alpha=1.3", "train.epoch=3", "teacher.trusted=true")
    assert run(monkeypatch, "distill", *GOOD, *mistakes, "--out", str(tmp_path / "run")) == 2
    printed = capfd.readouterr().err
    for told in (
        "temperature must be > 0",
        "objective.alpha: ",
        "train.epoch: unknown option; did you mean 'epochs'?",
        "teacher.trusted: ",
    ):
        assert told in printed
    assert not (tmp_path / "run").exists()


def test_mistakes_of_recipe_rows_student_and_teacher_are_told_at_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    said = [*TABLE, "--test", "test.csv", "--student", "mlp", "--teacher", OWN + "constant", *PROVED]
    said += setting("train.lr=0", "student.options={hiden=[3]}", 'objective.terms=[{loss="logits.soft_targt"}]', "train.device=tpux")
    assert run(monkeypatch, "distill", *said, "--out", str(tmp_path / "run")) == 2
    codes = [line.removeprefix("error  ")[:4] for line in capfd.readouterr().err.splitlines()]
    assert codes == ["U200", "U225", "U225", "U075", "U063", "U037", "U007"]


def test_a_misspelt_column_does_not_hide_the_recipe_and_no_teacher_is_trained_in_vain(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    said = ["--data", "trees.csv", "--teacher", "train:mlp", "--student", "mlp", *setting("train.lr=0"), "--out", str(tmp_path / "run")]
    assert run(monkeypatch, "distill", *said, "--label", "knd") == 2
    printed = capfd.readouterr().err
    assert "U200 train.lr is 0" in printed and "U107 No column 'knd'" in printed
    assert run(monkeypatch, "distill", *said, "--label", "kind") == 2
    assert not (tmp_path / "run" / "teacher").exists()


@pytest.mark.parametrize("number", [4, 24, 30])
def test_a_process_of_its_own_ends_with_status_two_and_no_traceback(number: int, folder: Path, tmp_path: Path) -> None:
    bad = next(bad for bad in REFUSED if bad.number == number)
    command = [sys.executable, "-m", "understudy", "check", *bad.said, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr + done.stdout
    assert all(sentence in done.stderr for sentence in bad.told)
