"""Ray: a pool of actors on the machines of a cluster, and ranks of one training on them.

An actor or a machine that is lost costs the item it was at, which another one does again. Nothing is told to anybody: usage
statistics are off.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, final

from understudy.adapters._loading import require
from understudy.errors import TransferSetError
from understudy.pools import AHEAD, packed

RESTARTS = 3
"""How often a training begins again from its last checkpoint after a machine was lost."""


def connect(on: str) -> Any:
    """Ray, joined to the cluster: `ray` for the one that this machine is part of (one is started when there is none), or an address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = require("ray", "ray")
    if ray.is_initialized():
        return ray
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of its own log files
            warnings.filterwarnings("ignore", "Ray Client connection timed out", UserWarning)  # it is an error here
            if on == "ray":
                ray.init(include_dashboard=False, log_to_driver=False)
            else:
                ray.init(on, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        first, *more = str(error).strip().splitlines()  # of the other side's failure, the last line says what it was
        # a head that was begun where ~/.ray/auth_token lies waits for it without a word, and a client shows it only when told to
        token = (
            ""
            if "RAY_AUTH_MODE" in os.environ
            else ". If the cluster has a token (~/.ray/auth_token there and here), set RAY_AUTH_MODE=token"
        )
        advice = f"Start one (`ray start --head`), or say --on ray{token}"
        raise TransferSetError(f"no Ray cluster at {on}: {' '.join([first, *more[-1:]])}. {advice}", code="U465") from None
    return ray


@final
class RayPool:
    """Actors that hold the work once; `count` None for as many as the cluster has processors."""

    def __init__(self, on: str, count: int | None = None) -> None:
        self.on, self.count = on, count

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """What the work makes of each item, in their order."""
        ray = connect(self.on)
        sent = ray.put(packed(work))
        count = self.count or max(1, int(ray.cluster_resources().get("CPU", 1)))
        kind = ray.remote(num_cpus=1, max_restarts=0)(_Actor)
        actors = {number: kind.remote(sent, str(Path.cwd()), list(sys.path)) for number in range(count)}
        given = enumerate(items)
        again: deque[tuple[int, Any]] = deque()
        opened: dict[Any, tuple[int, int, Any]] = {}
        done: dict[int, Any] = {}
        following, more = 0, True
        try:
            while more or again or opened or done:
                busy = [who for who, _, _ in opened.values()]
                for who, actor in actors.items():
                    # what is finished but not yet its turn waits in memory: do not run far ahead of it
                    if busy.count(who) or (not again and len(done) >= count * AHEAD):
                        continue
                    found = again.popleft() if again else next(given, None)
                    if found is None:
                        more = False
                        break
                    opened[actor.do.remote(found[1])] = (who, *found)
                if opened and following not in done:
                    (ready,), _ = ray.wait(list(opened), num_returns=1)
                    who, number, item = opened.pop(ready)
                    try:
                        done[number] = ray.get(ready)
                    except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError):
                        again.append((number, item))
                        actors.pop(who, None)
                        if not actors:
                            raise TransferSetError(
                                f"all {count} workers of {self.on} are gone. What is written is whole: run the same command again",
                                code="U462",
                            ) from None
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause or error from None
                if following in done:
                    yield done.pop(following)
                    following += 1
        finally:
            for actor in actors.values():
                ray.kill(actor)


class _Actor:
    """One worker of a cluster."""

    def __init__(self, sent: bytes, folder: str, places: list[str]) -> None:
        _begin_at(folder, places)
        import pickle

        self.work = pickle.loads(sent)

    def do(self, item: Any) -> Any:
        return self.work(item)


def train_on(on: str, ranks: int, work: Callable[[], Any], folder: Path) -> None:
    """Do this work in as many ranks of one training, begun again from its checkpoints when a machine is lost.

    All machines see the run's folder at the same place: the first rank writes it, the others read rows and answers there.
    """
    ray = connect(on)
    place = {"work": packed(work), "folder": str(Path.cwd()), "path": list(sys.path)}
    storage = str(folder.resolve() / "ray")
    try:
        if on.startswith("ray://"):
            # Ray Train cannot be driven from outside its cluster: a task inside drives it
            ray.get(ray.remote(num_cpus=0, max_retries=RESTARTS)(_drive).remote(place, ranks, storage))
        else:
            _fit(place, ranks, storage)
    except Exception as error:
        raise TransferSetError(
            f"the training on {on} ended: {str(error).strip().splitlines()[-1]}. What is written is whole: the same command goes on",
            code="U466",
        ) from error


def _fit(place: dict[str, Any], ranks: int, storage: str) -> None:
    """Train, from a process of the cluster."""
    with warnings.catch_warnings():
        # its data sets, which are imported along and not used here, set options of their own that are deprecated
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.data\.context")
        train, torch_train = require("ray.train", "ray"), require("ray.train.torch", "ray")
        importlib.import_module("ray.data").DataContext.get_current()
    trainer = torch_train.TorchTrainer(
        _rank,
        train_loop_config=place,
        scaling_config=train.ScalingConfig(num_workers=ranks, use_gpu=False),
        torch_config=torch_train.TorchConfig(backend="gloo", timeout_s=14 * 86400),
        run_config=train.RunConfig(name="training", storage_path=storage, failure_config=train.FailureConfig(max_failures=RESTARTS)),
    )
    trainer.fit()


def _drive(place: dict[str, Any], ranks: int, storage: str) -> None:
    _begin_at(place["folder"], place["path"])
    _fit(place, ranks, storage)


def _rank(place: dict[str, Any]) -> None:
    import pickle

    _begin_at(place["folder"], place["path"])
    pickle.loads(place["work"])()


def _begin_at(folder: str, places: list[str]) -> None:
    """Work where the one who asked works: recipes and teachers are named from there."""
    os.chdir(folder)
    sys.path.extend(each for each in [*places, folder] if each not in sys.path)
