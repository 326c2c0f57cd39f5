"""Every method under one protocol: the same rows, student, steps and views, the last epoch, beside control and teacher.

    python benchmarks/methods.py fashion --root FOLDER_WITH_THE_DATA --to runs/methods
    python benchmarks/methods.py cifar --root FOLDER_WITH_THE_DATA --to runs/methods --minutes 45
    python benchmarks/methods.py fashion --to runs/methods --table

A method is a list of terms as a recipe has them, at its published weights (`METHODS`). The teacher is trained once, and asked
once about every view of every row, layers included; all methods read that one transfer set. Each finished run is a line in
PAIR.jsonl, and the same command goes on with the runs that are missing. The time of a step is the median over a run, of
everything from one batch to the next; the published weights go with SGD and batches of 64, as here.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy import recipe, wiring
from understudy.data.rows import Rows
from understudy.make.lessons import build_label_objective, build_objective, stored_answers, training_set
from understudy.make.rows import encode, load_rows
from understudy.make.students import build_student
from understudy.make.views import build_views
from understudy.measuring import scorecard
from understudy.objectives import Objective
from understudy.signals import Signals
from understudy.students.student import Student, evaluating
from understudy.taps import taps
from understudy.teachers import TorchTeacher
from understudy.teaching import teach
from understudy.training.cohort import cohort_objective, train_cohort
from understudy.training.gradient import TrainingSet, train

HARD = {"loss": "labels.cross_entropy"}
STAGES = ["network.stage1", "network.stage2", "network.stage3"]
SOFT: dict[str, Any] = {"loss": "logits.soft_target", "options": {"temperature": 4.0}}


def layered(loss: str, weight: Any, layers: list[str], **said: Any) -> dict[str, Any]:
    """A term on these layers of both networks."""
    return {"loss": loss, "weight": weight, "student": layers, "teacher": layers, **said}


def rising(weight: float) -> dict[str, Any]:
    """A weight that rises for the first twelfth of training, as 20 of 240 epochs do."""
    return {"schedule": "constant", "end": weight, "warmup": 20 / 240}


AT = layered("attention_maps.attention_transfer", 1000.0, STAGES)
HINT = layered("layers.hint", 100.0, STAGES[1:2])
WTTM = {"loss": "logits.weighted_transformed_teacher", "weight": 4.0}
DIST = {"loss": "correlations.correlation", "weight": 2.0, "options": {"temperature": 4.0}}
PKT = {"loss": "relations.probabilistic_transfer", "weight": 30000.0}
CRD = {"loss": "contrastive.contrastive_representation", "weight": 0.8, "options": {"negatives": 1024}}
NKD = {"loss": "logits.normalized"}
VID = layered("layers.variational_information", 1.0, STAGES, connector="convolution")
REVIEW = layered("layers.hierarchical_context", rising(1.0), STAGES, connector="attention")
FIRST = {**HARD, "weight": 0.1}

METHODS: dict[str, list[dict[str, Any]]] = {
    "control": [HARD],
    "soft target": [FIRST, {**SOFT, "weight": 0.9}],
    "soft target, 1 and 1": [HARD, SOFT],
    "LSKD": [FIRST, {"loss": "logits.standardized", "weight": 9.0, "options": {"temperature": 2.0}}],
    "DKD": [HARD, {"loss": "logits.decoupled", "weight": rising(1.0)}],
    "NKD": [HARD, NKD],
    "DIST": [HARD, DIST],
    "WTTM": [HARD, WTTM],
    "FitNets": [HARD, HINT],
    "AT": [HARD, AT],
    "SP": [HARD, layered("relations.similarity_preserving", 3000.0, STAGES[2:])],
    "RKD": [HARD, {"loss": "relations.relational_distance", "weight": 25.0}, {"loss": "relations.relational_angle", "weight": 50.0}],
    "PKT": [HARD, PKT],
    "VID": [HARD, VID],
    "CRD": [HARD, CRD],
    "ReviewKD": [HARD, REVIEW],
    "SimKD": [layered("layers.feature_alignment", 1.0, STAGES[2:], connector="convolution")],
    "DML": [],
    "TAKD": [FIRST, {**SOFT, "weight": 0.9}],
    "mixture: soft target + AT": [HARD, SOFT, AT],
    "mixture: WTTM + DIST": [HARD, WTTM, DIST],
    "mixture: soft target + PKT": [HARD, SOFT, PKT],
    "mixture: NKD + VID": [HARD, NKD, VID],
    "mixture: NKD + ReviewKD": [HARD, NKD, REVIEW],
    "CA-MKD": [
        HARD,
        {"loss": "logits.ensemble_soft_target", "options": {"temperature": 4.0, "teachers": ["1", "2", "3"], "weigh": "confidence"}},
    ],
}
"""Name -> terms. DML has none of its own (`train_cohort`), TAKD hears an assistant; of the mixtures the best on validation rows
after one seed goes on."""

ALPHAS, TEMPERATURES = (0.3, 0.5, 0.9, 1.0), (1.0, 2.0, 4.0, 8.0)


def point(alpha: float, temperature: float) -> str:
    """The name of the soft target with these."""
    return f"soft target, alpha {alpha:g}, T = {temperature:g}"


GRID: dict[str, list[dict[str, Any]]] = {
    point(alpha, temperature): [
        *([{**HARD, "weight": 1 - alpha}] if alpha < 1 else []),
        {"loss": "logits.soft_target", "options": {"temperature": temperature}, "weight": alpha},
    ]
    for alpha in ALPHAS
    for temperature in TEMPERATURES
}
"""The soft target in sixteen ways, for `--grid`."""


@dataclass(frozen=True)
class Pair:
    """A teacher and a student on a part of a data set."""

    data: str
    files: tuple[str, str]
    rows: int
    model: str
    teacher: dict[str, Any]
    assistant: dict[str, Any]
    student: dict[str, Any]
    train: dict[str, Any]
    teacher_epochs: int
    views: int = 4
    held: int = 1000


PROTOCOL = {"batch_size": 64, "optimizer": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "precision": "bf16", "device": "cpu"}
PAIRS = {
    "fashion": Pair(
        "fashion_mnist",
        ("train.npz", "test.npz"),
        4_000,
        "convnet",
        {"width": 26, "depth": 3, "dropout": 0.2},
        {"width": 16, "depth": 3},
        {"width": 8, "depth": 3},
        {**PROTOCOL, "epochs": 8, "augment": {"shift": 2, "flip": True}},
        teacher_epochs=12,
    ),
    "cifar": Pair(
        "cifar100",
        ("cifar100_train.npz", "cifar100_test.npz"),
        10_000,
        "methods:resnet",
        {"depth": 20},
        {"depth": 14},
        {"depth": 8},
        {**PROTOCOL, "epochs": 12, "augment": {"shift": 4, "flip": True}},
        teacher_epochs=20,
        views=6,
    ),
}


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.short = nn.Identity() if before == after else short

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(self.body(maps) + self.short(maps))


def resnet(depth: int = 20, classes: int = 100) -> nn.Sequential:
    """The networks of depth 6n + 2 for images of 32 x 32 (He et al. 2016, arXiv:1512.03385, section 4.2), 16 to 64 channels."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["stem"] = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    before = 16
    for stage, after in enumerate((16, 32, 64), 1):
        blocks = [Block(before if at == 0 else after, after, 2 if stage > 1 and at == 0 else 1) for at in range((depth - 2) // 6)]
        parts[f"stage{stage}"], before = nn.Sequential(*blocks), after
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["head"] = nn.Linear(before, classes)
    return nn.Sequential(parts)


def prepared(pair: Pair, root: Path, folder: Path) -> None:
    """The part of the data set as plain arrays: training rows with validation rows behind them, and all test rows."""
    if (folder / "test.npz").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for part, file in zip(("train", "test"), pair.files, strict=True):
        given = np.load(root / pair.data / file)
        images, labels = given["images"] if "images" in given else strips(given), given["labels"]
        said = {"class_names": given["class_names"]}
        if part == "train":
            chosen = draw.permutation(len(images))[: pair.rows + pair.held]
            images, labels = images[chosen], labels[chosen]
            said["split"] = np.array(["train"] * pair.rows + ["validation"] * pair.held)
        np.savez(folder / f"{part}.npz", images=images, labels=labels, **said)


def strips(given: Any) -> np.ndarray[Any, Any]:
    """Images that are kept as lossless strips of 500."""
    from PIL import Image

    ends, bytes_of = given["offsets"], given["webp"].tobytes()
    parts = [np.asarray(Image.open(io.BytesIO(bytes_of[a:b])).convert("RGB")) for a, b in itertools.pairwise(ends)]
    return np.concatenate([part.reshape(-1, 32, 32, 3) for part in parts])


class Bench:
    """Rows, teachers and transfer sets of one pair."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair, self.folder = pair, folder
        self.said = self.recipe_of(METHODS["control"])
        self.loaded = load_rows(self.said)
        self.task = self.loaded.task
        self.rows, self.test, self.held = (self.loaded.rows.part(part) for part in ("train", "test", "validation"))
        self.encoded = encode(self.rows.inputs, self.rows.kind, None)
        seen = build_views(self.said.train, self.rows, None)
        assert seen is not None
        self.seen = seen
        self.times: list[float] = []
        self.others: dict[str, Student] = {}

    def recipe_of(self, terms: list[dict[str, Any]]) -> recipe.Recipe:
        """The recipe of a method."""
        pair = self.pair
        said = {
            "out": str(self.folder / "run"),
            "data": {"root": str(self.folder), "train": "train.npz", "test": "test.npz", "kind": "image", "overlap": "drop"},
            "teacher": {"train": {**pair.train, "model": pair.model, "options": pair.teacher, "epochs": pair.teacher_epochs}},
            "student": {"model": pair.model, "options": pair.student},
            "objective": {"terms": terms},
            "train": pair.train,
        }
        return recipe.parse(said)

    def network(self, options: dict[str, Any], seed: int, name: str) -> Student:
        """An untrained network of the pair's kind."""
        return build_student(self.pair.model, options, self.loaded, self.encoded, None, seed=seed, name=name)

    def taught(self, student: Student, said: Any, objective: Objective, data: TrainingSet, seed: int, to: Path | None) -> Student:
        """The network trained here, its weights kept in the folder if there is one."""
        assert student.module is not None
        train(student.module, objective, data, task=self.task, options=said, seed=seed, to=to, progress=False)
        return student

    def teacher(self, number: int) -> Student:
        """A teacher trained from the labels; the same with another seed for each number."""
        said = self.said.teacher.train
        assert said is not None
        objective = build_label_objective(said, self.task, self.rows.labels)
        name = f"teacher {number}"
        made = self.network(self.pair.teacher, 100 + number, name)
        self.others[name] = self.taught(made, said, objective, self.data(None), 100 + number, self.folder / f"teacher-{number}")
        return made

    def data(self, ask: Any) -> TrainingSet:
        """The training rows in their views; every batch leaves the time at which it was asked for."""

        def timed(rows: Tensor, view: Tensor | None, inputs: Tensor) -> Signals:
            self.times.append(time.process_time())
            return {} if ask is None else ask(rows, view, inputs)

        return training_set(self.loaded, self.rows, None, {}, views=self.pair.views, augment=self.seen, ask=timed)

    def store(self, speaker: Any, name: str) -> Any:
        """What a network says of every view, asked once."""
        spec: dict[str, Any] = {"views": self.pair.views, "augment": self.seen, "view_spec": self.seen.spec}
        return teach(speaker, self.rows, self.folder / name, task=self.task, dtype="float16", progress=False, **spec)

    def scores(self, answer: Callable[[Any], np.ndarray[Any, Any]], teacher: np.ndarray[Any, Any] | None) -> dict[str, float]:
        """Accuracy on test and validation rows, and agreement with the teacher on test rows."""
        parts: dict[str, Rows] = {"test": self.test, "validation": self.held}
        said = {part: answer(rows.inputs) for part, rows in parts.items()}
        found = {part: scorecard.quality(said[part], rows.labels, self.task)["accuracy"] for part, rows in parts.items()}
        agreement = {} if teacher is None else {"agreement": scorecard.fidelity(said["test"], teacher, self.task)["agreement"]}
        return found | agreement


def answer_of(model: Any) -> Callable[[Any], np.ndarray[Any, Any]]:
    """Raw rows -> logits."""
    return lambda inputs: np.asarray(model.signals(inputs)["logits"].numpy())


def through_teacher(student: Student, objective: Objective, teacher: Student) -> Callable[[Any], np.ndarray[Any, Any]]:
    """SimKD: the student's last map through its connector, read by the teacher's own pool and classifier."""
    term = objective.feature_terms()[0]
    assert student.module is not None and teacher.module is not None
    parts = dict(teacher.module.get_submodule("network").named_children())
    head = nn.Sequential(*[part for name, part in parts.items() if not name.startswith("stage") and name != "stem"])

    def answer(inputs: Any) -> np.ndarray[Any, Any]:
        pieces = []
        with taps(student.module, term.layers) as read, evaluating(student.module), torch.inference_mode():  # type: ignore[arg-type]
            term.eval(), head.eval()
            for start in range(0, len(inputs), 500):
                student.module(student.encode(inputs[start : start + 500]))  # type: ignore[misc]
                pieces.append(head(term.connectors[0](read[term.layers[0]])))
        term.train()
        return torch.cat(pieces).numpy()

    return answer


class Speakers:
    """Who is heard: the first teacher with its layers, all of them for CA-MKD, an assistant for TAKD; each taught once, when needed."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.made = bench, dict[str, Any]()
        self.first = bench.teacher(1)
        network = wiring.network_of(self.first)
        assert network is not None
        self.network: TorchTeacher = network
        inputs = bench.rows.inputs[:4]
        objective = build_objective(bench.recipe_of(METHODS["PKT"]), bench.task, None)
        wiring.wire(objective, bench.network(bench.pair.student, 0, "student"), network, inputs)
        layers = list(dict.fromkeys([*STAGES, *objective.teacher_layers]))
        self.layered = network.giving(layers)
        self.answers = answer_of(self.first)(bench.test.inputs)

    def heard(self, method: str, objective: Objective) -> Any:
        """The answers that this method reads, out of a transfer set."""
        keys, reads = self.bench.rows.keys, list(objective.hears)
        if not reads:
            return None
        if method == "TAKD":
            return stored_answers(self.set_of("assistant"), keys, reads)
        if method == "CA-MKD":
            asks = [stored_answers(self.set_of(f"teacher {number}"), keys, ["logits"]) for number in (1, 2, 3)]
            return lambda *given: {f"teachers/{at}/logits": ask(*given)["logits"] for at, ask in enumerate(asks, 1)}
        return stored_answers(self.set_of("teacher 1"), keys, reads)

    def set_of(self, who: str) -> Any:
        """The transfer set of one of them."""
        if who not in self.made:
            speaker = self.layered if who == "teacher 1" else self.assistant() if who == "assistant" else self.bench.teacher(int(who[-1]))
            self.made[who] = self.bench.store(speaker, f"transfer-{who.replace(' ', '-')}")
        return self.made[who]

    def assistant(self) -> Student:
        """Between teacher and student in size, taught by the teacher as the student is."""
        bench, said = self.bench, self.bench.recipe_of(METHODS["TAKD"])
        objective = build_objective(said, bench.task, bench.rows.labels)
        data = bench.data(stored_answers(self.set_of("teacher 1"), bench.rows.keys, ["logits"]))
        made = bench.network(bench.pair.assistant, 200, "assistant")
        bench.others["teacher's assistant"] = bench.taught(made, said.train, objective, data, 200, bench.folder / "assistant")
        return made


def run(bench: Bench, speakers: Speakers, method: str, seed: int) -> dict[str, Any]:
    """One student, and what is known of it."""
    student = bench.network(bench.pair.student, seed, "student")
    said: dict[str, Any] = {"method": method, "seed": seed}
    if method == "DML":
        objective = cohort_objective(bench.task, "mutual")
        others = [student, bench.network(bench.pair.student, seed + 1000, "the other")]
        bench.times.clear()
        modules = [each.module for each in others if each.module is not None]
        train_cohort(modules, objective, bench.data(None), task=bench.task, options=bench.said.train, seed=seed, progress=False)
    else:
        whole = bench.recipe_of((METHODS | GRID)[method])
        objective = build_objective(whole, bench.task, bench.rows.labels)
        inputs = bench.rows.inputs[:4]
        if objective.reads_layers:
            wiring.wire(objective, student, speakers.network, inputs)
            keys = torch.from_numpy(np.ascontiguousarray(bench.rows.keys))
            labels = torch.from_numpy(np.asarray(bench.rows.labels))
            wiring.probe(objective, student, inputs, speakers.layered.signals(inputs), keys=keys, labels=labels, seed=seed)
        data = bench.data(speakers.heard(method, objective))
        bench.times.clear()
        bench.taught(student, whole.train, objective, data, seed, None)
        said["connectors"] = sum(objective.connectors().values())
    steps = np.diff(bench.times)
    said |= {"step": float(np.median(steps)), "seconds": float(np.sum(steps)), "steps": len(steps), "formula": objective.formula()}
    answer = through_teacher(student, objective, speakers.first) if method == "SimKD" else answer_of(student)
    return said | {"parameters": student.parameters(), **bench.scores(answer, speakers.answers)}


def lines_of(file: Path) -> list[dict[str, Any]]:
    """The runs that are finished."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def missing(file: Path, seeds: int, methods: list[str]) -> Iterator[tuple[str, int]]:
    """(method, seed) that are to be run, one seed after the other; after the first only the best of the mixtures."""
    for seed in range(seeds):
        for method in methods:
            done = {(line["method"], line["seed"]): line for line in lines_of(file)}
            mixed = {name: done[name, 0]["validation"] for name in methods if name.startswith("mixture") and (name, 0) in done}
            if (method, seed) in done or (seed and method in mixed and method != max(mixed, key=mixed.__getitem__)):
                continue
            yield method, seed


def spread(found: list[float]) -> str:
    """Mean and standard deviation of accuracies in percent."""
    return f"{np.mean(found):.2f}" + (f" ± {statistics.stdev(found):.2f}" if len(found) > 1 else "")


def matrix(file: Path) -> None:
    """Markdown of the soft target in all its ways: test accuracy by alpha and temperature."""
    print("| alpha | " + " | ".join(f"T = {temperature:g}" for temperature in TEMPERATURES) + " |\n|---|" + "---|" * len(TEMPERATURES))
    for alpha in ALPHAS:
        found = [[100 * line["test"] for line in lines_of(file) if line["method"] == point(alpha, t)] for t in TEMPERATURES]
        print(f"| {alpha:g} | " + " | ".join(spread(each) if each else "-" for each in found) + " |")


def table(file: Path) -> None:
    """Markdown of what there is: mean and standard deviation of test accuracy over seeds, and the median step beside the control's."""
    lines = [line for line in lines_of(file) if line["method"] in METHODS]
    names = [name for name in METHODS if any(line["method"] == name for line in lines)]
    steps = {name: statistics.median(line["step"] for line in lines if line["method"] == name) for name in names}
    print("| method | test accuracy | over the control | agreement | step | of the control's |\n|---|---|---|---|---|---|")
    for line in lines_of(file):
        if line["method"].startswith("teacher"):
            print(f"| {line['method']} ({line['parameters']:,} parameters) | {100 * line['test']:.2f} | | | | |")
    alone = {line["seed"]: line["test"] for line in lines if line["method"] == "control"}
    for name in names:
        found = [100 * line["test"] for line in lines if line["method"] == name]
        counted = f" ({len(found)} seed{'s' * (len(found) > 1)})" if len(found) < 3 else ""
        agreed = np.mean([line["agreement"] for line in lines if line["method"] == name])
        apart = [line["test"] - alone[line["seed"]] for line in lines if line["method"] == name and line["seed"] in alone]
        gain = 100 * np.mean(apart)
        ratio = steps[name] / steps["control"]
        print(f"| {name} | {spread(found)}{counted} | {gain:+.2f} | {agreed:.3f} | {1e3 * steps[name]:.1f} ms | {ratio:.2f} |")


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pair", choices=PAIRS)
    parser.add_argument("--root", type=Path, default=Path("data"))
    parser.add_argument("--to", type=Path, default=Path("runs/methods"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out")
    parser.add_argument("--grid", action="store_true", help="the soft target at each alpha and temperature instead of the methods")
    parser.add_argument("--table", action="store_true")
    said = parser.parse_args()
    pair, folder, file = PAIRS[said.pair], said.to / said.pair, said.to / f"{said.pair}.jsonl"
    if said.table:
        (matrix if said.grid else table)(file)
        return
    torch.set_num_threads(1)
    started = time.perf_counter()
    prepared(pair, said.root, folder)
    bench = Bench(pair, folder)
    speakers = Speakers(bench)
    for method, seed in missing(file, said.seeds, [name for name in (GRID if said.grid else METHODS) if name not in said.skip]):
        if time.perf_counter() - started > 60 * said.minutes:
            break
        noted(file, run(bench, speakers, method, seed))
        known = {line["method"] for line in lines_of(file)}
        for name, one in bench.others.items():
            if name not in known:
                noted(file, {"method": name, "seed": 0, "parameters": one.parameters(), **bench.scores(answer_of(one), None)})


def noted(file: Path, line: dict[str, Any]) -> None:
    """Append a finished run, and say it."""
    with file.open("a", encoding="utf-8") as whole:
        whole.write(json.dumps(line) + "\n")
    print({name: value for name, value in line.items() if name != "formula"}, flush=True)


if __name__ == "__main__":
    main()
