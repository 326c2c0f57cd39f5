"""Keras models as files for other runtimes: model.onnx (tf2onnx) and model.tflite, written by TensorFlow and asked again.

A model on another backend is saved, and a process of its own with TensorFlow writes the files: Keras' layers mean the same there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from understudy.adapters import _keras_models as models
from understudy.errors import ExportError
from understudy.tasks import Task

Array = np.ndarray[Any, Any]

BATCH = 64
WORST = 1e-3
"""The largest relative difference of a file's answer from the model's."""


def write(model: Any, folder: Path) -> list[Path]:
    """model.onnx and model.tflite in a folder; ExportError U446 when a converter fails."""
    models.tensorflow_package()
    if models.keras_package().backend.backend() == "tensorflow":
        convert(model, folder)
    else:
        with tempfile.TemporaryDirectory() as place:
            kept = Path(place) / "model.keras"
            model.save(kept)
            code = (
                "from pathlib import Path; from understudy.adapters import _keras_files as f, _keras_models as m; "
                f"f.convert(m.read_model(Path({str(kept)!r}), trust=True), Path({str(folder.resolve())!r}))"
            )
            source = str(Path(__file__).parents[2])
            path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
            told = {**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": path}
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=told, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise ExportError(f"TensorFlow cannot write {model.name!r}: {last[:400]}", code="U446")
    return [folder / "model.onnx", folder / "model.tflite"]


def convert(model: Any, folder: Path) -> None:
    """Write both files by TensorFlow, in this process."""
    model(np.zeros((1, *model.input_shape[1:]), dtype=np.float32), training=False)  # Keras exports what was called
    for name, how in (("onnx", "onnx"), ("tflite", "litert")):
        part = folder / f"part.{name}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the converters warn of each other's versions
                model.export(str(part), format=how, verbose=False)
        except Exception as error:  # the converters raise every kind
            said = " ".join(str(error).split())[:400]
            raise ExportError(f"Keras cannot write {model.name!r} as .{name}: {type(error).__name__}: {said}", code="U446") from error
        part.replace(folder / f"model.{name}")


def ask(path: Path, inputs: Array) -> Array:
    """What a file says of prepared inputs, by its own runtime."""
    batches = [inputs[start : start + BATCH] for start in range(0, len(inputs), BATCH)]
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: batch})[0] for batch in batches])
    with warnings.catch_warnings():
        # TensorFlow announces the package that this class moves to
        warnings.filterwarnings("ignore", message=r"[\s\S]*tf\.lite\.Interpreter is deprecated")
        interpreter = models.tensorflow_package().lite.Interpreter(model_path=str(path))
    said = []
    for batch in batches:
        given = interpreter.get_input_details()[0]
        if tuple(given["shape"]) != batch.shape:
            interpreter.resize_tensor_input(given["index"], batch.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], batch)
        interpreter.invoke()
        said.append(np.array(interpreter.get_tensor(interpreter.get_output_details()[0]["index"])))
    return np.concatenate(said)


def compared(path: Path, said: Array, model: Array, task: Task) -> Array:
    """The file's answers, when they are the model's; ExportError U041 when they are not."""
    scale = float(np.abs(model).max()) or 1.0
    worst = float(np.abs(said - model).max()) / scale
    if not worst <= WORST:
        raise ExportError(
            f"{path.name} answers otherwise than the model: by {worst:.2g} of the largest {task.signal} on {len(said):,} rows", code="U041"
        )
    return np.asarray(said, dtype=np.float32)
