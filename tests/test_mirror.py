"""A transfer set at an address: byte for byte what lies here, whoever wrote it, whatever died on the way.

The file systems are fsspec's own memory and local ones, and one that fails when it is told to.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import joblib
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from rich.console import Console
from sklearn.ensemble import RandomForestClassifier
from test_crash_safety import TASK as LETTERS
from test_crash_safety import VIEWS
from test_crash_safety import again as taught_again
from test_crash_safety import make_rows as letter_rows
from test_teaching import TASK, contents, make_rows

from understudy import pipeline
from understudy.errors import MissingExtraError, PreflightError, RecipeError, TransferSetError
from understudy.recipe import parse
from understudy.store.encodings import TopK
from understudy.store.mirror import LISTING, LOCK, Mirror, cache_folder
from understudy.store.transfer_set import TransferSet
from understudy.teachers import FakeTeacher
from understudy.teaching import teach

QUIET = Console(quiet=True)


class Unwilling(MemoryFileSystem):
    """A store in memory that fails at the upload, or does something else at a download, when it is told to."""

    protocol = "unwilling"
    store: dict[str, Any] = {}  # noqa: RUF012 - of its own, as fsspec's is
    pseudo_dirs = [""]  # noqa: RUF012
    uploads_left = 10**9
    error: type[OSError] = OSError
    on_download: Any = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("unwilling://", "memory://"))

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        if Unwilling.uploads_left == 0:
            self.pipe_file(rpath, Path(lpath).read_bytes()[:100])
            raise Unwilling.error("the connection broke off")
        Unwilling.uploads_left -= 1
        super().put_file(lpath, rpath, **options)

    def get_file(self, rpath: str, lpath: str, **options: Any) -> None:
        doing, Unwilling.on_download = Unwilling.on_download, None
        if doing is not None:
            doing()
        super().get_file(rpath, lpath, **options)


fsspec.register_implementation("unwilling", Unwilling, clobber=True)


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    Unwilling.uploads_left, Unwilling.error, Unwilling.on_download = 10**9, OSError, None
    yield
    for system in (fsspec.filesystem("memory"), fsspec.filesystem("unwilling")):
        for place in system.ls("/", detail=False):
            system.rm(place, recursive=True)


def again(folder: Path, address: str | None, count: int = 100, teacher: FakeTeacher | None = None) -> FakeTeacher:
    asked = teacher or FakeTeacher(TASK)
    teach(asked, make_rows(count), folder, task=TASK, shard_rows=20, mirror=address, progress=False)
    return asked


def there(address: str) -> dict[str, bytes]:
    """What the address holds, beside its own note."""
    system, root = fsspec.core.url_to_fs(address)
    names = {path.rpartition("/")[2]: path for path in system.ls(root, detail=False)}
    return {name: system.cat_file(path) for name, path in sorted(names.items()) if name != LISTING}


def test_the_address_holds_what_lies_here_and_another_machine_reads_it(tmp_path: Path) -> None:
    again(tmp_path / "here", "memory://sets/a")
    assert there("memory://sets/a") == contents(tmp_path / "here")
    taught, local = TransferSet.open("memory://sets/a"), TransferSet.open(tmp_path / "here")
    assert taught.folder == cache_folder("memory://sets/a") and contents(taught.folder) == contents(tmp_path / "here")
    rows = make_rows()
    torch.testing.assert_close(*(one.gather("logits", one.positions(rows.keys)) for one in (taught, local)))
    assert TransferSet.open("memory://sets/a", cache=tmp_path / "other").folder.parents[1] == tmp_path / "other"


def test_another_machine_asks_only_the_new_rows(tmp_path: Path) -> None:
    again(tmp_path / "one", "memory://sets/a")
    assert again(tmp_path / "two", "memory://sets/a").rows_asked == 0
    assert again(tmp_path / "three", "memory://sets/a", 120).rows_asked == 20
    assert there("memory://sets/a") == contents(tmp_path / "three")
    assert len(TransferSet.open("memory://sets/a")) == 120
    # the first machine goes on from there, and an address is a place to teach to by itself
    assert again(tmp_path / "one", "memory://sets/a", 120).rows_asked == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    stored = teach(FakeTeacher(TASK), make_rows(120), "memory://sets/a", task=TASK, shard_rows=20)
    assert contents(stored.folder) == contents(tmp_path / "three")


def test_only_what_is_missing_or_differs_is_copied(tmp_path: Path) -> None:
    again(tmp_path / "here", "unwilling://sets/a")
    folder = TransferSet.open("unwilling://sets/a").folder
    whole = contents(folder)
    shard = folder / "shard-00002.safetensors"
    shard.write_bytes(whole[shard.name][:-1] + b"\x00")
    (folder / "shard-00004.safetensors").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    TransferSet.open("unwilling://sets/a")
    changed = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != before.get(path.name)}
    assert changed == {"shard-00002.safetensors", "shard-00004.safetensors"} and contents(folder) == whole
    Unwilling.uploads_left = 0  # nothing is to be copied, so nothing breaks
    assert again(tmp_path / "here", "unwilling://sets/a").rows_asked == 0


@pytest.mark.parametrize("uploads", range(7))
def test_an_upload_dies_half_way(tmp_path: Path, uploads: int) -> None:
    address = "unwilling://sets/a"
    again(tmp_path / "whole", None)
    Unwilling.uploads_left = uploads
    with pytest.raises(TransferSetError, match=r"U472 cannot copy .* to unwilling://sets/a: OSError: the connection broke off"):
        again(tmp_path / "one", address)
    Unwilling.uploads_left = 10**9
    with pytest.raises(TransferSetError, match="U026"):
        TransferSet.open(address)
    # here the same command goes on; elsewhere it goes on from what came to the address: the note, then shards
    arrived = max(0, uploads - 1)
    assert again(tmp_path / "two", address).rows_asked == 100 - 20 * arrived
    assert there(address) == contents(tmp_path / "two") == contents(tmp_path / "whole")
    assert again(tmp_path / "one", address).rows_asked <= 100 - 20 * arrived
    assert there(address) == contents(tmp_path / "one") == contents(tmp_path / "whole")


def test_no_permission_is_said_and_says_what_to_do(tmp_path: Path) -> None:
    Unwilling.uploads_left, Unwilling.error = 1, PermissionError
    with pytest.raises(TransferSetError, match=r"U471 no permission to copy shard-00000.safetensors to unwilling://sets/a: .*environment"):
        again(tmp_path, "unwilling://sets/a")


def test_a_damaged_object_is_found_and_taught_again(tmp_path: Path) -> None:
    address, system = "memory://sets/a", fsspec.filesystem("memory")
    again(tmp_path / "one", address)
    whole = there(address)
    name = "shard-00001.safetensors"
    place = f"/sets/a/{name}"
    content = whole[name]
    for damaged in (content[:300], content[:-9] + b"x" + content[-8:], b""):
        system.pipe_file(place, damaged)
        with pytest.raises(TransferSetError, match=rf"U473 {address}/{name} is damaged: .*Remove it"):
            TransferSet.open(address, cache=tmp_path / "new")
        # from an empty folder only it is taught again
        assert again(tmp_path / f"two-{len(damaged)}", address).rows_asked == 20
        assert there(address) == whole
    system.rm(place)
    with pytest.raises(TransferSetError, match="U473"):
        TransferSet.open(address, cache=tmp_path / "new")
    assert again(tmp_path / "one", address).rows_asked == 0 and there(address) == whole
    system.pipe_file("/sets/a/manifest.json", whole["manifest.json"].replace(b'"rows": 20', b'"rows": 21', 1))
    with pytest.raises(TransferSetError, match=r"U473 .*manifest.json is damaged"):
        TransferSet.open(address, cache=tmp_path / "new")
    system.pipe_file("/sets/a/manifest.json", whole["manifest.json"][:50])
    with pytest.raises(TransferSetError, match=r"U473 .*manifest.json is damaged"):
        TransferSet.open(address)
    assert again(tmp_path / "one", address).rows_asked == 0 and there(address) == whole


def test_what_the_address_says_is_cut_short_or_was_never_there(tmp_path: Path) -> None:
    address, system = "memory://sets/a", fsspec.filesystem("memory")
    again(tmp_path / "one", address)
    whole = there(address)
    system.pipe_file(f"/sets/a/{LISTING}", b'{"files": {"sha')
    assert len(TransferSet.open(address)) == 100  # as a folder that was copied there by hand: the manifest tells
    assert again(tmp_path / "two", address).rows_asked == 0 and there(address) == whole
    assert set(json.loads(system.cat_file(f"/sets/a/{LISTING}"))["files"]) == set(whole)
    system.pipe_file(f"/sets/a/{LISTING}", b'{"version": 99}')
    with pytest.raises(TransferSetError, match=r"U024 .*format 99"):
        TransferSet.open(address)


def test_a_set_is_changed_while_it_is_read(tmp_path: Path) -> None:
    address = "unwilling://sets/a"
    again(tmp_path / "one", address)
    other = tmp_path / "other"
    teach(FakeTeacher(TASK, 7), make_rows(), other, task=TASK, shard_rows=20)

    def replaced() -> None:
        fsspec.filesystem("unwilling").rm("/sets/a", recursive=True)
        with Mirror(address) as mirror:
            for path in sorted(other.iterdir(), reverse=True):
                mirror.put(path)

    Unwilling.on_download = replaced
    with pytest.raises(TransferSetError, match=r"U474 unwilling://sets/a was changed while it was read"):
        TransferSet.open(address)
    assert contents(TransferSet.open(address).folder) == contents(other)


def test_another_teacher_is_refused_and_nothing_here_is_lost(tmp_path: Path) -> None:
    again(tmp_path / "one", "memory://sets/a")
    again(tmp_path / "two", None, teacher=FakeTeacher(TASK, 5))
    before = contents(tmp_path / "two")
    with pytest.raises(TransferSetError, match=r"U021 the transfer set memory://sets/a was taught by something else"):
        again(tmp_path / "two", "memory://sets/a", teacher=FakeTeacher(TASK, 5))
    assert {name: said for name, said in contents(tmp_path / "two").items() if name != "plan.json"} == before
    with pytest.raises(TransferSetError, match="U021"):
        again(tmp_path / "three", "memory://sets/a", teacher=FakeTeacher(TASK, 5))


def test_shards_made_of_other_rows_give_way_to_those_that_are_shared(tmp_path: Path) -> None:
    again(tmp_path / "one", None, 120)
    again(tmp_path / "two", "memory://sets/a", 100)
    assert again(tmp_path / "one", "memory://sets/a", 120).rows_asked == 20
    taught = TransferSet.open(tmp_path / "one")
    assert len(taught) == 120 == len(np.unique(taught.keys, axis=0)) and there("memory://sets/a") == contents(tmp_path / "one")


def lock(address: str, **said: Any) -> None:
    system, root = fsspec.core.url_to_fs(address)
    system.pipe_file(
        f"{root}/{LOCK}", json.dumps({"token": "x", "until": time.time() + 500, "host": "elsewhere", "pid": 12} | said).encode()
    )


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    address = "memory://sets/a"
    with Mirror(address) as mirror:
        held = json.loads(there(address)[LOCK])
        assert held["pid"] == os.getpid() and held["until"] > time.time() + 500
        with pytest.raises(TransferSetError, match=rf"U475 process {os.getpid()} on .* is writing memory://sets/a"):
            again(tmp_path, address)
        lock(address)  # another one took it, whatever the reason
        with pytest.raises(TransferSetError, match=r"U475 process 12 on elsewhere"):
            mirror.put(Path(__file__))
    assert json.loads(there(address)[LOCK])["pid"] == 12  # and it stays theirs
    with pytest.raises(
        TransferSetError, match=r"U475 process 12 on elsewhere .*its note ends in \d+ s, or remove memory://sets/a/writer.json"
    ):
        again(tmp_path, address)
    lock(address, until=time.time() - 1)  # not renewed: its machine is gone
    again(tmp_path, address)
    lock(address, host=held["host"], pid=held["pid"], started=1.0)  # a process of this machine that is no more
    again(tmp_path, address)
    assert LOCK not in there(address)


def test_addresses_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransferSetError, match=r"U470 memry://a is no address .*did you mean 'memory'"):
        TransferSet.open("memry://a")
    with pytest.raises(TransferSetError, match=r"U026 no transfer set at memory://nothing"):
        TransferSet.open("memory://nothing")
    fsspec.register_implementation("nowhere", "no_such_driver.Files", errtxt="Install nowherefs", clobber=True)
    with pytest.raises(TransferSetError, match=r"U470 nowhere://a: the driver of nowhere:// is not installed: Install nowherefs"):
        TransferSet.open("nowhere://a")
    said = {"out": str(tmp_path / "run"), "data": {"train": "rows.csv"}, "teacher": {"source": "t.joblib"}}
    with pytest.raises(PreflightError, match=r"U470 teaching.store: memry://a"):
        pipeline.check(parse(said | {"teaching": {"store": "memry://a"}}), console=QUIET)
    with pytest.raises(PreflightError, match=r"U476 teaching.store .*stored already"):
        pipeline.check(parse(said | {"teacher": {"source": "memory://b"}, "teaching": {"store": "memory://a"}}), console=QUIET)
    with pytest.raises(RecipeError, match=r"store is an address such as s3"):
        parse(said | {"teaching": {"store": "some/folder"}})
    with pytest.raises(RecipeError, match=r"source is an address without user or password"):
        parse(said | {"teacher": {"source": "ftp://me:secret@host/sets"}})
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'understudy\[storage\]'"):
        TransferSet.open("memory://nothing")


RECIPE = """
data = { train = "rows.npz", root = "ROOT" }
teacher = { source = "ROOT/forest.joblib", trust = true }
student = { model = "tree" }
teaching = { shard_rows = 50, store = "STORE" }
"""


def test_a_recipe_from_teaching_to_a_student_elsewhere(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(300, 4)).astype(np.float32)
    labels = (inputs[:, 0] + inputs[:, 1] > 0).astype(np.int64)
    np.savez(tmp_path / "rows.npz", X=inputs, y=labels)
    joblib.dump(RandomForestClassifier(5, random_state=0).fit(inputs, labels), tmp_path / "forest.joblib")
    said = tomllib.loads(RECIPE.replace("ROOT", str(tmp_path)).replace("STORE", "memory://sets/forest"))
    one, two = tmp_path / "one", tmp_path / "two"
    alone = said | {"teaching": {"shard_rows": 50}}
    pipeline.distill(parse(alone | {"out": str(one)}), until="teach", console=QUIET)
    pipeline.distill(parse(said | {"out": str(one)}), until="teach", console=QUIET)  # a run may be copied later on
    pipeline.distill(parse(said | {"out": str(two)}), until="teach", console=QUIET)
    for part in ("training", "held_out"):
        assert there(f"memory://sets/forest/{part}") == contents(one / "transfer" / part) == contents(two / "transfer" / part)
    recipe = parse(said | {"out": str(two)})
    assert pipeline.verify("memory://sets/forest/training", recipe, console=QUIET)["worst"] <= 1
    assert pipeline.inspect("memory://sets/forest/held_out", console=QUIET)["rows"] == len(TransferSet.open(one / "transfer" / "held_out"))
    three = {key: value for key, value in said.items() if key != "teaching"}
    three |= {"out": str(tmp_path / "three"), "teacher": {"source": "memory://sets/forest"}}
    pipeline.distill(parse(three), until="train", console=QUIET)
    assert (tmp_path / "three" / "seed-0" / "student" / "card.json").exists()


def as_ever(folder: Path, address: str) -> None:
    """What `taught_again` teaches, at an address too."""
    teach(
        FakeTeacher(LETTERS), letter_rows(), folder, task=LETTERS, shard_rows=30, batch_size=16, encoding=TopK(4), mirror=address, **VIEWS
    )  # type: ignore[arg-type]


KILLED = """
import sys, time
from pathlib import Path
from test_mirror import as_ever
from understudy.teachers import FakeTeacher

signals = FakeTeacher.signals

def stuck(self, inputs):
    if self.rows_asked >= 2 * 70:
        print("now", flush=True)
        time.sleep(600)
    return signals(self, inputs)

FakeTeacher.signals = stuck
as_ever(Path(sys.argv[1]), sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_killed_between_shards_it_goes_on_from_an_empty_folder(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    address = (tmp_path / "shared" / "set").as_uri()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "first"), address]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline().strip() == "now"
        limit = time.monotonic() + 60
        while "shard-00001.safetensors" not in json.loads(Mirror(address).read(LISTING) or b"{}").get("files", {}):
            assert time.monotonic() < limit
            os.sched_yield()
        process.send_signal(signal.SIGKILL)
    left = there(address)
    assert "manifest.json" not in left and LOCK in left
    assert {name for name in left if name.startswith("shard")} == {"shard-00000.safetensors", "shard-00001.safetensors"}
    as_ever(tmp_path / "second", address)
    taught_again(tmp_path / "whole")
    assert there(address) == contents(tmp_path / "second") == contents(tmp_path / "whole")
