"""A student: a small model with everything it needs to read raw rows.

Either a torch module (encoded rows -> logits or values, preprocessing included) or an estimator in scikit-learn's manner
behind a preprocessing module. Both answer `signals` as a teacher does, so that the same code measures them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from understudy.data.encoding import TableEncoding
from understudy.data.pairs import PairEncoding
from understudy.data.rows import narrowed, taken
from understudy.data.tokenizing import TextEncoding
from understudy.errors import InputError
from understudy.signals import Signals
from understudy.students.preprocessing import from_spec
from understudy.tasks import Task

FLOOR = 1e-7
"""The smallest probability an estimator's answer may have as a logit."""

MODULE, ESTIMATOR, CARD = "model.safetensors", "estimator", "student.json"


@final
@dataclass
class Student:
    """A model under a name, for a task: `module`, or `preprocessing` and `estimator`. `encoding` is for tables and texts."""

    name: str
    task: Task
    encoding: TableEncoding | TextEncoding | PairEncoding | None = None
    module: nn.Module | None = None
    preprocessing: nn.Module | None = None
    estimator: Any = None
    reads: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.module is None) == (self.estimator is None):
            raise InputError("a student is a torch module or an estimator, exactly one of the two", code="U077")

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class names in the order of the logits; None for a regression."""
        return self.task.classes or None

    def encode(self, inputs: Any) -> Tensor:
        """Raw inputs as the module or the preprocessing reads them; arrays and images are not copied."""
        inputs = narrowed(inputs, self.reads)
        array = inputs if self.encoding is None else self.encoding.encode(inputs)
        with warnings.catch_warnings():
            # a read-only memory map is fine: nothing writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.ascontiguousarray(array))

    def features(self, encoded: Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
        """What the estimator reads, float32 [rows, features]."""
        assert self.preprocessing is not None
        with torch.inference_mode():
            pieces = [self.preprocessing(piece).float() for piece in encoded.split(8192)]
        return np.ascontiguousarray(torch.cat(pieces).flatten(1).numpy())

    def signals(self, inputs: Any, batch_size: int = 1024) -> Signals:
        """Answers for raw inputs, on the CPU in float32; the mode of the module is left as it was."""
        pieces = [self._answer(self.encode(taken(inputs, slice(start, start + batch_size)))) for start in range(0, len(inputs), batch_size)]
        return {self.task.signal: torch.cat(pieces) if pieces else torch.zeros(0, self.task.outputs)}

    def _answer(self, encoded: Tensor) -> Tensor:
        if self.module is None:
            return torch.from_numpy(_ask(self.estimator, self.features(encoded), self.task))
        with evaluating(self.module), torch.inference_mode():
            answer = self.module(encoded.to(device_of(self.module))).float().cpu()
        return answer if self.task.kind == "recognition" else answer.reshape(len(encoded), self.task.outputs)

    def parameters(self) -> int | None:
        """Weights of a network, nodes of trees; None for an estimator that has neither."""
        if self.module is not None:
            return sum(weight.numel() for weight in self.module.parameters())
        return _nodes(self.estimator)

    def fingerprint(self) -> dict[str, str]:
        """What identifies this model: a hash of its weights or answers, its kind and the versions behind it."""
        if self.module is not None:
            digest = hashlib.sha256()
            for name, tensor in self.module.state_dict().items():
                digest.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
            return {"kind": "torch", "weights": digest.hexdigest()[:16], "torch": torch.__version__}
        import joblib
        import sklearn

        return {"kind": type(self.estimator).__name__, "estimator": joblib.hash(self.estimator)[:16], "scikit-learn": sklearn.__version__}

    def save(self, folder: str | Path) -> None:
        """Write the model, then student.json: safetensors for a module, skops (or joblib) for an estimator."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        said: dict[str, Any] = {"name": self.name, "task": self.task.to_json()}
        said |= {"encoding": None if self.encoding is None else self.encoding.to_json(), "reads": list(self.reads)}
        if self.module is not None:
            said["file"] = MODULE
            save_model(self.module, str(folder / f"{MODULE}.part"))
        else:
            said["file"] = ESTIMATOR + (".skops" if importlib.util.find_spec("skops") else ".joblib")
            said["preprocessing"] = None if self.preprocessing is None else self.preprocessing.spec
            _dump(self.estimator, folder / f"{said['file']}.part")
        os.replace(folder / f"{said['file']}.part", folder / said["file"])
        (folder / f"{CARD}.part").write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(folder / f"{CARD}.part", folder / CARD)

    @staticmethod
    def load(folder: str | Path, task: Task, *, module: nn.Module | None = None) -> Student:
        """What `save` wrote into a run's folder. A network needs `module`, the same structure, which takes the weights."""
        folder = Path(folder)
        try:
            said = json.loads((folder / CARD).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"no student in {folder}: there is no {CARD}", code="U077") from None
        if Task.from_json(said["task"]) != task:
            raise InputError(f"the student in {folder} is for {said['task']}, asked for {task.to_json()}", code="U077")
        encoding = None if said["encoding"] is None else _encoding(said["encoding"])
        reads = tuple(said.get("reads", ()))
        if said["file"] != MODULE:
            prepared = from_spec(said["preprocessing"]) if said["preprocessing"] else None
            return Student(said["name"], task, encoding, preprocessing=prepared, estimator=_undump(folder / said["file"]), reads=reads)
        if module is None:
            raise InputError(f"the student in {folder} is a network: build the same module and pass it as `module`", code="U077")
        load_weights(module, folder / MODULE)
        return Student(said["name"], task, encoding, module=module, reads=reads)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; every part returns to the mode it was in."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """Where a module's weights or buffers are; the CPU when it has none."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def load_weights(module: nn.Module, file: Path) -> None:
    """Read safetensors into a module, every name and shape in its place."""
    try:
        load_model(module, str(file), strict=True)
    except RuntimeError as error:
        raise InputError(f"the weights in {file} belong to another network: {error}", code="U077") from None


def _encoding(said: dict[str, Any]) -> TableEncoding | TextEncoding | PairEncoding:
    if "names" in said:
        return PairEncoding.from_json(said, [None if inner is None else _encoding(inner) for inner in said["encodings"]])
    return TextEncoding.from_json(said) if "tokenizer" in said else TableEncoding.from_json(said)


def _ask(estimator: Any, features: np.ndarray[Any, Any], task: Task) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Logits or values [rows, outputs], columns in the task's order; a class the estimator never saw has FLOOR."""
    if task.kind == "regression":
        return np.asarray(estimator.predict(features), dtype=np.float32).reshape(len(features), 1)
    said = estimator.predict_proba(features)
    if task.kind == "multilabel":
        chance = _positive(said, estimator.classes_) if isinstance(said, list) else np.asarray(said)
        chance = chance.astype(np.float64).clip(FLOOR, 1 - FLOOR)
        return np.asarray(np.log(chance) - np.log1p(-chance), dtype=np.float32)
    chances = np.zeros((len(features), task.outputs))
    chances[:, [_place(label, task) for label in estimator.classes_]] = said
    return np.asarray(np.log(chances.clip(FLOOR)), dtype=np.float32)


def _place(label: Any, task: Task) -> int:
    """The column of a class that an estimator knows by name or by number."""
    return task.classes.index(label) if isinstance(label, str) else int(label)


def _positive(said: list[Any], classes: list[Any]) -> np.ndarray[Any, Any]:
    """Chance of 1 per output, where an output may have seen 0 alone or 1 alone."""
    columns = [
        answer[:, list(known).index(1)] if 1 in list(known) else np.zeros(len(answer)) for answer, known in zip(said, classes, strict=True)
    ]
    return np.stack(columns, axis=1)


def _nodes(estimator: Any) -> int | None:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.ensemble._forest import BaseForest
    from sklearn.tree import BaseDecisionTree

    if isinstance(estimator, BaseDecisionTree):
        return int(estimator.tree_.node_count)
    if isinstance(estimator, BaseForest):
        return sum(int(tree.tree_.node_count) for tree in estimator.estimators_)
    if isinstance(estimator, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
        return sum(len(tree.nodes) for iteration in estimator._predictors for tree in iteration)
    if type(estimator).__name__ == "PerLabel":
        counts = [_nodes(one) for one in estimator.estimators]
        return None if None in counts else sum(count or 0 for count in counts)
    if type(estimator).__module__.startswith("lightgbm"):
        return sum(2 * int(tree["num_leaves"]) - 1 for tree in estimator.booster_.dump_model()["tree_info"])
    return None


def _dump(estimator: Any, file: Path) -> None:
    if ".skops" in file.suffixes:
        import skops.io

        skops.io.dump(estimator, str(file))
    else:
        import joblib

        joblib.dump(estimator, str(file))


def _undump(file: Path) -> Any:
    """Only ever a file that `save` wrote into the run's own folder."""
    if file.suffix == ".skops":
        import skops.io

        return skops.io.load(str(file), trusted=skops.io.get_untrusted_types(file=str(file)))
    import joblib

    return joblib.load(str(file))
