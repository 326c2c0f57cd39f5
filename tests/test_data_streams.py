"""Rows that come one after another: tars, streaming and iterable datasets; content keys as from files, memory bounded."""

from __future__ import annotations

import io
import itertools
import sys
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from understudy import distill, recipe
from understudy.data import tars
from understudy.data.callables import read_callable
from understudy.data.images import read_images
from understudy.data.keys import content_keys
from understudy.errors import DataError

NUMBERS = itertools.count()


def png(value: int, size: tuple[int, int] = (4, 3)) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), value, dtype=np.uint8)).save(kept, "png")
    return kept.getvalue()


def tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module and gives its name; the path is as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        name = f"streams_for_a_test_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        tars.read_tars(path, **options)
    return str(caught.value)


def test_tars_are_read_as_the_same_rows_as_files(tmp_path: Path) -> None:
    for shard in range(2):
        tar(
            tmp_path / f"t-{shard:03d}.tar", {f"{i}.{e}": c for i in range(3) for e, c in (("png", png(9 * shard + i)), ("cls", b"%d" % i))}
        )
    source = tars.read_tars(tmp_path / "t-{000..001}.tar", cache=tmp_path / "cache" / "t.npy")
    assert (source.kind, source.inputs.shape, source.labels.tolist()) == ("image", (6, 3, 4, 3), [0, 1, 2, 0, 1, 2])
    assert isinstance(source.inputs.base, np.memmap) or isinstance(source.inputs, np.memmap)
    assert source.names is not None and source.names[3] == "t-001.tar/0"
    assert tars.read_tars(tmp_path / "t-*.tar").inputs.tolist() == source.inputs.tolist()
    for i in range(3):
        (tmp_path / "files" / str(i)).mkdir(parents=True)
        (tmp_path / "files" / str(i) / "x.png").write_bytes(png(i))
    files = read_images(tmp_path / "files")
    assert content_keys(files.inputs, "image").tolist() == content_keys(source.inputs[:3], "image").tolist()
    assert tars.read_tars(tmp_path / "t-000.tar", image_size=(2, 2), grey=True).inputs.shape == (3, 2, 2, 1)


def test_arrays_and_class_names_in_tars(tmp_path: Path) -> None:
    kept = io.BytesIO()
    np.save(kept, np.arange(4, dtype=np.float32))
    files = {"a.npy": kept.getvalue(), "a.cls": b"cat\n", "b.npy": kept.getvalue(), "b.cls": b"dog"}
    source = tars.read_tars(tar(tmp_path / "x.tar", files))
    assert (source.kind, source.inputs.tolist(), source.labels.tolist()) == ("array", [[0, 1, 2, 3]] * 2, ["cat", "dog"])


def test_tars_that_cannot_be_read(tmp_path: Path) -> None:
    good = tar(tmp_path / "good.tar", {"1.png": png(1), "1.cls": b"0"})
    assert "U449 no file t-002.tar" in refused(tmp_path / "t-{001..002}.tar") or "U449 no file t-001.tar" in refused(
        tmp_path / "t-{001..002}.tar"
    )
    assert "did you mean 'good.tar'" in refused(tmp_path / "god.tar")
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:700])
    assert "U449 cut.tar is damaged, or no tar" in refused(tmp_path / "cut.tar")
    assert "U448 x.tar: the .png of x.tar/1 cannot be read" in refused(tar(tmp_path / "x.tar", {"1.png": b"no", "1.cls": b"0"}))
    assert "U447 x.tar: x.tar/1 has txt; an input is under one of jpg" in refused(tar(tmp_path / "x.tar", {"1.txt": b"a"}))
    files = {"1.png": png(1), "1.cls": b"0", "2.png": png(2)}
    assert "U447 x.tar: 1 of 2 rows have no label (first: x.tar/2)" in refused(tar(tmp_path / "x.tar", files))
    files = {"1.png": png(1), "2.png": png(2, (5, 5))}
    assert "U123 x.tar gave items of several shapes" in refused(tar(tmp_path / "x.tar", files))
    files = {"1.png": png(1), "1.cls": b"0", "2.png": png(2), "2.cls": b" "}
    assert "U447 x.tar: 1 of 2 rows have no label (first: x.tar/2)" in refused(tar(tmp_path / "x.tar", files))
    files = {"v1.01.png": png(1), "v1.01.cls": b"0", "v1.02.png": png(2), "v1.02.cls": b"1"}
    assert "U447 x.tar: x.tar/v1 has 01.png, 02.png, and one of them alone can be read" in refused(tar(tmp_path / "x.tar", files))
    files = {"1.png": png(1), "2.png": png(2), "1.cls": b"0", "2.cls": b"1"}
    assert "in a tar the files of a row stand side by side" in refused(tar(tmp_path / "x.tar", files))
    assert "U106" in refused(tar(tmp_path / "x.tar", {}))
    assert not list(tmp_path.glob("*.part"))


def test_a_tar_that_was_cut_between_two_rows_is_told(tmp_path: Path) -> None:
    whole = tar(tmp_path / "t-0.tar", {"1.png": png(1), "1.mask.png": png(3), "1.cls": b"0", "2.png": png(2), "2.cls": b"1"})
    source = tars.read_tars(whole)
    assert source.problems == () and len(source.inputs) == 2
    assert np.array_equal(source.inputs[0], np.asarray(Image.open(io.BytesIO(png(1)))))  # not the mask
    with tarfile.open(whole) as archive:
        second = archive.getmembers()[3].offset
    (tmp_path / "t-1.tar").write_bytes(whole.read_bytes()[:second])
    source = tars.read_tars(tmp_path / "t-{0..1}.tar")
    assert len(source.inputs) == 3
    (problem,) = source.problems
    assert problem.level == "warning" and str(problem).startswith("U451 1 of 2 tars lack the zeros that end one (first: t-1.tar)")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset closes no tar
def test_webdataset_and_streaming_datasets(module: Any, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    pytest.importorskip("webdataset")
    tar(tmp_path / "w.tar", {f"{i}.{e}": c for i in range(3) for e, c in (("png", png(i)), ("cls", b"%d" % i))})
    name = module(
        "import webdataset\nfrom datasets import ClassLabel, Dataset, Features, Image, Value\nfrom PIL import Image as Picture\n"
        "def raw():\n    return webdataset.WebDataset('w.tar', shardshuffle=False)\n"
        "def decoded():\n    return webdataset.WebDataset('w.tar', shardshuffle=False).decode('pil').to_tuple('png', 'cls')\n"
        "def table():\n    return Dataset.from_dict({'a': [1, 2], 'y': [1, 0]},"
        " features=Features({'a': Value('int64'), 'y': ClassLabel(names=['no', 'yes'])})).to_iterable_dataset()\n"
        "def pictures():\n    return Dataset.from_dict({'image': [Picture.new('RGB', (4, 3), (at,) * 3) for at in range(3)],"
        " 'label': [0, 1, 2]}, features=Features({'image': Image(), 'label': Value('int64')})).to_iterable_dataset()\n"
    )
    expected = tars.read_tars(tmp_path / "w.tar")
    for function in ("raw", "decoded", "pictures"):
        source = read_callable(f"{name}:{function}", label="label" if function == "pictures" else None)
        assert (source.kind, source.inputs.tolist(), source.labels.tolist()) == ("image", expected.inputs.tolist(), [0, 1, 2])
    table = read_callable(f"{name}:table", label="y")
    assert (table.kind, table.inputs.to_dict("list"), table.labels.tolist()) == ("table", {"a": [1, 2]}, [1, 0])
    assert table.classes == ("no", "yes")


def test_a_stream_larger_than_memory_allows(module: Any, tmp_path: Path) -> None:
    rows, side = 1_000, 256  # 197 MB of pixels
    name = module(
        "import numpy as np\nfrom torch.utils.data import IterableDataset\n"
        "class Stream(IterableDataset):\n"
        "    def __iter__(self):\n"
        f"        for at in range({rows}):\n"
        f"            yield np.full(({side}, {side}, 3), at % 251, np.uint8), at % 7\n"
        "def stream():\n    return Stream()\n"
    )
    cache = tmp_path / "rows.npy"
    tracemalloc.start()
    try:
        source = read_callable(f"{name}:stream", cache=cache)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    found = content_keys(source.inputs, "image")
    assert cache.stat().st_size > rows * side * side * 3
    assert most < 60e6, f"{most / 1e6:.0f} MB"  # three chunks of 17 MB: waiting, stacked, written
    assert (source.inputs.shape, int(source.inputs[999, 0, 0, 0]), len(np.unique(found, axis=0))) == (
        (rows, side, side, 3),
        999 % 251,
        251,
    )


def test_a_run_on_tars(tmp_path: Path) -> None:
    """From shards to a scorecard and an artifact, as with any other rows."""
    random = np.random.default_rng(0)
    for shard in range(3):
        files: dict[str, bytes] = {}
        for row in range(60):
            label = int(random.integers(2))
            kept = io.BytesIO()
            pixels = random.integers(0, 90, (8, 8, 3)).astype(np.uint8)
            pixels[:, :4] += np.uint8(120 * label)
            Image.fromarray(pixels).save(kept, "png")
            files |= {f"{row}.png": kept.getvalue(), f"{row}.cls": b"%d" % label}
        tar(tmp_path / f"p-{shard}.tar", files)
    said: dict[str, Any] = {
        "out": str(tmp_path / "run"),
        "data": {"root": str(tmp_path), "train": "p-{0..2}.tar"},
        "teacher": {"train": {"model": "forest", "options": {"n_estimators": 20, "n_jobs": 1}}},
        "student": {"model": "tree", "options": {"leaves": 8}},
        "measure": {"latency": False},
    }
    card = distill(recipe.parse(said), console=Console(quiet=True))
    assert card["models"]["exported"]["quality"]["accuracy"]["mean"] > 0.9
