"""Arrays from .npz files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.data.arrays import read_arrays
from understudy.errors import DataError

PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def saved(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "rows.npz", **arrays)
    return folder / "rows.npz"


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_arrays(path, **options)
    return str(caught.value)


def test_grey_images_get_a_channel(tmp_path: Path) -> None:
    source = read_arrays(saved(tmp_path, images=PIXELS, labels=[1, 0], class_names=["a", "b"], split=["train", "val"]))
    assert (source.kind, source.inputs.shape, source.inputs.dtype) == ("image", (2, 3, 4, 1), np.uint8)
    assert (source.inputs[..., 0] == PIXELS).all()
    assert source.labels.tolist() == [1, 0]
    assert source.classes == ("a", "b")
    assert source.split is not None
    assert source.split.tolist() == ["train", "validation"]
    assert source.names is not None
    assert source.names[1] == "rows.npz row 1"


def test_other_arrays_are_float32(tmp_path: Path) -> None:
    source = read_arrays(saved(tmp_path, X=np.array([[1, 2], [3, 4]]), y=["a", "b"]))
    assert (source.kind, source.inputs.dtype) == ("array", np.float32)
    assert source.labels.tolist() == ["a", "b"]
    assert read_arrays(saved(tmp_path, X=PIXELS), kind="array").kind == "array"


def test_float_images(tmp_path: Path) -> None:
    source = read_arrays(saved(tmp_path, images=PIXELS.astype(np.float64)))
    assert source.inputs.dtype == np.uint8
    said = refusal(saved(tmp_path, images=PIXELS / 23))
    assert "U122 'images' of rows.npz holds float64 from 0 to 1; images are uint8 from 0 to 255." in said
    assert "(images * 255).round().astype('uint8')" in said
    assert "images.transpose(0, 2, 3, 1)" in refusal(saved(tmp_path, images=np.zeros((2, 3, 8, 8), np.uint8)))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"Z": [[1]]}, "U124 rows.npz has the keys Z; inputs are under one of images, X, inputs"),
        ({"X": [[1]], "data": [[1]]}, "U124 rows.npz has 'X' and 'data'; keep one of them for the inputs"),
        ({"X": [[1.0], [2.0]], "y": [1]}, "U125 rows.npz has 2 rows in 'X' but labels of the shape [1] in 'y'"),
        ({"X": [[1.0], [np.nan], [np.nan]]}, "U121 'X' of rows.npz has NaN in row 1 (2 such rows)"),
        ({"X": [[1.0], [np.inf]]}, "U121 'X' of rows.npz has an infinite number in row 1"),
        ({"X": [[1.0], [1e300]]}, "U121 'X' of rows.npz has a number beyond float32 in row 1"),
        ({"X": [1.0]}, "U123 'X' of rows.npz has the shape [1]"),
        ({"X": np.zeros((0, 3))}, "U106 'X' of rows.npz has no rows"),
        ({"X": [["a"]]}, "U120 'X' of rows.npz holds <U1 and not numbers"),
        ({"X": [[1]], "split": ["train", "test"]}, "U125 'split' of rows.npz has the shape [2], not [1]"),
        ({"X": np.array([[1], [{}]], dtype=object)}, "U127 'X' of rows.npz is an object array, which is a pickle and can run code"),
    ],
)
def test_bad_files(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    assert says in refusal(saved(tmp_path, **arrays))


def test_files_that_are_no_archives(tmp_path: Path) -> None:
    path = saved(tmp_path, X=[[1]])
    assert "did you mean 'rows.npz'?" in refusal(tmp_path / "row.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert "U128 rows.npz is no .npz file" in refusal(path)
    path.write_bytes(b"")
    assert "U128 rows.npz is no .npz file" in refusal(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert "U126 rows.npz is one array" in refusal(path)
