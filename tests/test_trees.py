from __future__ import annotations

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from understudy.errors import InputError, TrainingError
from understudy.students.trees import PerLabel, boosted, estimator, tree
from understudy.tasks import Task
from understudy.training.trees import fit_estimator, weighted_copies

THREE = Task("multiclass", ("a", "b", "c"))
TAGS = Task("multilabel", ("x", "y", "z"))
VALUE = Task("regression")


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 4)).astype(np.float32)
    logits = 2 * np.stack([features[:, 0], features[:, 1] * features[:, 2], np.zeros(400)], axis=1)
    return features, logits.astype(np.float32), logits.argmax(axis=1)


def test_gini_on_weighted_copies_is_mean_squared_error_on_probabilities(rows):
    features, logits, _ = rows
    probabilities = softmax(logits.astype(np.float64))
    copies, codes, weights = weighted_copies(probabilities, drop=0.0)
    by_class = DecisionTreeClassifier(criterion="gini", max_leaf_nodes=12, random_state=0).fit(features[copies], codes, weights)
    by_value = DecisionTreeRegressor(max_leaf_nodes=12, random_state=0).fit(features, probabilities)
    assert by_class.tree_.feature.tolist() == by_value.tree_.feature.tolist()
    np.testing.assert_allclose(by_class.tree_.threshold, by_value.tree_.threshold)
    np.testing.assert_allclose(by_class.predict_proba(features), by_value.predict(features), atol=1e-9)


def test_a_leaf_says_the_mean_of_what_the_teacher_says_there(rows):
    features, logits, _ = rows
    fitted = fit_estimator(tree(THREE, leaves=8), features, task=THREE, labels=None, teacher=logits, temperature=2.0, drop=0.0)
    target, said, leaf = softmax(logits.astype(np.float64) / 2), fitted.predict_proba(features), fitted.apply(features)
    assert fitted.get_n_leaves() == 8
    for one in np.unique(leaf):
        mean = target[leaf == one].mean(axis=0)
        np.testing.assert_allclose(said[leaf == one], np.tile(mean, ((leaf == one).sum(), 1)), atol=1e-9)


def test_that_mean_has_the_least_divergence_from_the_teacher(rows):
    features, logits, _ = rows
    fitted = fit_estimator(tree(THREE, leaves=4), features, task=THREE, labels=None, teacher=logits, drop=0.0)
    target, said = softmax(logits.astype(np.float64)), fitted.predict_proba(features)
    inside = fitted.apply(features) == fitted.apply(features)[0]

    def divergence(leaf):
        return (target[inside] * (np.log(target[inside]) - np.log(leaf))).sum()

    rng = np.random.default_rng(0)
    for _ in range(20):
        nearby = softmax(np.log(said[inside][:1]) + rng.normal(scale=0.05, size=(1, 3)))
        assert divergence(nearby) > divergence(said[inside][:1])


def test_soft_targets_are_better_calibrated_than_hard_ones(rows):
    features, logits, _ = rows
    target = softmax(logits[200:].astype(np.float64))
    divergences = {}
    for kind in ("soft", "hard"):
        fitted = fit_estimator(tree(THREE, leaves=20), features[:200], task=THREE, labels=None, teacher=logits[:200], target=kind)
        said = np.clip(fitted.predict_proba(features[200:]), 1e-6, 1)
        divergences[kind] = (target * (np.log(target) - np.log(said))).sum(axis=1).mean()
    assert divergences["soft"] < 0.5 * divergences["hard"]


def test_hard_targets_are_the_teachers_best_classes(rows):
    features, logits, _ = rows
    fitted = fit_estimator(tree(THREE, leaves=16), features, task=THREE, labels=None, teacher=logits, target="hard")
    plain = tree(THREE, leaves=16).fit(features, logits.argmax(axis=1))
    np.testing.assert_array_equal(fitted.predict_proba(features), plain.predict_proba(features))


def test_the_control_learns_from_labelled_rows_alone(rows):
    features, _, labels = rows
    some = np.where(np.arange(400) % 3 == 0, labels, -1)
    fitted = fit_estimator(tree(THREE, leaves=16), features, task=THREE, labels=some, teacher=None)
    plain = tree(THREE, leaves=16).fit(features[some >= 0], labels[some >= 0])
    np.testing.assert_array_equal(fitted.predict_proba(features), plain.predict_proba(features))


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_labels_and_teacher_share_a_row_and_unlabelled_rows_are_the_teachers(alpha):
    features = np.array([[0.0], [1.0]], dtype=np.float32)
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=np.float32))
    fitted = fit_estimator(tree(THREE), features, task=THREE, labels=np.array([2]), teacher=logits, alpha=alpha)
    wanted = [alpha * np.array([0.5, 0.3, 0.2]) + (1 - alpha) * np.array([0, 0, 1]), [0.1, 0.2, 0.7]]
    said = np.zeros((2, 3))
    said[:, fitted.classes_] = fitted.predict_proba(features)
    np.testing.assert_allclose(said, wanted, atol=1e-6)


def test_small_shares_are_dropped_and_every_row_still_weighs_one():
    copies, codes, weights = weighted_copies(np.array([[0.9995, 0.0005, 0.0], [0.4, 0.3, 0.3]]))
    assert copies.tolist() == [0, 1, 1, 1]
    assert codes.tolist() == [0, 0, 1, 2]
    np.testing.assert_allclose(np.bincount(copies, weights), 1.0)
    assert len(weighted_copies(np.full((2, 3), 1 / 3), drop=0.9)[0]) == 6


def test_regression_is_a_blend_of_the_teachers_value_and_the_label():
    features = np.array([[0.0], [1.0], [2.0]], dtype=np.float32)
    labels = np.array([[10.0], [np.nan], [30.0]], dtype=np.float32)
    teacher = np.array([[20.0], [40.0], [60.0]], dtype=np.float32)
    fitted = fit_estimator(tree(VALUE), features, task=VALUE, labels=labels, teacher=teacher, alpha=0.5)
    np.testing.assert_allclose(fitted.predict(features), [15, 40, 45])
    control = fit_estimator(tree(VALUE), features, task=VALUE, labels=labels, teacher=None)
    np.testing.assert_allclose(control.predict(features), [10, 10, 30])


@pytest.mark.parametrize("make", [tree, boosted])
def test_multilabel_has_one_estimator_per_label(make):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)).astype(np.float32)
    logits = np.stack([4 * features[:, 0], 4 * features[:, 1], np.full(200, -30.0)], axis=1).astype(np.float32)
    fitted = fit_estimator(make(TAGS), features, task=TAGS, labels=None, teacher=logits)
    said = fitted.predict_proba(features)
    assert isinstance(fitted, PerLabel)
    assert said.shape == (200, 3)
    assert np.abs(said - 1 / (1 + np.exp(-logits))).mean() < 0.06
    control = fit_estimator(make(TAGS), features, task=TAGS, labels=(logits > 0).astype(np.float32), teacher=None)
    assert ((control.predict_proba(features) > 0.5) == (logits > 0)).mean() > 0.97


@pytest.mark.parametrize("make", [tree, boosted])
def test_a_class_that_nobody_has_is_not_among_the_classes_of_the_estimator(make, rows):
    features, logits, _ = rows
    without = np.where(np.arange(3) == 1, -50.0, logits).astype(np.float32)
    fitted = fit_estimator(make(THREE), features, task=THREE, labels=None, teacher=without)
    assert fitted.classes_.tolist() == [0, 2]


def test_boosted_learns_the_teachers_distribution_and_is_the_same_each_time(rows):
    features, logits, _ = rows
    said = [
        fit_estimator(boosted(THREE, rounds=30, leaves=8), features, task=THREE, labels=None, teacher=logits).predict_proba(features)
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*said)
    assert np.abs(said[0] - softmax(logits)).mean() < 0.06


def test_seeds_and_sizes_reach_the_estimators():
    assert tree(THREE, leaves=9, depth=3, min_weight=0.01, seed=4).get_params()["min_weight_fraction_leaf"] == 0.01
    assert boosted(THREE, rounds=7, leaves=5, seed=4).get_params()["random_state"] == 4
    assert estimator("sklearn:sklearn.linear_model.LogisticRegression", {"C": 0.5}, seed=3).get_params()["random_state"] == 3


def test_any_estimator_that_weighs_rows_can_be_the_student(rows):
    features, logits, _ = rows
    fitted = fit_estimator(estimator("sklearn:sklearn.linear_model.LogisticRegression"), features, task=THREE, labels=None, teacher=logits)
    assert fitted.predict_proba(features).shape == (400, 3)
    tagged = fit_estimator(estimator("sklearn.linear_model.LogisticRegression"), features, task=TAGS, labels=None, teacher=logits)
    assert tagged.predict_proba(features).shape == (400, 3)


@pytest.mark.parametrize(
    ("place", "options", "said"),
    [
        ("sklearn:sklearn.neighbors.KNeighborsClassifier", {}, "takes no sample_weight"),
        ("sklearn:sklearn.linear_model.LogisticRegresion", {}, "did you mean 'LogisticRegression'"),
        ("sklearn:nowhere.at.all.Model", {}, "cannot import 'nowhere.at.all'"),
        ("sklearn:LogisticRegression", {}, "write sklearn:package.module.Class"),
        ("sklearn:sklearn.linear_model.LogisticRegression", {"D": 1}, "unexpected keyword argument 'D'"),
    ],
)
def test_what_cannot_be_a_student_is_refused(place, options, said):
    with pytest.raises(InputError, match="U06") as caught:
        estimator(place, options)
    assert said in str(caught.value)


def test_fitting_is_refused_when_it_cannot_mean_anything(rows):
    features, logits, labels = rows
    with pytest.raises(TrainingError, match="neither labels nor a teacher"):
        fit_estimator(tree(THREE), features, task=THREE, labels=None, teacher=None)
    with pytest.raises(TrainingError, match="no row has a label"):
        fit_estimator(tree(THREE), features, task=THREE, labels=np.full(400, -1), teacher=None)
    with pytest.raises(TrainingError, match="same class"):
        fit_estimator(tree(THREE), features, task=THREE, labels=np.zeros(400, dtype=np.int64), teacher=None)
    with pytest.raises(InputError, match="gives classes, but the task is a regression"):
        fit_estimator(tree(THREE), features, task=VALUE, labels=None, teacher=logits[:, :1])
    with pytest.raises(InputError, match="gives no probabilities"):
        fit_estimator(tree(VALUE), features, task=THREE, labels=labels, teacher=None)
    with pytest.raises(InputError, match="at least 2"):
        tree(THREE, leaves=1)
