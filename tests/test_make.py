"""From a recipe to live objects: what only shows when the parts come together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from understudy import make
from understudy.data import splitting
from understudy.errors import DataError
from understudy.recipe import parse


def said(folder: Path, **data: object) -> dict[str, object]:
    return {"out": str(folder / "run"), "data": {"root": str(folder), "label": "y", **data}, "teacher": {"source": "forest.joblib"}}


def frame(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows), "y": np.where(rng.random(rows) < 0.5, "no", "yes")})


def test_a_further_column_does_not_hide_that_test_rows_are_training_rows(tmp_path: Path) -> None:
    train = frame(80, 0)
    train.to_csv(tmp_path / "train.csv", index=False)
    test = pd.concat([train.head(5), frame(20, 1)])
    test.assign(note=1.0).to_csv(tmp_path / "test.csv", index=False)
    recipe = parse(said(tmp_path, train="train.csv", test="test.csv"))
    rows = make.load_rows(recipe).rows
    assert list(rows.inputs.columns) == ["a", "b"]
    assert len(splitting.overlap(rows)) == 5


def test_test_rows_without_a_training_column_are_refused(tmp_path: Path) -> None:
    frame(80, 0).to_csv(tmp_path / "train.csv", index=False)
    frame(20, 1).rename(columns={"b": "B"}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match="the test rows have no column 'b'; did you mean 'B'"):
        make.load_rows(parse(said(tmp_path, train="train.csv", test="test.csv")))


def test_control_gets_as_many_steps_as_the_student() -> None:
    options = parse({"out": "x", "data": {"train": "t.csv"}, "teacher": {"source": "m"}, "train": {"epochs": 4, "batch_size": 10}}).train
    assert make.with_steps_of(options, 100, 100).epochs == 4
    assert make.with_steps_of(options, 100, 1100).epochs == 44
