"""How answers are stored: what each encoding keeps, loses, and says it loses; by definitions written out here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.ensembles import Ensemble
from understudy.errors import TeacherError, TransferSetError
from understudy.store.encodings import Dense, Encoding, Sampled, TopK, choose, from_spec, lost
from understudy.store.transfer_set import TransferSet
from understudy.tasks import Task
from understudy.teachers import CallableTeacher, FakeTeacher
from understudy.teaching import compare_answers, reask, teach


def zipf(rows: int, classes: int, seed: int = 0, power: float = 1.2) -> Tensor:
    """Logits of Zipf-like distributions, each over its own order of classes, shifted by a constant of its own."""
    draw = torch.Generator().manual_seed(seed)
    ranks = torch.stack([torch.randperm(classes, generator=draw) for _ in range(rows)]) + 1
    return -power * ranks.float().log() + 5 * torch.randn(rows, 1, generator=draw)


def keys(rows: int, seed: int = 0) -> Any:
    return content_keys(np.random.default_rng(seed).normal(size=(rows, 2)), "array")


SAID = zipf(50, 1000)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_top_k_has_the_right_head_and_the_right_mass_beside_it_at_each_stored_temperature(temperature: float) -> None:
    encoding = TopK(20)
    dense = encoding.decode(encoding.encode(SAID, keys(50)), 1000, temperature=temperature)
    full = (SAID / temperature).double().softmax(1)
    kept = (dense / temperature).double().softmax(1)
    head = SAID.topk(20).indices
    torch.testing.assert_close(kept.gather(1, head), full.gather(1, head), rtol=3e-3, atol=1e-7)
    torch.testing.assert_close(1 - kept.gather(1, head).sum(1), 1 - full.gather(1, head).sum(1), rtol=3e-3, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.4, 3.0, 8.0, 20.0, 0.8])
def test_top_k_is_read_between_the_stored_temperatures(temperature: float) -> None:
    encoding = TopK(20)
    dense = encoding.decode(encoding.encode(SAID, keys(50)), 1000, temperature=temperature)
    full, kept = ((logits / temperature).double().softmax(1) for logits in (SAID, dense))
    head = SAID.topk(20).indices
    torch.testing.assert_close(kept.gather(1, head), full.gather(1, head), rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("classes", [2, 3, 8, 300, 40_000])
def test_few_classes_and_many(classes: int) -> None:
    said = zipf(6, classes, seed=classes)
    for encoding in (TopK(32), Sampled(4, 8)):
        stored = encoding.encode(said, keys(6))
        again = from_spec(json.loads(json.dumps(encoding.spec)))
        dense = again.decode(stored, classes, temperature=1.0)
        assert dense.shape == said.shape and bool((dense.argmax(1) == said.argmax(1)).all())
        assert encoding.bytes_per_row(classes) == sum(column[0].nbytes for column in stored.values())
    if classes <= 3:  # the one other class is the tail
        dense = TopK(2).decode(TopK(2).encode(said, keys(6)), classes, temperature=3.0)
        torch.testing.assert_close((dense / 3).softmax(1), (said / 3).softmax(1), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sampled_answers_are_right_in_the_mean_and_exact_in_the_head(temperature: float) -> None:
    """2,000 draws for one row; the mean of the stored distributions is the teacher's."""
    said, encoding = zipf(1, 60).expand(2000, -1), Sampled(5, 6, temperature)
    stored = encoding.encode(said, keys(2000))
    weights = (encoding.decode(stored, 60, temperature=temperature) / temperature).softmax(1)
    full = (said[0] / temperature).softmax(0)
    head = said[0].topk(5).indices
    torch.testing.assert_close(weights[:, head], full[head].expand(2000, -1), rtol=3e-3, atol=0)
    noise = (weights.std(0) / 2000**0.5).clamp(min=1e-6)
    apart = (weights.mean(0) - full) / noise
    apart[head] = 0
    assert float(apart.abs().max()) < 5 and float(weights.std(0).max()) > 1e-3
    torch.testing.assert_close(weights.sum(1), torch.ones(2000))
    with pytest.raises(TransferSetError, match="U321 these answers were sampled at temperature"):
        encoding.decode(stored, 60, temperature=temperature + 1)


def test_draws_depend_on_the_row_and_the_view_alone() -> None:
    encoding, known = Sampled(4, 6), keys(50)
    whole = encoding.encode(SAID, known)["/ids"]
    order = torch.randperm(50)
    assert torch.equal(encoding.encode(SAID[order], known[order.numpy()])["/ids"], whole[order])
    assert not torch.equal(encoding.encode(SAID, known, 1)["/ids"], whole)


def test_what_is_lost_is_said_and_auto_takes_the_smallest_within_it() -> None:
    known = keys(50)
    exact = lost(Dense("float32"), SAID, known, temperature=4.0)
    assert exact["kl"] < 1e-9
    by_hand = 0.0
    for temperature in (1.0, 4.0):
        encoding = TopK(8)
        full = (SAID.double() / temperature).softmax(1)
        kept = (encoding.decode(encoding.encode(SAID, known), 1000, temperature=temperature).double() / temperature).softmax(1)
        by_hand = max(by_hand, float((full * (full / kept).log()).sum(1).mean()))
    assert lost(TopK(8), SAID, known, temperature=4.0)["kl"] == pytest.approx(by_hand, rel=1e-6)
    chosen = {most: choose(SAID, known, temperature=1.0, most=most) for most in (1.0, 0.2, 1e-4, 1e-12)}
    sizes = [encoding.bytes_per_row(1000) for encoding in chosen.values()]
    assert sizes == sorted(sizes) and sizes[0] < 60 and chosen[1e-12].spec == Dense("float32").spec
    assert all(lost(encoding, SAID, known, temperature=1.0)["kl"] <= most for most, encoding in chosen.items() if most > 1e-9)


TASK = Task("multiclass", tuple(f"c{number}" for number in range(40)))


def rows(count: int = 90) -> Rows:
    inputs = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    return Rows("array", inputs, content_keys(inputs, "array"))


@pytest.mark.parametrize("encoding", [TopK(6), Sampled(6, 5), Dense("bfloat16"), "auto"], ids=["top-k", "sampled", "dense", "auto"])
@pytest.mark.parametrize("views", [1, 3])
def test_a_set_in_each_encoding_is_whole_resumable_and_checked(tmp_path: Path, encoding: Encoding | Any, views: int) -> None:
    some, teacher = rows(), FakeTeacher(TASK)
    said: dict[str, Any] = {"task": TASK, "encoding": encoding, "shard_rows": 20, "most_lost": 0.05}
    if views > 1:
        said |= {"views": views, "augment": lambda inputs, known, view: inputs + view / 8, "view_spec": {}}
    stored = teach(teacher, some, tmp_path, **said)
    at, view = stored.positions(some.keys), np.arange(90) % views
    live = teacher.signals(some.inputs + view[:, None].astype(np.float32) / 8)["logits"]
    dense = stored.gather("logits", at, view)
    assert dense.shape == (90, 40)
    if not isinstance(encoding, Sampled):  # there a class that was drawn several times can have more than the largest
        assert bool((dense.argmax(1) == live.argmax(1)).all())
    if stored.sparse("logits"):
        ids = stored.gather("logits/ids", at, view)
        assert ids.dtype == torch.int64 and torch.equal(ids[:, 0], live.argmax(1))
    reask(teacher, some, stored, n=90)
    assert compare_answers(FakeTeacher(TASK, 1), some, stored, n=90).worst > 1
    shown = stored.encoding["measured"]
    assert shown["rows"] == 20 and shown["bytes_per_row"] == from_spec(stored.encoding["stored"]).bytes_per_row(40)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "shard-00002.safetensors").unlink()
    (tmp_path / "manifest.json").write_text("{")
    teach(teacher, some, tmp_path, **said)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_encoding_is_another_set(tmp_path: Path) -> None:
    teach(FakeTeacher(TASK), rows(), tmp_path, task=TASK, encoding=TopK(6))
    with pytest.raises(TransferSetError, match=r"(?s)U021 .*encoding: .*'top': 6.* there, .*'top': 7.* now"):
        teach(FakeTeacher(TASK), rows(), tmp_path, task=TASK, encoding=TopK(7))


def test_top_k_is_for_classes_that_exclude_each_other(tmp_path: Path) -> None:
    task = Task("multilabel", ("a", "b", "c"))
    with pytest.raises(TransferSetError, match="U322 the encoding top-k is for classes that exclude each other, the task is multilabel"):
        teach(FakeTeacher(task), rows(), tmp_path, task=task, encoding=TopK(2))
    assert teach(FakeTeacher(task), rows(), tmp_path / "b", task=task, encoding="auto").encoding["stored"] == Dense().spec


def test_further_signals_are_columns_of_their_own(tmp_path: Path) -> None:
    class Rich:
        """A teacher with features and a cluster number beside its answer."""

        name, classes = "rich", None

        def signals(self, inputs: Any) -> dict[str, Tensor]:
            given = torch.from_numpy(np.asarray(inputs))
            features = given[:, None, :].repeat(1, 2, 1) * 1.001
            return FakeTeacher(TASK).signals(inputs) | {"features/last": features, "cluster": (given[:, :1] > 0).long()}

        def fingerprint(self) -> dict[str, str]:
            return {"name": "rich"}

        def parameters(self) -> None:
            return None

    some = rows()
    stored = teach(Rich(), some, tmp_path, task=TASK, dtype="float16", encoding=TopK(6), shard_rows=30)
    at = stored.positions(some.keys)
    assert set(stored.signals) == {"logits", "features/last", "cluster"}
    features = stored.gather("features/last", at)
    assert features.shape == (90, 2, 6) and torch.equal(features, Rich().signals(some.inputs)["features/last"].half().float())
    assert stored.gather("cluster", at).dtype == torch.int64
    reask(Rich(), some, stored)
    with pytest.raises(TransferSetError, match="U022 the teacher gives no (cluster|features/last), which"):
        reask(FakeTeacher(TASK), some, stored)


def test_several_teachers_in_one_set(tmp_path: Path) -> None:
    some, members = rows(), [FakeTeacher(TASK, 0), FakeTeacher(TASK, 1)]
    stored = teach(Ensemble(members, task=TASK, names=["big", "small"]), some, tmp_path, task=TASK)
    at = stored.positions(some.keys)
    assert set(stored.signals) == {"logits", "teachers/big/logits", "teachers/small/logits"}
    for name, member in zip(("big", "small"), members, strict=True):
        torch.testing.assert_close(stored.gather(f"teachers/{name}/logits", at), member.signals(some.inputs)["logits"])
    torch.testing.assert_close(stored.gather("logits", at), Ensemble(members, task=TASK).signals(some.inputs)["logits"])
    reask(Ensemble(members, task=TASK, names=["big", "small"]), some, stored)
    with pytest.raises(TeacherError, match="U323 2 members need as many different names; there are: a, a"):
        Ensemble(members, task=TASK, names=["a", "a"])


def test_the_measure_does_not_hide_rows_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="U006 90 of 90 teacher rows"):
        teach(CallableTeacher(lambda x: np.full((len(x), 40), np.nan), task=TASK, output="logits"), rows(), tmp_path, task=TASK,
              encoding=TopK(3))  # fmt: skip
    with pytest.raises(TransferSetError, match="U026"):
        TransferSet.open(tmp_path)
