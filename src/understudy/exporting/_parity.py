"""Does the exported file say what the student says? Asked in a fresh process that has not this package.

The artifact's own predict.py answers encoded rows at several batch sizes, and some raw rows the way a user would give
them, while understudy, torch, scikit-learn, pandas and LightGBM cannot be imported.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from understudy.data.rows import Paired
from understudy.errors import ExportError
from understudy.tasks import Task

Array = np.ndarray[Any, Any]
BLOCKED = ("understudy", "torch", "sklearn", "pandas", "lightgbm", "skl2onnx", "onnx", "transformers", "sentence_transformers")
MOST_TIMED = 2000
RAW_ROWS, RAW_IMAGES = 200, 16
TIE = 1e-5
"""Two best classes nearer than this are a tie, whose winner float32 may decide either way."""

RUNNER = """
import importlib.util, json, sys, time
folder, job = sys.argv[1:3]
said = json.load(open(job + "/job.json", encoding="utf-8"))
sys.dont_write_bytecode = True
for name in said["blocked"]:
    sys.modules[name] = None
import numpy as np
spec = importlib.util.spec_from_file_location("predict", folder + "/predict.py")
module = importlib.util.module_from_spec(spec)
sys.modules["predict"] = module
spec.loader.exec_module(module)
model = module.load(folder, threads=1)
_, rows = module.read_rows(model, job + "/rows.npz")
done = dict(model.answer(rows))
times = {}
for batch in said["batches"]:
    some = rows[: said["most"]]
    model.answer(some[:batch], batch)
    start = time.perf_counter()
    answers = model.answer(some, batch)
    times[str(batch)] = (time.perf_counter() - start) / max(1, len(some)) * 1e6
    done.update({f"{name}@{batch}": value for name, value in answers.items()})
if said["raw"]:
    answers = module.predict(model, job + "/" + said["raw"])
    done.update({f"{name}@raw": answers[name] for name in model.answer(rows[:1])})
np.savez(job + "/answers.npz", **done)
json.dump(times, open(job + "/times.json", "w", encoding="utf-8"))
"""


def parity(
    folder: Path,
    student_answers: Array,
    encoded: Array | dict[str, Array],
    *,
    raw: Any,
    kind: str,
    task: Task,
    tolerance: float,
    batches: Sequence[int] = (1, 2, 7),
) -> dict[str, Any]:
    """What the artifact answers and how far that is from the student's answers (probabilities or values [rows, outputs]).

    Gives `agreement`, `largest` and `mean` difference, `microseconds` per row and batch size, `sentence` and `answers`, the
    outputs for all rows. Raises ExportError U040 when the file disagrees by more than `tolerance`, U042 when its
    answers depend on the batch size, U043 when raw rows are read otherwise than the student reads them, U044 when it fails.
    """
    with tempfile.TemporaryDirectory() as made:
        job = Path(made)
        named = encoded if isinstance(encoded, dict) else {"rows": encoded}
        np.savez(job / "rows.npz", **named)  # type: ignore[arg-type]
        said = {"blocked": BLOCKED, "batches": list(batches), "most": MOST_TIMED, "raw": _write_raw(job, raw, kind, folder)}
        (job / "job.json").write_text(json.dumps(said), encoding="utf-8")
        command = [sys.executable, "-I", "-c", RUNNER, str(folder.resolve()), str(job)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            last = ran.stderr.strip().splitlines()[-1] if ran.stderr.strip() else f"exit status {ran.returncode}"
            raise ExportError(f"the exported file does not run in a fresh process: {last}", code="U044")
        with np.load(job / "answers.npz") as kept:
            answers = {name: kept[name] for name in kept.files}
        times = json.loads((job / "times.json").read_text(encoding="utf-8"))
    return _compared(answers, student_answers, task, tolerance, times)


def _compared(answers: dict[str, Array], ours: Array, task: Task, tolerance: float, times: dict[str, float]) -> dict[str, Any]:
    output = task.signal if task.kind in ("regression", "matching") else "probabilities"
    figures = _figures(answers[output], ours, task)
    for name, value in answers.items():
        if name.startswith(output + "@"):
            other = _figures(value, answers[output][: len(value)], task)
            if other["mean"] > 1e-4 or other["agreement"] < 1 - max(tolerance, 1e-3):
                if name.endswith("@raw"):
                    raise ExportError(
                        f"raw rows answered by predict.py differ from the same rows encoded here: mean difference {other['mean']:.2g}",
                        code="U043",
                    )
                raise ExportError(
                    f"the file answers differently at batch {name.rpartition('@')[2]}: mean difference {other['mean']:.2g}", code="U042"
                )
    rows = len(ours)
    sentence = f"{figures['agreement']:.2%} of {rows:,} rows agree with the student, largest difference {figures['largest']:.1e}".replace(
        "%", " %"
    )
    if not (1 - figures["agreement"] <= tolerance and figures["mean"] <= max(tolerance, 1e-5)):
        raise ExportError(
            f"the exported file does not say what the student says: {sentence}, mean difference {figures['mean']:.2g}; "
            f"export.tolerance is {tolerance:g}",
            code="U040",
        )
    kept = {name: value for name, value in answers.items() if "@" not in name}
    return {**figures, "rows": rows, "tolerance": tolerance, "microseconds": times, "sentence": sentence, "answers": kept}


def _figures(theirs: Array, ours: Array, task: Task) -> dict[str, float]:
    """Agreement in [0, 1] and differences; those of a regression in standard deviations of the student's values."""
    if theirs.shape != ours.shape:
        raise ExportError(f"the file answers shape {list(theirs.shape)}, the student {list(ours.shape)}", code="U040")
    if not len(ours):
        return {"agreement": 1.0, "largest": 0.0, "mean": 0.0}
    theirs, ours = theirs.astype(np.float64), ours.astype(np.float64)
    if task.kind == "recognition":  # each frame of each row
        theirs, ours = (each.reshape(-1, each.shape[-1]) for each in (theirs, ours))
    gaps = np.nan_to_num(np.abs(theirs - ours), nan=np.inf)
    if task.kind in ("regression", "matching"):
        unit = float(ours.std()) or max(1.0, float(np.abs(ours).max()))
        gaps = gaps / unit
        agreement = 1 - float((gaps**2).mean())
    elif task.kind == "multilabel":
        agreement = float((((theirs >= 0.5) == (ours >= 0.5)) | (np.abs(ours - 0.5) < TIE)).mean())
    else:
        lost = ours.max(axis=1) - np.take_along_axis(ours, theirs.argmax(axis=1)[:, None], axis=1)[:, 0]
        agreement = float((lost < TIE).mean())
    return {"agreement": agreement, "largest": float(gaps.max()), "mean": float(gaps.mean())}


def _write_raw(job: Path, raw: Any, kind: str, folder: Path) -> str | None:
    """Rows as a user has them: a CSV of a table or texts, PNG files of images, WAV files of sound, or a CSV of several; gives its name."""
    if isinstance(raw, Paired) and len(raw):
        return _write_pairs(job, raw[:RAW_IMAGES], folder)
    if kind == "text" and len(raw):
        said = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))
        cells = raw[:RAW_ROWS].reshape(min(len(raw), RAW_ROWS), -1)
        with open(job / "raw.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            # of columns that are joined, the first holds all of the text
            writer.writerows([said["columns"], *([*row, *[""] * (len(said["columns"]) - len(row))] for row in cells.tolist())])
        return "raw.csv"
    if kind == "table" and len(raw):
        raw.iloc[:RAW_ROWS].to_csv(job / "raw.csv", index=False, encoding="utf-8")
        return "raw.csv"
    if kind == "image" and len(raw):
        _write_images(job / "raw", raw[:RAW_IMAGES])
        return "raw"
    if kind == "audio" and len(raw):
        rate = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))["rate"]
        (job / "raw").mkdir()
        for at, samples in enumerate(raw[:RAW_IMAGES]):
            with wave.open(str(job / "raw" / f"{at:04d}.wav"), "wb") as file:
                file.setparams((1, 2, rate, 0, "NONE", ""))
                file.writeframes(np.asarray(samples, dtype="<i2").tobytes())
        return "raw"
    return None


def _write_images(folder: Path, images: Any) -> list[str]:
    from PIL import Image

    folder.mkdir()
    names = [f"{at:04d}.png" for at in range(len(images))]
    for name, pixels in zip(names, images, strict=True):
        Image.fromarray(np.asarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)).save(folder / name)
    return names


def _write_pairs(job: Path, raw: Paired, folder: Path) -> str | None:
    """A CSV with the texts, and the file of each image beside it; None where an input is of a kind that no cell can hold."""
    inputs = json.loads((folder / "preprocessing.json").read_text(encoding="utf-8"))["inputs"]
    columns: dict[str, list[str]] = {}
    for name, said in inputs.items():
        if said["kind"] == "text" and not said["pairs"]:
            columns |= dict.fromkeys(said["columns"], [""] * len(raw)) | {said["columns"][0]: raw[name].tolist()}
        elif said["kind"] == "image":
            columns[said["column"]] = [f"{name}/{file}" for file in _write_images(job / name, raw[name])]
        else:
            return None
    with open(job / "raw.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return "raw.csv"
