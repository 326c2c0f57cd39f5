"""The verdict: its three words on constructed data, seeds and rows both counted, and how often it errs."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.measuring import _bootstrap
from understudy.measuring._verdict import Verdict, judge, unknown
from understudy.measuring.scorecard import measure
from understudy.tasks import Task

YES_NO = Task("binary", ("no", "yes"))


def right_or_wrong(right: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Logits that are right exactly where said."""
    decided = np.where(right, labels, 1 - labels)
    return np.eye(2)[decided] * 2.0


def verdict_of(student: list[float], control: list[float], rows: int = 2000, margin: float = 0.002, together: bool = False) -> dict:
    """The verdict of models with these accuracies; `together`: wrong on nested sets of rows."""
    generator = np.random.default_rng(7)
    labels = generator.integers(0, 2, rows)
    order = [generator.permutation(rows) / rows for _ in range(len(student) + len(control))]
    if together:
        order = [order[0]] * len(order)
    answers = [right_or_wrong(order[index] < share, labels) for index, share in enumerate([*student, *control])]
    models = {"student": answers[: len(student)], "control": answers[len(student) :]}
    return measure(models, labels, YES_NO, margin=margin, resamples=500)["verdict"]


def test_a_clear_gain_is_told_with_seeds_rows_and_interval() -> None:
    said = verdict_of([0.90, 0.91, 0.90], [0.86, 0.87, 0.86])
    assert said["word"] == "GAIN"
    assert said["difference"] == pytest.approx(0.04)
    assert 0 < said["low"] < 0.04 < said["high"]
    assert said["text"].startswith("GAIN +4.0 points [")
    assert said["text"].endswith("] accuracy over the control (3 seeds, 2,000 test rows)")


def test_a_clear_loss_offers_the_control() -> None:
    said = verdict_of([0.80], [0.90])
    assert said["word"] == "NO GAIN"
    assert said["high"] < 0
    assert said["text"].startswith("NO GAIN -10.0 points [-1")
    assert said["text"].endswith(
        "(1 seed, 2,000 test rows): worse than the control; distillation did not help here; the control is the model to ship"
    )


def test_identical_models_are_no_gain_even_without_a_margin() -> None:
    for margin in (0.0, 0.002):
        said = verdict_of([0.9, 0.9], [0.9, 0.9], margin=margin, together=True)
        assert (said["word"], said["low"], said["high"]) == ("NO GAIN", 0.0, 0.0)
        assert "+0.0 points [0.0, 0.0] accuracy" in said["text"]


def test_an_interval_inside_the_margin_is_no_gain_even_above_zero() -> None:
    said = verdict_of([0.9], [0.898], margin=0.02, together=True)
    assert said["low"] > 0
    assert said["word"] == "NO GAIN"
    assert "within +-2.0; distillation did not help here" in said["text"]


def test_too_few_rows_are_inconclusive_and_say_how_many_would_do() -> None:
    said = verdict_of([0.87], [0.85], rows=200)
    assert said["word"] == "INCONCLUSIVE"
    assert said["needed_seeds"] is None
    half = (said["high"] - said["low"]) / 2
    wanted = 200 * (half / said["difference"]) ** 2
    assert wanted <= said["needed_rows"] <= wanted * 1.1
    assert f"about {said['needed_rows']:,} test rows would settle it (now 200); run 3 seeds too" in said["text"]


def test_the_number_of_rows_it_asks_for_does_settle_it() -> None:
    first = verdict_of([0.87], [0.85], rows=400)
    assert first["word"] == "INCONCLUSIVE"
    assert verdict_of([0.87], [0.85], rows=int(first["needed_rows"] * 1.5))["word"] == "GAIN"


def test_seeds_that_disagree_are_inconclusive_and_ask_for_seeds() -> None:
    said = verdict_of([0.95, 0.80, 0.90], [0.85, 0.88, 0.86], rows=5000)
    assert said["word"] == "INCONCLUSIVE"
    assert said["needed_rows"] is None
    assert said["needed_seeds"] > 3
    assert f"about {said['needed_seeds']} seeds would settle it (now 3)" in said["text"]


def test_without_variation_of_seeds_their_number_does_not_narrow_the_rows_interval_by_itself() -> None:
    one = verdict_of([0.9], [0.8], together=True)
    three = verdict_of([0.9] * 3, [0.8] * 3, together=True)
    assert (one["low"], one["high"]) == (three["low"], three["high"])
    assert three["seeds"] == 3


def test_no_difference_and_no_margin_cannot_be_settled() -> None:
    resampled = np.random.default_rng(0).normal(0, 0.01, (500, 1))
    said = judge(np.zeros(1), resampled, metric="accuracy", margin=0.0, rows=100)
    assert said.word == "INCONCLUSIVE"
    assert said.text.endswith("set measure.margin")


def test_unknown_without_a_control_or_labels() -> None:
    labels = np.array([0, 1] * 10)
    answers = right_or_wrong(np.ones(20, dtype=bool), labels)
    alone = measure({"student": [answers]}, labels, YES_NO)["verdict"]
    assert alone["text"] == "UNKNOWN gain unknown: no control was trained (control = false)"
    both = {"student": [answers], "control": [answers], "teacher": [answers]}
    card = measure(both, None, YES_NO)
    assert card["verdict"]["text"] == "UNKNOWN gain unknown: no test row has a label, so only fidelity to the teacher is measured"
    assert card["models"]["student"]["fidelity"]["agreement"]["mean"] == 1.0
    assert measure({"teacher": [answers]}, labels, YES_NO)["verdict"]["text"] == "UNKNOWN gain unknown: there is no student"


def test_an_undefined_metric_is_unknown() -> None:
    nothing = np.full((100, 1), np.nan)
    said = judge(nothing[0], nothing, metric="macro_f1", margin=0.0, rows=5)
    assert said.text == "UNKNOWN gain unknown: macro_f1 is not defined on these 5 test rows"
    assert unknown("r2", 0.1, "why") == Verdict("UNKNOWN", "UNKNOWN gain unknown: why", "r2", 0.1)


def test_regression_is_told_in_r2_and_not_in_points() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(1000, 1))
    models = {name: [labels + generator.normal(size=labels.shape) * noise] for name, noise in {"student": 0.2, "control": 0.4}.items()}
    said = measure(models, labels, Task("regression"))["verdict"]
    assert said["word"] == "GAIN"
    assert said["text"].startswith(f"GAIN {said['difference']:+.4f} [")
    assert "points" not in said["text"]


def test_without_a_true_difference_gain_is_rare_and_the_interval_covers() -> None:
    """60 pairs of equally good models, 3 seeds each, whose seeds and rows both vary: nominal 2.5 % GAIN, 95 % coverage."""
    generator = np.random.default_rng(1)
    gains = covered = 0
    for trial in range(60):
        labels = generator.integers(0, 2, 300)
        shares = 0.8 + generator.normal(0, 0.01, (2, 3))
        answers = [[right_or_wrong(generator.random(300) < share, labels) for share in group] for group in shares]
        said = measure({"student": answers[0], "control": answers[1]}, labels, YES_NO, margin=0.0, resamples=300, seed=trial)["verdict"]
        gains += said["word"] == "GAIN"
        covered += said["low"] <= 0 <= said["high"]
    assert gains <= 6
    assert covered >= 50


def test_the_percentile_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(3).normal(size=1000)
    drawn = _bootstrap.resample({"mean": _bootstrap.mean(values)}, 1000, resamples=2000, seed=0)["mean"]
    low, high = _bootstrap.interval(drawn)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(1000), rel=0.05)


def test_pooling_seeds_has_the_unbiased_variance_of_their_mean() -> None:
    seeds = np.array([0.0, 1.0, 5.0])
    pooled = _bootstrap.pool_seeds(np.tile(seeds, (200_000, 1)), seed=0)
    assert pooled.mean() == pytest.approx(2.0, abs=0.02)
    assert pooled.var() == pytest.approx(seeds.var(ddof=1) / 3, rel=0.02)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    figure = {"mean": _bootstrap.mean(np.arange(50.0))}
    first, again, other = (_bootstrap.resample(figure, 50, resamples=200, seed=seed)["mean"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_costly_figures_get_fewer_resamples_but_never_too_few() -> None:
    assert _bootstrap.limit(1000, 1000) == 1000
    assert _bootstrap.limit(1_000_000, 1000) == 200
    assert _bootstrap.limit(10**9, 1000) == 200
    assert _bootstrap.limit(400_000, 1000) == 500
