"""What a student reads of a table."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from understudy.data.encoding import TableEncoding
from understudy.errors import DataError

TRAIN = pd.DataFrame({"n": [1.5, None, 3.0], "flag": [True, False, True], "c": ["b", "a", "b"]})


def test_numbers_categories_missing_and_unknown() -> None:
    encoding = TableEncoding.fit(TRAIN, 8)
    given = pd.DataFrame({"c": ["a", None, "z"], "extra": [1, 2, 3], "n": [1, 2, None], "flag": [True, None, False]})
    encoded = encoding.encode(given)
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, np.array([[1, 1, 0], [2, np.nan, np.nan], [np.nan, 0, -1]], dtype=np.float32))


def test_through_json() -> None:
    encoding = TableEncoding.fit(TRAIN, 8)
    said = json.loads(json.dumps(encoding.to_json()))
    assert said == {
        "columns": [
            {"name": "n", "type": "number"},
            {"name": "flag", "type": "number"},
            {"name": "c", "type": "category", "levels": ["a", "b"]},
        ]
    }
    assert TableEncoding.from_json(said) == encoding


def test_the_most_frequent_levels_are_kept_in_order_of_name() -> None:
    frame = pd.DataFrame({"c": ["d"] * 3 + ["a"] + ["c"] * 2 + ["b"] * 2})
    encoding = TableEncoding.fit(frame, 2)
    assert encoding.columns[0].levels == ("b", "d")
    assert encoding.encode(pd.DataFrame({"c": ["d", "b", "a"]})).ravel().tolist() == [1, 0, -1]


def test_categories_of_numbers() -> None:
    encoding = TableEncoding.fit(pd.DataFrame({"c": pd.Categorical([3, 1])}), 8)
    assert encoding.columns[0].levels == ("1", "3")
    assert encoding.encode(pd.DataFrame({"c": [3.0, 2.0]})).ravel().tolist() == [1, -1]


def test_refusals() -> None:
    with pytest.raises(DataError, match=r"U140 column 'd' holds dates. Turn it into numbers .* data.ignore"):
        TableEncoding.fit(pd.DataFrame({"d": pd.to_datetime(["2020-01-01"])}), 8)
    with pytest.raises(DataError, match="U141 column 'd' holds list values"):
        TableEncoding.fit(pd.DataFrame({"d": [[1], [2]]}), 8)
    with pytest.raises(DataError, match="U108 the table has no input columns"):
        TableEncoding.fit(pd.DataFrame(index=[1]), 8)
    encoding = TableEncoding.fit(TRAIN, 8)
    with pytest.raises(DataError, match="U142 columns are missing:\n  no column 'flag'; did you mean 'flags'?"):
        encoding.encode(TRAIN.rename(columns={"flag": "flags"}))
    text = TRAIN.assign(n=["1", "x7", "3"])
    with pytest.raises(DataError, match=r"U143 column 'n' held numbers in the training rows; row 1 holds 'x7' \(1 such cells\)"):
        encoding.encode(text)
    with pytest.raises(DataError, match="a.csv line 3 holds 'x7'"):
        encoding.encode(text, np.array(["a.csv line 2", "a.csv line 3", "a.csv line 4"]))
    assert encoding.encode(TRAIN.assign(n=["1", "2", None]))[1, 0] == 2
