"""Small models fitted in one go rather than by gradient steps: a decision tree, boosted trees, any scikit-learn estimator.

Each function gives an unfitted estimator with `fit(features, codes, sample_weight)` and `predict_proba` (or `predict` for
a regression); understudy.training.trees fits it to a teacher. Adding one: a function here, a line in make.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, final

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.validation import has_fit_parameter

from understudy.errors import InputError, MissingExtraError, did_you_mean
from understudy.tasks import Task


@final
class PerLabel(BaseEstimator):  # type: ignore[misc]
    """One binary estimator per label of a multilabel task; `classes_` of each is a subset of 0 and 1."""

    def __init__(self, estimators: list[Any]) -> None:
        self.estimators = estimators

    def predict_proba(self, features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The probability that each label is there, float64 [rows, labels]."""
        return np.stack([_positive(estimator, features) for estimator in self.estimators], axis=1)


def _positive(estimator: Any, features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    codes = [int(code) for code in estimator.classes_]
    if 1 not in codes:
        return np.zeros(len(features))
    if len(codes) == 1:
        return np.ones(len(features))
    return np.asarray(estimator.predict_proba(features)[:, codes.index(1)], dtype=np.float64)


def tree(task: Task, *, leaves: int = 256, depth: int | None = None, min_weight: float = 0.0, seed: int = 0) -> Any:
    """An unfitted decision tree grown best split first.

    `min_weight` is the least share of all weight that a leaf may hold: it counts rows, not the weighted copies of rows
    that a soft target is made of, which `min_samples_leaf` would (Breiman et al. 1984; entropy on weighted copies is
    KL(teacher || leaf)).
    """
    _positive_number("leaves", leaves, 2)
    options = {"max_leaf_nodes": leaves, "max_depth": depth, "min_weight_fraction_leaf": min_weight, "random_state": seed}
    if task.kind == "regression":
        return DecisionTreeRegressor(**options)
    return _for_task(task, lambda: DecisionTreeClassifier(criterion="entropy", **options))


def boosted(
    task: Task,
    *,
    rounds: int = 50,
    leaves: int = 15,
    learning_rate: float = 0.1,
    min_weight: float = 1.0,
    seed: int = 0,
    threads: int = 1,
) -> Any:
    """Unfitted boosted trees (LightGBM), `rounds` trees for each class.

    `min_weight` is the least sum of second derivatives in a leaf. Unlike LightGBM's own floor on rows it is the same for
    a row and for its weighted copies, so student and control are held to one rule.
    """
    try:
        import lightgbm
    except ImportError:
        raise MissingExtraError("lightgbm", "boosters") from None
    _positive_number("rounds", rounds, 1)
    _positive_number("leaves", leaves, 2)
    options: dict[str, Any] = {
        "n_estimators": rounds,
        "num_leaves": leaves,
        "learning_rate": learning_rate,
        "min_child_samples": 1,
        "min_child_weight": min_weight,
        "random_state": seed,
        "n_jobs": threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    if task.kind == "regression":
        return lightgbm.LGBMRegressor(**options)
    return _for_task(task, lambda: lightgbm.LGBMClassifier(**options))


def estimator(place: str, options: Mapping[str, Any] | None = None, *, seed: int = 0) -> Any:
    """An unfitted scikit-learn estimator by its import path, such as `sklearn:sklearn.linear_model.LogisticRegression`.

    Its `fit` must take `sample_weight`, which is how a soft target reaches it.
    """
    module_name, _, class_name = place.removeprefix("sklearn:").rpartition(".")
    if not module_name:
        raise InputError(f"student.model = {place!r}: write sklearn:package.module.Class", code="U064")
    try:
        module = import_module(module_name)
    except ImportError as error:
        raise InputError(f"student.model = {place!r}: cannot import {module_name!r} ({error})", code="U064") from None
    found = vars(module).get(class_name)
    if not isinstance(found, type):
        there = [name for name, value in vars(module).items() if isinstance(value, type) and not name.startswith("_")]
        raise InputError(f"student.model: {module_name} has no class {class_name!r}; {did_you_mean(class_name, there)}", code="U064")
    try:
        made: Any = found(**dict(options or {}))
    except TypeError as error:
        raise InputError(f"student.options for {class_name}: {error}", code="U063") from None
    if not isinstance(made, BaseEstimator) or not has_fit_parameter(made, "sample_weight"):
        raise InputError(
            f"{class_name} cannot learn from a soft target: its fit() takes no sample_weight. "
            "Use tree, boosted, or an estimator such as sklearn.linear_model.LogisticRegression",
            code="U064",
        )
    if "random_state" in made.get_params(deep=False) and "random_state" not in (options or {}):
        made.set_params(random_state=seed)
    return made


def _for_task(task: Task, make: Callable[[], Any]) -> Any:
    return PerLabel([make() for _ in task.classes]) if task.kind == "multilabel" else make()


def _positive_number(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"student.options.{name} = {value}: it must be at least {least}", code="U063")
