"""Several processes teach what one teaches, byte for byte; what is killed goes on, and leaves nobody behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from test_teaching import TASK, contents, make_rows

from understudy.errors import RecipeError, TeacherError, TransferSetError
from understudy.pools import Processes
from understudy.recipe import parse
from understudy.store.encodings import Sampled, TopK
from understudy.tasks import Task
from understudy.teachers import CallableTeacher, TorchTeacher
from understudy.teaching import teach

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9")


def as_floats(inputs: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(inputs))


def network() -> TorchTeacher:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    return TorchTeacher(module, task=TASK, classes=None, prepare=as_floats, batch_size=7, layers=["1"])


def shifted(inputs: Any, keys: Any, view: int) -> Any:
    return inputs + view


def dying(inputs: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def broken(inputs: Any) -> Any:
    return np.full((len(inputs), 4), 1.0)


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tmp_path: Path) -> None:
    rows, teacher = make_rows(), network()
    options: dict[str, Any] = {"task": TASK, "batch_size": 7, "shard_rows": 16, "views": 2, "augment": shifted, "dtype": "float16"}
    teach(teacher, rows, tmp_path / "one", **options)
    teach(teacher, rows.take(slice(0, 60)), tmp_path / "part", **options)
    pool = Processes(2)
    stored = teach(teacher, rows, tmp_path / "two", pool=pool, **options)
    assert stored.views == 2 and "features/1" in stored.signals
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    (tmp_path / "two" / "shard-00002.safetensors").unlink()
    teach(teacher, rows, tmp_path / "two", pool=pool, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_what_cannot_be_sent_or_dies_or_errs_is_told(tmp_path: Path) -> None:
    with pytest.raises(TransferSetError, match=r"U460 0 workers"):
        Processes(0)
    told: Any = {"task": TASK, "pool": Processes(1)}
    with pytest.raises(TransferSetError, match=r"U461 this teacher cannot be sent to another process: .*lambda"):
        teach(CallableTeacher(lambda x: x[:, :3], task=TASK, output="logits"), make_rows(), tmp_path / "a", **told)
    with pytest.raises(TransferSetError, match=r"U462 one of 1 workers ended by itself"):
        teach(CallableTeacher(dying, task=TASK, output="logits"), make_rows(), tmp_path / "b", **told)
    with pytest.raises(TeacherError, match=r"U010 .* of shape \(100, 4\) for 100 rows"):
        teach(CallableTeacher(broken, task=TASK, output="logits"), make_rows(), tmp_path / "c", **told)


def test_a_run_is_not_written_into_an_object_store(tmp_path: Path) -> None:
    from understudy import pipeline

    recipe = parse({"out": "s3://bucket/run", "data": {"train": "rows.csv"}, "teacher": {"source": "t.joblib"}})
    with pytest.raises(RecipeError, match=r"U467 out = 's3://bucket/run'"):
        pipeline.distill(recipe)
    with pytest.raises(RecipeError, match=r"U464 --on 'k8s'"):
        pipeline.distill(recipe.model_copy(update={"out": str(tmp_path)}), on="k8s")


class Mailed:
    """A pool of this process: work, items and what comes of them go through bytes as they do to others."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def map(self, work: Any, items: Any) -> Iterator[Any]:
        there = pickle.loads(pickle.dumps(work))
        for item in items:
            said = pickle.dumps(there(pickle.loads(pickle.dumps(item))))
            self.sizes.append(len(said))
            yield pickle.loads(said)


WIDE = Task("multiclass", tuple(f"c{number}" for number in range(300)))


def wide() -> TorchTeacher:
    torch.manual_seed(0)
    return TorchTeacher(torch.nn.Linear(4, 300), task=WIDE, classes=None, prepare=as_floats, batch_size=16)


@pytest.mark.parametrize(
    "stored", ["float16", "bfloat16", TopK(4), Sampled(4, 4), "auto"], ids=["float16", "bfloat16", "top-k", "sampled", "auto"]
)
@pytest.mark.parametrize("views", [1, 2])
def test_workers_encode_what_they_say(tmp_path: Path, stored: Any, views: int) -> None:
    rows = make_rows()
    dtype = {"dtype": stored} if stored in ("float16", "bfloat16") else {"encoding": stored}
    options: dict[str, Any] = {"task": WIDE, "batch_size": 16, "shard_rows": 30, "views": views, "augment": shifted, **dtype}
    teach(wide(), rows, tmp_path / "one", **options)
    pool = Mailed()
    teach(wide(), rows, tmp_path / "two", pool=pool, **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    # what is sent is what is stored: far less than every number in full
    assert sum(pool.sizes) < 1.3 * sum(len(said) for name, said in contents(tmp_path / "two").items() if name.startswith("shard"))
    assert sum(pool.sizes) < 0.6 * 4 * 300 * 100 * views


def not_a_number(inputs: Any) -> Any:
    said = inputs[:, :3].copy()
    said[inputs[:, 0] > 1.5] = np.nan
    return said


@pytest.mark.parametrize("bad", [False, True])
def test_workers_tell_of_rows_that_cannot_be_stored(tmp_path: Path, bad: bool) -> None:
    rows, teacher = make_rows(), CallableTeacher(not_a_number, task=TASK, output="logits")
    if bad:
        first = np.lexsort((rows.keys[:, 1], rows.keys[:, 0]))[0]
        rows.inputs[first, 0] = 3.0  # among the rows that are asked first, too
    told = []
    for name, pool in (("one", None), ("two", Mailed())):
        with pytest.raises(TeacherError, match=r"U006 \d+ of 100 teacher rows are NaN") as raised:
            teach(teacher, rows, tmp_path / name, task=TASK, dtype="float16", batch_size=5, shard_rows=10, pool=pool)
        told.append(str(raised.value))
    assert told[0] == told[1] and contents(tmp_path / "one") == contents(tmp_path / "two")


SLOW = """
import sys, time
from test_pools import TASK, make_rows
from understudy.pools import Processes
from understudy.teachers import CallableTeacher
from understudy.teaching import teach

def slowly(x):
    time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0)
    return x[:, :3]

if __name__ == "__main__":
    teach(CallableTeacher(slowly, task=TASK, output="logits"), make_rows(), sys.argv[1], task=TASK, shard_rows=10, batch_size=5,
          pool=Processes(2))
"""


@pytest.mark.slow
def test_a_killed_teaching_of_two_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(SLOW, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    killed = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, str(script), str(killed), "0.2"], env=environment)
    limit = time.monotonic() + 120
    while len(list(killed.glob("shard-*"))) < 2:
        assert process.poll() is None and time.monotonic() < limit
        os.sched_yield()
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    assert "manifest.json" not in contents(killed)
    subprocess.run([sys.executable, str(script), str(killed), "0"], env=environment, check=True)
    teach(
        CallableTeacher(lambda x: x[:, :3], task=TASK, output="logits"),
        make_rows(),
        tmp_path / "whole",
        task=TASK,
        shard_rows=10,
        batch_size=5,
    )
    assert contents(killed) == contents(tmp_path / "whole")
