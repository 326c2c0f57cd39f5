from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from understudy.data import synthetic
from understudy.data.synthetic import munge
from understudy.errors import InputError

OPTIONS = {"multiple": 3, "swap": 0.5, "local_variance": 1.0, "seed": 0}


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    n = 120
    return pd.DataFrame(
        {
            "income": rng.gamma(2.0, 1000.0, n),
            "age": rng.integers(18, 90, n),
            "small": rng.normal(size=n).astype(np.float32),
            "colour": rng.choice(["red", "green", "blue"], n),
            "maybe": np.where(rng.random(n) < 0.2, None, rng.choice(["yes", "no"], n)),
            "size": pd.Categorical(rng.choice(["S", "M", "L"], n), categories=["S", "M", "L"], ordered=True),
            "member": rng.random(n) < 0.5,
            "count": pd.array(np.where(rng.random(n) < 0.2, None, rng.integers(0, 9, n)), dtype="Int64"),
            "gap": np.where(rng.random(n) < 0.3, np.nan, rng.normal(size=n)),
        }
    )


def keyed(frame):
    return {tuple("-" if pd.isna(cell) else cell for cell in row) for row in frame.itertuples(index=False)}


def test_rows_of_a_table_keep_their_types_ranges_and_levels(frame):
    made = munge(frame, **OPTIONS)
    assert len(made) == 3 * len(frame)
    assert made.columns.tolist() == frame.columns.tolist()
    assert made.dtypes.tolist() == frame.dtypes.tolist()
    for column in ("income", "age", "small", "count", "gap"):
        assert made[column].min() >= frame[column].min()
        assert made[column].max() <= frame[column].max()
    for column in ("colour", "maybe", "size"):
        assert set(made[column].dropna()) <= set(frame[column].dropna())
    assert made["gap"].isna().any()
    assert not made[["income", "age", "colour"]].isna().any().any()


def test_no_synthetic_row_is_a_training_row(frame):
    assert not keyed(munge(frame, **OPTIONS)) & keyed(frame)


def test_most_numbers_are_new_but_near_the_training_rows(frame):
    made = munge(frame, **OPTIONS)
    assert 0.2 < (~made["income"].isin(frame["income"])).mean() < 0.8
    tight = munge(frame, **(OPTIONS | {"local_variance": 1e9, "swap": 1.0}))
    assert len(tight) == 0 or tight["age"].isin(frame["age"]).all()


def test_a_table_of_few_columns_changes_in_every_row():
    frame = pd.DataFrame({"x": np.arange(50.0), "y": np.arange(50.0) ** 2})
    made = munge(frame, **(OPTIONS | {"swap": 0.0}))
    assert len(made) == 150
    assert not keyed(made) & keyed(frame)


def test_rows_that_cannot_be_new_are_left_out():
    assert len(munge(pd.DataFrame({"a": ["x", "y"] * 5}), **OPTIONS)) == 0
    made = munge(pd.DataFrame({"a": ["x", "y", "x"], "b": ["p", "q", "q"]}), **(OPTIONS | {"multiple": 20}))
    assert keyed(made) <= {("y", "p")}


def test_the_same_seed_gives_the_same_rows_and_the_table_is_not_touched(frame):
    before = frame.copy(deep=True)
    pd.testing.assert_frame_equal(munge(frame, **OPTIONS), munge(frame, **OPTIONS))
    assert not munge(frame, **OPTIONS).equals(munge(frame, **(OPTIONS | {"seed": 1})))
    pd.testing.assert_frame_equal(frame, before)


def test_neighbours_are_near_and_of_other_content():
    values = np.repeat(np.array([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0], [5.0, 5.1]], dtype=np.float32), 3, axis=0)
    made = munge(values, **(OPTIONS | {"multiple": 10}))
    assert made.dtype == np.float32
    assert len(made) > 0
    assert (((made < 1).all(axis=1)) | ((made > 4).all(axis=1))).all()


def test_integers_in_a_float_array_stay_whole_and_shapes_stay():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 17, size=(60, 4, 4)).astype(np.float32)
    made = munge(values, **OPTIONS)
    assert made.shape == (180, 4, 4)
    assert made.dtype == np.float32
    assert (made == np.rint(made)).all()
    assert (made.min(), made.max()) == (0, 16)


def test_categories_weigh_against_numbers():
    frame = pd.DataFrame({"x": [0.0, 0.3, 0.35, 1.0], "c": ["a", "b", "a", "b"]})
    made = munge(frame, **(OPTIONS | {"multiple": 50}))
    from_first = made[(made["c"] == "a") & (made["x"] < 0.25)]
    assert len(from_first) > 0  # 0.0/a is nearer to 0.35/a than to 0.3/b


def test_many_rows_are_compared_with_some(monkeypatch):
    monkeypatch.setattr(synthetic, "MOST_COMPARED", 100)
    monkeypatch.setattr(synthetic, "COMPARED_WITH", 50)
    values = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    assert len(munge(values, **OPTIONS)) == 900


@pytest.mark.parametrize("given", [np.zeros((4, 8, 8, 3), dtype=np.uint8), [[1.0]], np.zeros(4)])
def test_images_are_referred_to_views(given):
    with pytest.raises(InputError, match=r"U061.*teaching\.views"):
        munge(given, **OPTIONS)


def test_one_row_has_no_neighbour():
    with pytest.raises(InputError, match="at least two different"):
        munge(np.zeros((5, 2), dtype=np.float32), **OPTIONS)
