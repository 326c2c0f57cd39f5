"""Two machines of a Ray cluster, one of which is lost half-way: the store is byte for byte, the curve to 1e-4, that of one process.

So it is through a cluster's client, from outside. All machines are on this one, with object stores of the smallest size; nothing is told
to anybody.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from rich.console import Console
from test_ranks import ALONE, RECIPE, lines
from test_teaching import TASK, contents, make_rows

from understudy import pipeline
from understudy.make.teachers import build_pool
from understudy.recipe import load, parse
from understudy.teachers import CallableTeacher
from understudy.teaching import teach

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name != "posix", reason="a cluster of several nodes")]

STORE = 80 * 2**20
PLACES = {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"}
"""Of a command of its own: where packages are, and no token that an earlier cluster of this user may have left."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head of two processors, and a way to add machines; this process is joined to it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": STORE, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = made.address
    yield made
    ray.shutdown()
    made.shutdown()
    del os.environ["RAY_ADDRESS"]


def first_three(inputs: Any) -> Any:
    return inputs[:, :3]


def slowly(inputs: Any) -> Any:
    time.sleep(0.2)
    return first_three(inputs)


def losing(cluster: Any, node: Any, sign: Any, card: Path) -> threading.Thread:
    """Ends this machine, without a word to anybody, as soon as the sign is there; the work must not be complete then."""

    def wait() -> None:
        limit = time.monotonic() + 1200
        while not sign() and time.monotonic() < limit:
            time.sleep(0.01)
        cluster.remove_node(node, allow_graceful=False)
        (card.parent.parent / ("late" if card.exists() else "lost")).touch()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_a_machine_is_lost_while_teaching(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=2, object_store_memory=STORE)
    rows, teacher = make_rows(400), CallableTeacher(slowly, task=TASK, output="logits")
    options: dict[str, Any] = {"task": TASK, "batch_size": 5, "shard_rows": 10}
    teach(CallableTeacher(first_three, task=TASK, output="logits"), rows, tmp_path / "one", **options)
    seen: list[int] = []

    def half_way() -> bool:
        seen.append(len(list((tmp_path / "two").glob("shard-*"))))
        return seen[-1] >= 8

    lost = losing(cluster, node, half_way, tmp_path / "two" / "manifest.json")
    teach(teacher, rows, tmp_path / "two", pool=build_pool(4, "ray"), **options)
    lost.join()
    assert 8 <= seen[-1] < 40
    assert (tmp_path / "lost").exists()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_machine_is_lost_while_training(cluster: Any, tmp_path: Path) -> None:
    import tomllib

    recipe = tomllib.loads(RECIPE.replace("epochs = 3", "epochs = 12"))
    one, two = (parse({**recipe, "out": str(tmp_path / name)}) for name in ("one", "two"))
    pipeline.distill(one, until="train", console=Console(quiet=True))
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE)
    journal = tmp_path / "two" / "seed-0" / "student" / "metrics.jsonl"
    seen: list[int] = []

    def half_way() -> bool:
        seen.append(len([line for line in lines(journal.parent) if "loss" in line]) if journal.exists() else 0)
        return seen[-1] >= 2

    lost = losing(cluster, node, half_way, journal.with_name("card.json"))
    pipeline.distill(two, until="train", console=Console(quiet=True), workers=2, on="ray")
    lost.join()
    for name in ("student", "control"):
        curves = [[line["loss"] for line in lines(tmp_path / run / "seed-0" / name) if "loss" in line] for run in ("one", "two")]
        assert len(curves[0]) == len(curves[1]) >= 12
        torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=1e-5)
    assert (journal.parents[1] / "lost").exists()
    assert json.loads((tmp_path / "two" / "seed-0" / "student" / "card.json").read_text(encoding="utf-8"))["epochs"] == 12
    assert np.isfinite(curves[1]).all() and 2 <= seen[-1] < 12


def _listens(port: int) -> bool:
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def head() -> Iterator[str]:
    """A head with a client server, as somebody elsewhere would reach it; gives its address."""
    if os.getloadavg()[0] > 2 * (os.cpu_count() or 1):
        pytest.skip("Ray gives its head half a minute to begin, which a machine as busy as this does not keep")
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--node-ip-address", "127.0.0.1"]
    command += ["--num-cpus", "3", "--port", str(ports[0]), "--ray-client-server-port", str(ports[1]), "--temp-dir", folder]
    command += ["--object-store-memory", str(STORE), "--include-dashboard", "false", "--disable-usage-stats"]
    command += ["--min-worker-port", "10002", "--max-worker-port", "19999"]
    with subprocess.Popen(
        command,
        env=ALONE | PLACES | {"RAY_worker_niceness": "0", "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "300"},
        stdout=subprocess.DEVNULL,
    ) as process:
        limit = time.monotonic() + 300
        while not _listens(ports[1]):
            assert process.poll() is None and time.monotonic() < limit
            os.sched_yield()
        yield f"ray://127.0.0.1:{ports[1]}"
        below = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
    for one_left in psutil.wait_procs(below, timeout=10)[1]:
        one_left.kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_cluster_elsewhere_teaches_and_trains(head: str, tmp_path: Path) -> None:
    """Through Ray's client, from a command of its own: the same bytes, and the curve of one process."""
    (tmp_path / "recipe.toml").write_text(RECIPE + "[teaching]\nshard_rows = 200\n", encoding="utf-8")
    pipeline.distill(load(tmp_path / "recipe.toml", [f"out={tmp_path / 'one'}"]), until="train", console=Console(quiet=True))
    told = [sys.executable, "-m", "understudy", "train", str(tmp_path / "recipe.toml"), "--set", f"out={tmp_path / 'two'}"]
    told += ["--on", head, "--workers", "2"]  # teaches there first
    done = subprocess.run(told, env=ALONE | PLACES, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("training", "held_out"):
        assert contents(tmp_path / "one" / "transfer" / part) == contents(tmp_path / "two" / "transfer" / part)
    for name in ("student", "control"):
        curves = [[line["loss"] for line in lines(tmp_path / run / "seed-0" / name) if "loss" in line] for run in ("one", "two")]
        torch.testing.assert_close(torch.tensor(curves[1]), torch.tensor(curves[0]), rtol=1e-4, atol=1e-5)
    assert (tmp_path / "two" / "ray" / "training").exists()


def test_a_cluster_that_is_not_there_is_told_with_what_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    told = [sys.executable, "-m", "understudy", "teach", str(tmp_path / "recipe.toml"), "--set", f"out={tmp_path / 'run'}"]
    quick = {"RAY_CLIENT_INITIAL_CONNECTION_TIMEOUT_S": "1", "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "1"}
    place = {name: value for name, value in PLACES.items() if name != "RAY_AUTH_MODE"}
    done = subprocess.run(
        [*told, "--on", "ray://127.0.0.1:9"], env=ALONE | place | quick, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    said = " ".join(done.stderr.split())
    assert "U465 no Ray cluster at ray://127.0.0.1:9" in said and "set RAY_AUTH_MODE=token" in said
    assert "Traceback" not in said
