"""From a recipe to live objects: what only shows when the parts come together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from understudy.data import splitting
from understudy.errors import DataError
from understudy.make.lessons import live_answers, training_set, with_steps_of
from understudy.make.rows import load_rows
from understudy.make.views import build_views
from understudy.recipe import parse
from understudy.teachers import FakeTeacher


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
    rows = load_rows(recipe).rows
    assert list(rows.inputs.columns) == ["a", "b"]
    assert len(splitting.overlap(rows)) == 5


def test_test_rows_without_a_training_column_are_refused(tmp_path: Path) -> None:
    frame(80, 0).to_csv(tmp_path / "train.csv", index=False)
    frame(20, 1).rename(columns={"b": "B"}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match="the test rows have no column 'b'; did you mean 'B'"):
        load_rows(parse(said(tmp_path, train="train.csv", test="test.csv")))


def test_control_gets_as_many_steps_as_the_student() -> None:
    options = parse({"out": "x", "data": {"train": "t.csv"}, "teacher": {"source": "m"}, "train": {"epochs": 4, "batch_size": 10}}).train
    assert with_steps_of(options, 100, 100).epochs == 4
    assert with_steps_of(options, 100, 1100).epochs == 44


def test_a_live_teacher_reads_the_same_noise_as_the_student(tmp_path: Path) -> None:
    frame(80, 0).assign(c=["x", "y"] * 40).to_csv(tmp_path / "train.csv", index=False)
    loaded = load_rows(parse(said(tmp_path, train="train.csv")))
    train = loaded.rows.part("train")
    options = parse(said(tmp_path, train="train.csv") | {"train": {"augment": {"noise": 0.5}}}).train
    views = build_views(options, train, loaded.encoding)
    assert views is not None and not views.finite

    heard: list[pd.DataFrame] = []

    class Listener(FakeTeacher):
        def signals(self, inputs: pd.DataFrame) -> dict[str, torch.Tensor]:
            heard.append(inputs)
            return super().signals(inputs)

    listener = Listener(loaded.task)  # type: ignore[misc]
    data = training_set(loaded, train, None, {}, views=9, augment=views, ask=live_answers(listener, train, views))
    rows, view = torch.tensor([5, 2, 40]), torch.tensor([3, 0, 8])
    batch = data.batch(rows, view)
    assert loaded.encoding is not None
    np.testing.assert_allclose(loaded.encoding.encode(heard[-1]), batch.inputs, rtol=1e-5)
    assert list(heard[-1]["c"]) == list(train.inputs["c"].iloc[[5, 2, 40]])
    assert not np.allclose(heard[-1]["a"], train.inputs["a"].iloc[[5, 2, 40]])
    torch.testing.assert_close(batch.teacher["logits"], FakeTeacher(loaded.task).signals(heard[-1])["logits"])


def test_only_so_many_training_rows_keep_their_labels(tmp_path: Path) -> None:
    frame(200, 0).to_csv(tmp_path / "train.csv", index=False)
    asked = said(tmp_path, train="train.csv") | {"split": {"validation": 0.2, "test": 0.2}}
    whole, few = (load_rows(parse(asked | more)) for more in ({}, {"rows": {"labelled": 20}}))
    assert (whole.rows.keys == few.rows.keys).all()
    before, after = whole.rows.part("train").labels, few.rows.part("train").labels
    assert before is not None and after is not None
    kept = after >= 0
    assert kept.sum() == 20 and (after[kept] == before[kept]).all()
    assert abs(before.mean() - after[kept].mean()) < 0.06  # the same share of each class
    for part in ("validation", "test"):
        assert np.array_equal(whole.rows.part(part).labels, few.rows.part(part).labels)  # type: ignore[arg-type]
    for count, told in ((120, "120 training rows have a label"), (1, "less than one of each of the 2 classes")):
        with pytest.raises(DataError, match=f"U530 .*{told}"):
            load_rows(parse(asked | {"rows": {"labelled": count}}))


def test_values_are_forgotten_too(tmp_path: Path) -> None:
    table = frame(200, 0).assign(y=lambda rows: rows.a * 2 + 1)
    table.to_csv(tmp_path / "train.csv", index=False)
    labels = load_rows(parse(said(tmp_path, train="train.csv") | {"rows": {"labelled": 30}})).rows.part("train").labels
    assert labels is not None and np.isfinite(labels).sum() == 30
