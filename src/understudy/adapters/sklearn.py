"""scikit-learn estimators as teachers: fitted ones from .skops, .joblib or .pkl files, and ones trained here from labels.

Anything with scikit-learn's interface works, so XGBoost's and LightGBM's estimators and whole pipelines do too.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor

from understudy.adapters._loading import existing, file_digest, refuse_untrusted, require
from understudy.answers import FLOOR, to_logits
from understudy.errors import TeacherError, did_you_mean
from understudy.signals import Signals
from understudy.tasks import Task
from understudy.teachers import digest

_SELF_SCORING = (
    "Forest",
    "Tree",
    "GradientBoosting",
    "XGB",
    "LGBM",
    "CatBoost",
    "Neighbors",
    "Bagging",
    "AdaBoost",
    "GaussianProcess",
)


def load(path: str | Path, *, task: Task, trust: bool = False, classes: Sequence[str] | None = None) -> SklearnTeacher:
    """The fitted estimator in a file; .joblib and .pkl need trust, .skops only for types it does not know."""
    path = existing(path)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        estimator = _read_skops(path, trust) if path.suffix == ".skops" else _read_pickle(path, trust)
    for warning in heard:
        if type(warning.message).__name__ == "InconsistentVersionWarning":
            # The rest of its text is a link to a page.
            said = str(warning.message).split(". ")[0]
            raise TeacherError(f"{path}: {said}. Install the version it was saved with, or fit and save it again", code="U032")
    return SklearnTeacher(estimator, task=task, name=path.name, classes=classes, content=file_digest(path))


def save(teacher: SklearnTeacher, path: str | Path) -> None:
    """Keep a teacher's estimator in a .joblib file, which is whole or absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    require("joblib", "core").dump(teacher.estimator, part)
    part.replace(path)


def _read_skops(path: Path, trust: bool) -> Any:
    skops = require("skops.io", "skops")
    try:
        unknown = skops.get_untrusted_types(file=path)
        if unknown:
            refuse_untrusted(path, trust, what=f" (it holds types that are not known to be safe: {', '.join(unknown)})")
        return skops.load(path, trusted=unknown)
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        raise TeacherError(f"{path} cannot be read as skops: {error}", code="U032") from error


def _read_pickle(path: Path, trust: bool) -> Any:
    refuse_untrusted(path, trust)
    import joblib

    try:
        return joblib.load(path)
    except (ImportError, AttributeError) as error:
        raise TeacherError(f"{path} needs code that is not here: {error}. Install that package", code="U032") from error
    except (pickle.UnpicklingError, EOFError, ValueError, OSError, KeyError, IndexError) as error:
        raise TeacherError(f"{path} cannot be read: {error}", code="U032") from error


@final
class SklearnTeacher:
    """A fitted estimator behind the Teacher contract: predict_proba, else decision_function, else predict (regression).

    `columns` are the estimator's columns among `classes` where it knows fewer (a fold without a class).
    """

    def __init__(
        self,
        estimator: Any,
        *,
        task: Task,
        name: str = "estimator",
        classes: Sequence[str] | None = None,
        content: str | None = None,
        columns: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self.estimator = estimator
        self.task = task
        self.name = name
        _refuse_wrong_kind(estimator, task)
        own = _class_names(estimator, task)
        if classes is not None and own is not None and columns is None and len(classes) != len(own):
            raise TeacherError(
                f"teacher.classes names {len(classes)} classes, the estimator answers {len(own)} ({', '.join(own[:8])})", code="U010"
            )
        self.classes = tuple(classes) if classes is not None else own
        self._columns = columns
        self._content = content

    @property
    def self_scoring(self) -> bool:
        return is_self_scoring(self.estimator)

    def signals(self, inputs: Any) -> Signals:
        arranged = arrange(self.estimator, inputs)
        try:
            said = self._ask(arranged)
        except (ValueError, TypeError, AttributeError) as error:
            wrong_kind = "DataFrame" in type(inputs).__name__ and _reads_texts(self.estimator)
            hint = ". It begins with a vectorizer of texts: name their column, data.text = 'COLUMN'" if wrong_kind else ""
            raise TeacherError(f"{self.name} cannot answer these rows: {error}{hint}", code="U031") from error
        if self._columns is not None and self.classes is not None:
            full = torch.full((len(said), len(self.classes)), float(np.log(FLOOR)), dtype=torch.float32)
            full[:, torch.from_numpy(self._columns)] = said
            said = full
        return {self.task.signal: said}

    def fingerprint(self) -> dict[str, str]:
        versions = require("sklearn", "core").__version__
        return {
            "estimator": type(self.estimator).__name__,
            "content": self._content or digest(pickle.dumps(self.estimator)),
            "scikit-learn": versions,
        }

    def parameters(self) -> int | None:
        return count_parameters(self.estimator)

    def refit(self, inputs: Any, labels: np.ndarray[Any, Any]) -> SklearnTeacher:
        """A clone fitted on these rows; `labels` index this teacher's classes."""
        from sklearn.base import clone

        fresh, columns = clone(self.estimator), None
        if self.task.kind == "regression":
            target = labels.reshape(len(labels), -1)[:, 0]
        elif self.task.kind == "multilabel":
            target = labels.astype(np.int64)
        else:
            known = np.asarray(self.estimator.classes_)
            present = np.unique(labels)
            if len(present) < 2:
                raise TeacherError("a fold's training part has one class only; set teaching.out_of_fold to fewer folds or 0", code="U018")
            # Boosters want 0..k-1 without gaps, whatever classes the fold has.
            gapless = known.dtype.kind in "iu" and np.array_equal(known, np.arange(len(known)))
            target = np.searchsorted(present, labels) if gapless else known[labels]
            columns = present if len(present) < len(known) else None
        fresh.fit(_as_fitted(self.estimator, inputs), target)
        return SklearnTeacher(fresh, task=self.task, name=self.name, classes=self.classes, columns=columns)

    def _ask(self, inputs: Any) -> Tensor:
        names = dir(self.estimator)
        if self.task.kind == "regression":
            return torch.as_tensor(np.asarray(self.estimator.predict(inputs), dtype=np.float32).reshape(len(inputs), -1))
        if "predict_proba" in names:
            said = self.estimator.predict_proba(inputs)
            if isinstance(said, list):
                said = np.stack([_positive(part, known) for part, known in zip(said, self.estimator.classes_, strict=True)], axis=1)
            return to_logits(torch.as_tensor(np.asarray(said, dtype=np.float64)), "probabilities", self.task)
        margins = torch.as_tensor(np.asarray(self.estimator.decision_function(inputs), dtype=np.float32))
        return to_logits(margins[:, None] if margins.ndim == 1 else margins, "logits", self.task)


def _positive(said: np.ndarray[Any, Any], known: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    where = np.flatnonzero(np.asarray(known).astype(np.float64) == 1)
    return np.asarray(said[:, where[0]]) if len(where) else np.zeros(len(said))


def _refuse_wrong_kind(estimator: Any, task: Task) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    names = dir(estimator)
    if "predict" not in names or "fit" not in names:
        raise TeacherError(f"the file holds a {type(estimator).__name__}, not an estimator with fit and predict", code="U032")
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise TeacherError(f"{type(estimator).__name__} is not fitted; fit it before saving it", code="U032") from None
    scores = "predict_proba" in names or "decision_function" in names
    if task.kind != "regression" and not scores:
        raise TeacherError(
            f"{type(estimator).__name__} gives no class scores (no predict_proba, no decision_function); the task is {task.kind}. "
            "Use a classifier, SVC(probability=True) or CalibratedClassifierCV",
            code="U032",
        )
    if task.kind == "regression" and scores:
        raise TeacherError(f"{type(estimator).__name__} is a classifier, the task is regression; give a regressor", code="U032")


def _class_names(estimator: Any, task: Task) -> tuple[str, ...] | None:
    known = getattr(estimator, "classes_", None)
    if task.kind == "regression" or known is None or isinstance(known, list):
        return None
    if task.kind == "multilabel" and list(known) == list(range(len(known))):
        return None
    return tuple(class_name(value) for value in known)


def class_name(value: Any) -> str:
    """A class as text: 3.0 is '3'."""
    return str(int(value)) if isinstance(value, float | np.floating) and float(value).is_integer() else str(value)


def arrange(estimator: Any, inputs: Any) -> Any:
    """The inputs as the estimator was fitted on them: columns by name and in its order, or an array of the right width."""
    wanted = getattr(estimator, "feature_names_in_", None)
    width = getattr(estimator, "n_features_in_", None)
    given = _as_fitted(estimator, inputs)
    if wanted is not None and "DataFrame" in type(given).__name__:
        lacking = [str(name) for name in wanted if name not in given.columns]
        if lacking:
            raise TeacherError(
                f"the teacher was fitted with column {lacking[0]!r} (and {len(lacking) - 1} more that are missing), which the data lacks; "
                f"{did_you_mean(lacking[0], map(str, given.columns))}",
                code="U031",
            )
        return given[list(wanted)]
    if width is not None and given.shape[1] != width:
        raise TeacherError(f"the teacher was fitted on {width} columns, the data has {given.shape[1]}", code="U031")
    return given


def _as_fitted(estimator: Any, inputs: Any) -> Any:
    wanted = getattr(estimator, "feature_names_in_", None)
    if "DataFrame" in type(inputs).__name__:
        return inputs if wanted is not None else inputs.to_numpy()
    if np.asarray(inputs).dtype == object:
        return inputs  # texts, as a vectorizer reads them
    flat = np.asarray(inputs).reshape(len(inputs), -1)
    if wanted is None or len(wanted) != flat.shape[1]:
        return flat
    import pandas as pd

    return pd.DataFrame(flat, columns=list(wanted))


def _reads_texts(estimator: Any) -> bool:
    steps = getattr(estimator, "steps", [("", estimator)])
    return type(steps[0][1]).__name__.endswith("Vectorizer")


def is_self_scoring(estimator: Any) -> bool:
    """Whether the estimator (or the last one inside it) remembers its training rows: trees, forests, boosters, neighbours."""
    if any(word in type(estimator).__name__ for word in _SELF_SCORING):
        return True
    steps = getattr(estimator, "steps", None)
    if steps:
        return is_self_scoring(steps[-1][1])
    inner = [getattr(estimator, name, None) for name in ("best_estimator_", "estimator", "base_estimator", "final_estimator_")]
    members = getattr(estimator, "estimators", None) or []
    inner += [member[1] if isinstance(member, tuple) else member for member in members]
    return any(is_self_scoring(one) for one in inner if one is not None and not isinstance(one, str))


def count_parameters(estimator: Any) -> int | None:
    """Learned numbers: coefficients, or the nodes of trees (five numbers each); None where it cannot be told."""
    steps = getattr(estimator, "steps", None)
    if steps:
        return count_parameters(steps[-1][1])
    tree = getattr(estimator, "tree_", None)
    if tree is not None:
        return int(tree.node_count) * 5
    members = getattr(estimator, "estimators_", None)
    if members is not None:
        counts = [count_parameters(member) for member in np.asarray(members, dtype=object).ravel()]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None
    stages = getattr(estimator, "_predictors", None)
    if stages is not None:
        return sum(len(part.nodes) for stage in stages for part in stage) * 5
    coefficients = getattr(estimator, "coef_", None)
    if isinstance(coefficients, np.ndarray):
        return int(coefficients.size + np.size(getattr(estimator, "intercept_", 0)))
    layers = getattr(estimator, "coefs_", None)
    return sum(int(np.size(layer)) for layer in [*layers, *estimator.intercepts_]) if layers is not None else None


def train_estimator(
    kind: Literal["forest", "boosted"],
    inputs: Any,
    labels: np.ndarray[Any, Any],
    task: Task,
    *,
    options: dict[str, Any] | None = None,
    seed: int = 0,
) -> SklearnTeacher:
    """A forest or boosted trees fitted on the labelled rows, categories and missing values included; images are flattened."""
    rows = task.labelled(labels)
    known = inputs[rows] if "DataFrame" not in type(inputs).__name__ else inputs.loc[rows]
    known = known if "DataFrame" in type(inputs).__name__ else np.asarray(known).reshape(int(rows.sum()), -1)
    if not len(known):
        raise TeacherError("no row has a label: a teacher cannot be trained", code="U032")
    columns = None
    if task.single_label:
        target = np.asarray(task.classes, dtype=object)[labels[rows]].astype(str)
        present = sorted(set(target))
        columns = np.array([task.classes.index(name) for name in present])
    else:
        target = labels[rows].astype(np.int64) if task.kind == "multilabel" else labels[rows][:, 0]
    try:
        estimator = _pipeline(kind, known, task, options or {}, seed)
        estimator.fit(known, target)
    except (TypeError, ValueError) as error:
        raise TeacherError(f"the teacher '{kind}' cannot be trained: {error}", code="U032") from error
    in_order = columns is None or list(columns) == list(range(len(task.classes)))
    return SklearnTeacher(estimator, task=task, name=kind, classes=task.classes or None, columns=None if in_order else columns)


def _pipeline(kind: str, inputs: Any, task: Task, options: dict[str, Any], seed: int) -> Any:
    from sklearn import ensemble
    from sklearn.compose import ColumnTransformer
    from sklearn.multioutput import MultiOutputClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OrdinalEncoder

    table = "DataFrame" in type(inputs).__name__
    text = [column for column in inputs.columns if inputs[column].dtype.kind not in "iufb"] if table else []
    codes = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, max_categories=250)
    steps = [("columns", ColumnTransformer([("categories", codes, text)], remainder="passthrough"))] if text else []
    ending = "Regressor" if task.kind == "regression" else "Classifier"
    if kind == "forest":
        model = getattr(ensemble, f"RandomForest{ending}")(**({"n_estimators": 300, "n_jobs": -1, "random_state": seed} | options))
    else:
        categories = {"categorical_features": list(range(len(text)))} if text else {}
        model = getattr(ensemble, f"HistGradientBoosting{ending}")(**({"random_state": seed} | categories | options))
        model = MultiOutputClassifier(model) if task.kind == "multilabel" else model
    return Pipeline([*steps, ("model", model)])
