"""Teaching that is killed, starved, damaged or doubled: the same command finishes, and the bytes are those of an undisturbed one.

Everything here happens for real: processes die by SIGKILL at each step of writing, files meet a size limit, bytes are flipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.errors import TransferSetError
from understudy.store.encodings import TopK
from understudy.store.transfer_set import TransferSet
from understudy.tasks import Task
from understudy.teachers import FakeTeacher
from understudy.teaching import teach

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, limits and forks of POSIX")

TASK = Task("multiclass", tuple("abcdefghij"))
VIEWS = {"views": 2, "augment": lambda inputs, keys, view: inputs + view, "view_spec": {"step": 1}}


def make_rows() -> Rows:
    inputs = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    return Rows("array", inputs, content_keys(inputs, "array"))


def again(folder: Path, teacher: FakeTeacher | None = None) -> FakeTeacher:
    """The same command, every time."""
    asked = teacher or FakeTeacher(TASK)
    teach(asked, make_rows(), folder, task=TASK, shard_rows=30, batch_size=16, encoding=TopK(4), progress=False, **VIEWS)  # type: ignore[arg-type]
    return asked


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed teaching leaves."""
    folder = tmp_path_factory.mktemp("whole")
    again(folder)
    return contents(folder)


KILLED = """
import os, signal, sys
from pathlib import Path
from test_crash_safety import again, contents

# every step of writing is a moment to die at: before and after each of them
STEPS = ("fsync", "replace", "unlink")

def attempt(folder, moment):
    seen = 0

    def dying(step):
        def stepped(*given, **named):
            nonlocal seen
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            done = step(*given, **named)
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return done
        return stepped

    for name in STEPS:
        setattr(os, name, dying(getattr(os, name)))
    again(folder)

def in_child(action):
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

root = Path(sys.argv[1])
assert in_child(lambda: again(root / "whole")) == 0
whole, moment = contents(root / "whole"), 0
while True:
    moment += 1
    folder = root / f"killed-{moment}"
    died = in_child(lambda: attempt(folder, moment))
    if died == 0:
        break
    assert os.WIFSIGNALED(died) and os.WTERMSIG(died) == signal.SIGKILL, died
    left = contents(folder)
    assert in_child(lambda: again(folder)) == 0, moment
    assert contents(folder) == whole, moment
    kept = [name for name in left if name.startswith("shard")]
    assert all(left[name] == whole[name] for name in kept), moment
print(moment - 1)
"""


def test_killed_at_every_step_of_writing(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # plan twice or more, four shards and the manifest: each a temporary file, its fsync, its rename and the folder's fsync
    assert int(done.stdout) >= 2 * 3 * 7


STARVED = """
import resource, signal, sys
from pathlib import Path
from test_crash_safety import TASK, again
from understudy.teachers import FakeTeacher

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def starve(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

teacher = FakeTeacher(TASK)
signals = teacher.signals
def said(inputs):
    if teacher.rows_asked > int(sys.argv[2]):
        starve(1024)
    return signals(inputs)
teacher.signals = said
from understudy.errors import TransferSetError
try:
    again(Path(sys.argv[1]), teacher)
except TransferSetError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.parametrize("after", [0, 130, 170])
def test_a_full_disk(tmp_path: Path, whole: dict[str, bytes], after: int) -> None:
    """Files may grow no further than 1 kB from some moment on: the system says so in the middle of a write."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(tmp_path), str(after)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "U023 cannot write" in done.stdout and "File too large" in done.stdout and "What is written is whole" in done.stdout
    left = contents(tmp_path)
    assert not [name for name in left if name.startswith(".")] and "manifest.json" not in left
    shards = {name: content for name, content in left.items() if name.startswith("shard")}
    assert all(whole[name] == content for name, content in shards.items()) and (len(shards) > 0) == (after > 64)
    asked = again(tmp_path)
    assert contents(tmp_path) == whole and asked.rows_asked == 2 * (100 - 30 * len(shards))


def damages(folder: Path) -> Iterator[tuple[str, int]]:
    """Ways to damage a whole set, with the number of rows that must be taught again."""
    shard = folder / "shard-00001.safetensors"
    content = shard.read_bytes()
    for place in (3, 40, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        yield f"flipped byte {place}", 30
    shard.write_bytes(content[: len(content) // 2])
    yield "a shard cut short", 30
    shard.write_bytes(b"")
    yield "an empty shard", 30
    shard.unlink()
    yield "a shard gone", 30
    manifest = folder / "manifest.json"
    whole = manifest.read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 3):
        manifest.write_bytes(whole[:size])
        yield f"a manifest of {size} bytes", 0
    manifest.unlink()
    yield "no manifest", 0
    manifest.write_bytes(whole[: len(whole) // 3])
    (folder / "plan.json").write_bytes(whole[:50])
    (folder / "shard-00003.safetensors").unlink()
    (folder / ".shard-00002.safetensors.part").write_bytes(content[:100])
    yield "everything at once", 10


def test_what_is_damaged_is_taught_again_and_nothing_else(tmp_path: Path, whole: dict[str, bytes]) -> None:
    again(tmp_path)
    for name, rows in damages(tmp_path):
        with pytest.raises(TransferSetError, match="U02[456]"):
            TransferSet.open(tmp_path)
        assert again(tmp_path).rows_asked == 2 * rows, name
        assert contents(tmp_path) == whole, name


def test_a_lost_manifest_does_not_let_another_teacher_in(tmp_path: Path, whole: dict[str, bytes]) -> None:
    again(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(TransferSetError, match=r"U021 .*shard-00000.safetensors was taught by something else"):
        again(tmp_path, FakeTeacher(TASK, 5))
    assert again(tmp_path).rows_asked == 0 and contents(tmp_path) == whole


DOUBLED = """
import sys
from pathlib import Path
from test_crash_safety import TASK, again
from understudy.errors import TransferSetError
from understudy.teachers import FakeTeacher
try:
    again(Path(sys.argv[1]))
except TransferSetError as error:
    assert "U028 another process is writing" in str(error), error
    sys.exit(3)
"""


def test_two_processes_teach_the_same_set(tmp_path: Path, whole: dict[str, bytes]) -> None:
    """Started together, each finishes or is told that the other one writes; the set is whole and as always."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-c", DOUBLED, str(tmp_path)], env=environment) for _ in range(2)]
    assert 0 in [process.wait(120) for process in both]
    assert {process.returncode for process in both} <= {0, 3}
    assert contents(tmp_path) == whole and again(tmp_path).rows_asked == 0
