"""Teaching: each row asked once, the same files from the same rows, resumed after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from understudy.adapters._loading import RawPreparation
from understudy.asking import BLOCK_BYTES, Questions, answers
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.errors import TeacherError, TransferSetError
from understudy.store.transfer_set import TransferSet
from understudy.tasks import Task
from understudy.teachers import CallableTeacher, FakeTeacher, TorchTeacher
from understudy.teaching import _missing, assign_folds, out_of_fold, reask, teach

TASK = Task("multiclass", ("a", "b", "c"))


def make_rows(count: int = 100, seed: int = 0, labels: bool = False) -> Rows:
    inputs = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    known = FakeTeacher(TASK, 3).signals(inputs)["logits"].argmax(1).numpy() if labels else None
    return Rows("array", inputs, content_keys(inputs, "array"), labels=known)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_stored_is_what_the_teacher_says(tmp_path: Path) -> None:
    rows, teacher = make_rows(), FakeTeacher(TASK)
    stored = teach(teacher, rows, tmp_path, task=TASK, batch_size=7, shard_rows=30)
    order = np.random.default_rng(5).permutation(100)
    said = stored.gather("logits", stored.positions(rows.take(order).keys))
    torch.testing.assert_close(said, teacher.signals(rows.inputs[order])["logits"])
    assert len(list(tmp_path.glob("shard-*"))) == 4 and teacher.rows_asked == 200


def test_the_order_of_rows_and_the_batch_do_not_change_the_files(tmp_path: Path) -> None:
    rows = make_rows()
    teach(FakeTeacher(TASK), rows, tmp_path / "a", task=TASK, shard_rows=30)
    teach(FakeTeacher(TASK), rows.take(np.random.default_rng(5).permutation(100)), tmp_path / "b", task=TASK, shard_rows=30, batch_size=9)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_equal_rows_are_asked_once_and_again_never(tmp_path: Path) -> None:
    rows, teacher = make_rows(), FakeTeacher(TASK)
    doubled = rows.take(np.concatenate([np.arange(100), np.arange(50)]))
    assert len(teach(teacher, doubled, tmp_path, task=TASK)) == 100
    before = contents(tmp_path)
    teach(teacher, rows, tmp_path, task=TASK)
    assert teacher.rows_asked == 100 and contents(tmp_path) == before


def test_only_new_rows_are_asked(tmp_path: Path) -> None:
    rows, teacher = make_rows(120), FakeTeacher(TASK)
    teach(teacher, rows.take(slice(0, 100)), tmp_path, task=TASK, shard_rows=30)
    stored = teach(teacher, rows, tmp_path, task=TASK, shard_rows=30)
    assert teacher.rows_asked == 120
    torch.testing.assert_close(stored.gather("logits", stored.positions(rows.keys)), teacher.signals(rows.inputs)["logits"])


def test_a_flipped_byte_costs_one_shard(tmp_path: Path) -> None:
    rows, teacher = make_rows(), FakeTeacher(TASK)
    teach(teacher, rows, tmp_path, task=TASK, shard_rows=30)
    before = contents(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    broken = bytearray(before[shard.name])
    broken[len(broken) // 2 + 100] ^= 64
    shard.write_bytes(bytes(broken))
    with pytest.raises(TransferSetError, match=r"U025"):
        TransferSet.open(tmp_path)
    teach(teacher, rows, tmp_path, task=TASK, shard_rows=30)
    assert teacher.rows_asked == 130 and contents(tmp_path) == before


def test_the_wrong_teacher_is_refused(tmp_path: Path) -> None:
    rows = make_rows()
    stored = teach(FakeTeacher(TASK), rows, tmp_path, task=TASK)
    with pytest.raises(TransferSetError, match=r"(?s)U021 .*seed: '0' there, '1' now"):
        teach(FakeTeacher(TASK, 1), rows, tmp_path, task=TASK)
    reask(FakeTeacher(TASK), rows, stored)
    with pytest.raises(TransferSetError, match=r"U022 .* row \d+ has logits \[.*\] there, \[.*\] now"):
        reask(FakeTeacher(TASK, 1), rows, stored)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reask_allows_for_the_stored_precision(tmp_path: Path, dtype: Any) -> None:
    rows = make_rows()
    stored = teach(FakeTeacher(TASK), rows, tmp_path, task=TASK, dtype=dtype)
    live = FakeTeacher(TASK).signals(rows.inputs)["logits"]
    assert not torch.equal(stored.gather("logits", stored.positions(rows.keys)), live)  # there is something to allow for
    reask(FakeTeacher(TASK), rows, stored, n=100)


def test_nan_rows_are_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    rows = make_rows()
    bad = rows.inputs[[17, 60], 0]

    def answer(x: Any) -> Any:
        said = x[:, :3].copy()
        said[np.isin(x[:, 0], bad)] = np.nan
        return said

    with pytest.raises(TeacherError, match=r"U006 2 of 100 teacher rows are NaN or infinite as float32 \(first: row 17\)"):
        teach(CallableTeacher(answer, task=TASK, output="logits"), rows, tmp_path, task=TASK, shard_rows=10)
    assert 8 <= len(list(tmp_path.glob("shard-*"))) <= 9
    with pytest.raises(TransferSetError, match=r"U026"):
        TransferSet.open(tmp_path)


def test_float16_that_overflows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"U006 .* as float16"):
        teach(CallableTeacher(lambda x: x[:, :3] * 1e6, task=TASK, output="logits"), make_rows(), tmp_path, task=TASK, dtype="float16")


def test_the_wrong_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"U010 callable answers logits of shape \(100, 4\) for 100 rows, the task needs \(100, 3\)"):
        teach(CallableTeacher(lambda x: x, task=TASK, output="logits"), make_rows(), tmp_path, task=TASK)


def test_views_are_stored_beside_the_plain_row(tmp_path: Path) -> None:
    rows, teacher = make_rows(), FakeTeacher(TASK)
    stored = teach(teacher, rows, tmp_path, task=TASK, views=3, augment=lambda x, keys, view: x + view, view_spec={"shift": 1})
    said = stored.gather("logits", stored.positions(rows.keys))
    assert said.shape == (100, 3, 3) and stored.views == 3 and stored.view_spec == {"shift": 1}
    torch.testing.assert_close(said[:, 2], teacher.signals(rows.inputs + 2)["logits"])
    reask(teacher, rows, stored)


SLOW = """
import sys, time
from test_teaching import TASK, make_rows
from understudy.teachers import CallableTeacher
from understudy.teaching import teach

def slowly(x):
    time.sleep(float(sys.argv[2]))
    return x[:, :3]

teach(CallableTeacher(slowly, task=TASK, output="logits"), make_rows(), sys.argv[1], task=TASK, shard_rows=10, batch_size=5)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_teaching_goes_on_and_leaves_the_same_bytes(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SLOW, str(tmp_path / "killed")]
    process = subprocess.Popen([*command, "0.1"], env=environment)
    limit = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("shard-*"))) < 3:
        assert process.poll() is None and time.monotonic() < limit
        os.sched_yield()
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = contents(tmp_path / "killed")
    assert "manifest.json" not in left and len(left) < 11
    subprocess.run([*command, "0"], env=environment, check=True)
    subprocess.run([sys.executable, "-c", SLOW, str(tmp_path / "whole"), "0"], env=environment, check=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert all(contents(tmp_path / "killed")[name] == content for name, content in left.items() if name.startswith("shard"))


def test_folds_are_even_within_classes_and_equal_rows_share_one() -> None:
    rows = make_rows(200, labels=True)
    doubled = rows.take(np.concatenate([np.arange(200), np.arange(200)]))
    assert doubled.labels is not None
    known = TASK.labelled(doubled.labels)
    fold = assign_folds(doubled.keys, doubled.labels, known, TASK, folds=5, seed=0)
    assert (fold[:200] == fold[200:]).all() and set(fold) == {0, 1, 2, 3, 4}
    for label in range(3):
        counts = np.bincount(fold[:200][doubled.labels[:200] == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(0).permutation(400)
    turned = assign_folds(doubled.keys[order], doubled.labels[order], known, TASK, folds=5, seed=0)
    assert (turned == fold[order]).all()
    assert (assign_folds(doubled.keys, doubled.labels, known, TASK, folds=5, seed=1) != fold).any()


def test_out_of_fold_answers_come_from_those_who_have_not_seen_the_row(tmp_path: Path) -> None:
    from understudy.adapters.sklearn import train_estimator

    rows = make_rows(200, labels=True)
    assert rows.labels is not None
    labels = rows.labels.copy()
    generator = np.random.default_rng(0)
    noisy = generator.random(200) < 0.3
    labels[noisy] = generator.integers(0, 3, noisy.sum())
    labels[:10] = -1
    rows = Rows("array", rows.inputs, rows.keys, labels=labels)
    teacher = train_estimator("forest", rows.inputs, labels, TASK, options={"n_estimators": 20, "n_jobs": 1})
    folds = out_of_fold(teacher, rows, task=TASK, folds=4)
    stored = teach(teacher, rows, tmp_path, task=TASK, folds=folds)
    at = stored.positions(rows.keys)
    assert (stored.fold[at[:10]] == -1).all() and (stored.fold[at[10:]] >= 0).all()
    agree = (stored.gather("logits", at).argmax(1).numpy() == labels)[10:].mean()
    own = (teacher.signals(rows.inputs)["logits"].argmax(1).numpy() == labels)[10:].mean()
    assert agree < 0.85 < own
    reask(teacher, rows, stored)
    other = Rows("array", rows.inputs, rows.keys, labels=np.roll(labels, 1))
    with pytest.raises(TransferSetError, match=r"U021 .*(?s:.*)out of fold"):
        teach(teacher, rows, tmp_path, task=TASK, folds=out_of_fold(teacher, other, task=TASK, folds=4))


def test_a_class_that_one_fold_lacks_is_filled() -> None:
    from understudy.adapters.sklearn import train_estimator

    rows = make_rows(60, labels=True)
    labels = np.where(rows.labels == 2, 1, rows.labels)
    labels[0] = 2
    rows = Rows("array", rows.inputs, rows.keys, labels=labels)
    teacher = train_estimator("forest", rows.inputs, labels, TASK, options={"n_estimators": 5, "n_jobs": 1})
    folds = out_of_fold(teacher, rows, task=TASK, folds=3)
    said = folds.signals["logits"]
    assert said.shape == (60, 3) and bool(said.isfinite().all())
    assert float(said[0].softmax(0)[2]) < 1e-5


def test_out_of_fold_needs_a_teacher_that_can_be_refitted() -> None:
    with pytest.raises(TeacherError, match=r"U018 out-of-fold answers need an estimator"):
        out_of_fold(FakeTeacher(TASK), make_rows(labels=True), task=TASK)


def test_a_network_that_says_its_input_back_is_stored_row_by_row(tmp_path: Path) -> None:
    """Rows are made ready in memory that is used again, several batches at once: no answer may change when the next rows come."""
    inputs = np.random.default_rng(2).normal(size=(8001, 100)).astype(np.float32)
    rows, task = Rows("array", inputs, content_keys(inputs, "array")), Task("multiclass", tuple(map(str, range(100))))
    teacher = TorchTeacher(nn.Identity(), task=task, classes=None, prepare=RawPreparation(), batch_size=64)
    assert inputs[:64].nbytes * 4 < BLOCK_BYTES < inputs[:6000].nbytes
    asked = 0

    def note(given: int) -> None:
        nonlocal asked
        asked += given

    stored = teach(teacher, rows, tmp_path, task=task, batch_size=64, shard_rows=6000)
    np.testing.assert_array_equal(stored.gather("logits", stored.positions(rows.keys)).numpy(), inputs)
    for parts in answers(Questions(teacher, task, 64), rows.inputs, rows.keys, [np.arange(10, 8001), np.arange(5)], note):
        assert [part["logits"].dtype for part in parts] == [torch.float32]
    assert asked == 7991 + 5


@pytest.mark.parametrize("strided", [True, False])
def test_rows_that_lie_apart_in_memory_are_the_same_rows(tmp_path: Path, strided: bool) -> None:
    inputs = np.random.default_rng(2).normal(size=(300, 6)).astype(np.float32)
    given: Any = inputs[:, ::2] if strided else pd.DataFrame(inputs[:, ::2])
    keys = content_keys(np.ascontiguousarray(inputs[:, ::2]), "array")
    teacher = TorchTeacher(nn.Identity(), task=TASK, classes=None, prepare=RawPreparation(), batch_size=32)
    stored = teach(teacher, Rows("array", given, keys), tmp_path, task=TASK, batch_size=32)
    np.testing.assert_array_equal(stored.gather("logits", stored.positions(keys)).numpy(), inputs[:, ::2])


def test_an_error_while_rows_are_made_ready_is_raised_and_the_thread_ends(tmp_path: Path) -> None:
    rows = make_rows()
    before = threading.active_count()

    def broken(inputs: Any, keys: Any, view: int) -> Any:
        raise OSError("the picture is cut short")

    with pytest.raises(OSError, match="the picture is cut short"):
        teach(FakeTeacher(TASK), rows, tmp_path / "broken", task=TASK, views=2, augment=broken, view_spec={})
    fails = TorchTeacher(nn.Linear(5, 3), task=TASK, classes=None, prepare=RawPreparation(), batch_size=16)
    with pytest.raises(TeacherError, match="U370 torch fails on these rows"):
        teach(fails, rows, tmp_path / "fails", task=TASK, batch_size=16)
    assert threading.active_count() == before


def test_keys_that_share_their_first_half_are_put_in_order_and_equal_ones_asked_once() -> None:
    keys = np.array([[5, 1], [2, 9], [5, 0], [2, 9], [-7, 3]])
    assert _missing(keys, np.zeros((0, 2), np.int64)).tolist() == [4, 1, 2, 0]
    assert _missing(keys, np.array([[5, 0]])).tolist() == [4, 1, 0]
    assert _missing(keys[:3:2], np.zeros((0, 2), np.int64)).tolist() == [1, 0]
    assert _missing(keys[1:3], keys).tolist() == []
