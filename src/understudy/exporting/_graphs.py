"""A student as one ONNX file: rows in; probabilities (and logits of a network) or values out; preprocessing inside."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from understudy.data.pairs import PairEncoding
from understudy.errors import ExportError
from understudy.exporting._ensembles import tree_node
from understudy.students.preprocessing import ArrayPreprocessing, TablePreprocessing
from understudy.students.student import Student
from understudy.students.trees import PerLabel
from understudy.tasks import Task

OPSET, ML_OPSET, IR = 18, 3, 10
INPUT = "rows"
LENGTHS = (torch.int64, torch.int16)
"""Tokens and sound: what a row may have more or fewer of."""
TYPES = {torch.float32: TensorProto.FLOAT, torch.uint8: TensorProto.UINT8}


def to_onnx(student: Student, sample: Tensor, path: Path) -> str:
    """Write the student as ONNX; gives the exporter that did it.

    `sample` holds encoded rows, at least one. Raises ExportError U041 when no exporter's file gives the student's answers
    at every batch size.
    """
    sample = sample[:2] if len(sample) > 1 else torch.cat([sample, sample])
    if student.module is not None and isinstance(student.encoding, PairEncoding):
        joint = _AnsweringTogether(_ready(student.module), student.task)
        parts = dict(zip(student.encoding.names, student.encoding.split(sample), strict=True))
        return _export_network(joint, parts, _outputs(student.task, network=True), path)
    if student.module is not None:
        return _export_network(_Answering(_ready(student.module), student.task), sample, _outputs(student.task, network=True), path)
    assert student.preprocessing is not None
    model, exporter = _estimator_model(student.estimator, student.task, _features(student.preprocessing, sample), sample)
    if not _is_identity(student.preprocessing, sample):
        front = path.with_suffix(".front.onnx")
        exporter += " after " + _export_network(_ready(student.preprocessing), sample, ["features"], front)
        model = _joined(onnx.load(front), model)
        front.unlink()
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return exporter


def open_session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@final
class _Answering(nn.Module):
    """A network that says probabilities beside its logits, or values alone."""

    def __init__(self, network: nn.Module, task: Task) -> None:
        super().__init__()
        self.network = network
        self.kind = task.kind

    def forward(self, rows: Tensor) -> Any:
        return _said(self.network(rows), self.kind)


@final
class _AnsweringTogether(nn.Module):
    """A network of several inputs that says the same, and reads each of them by its name rather than rows of bytes."""

    def __init__(self, module: nn.Module, task: Task) -> None:
        super().__init__()
        assert isinstance(module, nn.Sequential)
        self.network = module[1:]
        self.kind = task.kind

    def forward(self, *parts: Tensor) -> Any:
        return _said(self.network(list(parts)), self.kind)


def _said(answers: Tensor, kind: str) -> Any:
    if kind in ("regression", "matching"):
        return answers
    return (torch.sigmoid(answers) if kind == "multilabel" else torch.softmax(answers, dim=-1)), answers


def _outputs(task: Task, *, network: bool) -> list[str]:
    if task.kind in ("regression", "matching"):
        return [task.signal]
    return ["probabilities", "logits"] if network else ["probabilities"]


def _ready(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).cpu().float().eval()


def _features(preprocessing: nn.Module, sample: Tensor) -> int:
    with torch.no_grad():
        return int(_ready(preprocessing)(sample).shape[1])


def _is_identity(preprocessing: nn.Module, sample: Tensor) -> bool:
    if isinstance(preprocessing, TablePreprocessing):
        return preprocessing.identity
    if isinstance(preprocessing, ArrayPreprocessing):
        return not preprocessing.scale and sample.ndim == 2 and sample.dtype == torch.float32
    return isinstance(preprocessing, nn.Identity)


# --- networks -------------------------------------------------------------------------------------------------------


def _export_network(module: nn.Module, sample: Tensor | dict[str, Tensor], outputs: list[str], path: Path) -> str:
    """Write the module; `sample` is a batch of its one input, or of each of its inputs by name."""
    module.eval()
    sample = sample if isinstance(sample, dict) else {INPUT: sample}
    exporters: dict[str, Callable[..., None]] = {"torch.onnx dynamo": _dynamo, "torch.onnx torchscript": _torchscript}
    reasons = []
    # sound of any length where the network bears it, else of the length that it was trained with
    tries = [LENGTHS, (torch.int64,)] if any(part.dtype == torch.int16 for part in sample.values()) else [LENGTHS]
    for free, (name, exporter) in itertools.product(tries, exporters.items()):
        try:
            with _quiet():
                exporter(module, sample, outputs, path, free)
            difference = _difference(module, sample, path, free)
        except Exception as error:
            reasons.append(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300])
            continue
        if difference <= 1e-3:
            return name
        reasons.append(f"{name}: its answers differ by {difference:.2g}")
    raise ExportError("the network cannot be written as ONNX:\n  " + "\n  ".join(reasons), code="U041")


def _dynamo(module: nn.Module, sample: dict[str, Tensor], outputs: list[str], path: Path, free: Sequence[torch.dtype]) -> None:
    axes = tuple(_dynamic(part, free) for part in sample.values())
    torch.onnx.export(
        module,
        tuple(sample.values()),
        str(path),
        input_names=list(sample),
        output_names=outputs,
        dynamic_shapes=(axes,) if isinstance(module, _AnsweringTogether) else axes,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _dynamic(sample: Tensor, free: Sequence[torch.dtype]) -> dict[int, Any]:
    """The axes whose length is free: rows, and the tokens of texts or the samples of sound."""
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    return axes | {sample.ndim - 1: torch.export.Dim.DYNAMIC} if sample.dtype in free else axes


def _torchscript(module: nn.Module, sample: dict[str, Tensor], outputs: list[str], path: Path, free: Sequence[torch.dtype]) -> None:
    axes = {name: {0: "batch"} for name in (*sample, *outputs)}
    for name, part in sample.items():
        axes[name] |= {part.ndim - 1: "length"} if part.dtype in free else {}
    said: dict[str, Any] = {"input_names": list(sample), "output_names": outputs, "dynamic_axes": axes, "opset_version": OPSET}
    torch.onnx.export(module, tuple(sample.values()), str(path), dynamo=False, **said)


def _difference(module: nn.Module, sample: dict[str, Tensor], path: Path, free: Sequence[torch.dtype]) -> float:
    """The largest relative difference of the file from the module at batch 1 and 3, and half of a text or clip: no exporter saw those."""
    session = open_session(path)
    largest = 0.0
    tried = [{name: part[torch.arange(batch) % len(part)] for name, part in sample.items()} for batch in (1, 3)]
    half = {name: part[..., : max(1, part.shape[-1] // 2)] if part.dtype in free else part for name, part in sample.items()}
    for rows in [*tried, half]:
        with torch.no_grad():
            said = module(*rows.values())
        given = {name: part.numpy() for name, part in rows.items()}
        for ours, theirs in zip(said if isinstance(said, tuple) else (said,), session.run(None, given), strict=True):
            scale = max(1.0, float(ours.abs().max()))
            gap = np.abs(ours.numpy() - theirs).max() if ours.shape == theirs.shape else np.inf
            largest = max(largest, float(gap) / scale if np.isfinite(gap) else np.inf)
    return largest


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print, warn and log about their own affairs; what matters is checked on the file they write."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            with _silent_output():
                yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _silent_output() -> Iterator[None]:
    """The older exporter prints whole graphs from C++ when it fails, past Python's own standard output."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


# --- estimators -----------------------------------------------------------------------------------------------------


def _estimator_model(estimator: Any, task: Task, features: int, sample: Tensor) -> tuple[ModelProto, str]:
    (output,) = _outputs(task, network=False)
    node = tree_node(estimator, task, reads=INPUT, gives=output)
    if node is not None:
        return _model([node], [], features, task, output), "one TreeEnsemble node"
    members = estimator.estimators if isinstance(estimator, PerLabel) else [estimator]
    nodes: list[NodeProto] = []
    initializers: list[TensorProto] = []
    parts: list[str] = []
    for label, member in enumerate(members):
        graph = _converted(member, features, prefix=f"m{label}_")
        nodes += graph.node
        initializers += graph.initializer
        answers = graph.output[-1].name
        matrix = _columns(member, task, label if isinstance(estimator, PerLabel) else None)
        initializers.append(numpy_helper.from_array(matrix, f"columns_{label}"))
        parts.append(f"part_{label}")
        if task.kind == "regression":
            nodes.append(helper.make_node("Reshape", [answers, f"columns_{label}"], [parts[-1]]))
        else:
            nodes.append(helper.make_node("MatMul", [answers, f"columns_{label}"], [parts[-1]]))
    nodes.append(helper.make_node("Sum", parts, [output]))
    return _model(nodes, initializers, features, task, output), "skl2onnx"


def _converted(estimator: Any, features: int, prefix: str) -> Any:
    import skl2onnx
    from sklearn.base import is_classifier

    options = {"zipmap": False} if is_classifier(estimator) else None
    try:
        with _quiet():
            model = skl2onnx.to_onnx(
                estimator, np.zeros((1, features), dtype=np.float32), options=options, target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET}
            )
    except Exception as error:
        name = type(estimator).__name__
        raise ExportError(
            f"{name} cannot be written as ONNX ({str(error).strip().splitlines()[0]}). Use tree or boosted", code="U041"
        ) from None
    reads = model.graph.input[0].name
    renamed = onnx.compose.add_prefix_graph(model.graph, prefix)
    for node in renamed.node:
        node.input[:] = [INPUT if name == prefix + reads else name for name in node.input]
    return renamed


def _columns(estimator: Any, task: Task, label: int | None) -> np.ndarray[Any, Any]:
    """What takes an estimator's own columns to the task's: a matrix, or the shape of a regression's answer."""
    if task.kind == "regression":
        return np.array([-1, 1], dtype=np.int64)
    codes = [int(code) for code in estimator.classes_]
    matrix = np.zeros((len(codes), task.outputs), dtype=np.float32)
    for column, code in enumerate(codes):
        if label is None:
            matrix[column, code] = 1
        elif code == 1:
            matrix[column, label] = 1
    return matrix


def _model(nodes: list[NodeProto], initializers: list[TensorProto], features: int, task: Task, output: str) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", features])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", task.outputs])],
        initializer=initializers,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR, producer_name="understudy")


def _joined(front: ModelProto, back: ModelProto) -> ModelProto:
    front.ir_version = IR
    back = onnx.compose.add_prefix(back, "student/", rename_outputs=False)
    reads = back.graph.input[0].name
    return onnx.compose.merge_models(front, back, io_map=[("features", reads)])
