"""The transfer set on disk: whole or absent, found by key, refused when damaged."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from understudy.errors import TransferSetError
from understudy.store.transfer_set import TransferSet, find_keys
from understudy.store.writing import TransferWriter
from understudy.tasks import Task

TASK = Task("multiclass", ("a", "b", "c"))


def keys(rows: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, size=(rows, 2))


def writer(folder: Path, **options: Any) -> TransferWriter:
    return TransferWriter(folder, **({"task": TASK, "teacher": "t", "fingerprint": {"weights": "x"}} | options))


def fill(folder: Path, rows: int = 30, shard: int = 12, **options: Any) -> tuple[np.ndarray[Any, Any], torch.Tensor]:
    known, said = keys(rows), torch.randn(rows, 3, generator=torch.Generator().manual_seed(0))
    with writer(folder, **options) as into:
        for start in range(0, rows, shard):
            part = slice(start, min(start + shard, rows))
            into.write(known[part], np.full(part.stop - start, -1), {"logits": said[part]})
        into.finish()
    return known, said


def test_rows_come_back_by_key_in_any_order(tmp_path: Path) -> None:
    known, said = fill(tmp_path)
    opened = TransferSet.open(tmp_path)
    order = np.random.default_rng(1).permutation(30)[:17]
    torch.testing.assert_close(opened.gather("logits", opened.positions(known[order])), said[order], rtol=0, atol=0)
    assert len(opened) == 30 and opened.task == TASK and opened.fingerprint == {"weights": "x"}
    assert json.loads((tmp_path / "manifest.json").read_text())["rows"] == 30


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("views", [1, 5])
def test_any_rows_of_any_shards_in_any_view(tmp_path: Path, dtype: str, views: int) -> None:
    known, said = keys(31), torch.randn(31, views, 3, generator=torch.Generator().manual_seed(0))
    with writer(tmp_path, dtype=dtype, views=views) as into:
        for start in range(0, 31, 7):
            part = slice(start, start + 7)
            into.write(known[part], np.full(len(known[part]), -1), {"logits": said[part] if views > 1 else said[part, 0]})
        into.finish()
    stored = TransferSet.open(tmp_path)
    generator = np.random.default_rng(1)
    rows, view = generator.integers(0, 31, 200), generator.integers(0, views, 200)
    at = stored.positions(known[rows])
    kept = said.to(getattr(torch, dtype)).float()
    one = stored.gather("logits", at, view)
    assert one.dtype == torch.float32 and torch.equal(one, kept[rows, view])
    every = stored.gather("logits", at)
    assert torch.equal(every, kept[rows] if views > 1 else kept[rows, 0])
    assert stored.gather("logits", at[:0]).shape == every[:0].shape
    for wrong in (np.array([31]), np.array([-1])):
        with pytest.raises(IndexError):
            stored.gather("logits", wrong)
    with pytest.raises(IndexError):
        stored.gather("logits", at, view + views)


def test_missing_rows_are_counted(tmp_path: Path) -> None:
    known, _ = fill(tmp_path)
    with pytest.raises(TransferSetError, match=r"U020 32 rows, 30 in the transfer set .*; 2 missing \(first: row 30\)"):
        TransferSet.open(tmp_path).positions(np.concatenate([known, keys(2, seed=9)]))
    with pytest.raises(TransferSetError, match=r"U027 the transfer set has no signal 'logit'; did you mean 'logits'"):
        TransferSet.open(tmp_path).gather("logit", np.zeros(1, dtype=np.int64))


def test_keys_that_share_a_half_are_told_apart() -> None:
    there = np.array([[1, 2], [1, 3], [1, 1], [0, 1], [2**62, -1]])
    asked = np.array([[1, 1], [1, 3], [1, 2], [1, 4], [2**62, -1], [2**62, 0], [-1, 0]])
    assert find_keys(there, asked).tolist() == [2, 1, 0, -1, 4, -1, -1]


def test_a_large_join_is_quick() -> None:
    there = keys(200_000)
    order = np.random.default_rng(2).permutation(len(there))
    start = time.perf_counter()
    found = find_keys(there, there[order])
    assert time.perf_counter() - start < 2 and bool((found == order).all())


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "swap"])
def test_a_damaged_shard_is_named(tmp_path: Path, damage: str) -> None:
    fill(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    if damage == "flip":
        shard.write_bytes(bytes(content))
    elif damage == "cut":
        shard.write_bytes(bytes(content[:-100]))
    elif damage == "swap":
        shard.write_bytes((tmp_path / "shard-00000.safetensors").read_bytes())
    else:
        shard.unlink()
    with pytest.raises(TransferSetError, match=r"U025 .*shard-00001.safetensors is damaged .* only it will be taught again"):
        TransferSet.open(tmp_path)


def test_an_incomplete_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TransferSetError, match=r"U026 no transfer set at"):
        TransferSet.open(tmp_path / "nothing")
    with writer(tmp_path) as into:
        into.write(keys(3), np.full(3, -1), {"logits": torch.zeros(3, 3)})
    with pytest.raises(TransferSetError, match=r"U026 .* is not complete"):
        TransferSet.open(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(TransferSetError, match=r"U024 .* is format 99"):
        TransferSet.open(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(TransferSetError, match=r"U024 .* cannot be read"):
        TransferSet.open(tmp_path)


def test_another_teacher_is_refused_by_the_part_that_moved(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(TransferSetError, match=r"(?s)U021 .*weights: 'x' there, 'y' now"), writer(tmp_path, fingerprint={"weights": "y"}):
        pass
    with pytest.raises(TransferSetError, match=r"(?s)U021 .*dtype: float32 there, float16 now"), writer(tmp_path, dtype="float16"):
        pass


def _hold(folder: Path, held: Any, free: Any) -> None:
    with writer(folder):
        held.set()
        free.wait(30)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    held, free = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, free))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(TransferSetError, match=r"U028 another process is writing"), writer(tmp_path):
            pass
    finally:
        free.set()
        other.join()
    with writer(tmp_path):
        pass


def test_a_full_disk_leaves_what_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with writer(tmp_path) as into:
        into.write(keys(3), np.full(3, -1), {"logits": torch.zeros(3, 3)})
    with monkeypatch.context() as patch, writer(tmp_path) as into:
        patch.setattr("os.fsync", full)
        with pytest.raises(TransferSetError, match=r"U023 cannot write .*No space left on device. What is written is whole"):
            into.write(keys(3, seed=1), np.full(3, -1), {"logits": torch.zeros(3, 3)})
    assert not list(tmp_path.glob(".*.part"))
    with writer(tmp_path) as into:
        assert len(into.keys) == 3
