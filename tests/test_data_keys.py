"""Content keys depend on a row's content and nothing else."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from understudy.data.keys import content_keys

cells = st.one_of(st.none(), st.integers(-5, 5), st.floats(allow_nan=True, width=64))
texts = st.one_of(st.none(), st.text(max_size=4))
frames = st.lists(st.tuples(cells, texts, st.booleans()), min_size=1, max_size=8).map(
    lambda rows: pd.DataFrame(
        {
            "n": [float("nan") if r[0] is None else r[0] for r in rows],
            "t": pd.array([r[1] for r in rows], dtype="object"),
            "b": [r[2] for r in rows],
        }
    )
)


@given(frames, st.randoms())
def test_order_of_rows_index_columns_and_chunks_do_not_matter(frame: pd.DataFrame, random: object) -> None:
    keys = content_keys(frame, "table")
    assert keys.shape == (len(frame), 2)
    assert keys.dtype == np.int64
    order = list(range(len(frame)))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = frame.iloc[order][["t", "b", "n"]]
    assert (content_keys(moved, "table") == keys[order]).all()
    alone = np.concatenate([content_keys(frame.iloc[[at]], "table") for at in range(len(frame))])
    assert (alone == keys).all()


@given(frames)
def test_equal_keys_mean_equal_rows(frame: pd.DataFrame) -> None:
    frame = frame[~frame["t"].isin(["0"])]
    keys = content_keys(frame, "table")
    rows = [(repr(float(r.n) + 0.0), None if pd.isna(r.t) else r.t, r.b) for r in frame.itertuples()]
    assert len({tuple(key) for key in keys.tolist()}) == len(set(rows))


def test_numbers_are_equal_whatever_their_type() -> None:
    kinds = ["int64", "float64", "Int64", "float32", "uint8"]
    keys = [content_keys(pd.DataFrame({"a": pd.array([3, 0], dtype=kind)}), "table") for kind in kinds]
    assert all((key == keys[0]).all() for key in keys)
    assert (content_keys(pd.DataFrame({"a": [-0.0]}), "table") == keys[0][1]).all()
    assert (content_keys(pd.DataFrame({"a": ["3", "0"]}), "table") == keys[0]).all()
    assert (content_keys(pd.DataFrame({"a": pd.Categorical(["3", "0"])}), "table") == keys[0]).all()


@pytest.mark.parametrize(
    ("one", "other"), [("3", "3.0"), ("3", "03"), ("nan", None), ("inf", 1e308), ("0", "-0"), ("a", "b"), (2**60, 2**60 + 1)]
)
def test_different_cells_have_different_keys(one: object, other: object) -> None:
    assert len(np.unique(content_keys(pd.DataFrame({"a": [one, other]}), "table"), axis=0)) == 2


def test_names_of_columns_count() -> None:
    assert (content_keys(pd.DataFrame({"a": [1], "b": [2]}), "table") != content_keys(pd.DataFrame({"a": [1], "c": [2]}), "table")).any()
    assert (content_keys(pd.DataFrame({"a": [1], "b": [2]}), "table") != content_keys(pd.DataFrame({"a": [2], "b": [1]}), "table")).any()


def test_dates_have_keys() -> None:
    frame = pd.DataFrame({"d": pd.to_datetime(["2020-01-01", "2020-01-02"])})
    assert len(np.unique(content_keys(frame, "table"), axis=0)) == 2


@given(arrays(np.float32, (5, 3), elements=st.sampled_from([0.0, -0.0, 1.0, 2.5])))
def test_arrays_row_by_row(rows: np.ndarray) -> None:  # type: ignore[type-arg]
    keys = content_keys(rows, "array")
    assert (keys[::-1] == content_keys(rows[::-1], "array")).all()
    assert (keys == content_keys(rows.astype(np.float64), "array")).all()
    assert len(np.unique(keys, axis=0)) == len(np.unique(rows + 0.0, axis=0))


def test_images_of_another_shape_have_other_keys() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(1, 4, 6, 1)
    assert (content_keys(pixels, "image") != content_keys(pixels.reshape(1, 6, 4, 1), "image")).any()
    assert (content_keys(pixels, "image") == content_keys(np.asfortranarray(pixels), "image")).all()


def test_keys_stay_what_they_are() -> None:
    """Stored transfer sets are found by these numbers; a change makes all of them useless."""
    keys = content_keys(pd.DataFrame({"a": [1.5], "b": ["x"]}), "table")
    assert keys.tolist() == KEY_TABLE
    assert content_keys(np.zeros((1, 2, 2, 1), np.uint8), "image").tolist() == KEY_IMAGE


KEY_TABLE = [[-6429303608086216664, -671884365121381454]]
KEY_IMAGE = [[-2929726911342117140, -238132235558215025]]
