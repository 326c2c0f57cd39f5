"""Tree estimators as one ONNX node, with every threshold where the estimator has it.

One TreeEnsembleRegressor with a target per class answers the whole question, so a table of plain numbers costs one node.
Estimators compare a float32 cell with a float64 threshold and onnxruntime with a float32 one; rounding thresholds down
keeps `cell <= threshold` the same for every float32 cell (scikit-learn#14747), which rounding to nearest does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from onnx import NodeProto, helper
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor
from sklearn.tree import BaseDecisionTree

from understudy.students.trees import PerLabel
from understudy.tasks import Task

Array = np.ndarray[Any, Any]
FORESTS = (ExtraTreesClassifier, ExtraTreesRegressor, RandomForestClassifier, RandomForestRegressor)
NEVER = -100.0
"""The score of a class that the estimator has never seen; its softmax is zero in float32."""


@final
@dataclass(frozen=True)
class _Tree:
    """Nodes of one tree in order, -1 as `left` of a leaf; `weights` [nodes, len(targets)] are read at leaves.

    `absent` says where a missing cell goes left: an estimator has an answer for it even where training had none missing.
    """

    left: Array
    right: Array
    feature: Array
    threshold: Array
    absent: Array
    targets: tuple[int, ...]
    weights: Array


def tree_node(estimator: Any, task: Task, *, reads: str, gives: str) -> NodeProto | None:
    """The node of a fitted tree, forest or LightGBM model (or one per label); None for any other estimator."""
    members = estimator.estimators if isinstance(estimator, PerLabel) else [estimator]
    kinds = {_kind(member) for member in members} - {"constant"}
    if len(kinds) > 1 or kinds == {"other"}:
        return None
    scores = kinds == {"lightgbm"} and task.kind != "regression"
    trees: list[_Tree] = []
    for label, member in enumerate(members):
        if _kind(member) == "constant":
            present = int(member.classes_[0])
            trees.append(_constant(label, (-NEVER if present else NEVER) if scores else present))
            continue
        targets = (label,) if isinstance(estimator, PerLabel) else _targets(member, task)
        trees += _trees(member, targets, positive=isinstance(estimator, PerLabel))
        if scores and task.single_label:
            trees += [_constant(code, NEVER) for code in range(task.outputs) if code not in targets]
    post = ("LOGISTIC" if task.kind == "multilabel" else "SOFTMAX") if scores else "NONE"
    return _node(trees, task.outputs, post, reads, gives)


def _constant(target: int, value: float) -> _Tree:
    """A tree of one leaf: onnxruntime leaves `base_values` out where no tree has the target."""
    leaf = np.array([-1])
    return _Tree(leaf, leaf, np.zeros(1, dtype=np.int64), np.zeros(1), np.zeros(1, dtype=bool), (target,), np.full((1, 1), float(value)))


def _kind(estimator: Any) -> str:
    if isinstance(estimator, DummyClassifier):
        return "constant"
    if isinstance(estimator, BaseDecisionTree):
        return "tree"
    if isinstance(estimator, FORESTS):
        return "forest"
    return "lightgbm" if type(estimator).__module__.startswith("lightgbm.") else "other"


def _targets(estimator: Any, task: Task) -> tuple[int, ...]:
    return (0,) if task.kind == "regression" else tuple(int(code) for code in estimator.classes_)


def _trees(estimator: Any, targets: tuple[int, ...], *, positive: bool) -> Iterator[_Tree]:
    kind = _kind(estimator)
    if kind == "lightgbm":
        yield from _lightgbm_trees(estimator, targets, positive=positive)
        return
    members = estimator.estimators_ if kind == "forest" else [estimator]
    for member in members:
        tree = member.tree_
        values = tree.value[:, 0, :]
        if tree.n_classes[0] > 1:
            values = values / values.sum(axis=1, keepdims=True)
        if positive:
            values = values[:, -1:]
        absent = tree.missing_go_to_left.astype(bool)
        yield _Tree(tree.children_left, tree.children_right, tree.feature, tree.threshold, absent, targets, values / len(members))


def _lightgbm_trees(estimator: Any, targets: tuple[int, ...], *, positive: bool) -> Iterator[_Tree]:
    said = estimator.booster_.dump_model()
    per_round = said["num_tree_per_iteration"]
    for index, tree in enumerate(said["tree_info"]):
        # Two classes have one score, which is the last one's; the first stays at zero.
        target = targets[-1] if per_round == 1 or positive else targets[index % per_round]
        rows: list[list[float]] = []
        _walk(tree["tree_structure"], rows)
        table = np.array(rows, dtype=np.float64)
        left, right, feature = (table[:, column].astype(np.int64) for column in range(3))
        yield _Tree(left, right, feature, table[:, 3], table[:, 4] > 0, (target,), table[:, 5:])


def _walk(node: dict[str, Any], rows: list[list[float]]) -> int:
    """Append the node and what is below it as left, right, feature, threshold, absent, weight; gives its position."""
    at = len(rows)
    if "split_feature" not in node:
        rows.append([-1, -1, 0, 0.0, 0, node["leaf_value"]])
        return at
    # Without missing cells in training, LightGBM takes one for zero.
    absent = node["default_left"] if node["missing_type"] == "NaN" else node["threshold"] >= 0
    rows.append([0, 0, node["split_feature"], node["threshold"], absent, 0.0])
    rows[at][0] = _walk(node["left_child"], rows)
    rows[at][1] = _walk(node["right_child"], rows)
    return at


def _node(trees: list[_Tree], outputs: int, post: str, reads: str, gives: str) -> NodeProto:
    parts = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")
    nodes: dict[str, list[Any]] = {name: [] for name in parts}
    targets: dict[str, list[Any]] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}
    for number, tree in enumerate(trees):
        leaf = tree.left < 0
        ids, leaves = np.arange(len(leaf)), np.flatnonzero(leaf)
        nodes["treeids"] += [number] * len(ids)
        nodes["nodeids"] += ids.tolist()
        nodes["modes"] += ["LEAF" if end else "BRANCH_LEQ" for end in leaf]
        nodes["featureids"] += np.where(leaf, 0, tree.feature).tolist()
        nodes["values"] += np.where(leaf, 0.0, _rounded_down(tree.threshold)).tolist()
        nodes["truenodeids"] += np.where(leaf, 0, tree.left).tolist()
        nodes["missing_value_tracks_true"] += np.where(leaf, 0, tree.absent).tolist()
        nodes["falsenodeids"] += np.where(leaf, 0, tree.right).tolist()
        targets["treeids"] += [number] * (len(leaves) * len(tree.targets))
        targets["nodeids"] += np.repeat(leaves, len(tree.targets)).tolist()
        targets["ids"] += list(tree.targets) * len(leaves)
        targets["weights"] += tree.weights[leaves].ravel().tolist()
    attributes: dict[str, Any] = {"n_targets": outputs, "aggregate_function": "SUM", "post_transform": post}
    attributes |= {f"nodes_{name}": value for name, value in nodes.items()}
    attributes |= {f"target_{name}": value for name, value in targets.items()}
    return helper.make_node("TreeEnsembleRegressor", [reads], [gives], domain="ai.onnx.ml", **attributes)


def _rounded_down(thresholds: Array) -> Array:
    """The largest float32 that is not above each threshold."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest.astype(np.float64) > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)
