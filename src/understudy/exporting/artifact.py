"""An artifact: the folder that answers rows without this package. Complete when checksums.json, written last, is there.

model.onnx, signature.json, labels.json, preprocessing.json, predict.py, README.md (the model card), export.json (exporter,
teacher, parity), and scorecard.json once it was measured.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
import torch

from understudy.data.pairs import PairEncoding
from understudy.data.rows import Rows
from understudy.data.tokenizing import TextEncoding
from understudy.errors import ExportError, Problem
from understudy.exporting import _graphs
from understudy.exporting._card import card, packages
from understudy.exporting._parity import parity
from understudy.students.preprocessing import trimmed
from understudy.students.student import FLOOR, Student
from understudy.tasks import Task

FORMAT = 1
CHECKSUMS = "checksums.json"


@final
@dataclass(frozen=True)
class Artifact:
    """An exported student: its folder, the exporter, how it compares with the student, its logits or values for the test rows."""

    folder: Path
    exporter: str
    parity: dict[str, Any] | None
    answers: np.ndarray[Any, Any] | None


def export(
    student: Student,
    to: str | Path,
    *,
    sample_rows: Rows,
    test_rows: Rows | None = None,
    scorecard: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    tolerance: float = 0.002,
    overwrite: bool = False,
) -> Artifact:
    """Write the student as an artifact and, given test rows, compare what it answers in a fresh process with the student.

    `data` says how raw rows were read (`missing`, `encoding`, `grey`, `rate`); `teacher` has a name and a fingerprint. The folder
    appears whole or not at all. ExportError U040-U044 says what is wrong with the file, U045 that the folder is taken.
    """
    to = Path(to)
    if to.exists() and any(to.iterdir()) and not overwrite:
        raise ExportError(f"{to} is not empty; choose another folder or say overwrite", code="U045")
    if to.exists() and any(to.iterdir()) and not (to / "signature.json").exists():
        raise ExportError(f"{to} holds something that is no artifact, which is not overwritten", code="U045")
    to.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}-"))
    made.chmod(0o755)
    try:
        sample = student.encode(sample_rows.inputs)
        exporter = _graphs.to_onnx(student, sample, made / "model.onnx")
        _describe(made, student, sample_rows.kind, sample, dict(data or {}))
        figures, answers = _checked(made, student, test_rows, tolerance)
        _write(made / "export.json", {"name": student.name, "exporter": exporter, "teacher": teacher, "parity": figures})
        _finish(made, scorecard)
        if to.exists():
            shutil.rmtree(to)
        made.rename(to)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return Artifact(to, exporter, figures, answers)


def check_exportable(student: Student, sample: Any) -> list[Problem]:
    """Whether an untrained student can be written as ONNX, tried on encoded rows; nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _graphs.to_onnx(student, sample, Path(folder) / "model.onnx")
        except ExportError as error:
            told = f"student {student.name!r} could be trained but not exported: {error.args[0]}"
            return [Problem(error.code, f"{told}\nWrite that layer with operations that ONNX has, or take a built-in student")]
    return []


def add_scorecard(folder: str | Path, scorecard: Mapping[str, Any]) -> None:
    """Put a scorecard into an artifact: scorecard.json, the model card and the checksums."""
    _finish(Path(folder), scorecard)


def verify_checksums(folder: str | Path) -> None:
    """ExportError U046 names the files of an artifact that changed, went or came since it was written."""
    folder = Path(folder)
    try:
        said = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{folder} is no complete artifact: there is no {CHECKSUMS}", code="U046") from None
    there = _checksums(folder)
    wrong = [f"{name} is gone" for name in said if name not in there]
    wrong += [f"{name} changed" for name in said if name in there and there[name] != said[name]]
    if wrong:
        raise ExportError(f"the artifact in {folder} is not as it was written: {', '.join(wrong)}", code="U046")


def open_session(folder: str | Path, threads: int = 1) -> Callable[[Any], Any]:
    """What answers encoded rows with the artifact's graph, or each of several inputs by name: probabilities or values [rows, outputs]."""
    session = _graphs.open_session(Path(folder) / "model.onnx", threads)
    names = [session.get_outputs()[0].name]
    padding = _read(Path(folder) / "preprocessing.json").get("padding")

    def ask(rows: Any) -> Any:
        if isinstance(rows, Mapping):
            return session.run(names, dict(rows))[0]
        given = rows if padding is None else np.ascontiguousarray(trimmed(torch.from_numpy(rows), padding))
        return session.run(names, {_graphs.INPUT: given})[0]

    return ask


def needed(folder: str | Path) -> str:
    """The packages that predict.py needs, as a sentence says them."""
    *others, last = packages(_read(Path(folder) / "signature.json"))
    return f"{', '.join(others)} and {last}"


def model_bytes(folder: str | Path) -> int:
    """The size of the model's file."""
    return (Path(folder) / "model.onnx").stat().st_size


def _describe(folder: Path, student: Student, kind: str, sample: Any, data: dict[str, Any]) -> None:
    """What a user of the file must know: signature, class names, what happens before the graph; and the code that does it."""
    task, graph = student.task, onnx.load(folder / "model.onnx").graph
    layout = student.encoding if isinstance(student.encoding, PairEncoding) else None
    read = [_input(_graphs.INPUT, kind, sample)]
    if layout is not None:
        read = [_input(*each) for each in zip(layout.names, layout.kinds, layout.split(sample), strict=True)]
    # a graph that takes clips of any length says no number
    frames = [graph.output[0].type.tensor_type.shape.dim[1].dim_value or "frames"] if task.kind == "recognition" else []
    outputs = [{"name": output.name, "dtype": "float32", "shape": ["rows", *frames, task.outputs]} for output in graph.output]
    _write(folder / "signature.json", {"format": FORMAT, "task": task.kind, "inputs": read, "outputs": outputs})
    _write(folder / "labels.json", {"task": task.kind, "classes": list(task.classes)})
    if layout is None:
        before = _before(folder, kind, student.encoding, sample, data, "tokenizer.json")
    else:
        columns, inputs = data.get("columns", {}), {}
        for name, one, encoding, part in zip(layout.names, layout.kinds, layout.encodings, layout.split(sample), strict=True):
            own = data | {"text": columns.get(name, name)}
            blank = {"blank": layout.blank(name), "column": columns.get(name, name)}
            inputs[name] = _before(folder, one, encoding, part, own, f"tokenizer-{name}.json") | blank
        before = {"kind": kind, "inputs": inputs, "encoding": data.get("encoding", "utf-8")}
    _write(folder / "preprocessing.json", before)
    shutil.copyfile(Path(__file__).with_name("predict_template.py"), folder / "predict.py")


def _input(name: str, kind: str, sample: Any) -> dict[str, Any]:
    return {"name": name, "dtype": str(sample.dtype).removeprefix("torch."), "shape": ["rows", *sample.shape[1:]], "kind": kind}


def _before(folder: Path, kind: str, encoding: Any, sample: Any, data: dict[str, Any], tokenizer: str) -> dict[str, Any]:
    """What predict.py does to one raw input before the graph; the tokenizer of texts is written to its own file."""
    before: dict[str, Any] = {"kind": kind}
    if isinstance(encoding, TextEncoding):
        before |= {**encoding.to_json(), "tokenizer": tokenizer, "encoding": data.get("encoding", "utf-8")}
        columns = data.get("text") or (["text", "second"] if encoding.pairs else ["text"])
        before |= {"columns": [columns] if isinstance(columns, str) else list(columns), "join": data.get("join")}
        (folder / tokenizer).write_text(encoding.tokenizer, encoding="utf-8")
    elif encoding is not None:
        before |= encoding.to_json()
        before |= {"missing": list(data.get("missing", ["?"])), "encoding": data.get("encoding", "utf-8")}
    if kind == "image":
        height, width, channels = sample.shape[1:]
        before |= {"size": [height, width], "grey": channels == 1, "resize": "bilinear"}
    if kind == "audio":
        before |= {"rate": data.get("rate", 16000), "samples": sample.shape[1]}
    return before


def _checked(folder: Path, student: Student, rows: Rows | None, tolerance: float) -> tuple[dict[str, Any] | None, Any]:
    if rows is None or not len(rows):
        return None, None
    task = student.task
    said = student.signals(rows.inputs)[task.signal].numpy()
    encoded = student.encode(rows.inputs)
    parts: Any = encoded.numpy()
    if isinstance(student.encoding, PairEncoding):
        split = student.encoding.split(encoded)
        parts = {name: part.numpy() for name, part in zip(student.encoding.names, split, strict=True)}
    figures = parity(folder, _probabilities(said, task), parts, raw=rows.inputs, kind=rows.kind, task=task, tolerance=tolerance)
    return figures, _signal(figures.pop("answers"), task)


def _probabilities(said: np.ndarray[Any, Any], task: Task) -> np.ndarray[Any, Any]:
    if task.kind in ("regression", "matching"):
        return said
    logits = said.astype(np.float64)
    if task.kind == "multilabel":
        return np.asarray(0.5 * (1 + np.tanh(logits / 2)))
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _signal(answers: Mapping[str, np.ndarray[Any, Any]], task: Task) -> np.ndarray[Any, Any]:
    """The file's answers as a student gives them: logits, which are log-probabilities where the graph has no logits, or values."""
    if task.signal in answers:
        return answers[task.signal]
    chance = answers["probabilities"].astype(np.float64)
    if task.kind == "multilabel":
        chance = chance.clip(FLOOR, 1 - FLOOR)
        return np.asarray(np.log(chance) - np.log1p(-chance), dtype=np.float32)
    return np.asarray(np.log(chance.clip(FLOOR)), dtype=np.float32)


def _finish(folder: Path, scorecard: Mapping[str, Any] | None) -> None:
    """Write the model card and, last, the checksums."""
    (folder / CHECKSUMS).unlink(missing_ok=True)
    if scorecard is not None:
        _write(folder / "scorecard.json", dict(scorecard))
    signature, labels, preprocessing, about = (
        _read(folder / f"{name}.json") for name in ("signature", "labels", "preprocessing", "export")
    )
    text = card(
        about["name"],
        Task(labels["task"], tuple(labels["classes"])),
        signature,
        preprocessing,
        teacher=about["teacher"],
        parity=about["parity"],
        scorecard=scorecard,
        size=model_bytes(folder),
        exporter=about["exporter"],
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    _write(folder / CHECKSUMS, _checksums(folder))


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != CHECKSUMS)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, said: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")
    part.replace(path)
