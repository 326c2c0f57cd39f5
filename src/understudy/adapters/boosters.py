"""XGBoost (.json, .ubj) and LightGBM (.txt) models in their own file formats, which run no code when loaded.

Their scikit-learn estimators in .joblib files are read by understudy.adapters.sklearn. Raw scores are logits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from understudy.adapters._loading import existing, file_digest, require
from understudy.answers import Output, to_logits
from understudy.errors import TeacherError, did_you_mean
from understudy.signals import Signals
from understudy.tasks import Task


def load(path: str | Path, *, task: Task, classes: Sequence[str] | None = None) -> BoosterTeacher:
    """The booster in a native file, told by its ending."""
    path = existing(path)
    return _load_lightgbm(path, task, classes) if path.suffix == ".txt" else _load_xgboost(path, task, classes)


@final
class BoosterTeacher:
    """A native booster: `ask` gives raw scores [rows] or [rows, classes] for columns that are arranged by name."""

    def __init__(
        self,
        ask: Callable[[Any], np.ndarray[Any, Any]],
        *,
        task: Task,
        name: str,
        classes: Sequence[str] | None,
        features: Sequence[str] | None,
        width: int,
        fingerprint: dict[str, str],
        size: int,
    ) -> None:
        self.name = name
        self.task = task
        self.classes = None if classes is None else tuple(classes)
        self._ask = ask
        self._features = features
        self._width = width
        self._fingerprint = fingerprint
        self._size = size

    def signals(self, inputs: Any) -> Signals:
        arranged = self._arrange(inputs)
        try:
            said = np.asarray(self._ask(arranged), dtype=np.float32).reshape(len(inputs), -1)
        except (ValueError, TypeError, RuntimeError) as error:
            raise TeacherError(f"{self.name} cannot answer these rows: {str(error).splitlines()[0]}", code="U031") from error
        output: Output = "values" if self.task.kind == "regression" else "logits"
        return {self.task.signal: to_logits(torch.from_numpy(said), output, self.task)}

    def fingerprint(self) -> dict[str, str]:
        return dict(self._fingerprint)

    def parameters(self) -> int:
        return self._size

    def _arrange(self, inputs: Any) -> Any:
        import pandas as pd

        table = isinstance(inputs, pd.DataFrame)
        frame = inputs if table else pd.DataFrame(np.asarray(inputs).reshape(len(inputs), -1))
        if table and self._features is not None:
            lacking = [name for name in self._features if name not in frame.columns]
            if lacking:
                raise TeacherError(
                    f"the teacher was fitted with column {lacking[0]!r}, which the data lacks; "
                    f"{did_you_mean(lacking[0], map(str, frame.columns))}",
                    code="U031",
                )
            return frame[list(self._features)]
        if frame.shape[1] != self._width:
            raise TeacherError(f"the teacher was fitted on {self._width} columns, the data has {frame.shape[1]}", code="U031")
        return frame.set_axis(list(self._features), axis=1) if self._features is not None else frame


def _as_categories(frame: Any, categorical: Sequence[bool]) -> Any:
    return frame.assign(**{name: frame[name].astype("category") for name, flag in zip(frame.columns, categorical, strict=True) if flag})


def _load_xgboost(path: Path, task: Task, classes: Sequence[str] | None) -> BoosterTeacher:
    xgboost = require("xgboost", "boosters")
    booster = xgboost.Booster()
    try:
        booster.load_model(path)
        learner = json.loads(booster.save_config())["learner"]
    except (xgboost.core.XGBoostError, ValueError, KeyError) as error:
        raise TeacherError(f"{path} is no XGBoost model: {str(error).splitlines()[0]}", code="U032") from None
    objective = learner["objective"]["name"]
    _refuse_objective(path, objective, task, regression=not objective.startswith(("binary:", "multi:", "rank:")))
    # Without recorded types every column was a number.
    categorical = [kind == "c" for kind in booster.feature_types or ["float"] * booster.num_features()]

    def ask(frame: Any) -> np.ndarray[Any, Any]:
        matrix = xgboost.DMatrix(_as_categories(frame, categorical), enable_categorical=True, feature_names=booster.feature_names)
        return np.asarray(booster.predict(matrix, output_margin=task.kind != "regression"))

    return BoosterTeacher(
        ask,
        task=task,
        name=path.name,
        classes=classes,
        features=booster.feature_names,
        width=booster.num_features(),
        fingerprint={"content": file_digest(path), "xgboost": xgboost.__version__},
        size=sum(tree.count("\n") for tree in booster.get_dump()) * 5,
    )


def _load_lightgbm(path: Path, task: Task, classes: Sequence[str] | None) -> BoosterTeacher:
    lightgbm = require("lightgbm", "boosters")
    try:
        booster = lightgbm.Booster(model_file=str(path))
        said = booster.dump_model()
    except (lightgbm.basic.LightGBMError, ValueError) as error:
        raise TeacherError(f"{path} is no LightGBM model: {str(error).splitlines()[0]}", code="U032") from None
    objective = str(said.get("objective", "")).split(" ")[0]
    scores = ("binary", "multiclass", "multiclassova", "cross_entropy", "lambdarank")
    _refuse_objective(path, objective, task, regression=objective not in scores)
    features = list(booster.feature_name())
    levels = [bool(said["feature_infos"].get(name, {}).get("values")) for name in features]

    def ask(frame: Any) -> np.ndarray[Any, Any]:
        categorical = [flag or frame[name].dtype.kind not in "iufb" for name, flag in zip(frame.columns, levels, strict=True)]
        scores = np.asarray(booster.predict(_as_categories(frame, categorical), raw_score=task.kind != "regression"))
        # One-against-all scores are separate sigmoids, not a softmax.
        return np.asarray(-np.logaddexp(0, -scores)) if objective == "multiclassova" else scores

    unnamed = features == [f"Column_{number}" for number in range(len(features))]
    return BoosterTeacher(
        ask,
        task=task,
        name=path.name,
        classes=classes,
        features=None if unnamed else features,
        width=len(features),
        fingerprint={"content": file_digest(path), "lightgbm": lightgbm.__version__},
        size=sum(tree["num_leaves"] * 2 - 1 for tree in said["tree_info"]) * 5,
    )


def _refuse_objective(path: Path, objective: str, task: Task, *, regression: bool) -> None:
    if regression != (task.kind == "regression") or task.kind == "multilabel":
        raise TeacherError(f"{path} was trained with objective {objective!r}, the task is {task.kind}", code="U032")
