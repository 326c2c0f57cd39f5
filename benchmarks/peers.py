"""A student's epoch from the cache beside a live teacher: ours, torchdistill, keras.distillation, and the plain tutorial loop.

    python benchmarks/peers.py DATA/fashion_mnist/train.npz [--peers FOLDER] [--rows 6000] [--epochs 3] [--rounds 3] [--teacher-epochs 2]

FOLDER holds torchdistill 1.1.5 (`pip install --target FOLDER torchdistill==1.1.5 --no-deps`, and pyyaml, cython, scipy likewise); without
it, or without Keras, that peer is left out and said to be. All train the same modules from the same weights on the same rows at the same
batch, in float32 on the CPU, by AdamW and the same weights of labels and teacher; keras.distillation holds the same torch modules in
TorchModuleWrapper, with the loss KLDivergence because its default has no gradient. Runs alternate, in one thread, and are timed in seconds
of that processor, which other programs do not disturb; the figures are medians of images per second and of the ratios within a round, and
the mean accuracy of the last epoch on held-out rows. The exit status is 1 when a peer is less than 3 times slower than the cache, or the
cache more than 1.05 times slower than no teacher.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from understudy.adapters import _keras_models
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.errors import MissingExtraError
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.store.transfer_set import TransferSet
from understudy.students.convnet import convnet
from understudy.tasks import Task
from understudy.teachers import TorchTeacher
from understudy.teaching import teach
from understudy.training.gradient import TrainingSet, train

TASK = Task("multiclass", tuple("0123456789"))
ALPHA, TEMPERATURE, LR, DECAY = 0.5, 4.0, 2e-3, 1e-4
LEAST, MOST = 3.0, 1.05

Run = Callable[[nn.Module, int], None]
"""Trains a fresh student for so many epochs."""


def multiply_adds(module: nn.Module, one: Tensor) -> float:
    """Of one row, in millions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module.eval()(one)
    return counter.get_total_flops() / 2e6


def accuracy(module: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """On held-out rows."""
    with torch.inference_mode():
        return float((module.eval()(inputs).argmax(1) == labels).float().mean())


def ours(data: TrainingSet, objective: Objective, batch: int) -> Run:
    """The training of this package."""

    def run(student: nn.Module, epochs: int) -> None:
        options = OptimizerSection(
            epochs=epochs, batch_size=batch, lr=LR, weight_decay=DECAY, schedule="constant", warmup=0.0, device="cpu"
        )
        train(student, objective, data, task=TASK, options=options, seed=0, progress=False)

    return run


def tutorial(teacher: nn.Module, inputs: Tensor, labels: Tensor, batch: int) -> Run:
    """The loop that tutorials show: a DataLoader, the teacher under no_grad at every step."""

    def run(student: nn.Module, epochs: int) -> None:
        optimizer = torch.optim.AdamW(student.parameters(), LR, weight_decay=DECAY)
        loader = DataLoader(TensorDataset(inputs, labels), batch, shuffle=True)
        teacher.eval()
        student.train()
        for _ in range(epochs):
            for given, label in loader:
                optimizer.zero_grad()
                with torch.no_grad():
                    told = teacher(given)
                said = student(given)
                p, q = (told / TEMPERATURE).softmax(-1), (said / TEMPERATURE).log_softmax(-1)
                soft = functional.kl_div(q, p, reduction="batchmean") * TEMPERATURE**2
                ((1 - ALPHA) * functional.cross_entropy(said, label) + ALPHA * soft).backward()
                optimizer.step()

    return run


def torchdistill(folder: Path, teacher: nn.Module, inputs: Tensor, labels: Tensor, batch: int) -> Run | str:
    """torchdistill's DistillationBox with its KDLoss; why not, when it is not there."""
    if not (folder / "torchdistill").is_dir():
        return f"torchdistill is not in {folder}"
    sys.path.append(str(folder))
    from torchdistill.core.distillation import DistillationBox  # type: ignore[import-not-found]

    logging.getLogger("torchdistill").setLevel(logging.ERROR)

    def run(student: nn.Module, epochs: int) -> None:
        paths = {"student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".", "teacher_module_io": "output"}
        term = {"key": "KDLoss", "kwargs": {**paths, "temperature": TEMPERATURE, "alpha": 1 - ALPHA, "reduction": "batchmean"}}
        one = {"forward_proc": "forward_batch_only", "sequential": [], "forward_hook": {}}
        config = {
            "num_epochs": epochs,
            "train_data_loader": {"dataset_id": "train", "sampler": {"class_or_func": RandomSampler}, "kwargs": {"batch_size": batch}},
            "teacher": {**one, "requires_grad": False},
            "student": one,
            "optimizer": {"key": "AdamW", "kwargs": {"lr": LR, "weight_decay": DECAY}},
            "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": term, "weight": 1.0}}}},
        }
        data = {"train": TensorDataset(inputs, labels)}
        teacher.eval()
        box = DistillationBox(teacher, student, data, config, torch.device("cpu"), None, False, 1.0)
        for epoch in range(epochs):
            box.pre_epoch_process(epoch=epoch)
            for given, label, more in box.train_data_loader:
                box.post_forward_process(loss=box.forward_process(given, label, more))
            box.post_epoch_process()
        box.clean_modules()

    return run


def keras_distillation(teacher: nn.Module, inputs: Tensor, labels: Tensor, batch: int) -> Run | str:
    """keras.distillation on the torch backend around the same modules; why not, when it is not there."""
    try:
        keras = _keras_models.keras_package()
    except MissingExtraError as error:
        return str(error)
    if keras.backend.backend() != "torch":
        return f"Keras runs on {keras.backend.backend()}; unset KERAS_BACKEND"

    def wrapped(module: nn.Module) -> Any:
        return keras.Sequential([keras.Input(tuple(inputs.shape[1:])), keras.layers.TorchModuleWrapper(module, output_shape=(None, 10))])

    def run(student: nn.Module, epochs: int) -> None:
        loss = keras.distillation.LogitsDistillation(temperature=TEMPERATURE, loss=keras.losses.KLDivergence())
        distiller = keras.distillation.Distiller(
            wrapped(teacher.eval()), wrapped(student), distillation_losses=loss, student_loss_weight=1 - ALPHA
        )
        hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.AdamW(LR, weight_decay=DECAY), hard)
        distiller.fit(inputs.numpy(), labels.numpy(), batch_size=batch, epochs=epochs, verbose=0)

    return run


def contenders(arguments: argparse.Namespace, folder: Path, teacher: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Run | str]:
    """Everyone by name, or why not."""
    batch, raw = arguments.batch, inputs.numpy()
    asked = TorchTeacher(teacher, task=TASK, classes=None, prepare=torch.from_numpy, batch_size=batch)
    rows = Rows("array", raw, content_keys(raw, "array"))
    taught = TransferSet.open(teach(asked, rows, folder / "transfer", task=TASK, dtype="float16", progress=False).folder)
    said = {"logits": taught.gather("logits", taught.positions(rows.keys))}
    both = Objective.soft_labels(alpha=ALPHA, temperature=TEMPERATURE, task=TASK)
    live = TrainingSet(inputs, labels, None, {}, ask=lambda chosen, view, given: asked.signals(given.numpy()))
    return {
        "from the cache": ours(TrainingSet(inputs, labels, None, said), both, batch),
        "no teacher": ours(TrainingSet(inputs, labels, None, {}), Objective.labels_only(TASK), batch),
        "our live teacher": ours(live, both, batch),
        "plain loop": tutorial(teacher, inputs, labels, batch),
        "torchdistill": torchdistill(arguments.peers, teacher, inputs, labels, batch),
        "keras.distillation": keras_distillation(teacher, inputs, labels, batch),
    }


def main() -> int:
    """All contenders, in turns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--peers", type=Path, default=Path(os.environ.get("PEERS", "peers")))
    sizes = {"rows": 6000, "epochs": 3, "rounds": 3, "batch": 128, "width": 8, "teacher-width": 32, "teacher-epochs": 2}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # Keras turns its variables into arrays in the old way
    with np.load(arguments.data) as file:
        images, classes = file["images"][: arguments.rows + 2000], file["labels"][: arguments.rows + 2000]
    pixels = torch.from_numpy((images.reshape(len(images), 1, 28, 28).astype(np.float32) - 72.9) / 90.0)
    answers = torch.from_numpy(classes.astype(np.int64))
    inputs, labels, held, truth = (
        *(each[: arguments.rows] for each in (pixels, answers)),
        *(each[arguments.rows :] for each in (pixels, answers)),
    )
    teacher = convnet(1, 10, size=(28, 28), width=arguments.teacher_width, seed=1)
    start = convnet(1, 10, size=(28, 28), width=arguments.width, seed=2)
    larger = multiply_adds(teacher, inputs[:1]) / multiply_adds(start, inputs[:1])
    ours(TrainingSet(inputs, labels, None, {}), Objective.labels_only(TASK), arguments.batch)(teacher, arguments.teacher_epochs)
    print(f"teacher {larger:.1f}x the student's multiply-adds, accuracy {accuracy(teacher, held, truth):.3f}; {arguments}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        there = contenders(arguments, Path(folder), teacher, inputs, labels)
        return judged(there, start.state_dict(), arguments, lambda module: accuracy(module, held, truth))


def judged(
    there: dict[str, Run | str], start: dict[str, Tensor], arguments: argparse.Namespace, score: Callable[[nn.Module], float]
) -> int:
    """Run everyone in every round, print the figures, and hold them to the limits."""
    speeds: dict[str, list[float]] = {name: [] for name in there}
    scores: dict[str, list[float]] = {name: [] for name in there}
    running = {name: run for name, run in there.items() if not isinstance(run, str)}
    for turn in range(arguments.rounds):
        names = list(running)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            torch.manual_seed(turn)
            student = convnet(1, 10, size=(28, 28), width=arguments.width)
            student.load_state_dict(start)
            began = time.process_time()
            running[name](student, arguments.epochs)
            speeds[name].append(arguments.rows * arguments.epochs / (time.process_time() - began))
            scores[name].append(score(student))
    kept = True
    for name, run in there.items():
        if isinstance(run, str):
            print(f"{name:20} left out: {run}")
            continue
        ratio = statistics.median(ours / other for ours, other in zip(speeds["from the cache"], speeds[name], strict=True))
        bad = (ratio < LEAST) if name not in ("from the cache", "no teacher") else (1 / ratio > MOST)
        kept &= not bad
        figure = (
            f"{statistics.median(speeds[name]):7.0f} images/s   cache {ratio:5.2f}x as fast   accuracy {statistics.mean(scores[name]):.3f}"
        )
        print(f"{name:20} {figure}{'   PAST THE LIMIT' if bad else ''}", flush=True)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
