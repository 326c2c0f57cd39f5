"""Run by test_adapter_keras.py in a process of its own for each backend: prints what it saw as one line of JSON.

KERAS_BACKEND=jax python tests/keras_process.py FOLDER loss fit
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from understudy import Rows, Task, TransferSet, check_teacher, measure, teach
from understudy.adapters import _keras_models
from understudy.adapters import keras as adapter
from understudy.data.keys import content_keys
from understudy.errors import TeacherError

keras = _keras_models.keras_package()
EPOCHS = 8
DIGITS = Task("multiclass", tuple("0123456789"))


def digits() -> tuple[Rows, Rows]:
    """1,400 rows to learn from and 397 held out, pixels as bytes."""
    said = load_digits()
    pixels = (said.images[..., None] * 15).astype(np.uint8)
    rows = Rows("image", pixels, content_keys(pixels, "image"), said.target.astype(np.int64))
    return rows.take(slice(0, 1400)), rows.take(slice(1400, None))


def network(width: int, activation: str | None = None) -> Any:
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Rescaling(1 / 255),
            layers.Flatten(),
            layers.Dense(width, activation="relu"),
            layers.Dense(10, activation=activation),
        ]
    )


def optimizer() -> Any:
    return keras.optimizers.Adam(0.005)


def accuracy(model: Any, rows: Rows) -> float:
    return float((adapter.answers(model, rows).argmax(1) == rows.labels).mean())


def values(folder: Path) -> dict[str, Any]:
    """The mean of the loss over the rows of each case."""
    found = {}
    for kind in ("multiclass", "multilabel", "regression"):
        given = np.load(folder / f"{kind}.npz")
        loss = adapter.SoftLabels(0.3, 2.0, task=kind)
        told = keras.ops.convert_to_tensor(adapter.together(given["labels"], given["teacher"], task=kind))
        found[kind] = float(keras.ops.mean(loss(told, keras.ops.convert_to_tensor(given["student"]))))
    return found


def fitted(folder: Path) -> dict[str, Any]:
    """Digits, end to end: a Keras teacher, a transfer set, a student by compile and fit, its scorecard and its files."""
    train, test = digits()
    teacher = taught_by_labels("softmax")
    asked = adapter.KerasTeacher.from_model(teacher, task=DIGITS, name="digits", batch_size=256)
    teacher.save(folder / "teacher.keras")
    again = adapter.load(str(folder / "teacher.keras"), task=DIGITS, batch_size=256)
    same = bool(np.allclose(again.signals(test.inputs)["logits"], asked.signals(test.inputs)["logits"], atol=1e-4))
    taught = teach(asked, train, folder / "transfer", task=DIGITS, batch_size=256)
    rows = adapter.rows_of(taught, train, batch_size=64)
    student, control = network(16), network(16)
    control.set_weights(student.get_weights())
    control.compile(optimizer(), adapter.SoftLabels(0.0, 2.0))
    control.fit(rows, epochs=EPOCHS, verbose=0)
    student.compile(optimizer(), adapter.SoftLabels(1.0, 2.0, student=student), metrics=[adapter.label_accuracy()])
    card = adapter.scorecard(measure, test, DIGITS, teacher=asked.signals(test.inputs)["logits"].numpy(), control=control, to=folder)
    history = student.fit(rows, epochs=EPOCHS, verbose=0, callbacks=[card])
    return {
        "same": same,
        "teacher": accuracy(teacher, test),
        "student": accuracy(student, test),
        "metric": history.history["accuracy"][-1],
        "train": accuracy(student, train),
        "card": card.card["models"]["student"]["quality"]["accuracy"]["mean"],
        "verdict": card.card["verdict"],
        "files": files_of(student, test, folder),
        "rows": len(TransferSet.open(folder / "transfer")),
        "fingerprint": sorted(asked.fingerprint()),
        "parameters": asked.parameters(),
    }


def files_of(student: Any, test: Rows, folder: Path) -> dict[str, float]:
    """The accuracy of each file that is written of a student."""
    said = adapter.export(student, folder / "files", test, DIGITS)
    return {name: float((answers.argmax(1) == test.labels).mean()) for name, answers in said.items()}


def checked(folder: Path) -> list[str]:
    """What check_teacher finds in a Keras teacher."""
    return [str(problem) for problem in check_teacher(adapter.KerasTeacher.from_model(network(8), task=DIGITS), digits()[1].inputs[:8])]


def saved_model(folder: Path) -> dict[str, Any]:
    """A SavedModel as teacher beside the Keras model it was made of, and what is refused."""
    model, pixels = network(8), digits()[1].inputs[:8]
    model.export(str(folder / "saved"), verbose=False)
    own = adapter.KerasTeacher.from_model(model, task=DIGITS).signals(pixels)["logits"]
    teacher = adapter.load(str(folder / "saved"), task=DIGITS, trust=True, options={"scale": "pixels"})
    told = []
    for options in ({"trust": False}, {"trust": True}, {"trust": True, "options": {"scale": "unit", "signature": "serving"}}):
        try:
            adapter.load(str(folder / "saved"), task=DIGITS, **options)
        except TeacherError as error:
            told.append(str(error))
    return {
        "same": bool(np.allclose(teacher.signals(pixels)["logits"], own, atol=1e-4)),
        "problems": [str(problem) for problem in check_teacher(teacher, pixels)],
        "parameters": teacher.parameters(),
        "told": told,
    }


def alone(folder: Path) -> dict[str, Any]:
    """The teacher's signal alone, without a transfer set, in a student that is saved compiled."""
    train, test = digits()
    teacher, student = taught_by_labels(None), network(16)
    inputs = np.asarray(train.inputs, np.float32)
    student.compile(optimizer(), adapter.SoftLabels(1.0, 3.0), metrics=[adapter.label_accuracy()])
    student.fit(inputs, adapter.together(None, adapter.answers(teacher, train)), epochs=EPOCHS, batch_size=64, verbose=0)
    student.save(folder / "student.keras")
    loss = keras.models.load_model(folder / "student.keras").loss
    return {"accuracy": accuracy(student, test), "loss": [loss.alpha, loss.temperature]}


def stock(folder: Path) -> float:
    """The same by keras.distillation with its default loss."""
    train, test = digits()
    teacher, student = taught_by_labels(None), network(16)
    losses = keras.distillation.LogitsDistillation()
    distiller = keras.distillation.Distiller(teacher, student, distillation_losses=losses, student_loss_weight=0.0)
    distiller.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(np.asarray(train.inputs, np.float32), train.labels, epochs=EPOCHS, batch_size=64, verbose=0)
    return accuracy(student, test)


def files(folder: Path) -> dict[str, Any]:
    """The files of a student that this backend hands to TensorFlow."""
    student, (_, test) = taught_by_labels(None), digits()
    return {"model": accuracy(student, test)} | files_of(student, test, folder)


def taught_by_labels(activation: str | None) -> Any:
    """A teacher of digits with or without a softmax at its end."""
    train, _ = digits()
    keras.utils.set_random_seed(0)
    teacher = network(64, activation)
    teacher.compile(optimizer(), keras.losses.SparseCategoricalCrossentropy(from_logits=activation is None))
    teacher.fit(np.asarray(train.inputs, np.float32), train.labels, epochs=EPOCHS, batch_size=64, verbose=0)
    return teacher


def main() -> None:
    folder, *asked = sys.argv[1:]
    steps = {"loss": values, "fit": fitted, "alone": alone, "stock": stock, "files": files, "check": checked, "saved": saved_model}
    print("\n" + json.dumps({"backend": keras.backend.backend()} | {step: steps[step](Path(folder)) for step in asked}))


if __name__ == "__main__":
    main()
