"""Rows from Python functions, run for real from modules in the current folder."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from understudy.data.callables import read_callable
from understudy.data.labelling import decide
from understudy.errors import DataError

NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module and gives its name; the path is as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text: str) -> str:
        name = f"rows_for_a_test_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(f"import numpy as np\nimport pandas as pd\n\n{text}\n")
        return name

    return write


def refusal(said: str, *options: Any, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_callable(said, *options, **more)
    return str(caught.value)


def test_scikit_learn() -> None:
    digits = read_callable("sklearn.datasets:load_digits")
    assert (digits.kind, digits.inputs.shape, digits.inputs.dtype) == ("array", (1797, 64), np.float32)
    assert digits.classes == tuple("0123456789")
    task, labels, _ = decide("auto", digits.labels, list(digits.classes))
    assert task.kind == "multiclass"
    assert labels is not None
    assert labels[:3].tolist() == [0, 1, 2]
    cancer = read_callable("sklearn.datasets:load_breast_cancer")
    assert cancer.classes == ("malignant", "benign")
    diabetes = read_callable("sklearn.datasets:load_diabetes")
    assert diabetes.classes is None
    assert decide("auto", diabetes.labels, None)[0].kind == "regression"


def test_a_frame_with_its_label(module: Any) -> None:
    name = module(
        "def rows():\n    return pd.DataFrame({'id': [1, 2], 'a': [3, 4], 'y': ['p', 'q'], 'part': ['train', 'test']}, index=[7, 8])\n"
        "def pair():\n    return rows()[['a']], rows()['y']\n"
    )
    source = read_callable(f"{name}:rows", label="y", ignore=["id"], split_column="part")
    assert source.kind == "table"
    assert source.inputs.to_dict("list") == {"a": [3, 4]}
    assert list(source.inputs.index) == [0, 1]
    assert source.labels.tolist() == ["p", "q"]
    assert source.split is not None
    assert source.split.tolist() == ["train", "test"]
    assert "U107 No column 'z' (data.label)" in refusal(f"{name}:rows", label="z")
    pair = read_callable(f"{name}:pair")
    assert pair.inputs.to_dict("list") == {"a": [3, 4]}
    assert pair.labels.tolist() == ["p", "q"]


def test_pairs_and_dictionaries(module: Any) -> None:
    name = module(
        "def pair():\n    return np.zeros((2, 5, 5), np.uint8), [0, 1]\n"
        "def said():\n    return {'inputs': [[1.0], [2.0]], 'labels': [1, 0], 'classes': ['no', 'yes'], 'split': ['train', 'dev']}\n"
        "def alone():\n    return {'inputs': [[1.0], [2.0]]}\n"
    )
    pair = read_callable(f"{name}:pair")
    assert (pair.kind, pair.inputs.shape, pair.labels.tolist()) == ("image", (2, 5, 5, 1), [0, 1])
    said = read_callable(f"{name}:said")
    assert (said.kind, said.classes, said.labels.tolist()) == ("array", ("no", "yes"), [1, 0])
    assert said.split is not None
    assert said.split.tolist() == ["train", "validation"]
    assert read_callable(f"{name}:alone").labels is None


def test_torch_datasets(module: Any) -> None:
    name = module(
        "import torch\nfrom torch.utils.data import Dataset, TensorDataset, IterableDataset\nfrom PIL import Image\n"
        "def tensors():\n    return TensorDataset(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))\n"
        "class Pictures(Dataset):\n    classes = ['cat', 'dog']\n"
        "    def __len__(self): return 3\n"
        "    def __getitem__(self, at): return Image.new('RGB', (4, 2), (at, 0, 0)), at % 2\n"
        "def pictures():\n    return Pictures()\n"
        "class Scaled(Pictures):\n"
        "    def __getitem__(self, at): return torch.full((3, 4, 5), at / 255), at % 2\n"
        "def scaled():\n    return Scaled()\n"
        "class Ragged(Pictures):\n"
        "    def __getitem__(self, at): return torch.zeros(at + 1), 0\n"
        "def ragged():\n    return Ragged()\n"
        "class Stream(IterableDataset):\n"
        "    def __iter__(self): return iter([(torch.tensor([1.0, 2.0]), 'a'), (torch.tensor([3.0, 4.0]), 'b')])\n"
        "def stream():\n    return Stream()\n"
        "class Nothing(IterableDataset):\n    def __iter__(self): return iter([])\n"
        "def nothing():\n    return Nothing()\n"
        "class Endless(Dataset):\n    def __getitem__(self, at): return at\n"
        "def endless():\n    return Endless()\n"
    )
    tensors = read_callable(f"{name}:tensors")
    assert (tensors.kind, tensors.inputs.tolist(), tensors.labels.tolist()) == ("array", [[1, 2], [3, 4]], [1, 0])
    pictures = read_callable(f"{name}:pictures")
    assert (pictures.kind, pictures.inputs.shape, pictures.classes) == ("image", (3, 2, 4, 3), ("cat", "dog"))
    assert pictures.inputs[2, 0, 0].tolist() == [2, 0, 0]
    assert read_callable(f"{name}:scaled").kind == "array"
    scaled = read_callable(f"{name}:scaled", "image")
    assert (scaled.inputs.shape, scaled.inputs.dtype, int(scaled.inputs[2].max())) == ((3, 4, 5, 3), np.uint8, 2)
    assert "U123" in refusal(f"{name}:ragged")
    assert "gave items of several shapes: row 0 is [1], row 1 is [2]; resize them to one" in refusal(f"{name}:ragged")
    stream = read_callable(f"{name}:stream")
    assert (stream.kind, stream.inputs.tolist(), stream.labels.tolist()) == ("array", [[1, 2], [3, 4]], ["a", "b"])
    assert "U106" in refusal(f"{name}:nothing")
    assert "U173" in refusal(f"{name}:endless")
    assert "without a length; give one with, or an IterableDataset" in refusal(f"{name}:endless")


def test_hugging_face_datasets(module: Any) -> None:
    pytest.importorskip("datasets")
    name = module(
        "from datasets import ClassLabel, Dataset, Features, Image, Value\nfrom PIL import Image as Picture\n"
        "def table():\n    return Dataset.from_dict({'a': [1, 2], 'y': [1, 0]},"
        " features=Features({'a': Value('int64'), 'y': ClassLabel(names=['no', 'yes'])}))\n"
        "def pictures():\n    return Dataset.from_dict({'image': [Picture.new('L', (4, 2), at) for at in (5, 6)], 'label': [1, 0]},"
        " features=Features({'image': Image(), 'label': ClassLabel(names=['no', 'yes'])}))\n"
    )
    table = read_callable(f"{name}:table", label="y")
    assert (table.kind, table.labels.tolist(), table.classes) == ("table", [1, 0], ("no", "yes"))
    assert table.inputs.to_dict("list") == {"a": [1, 2]}
    pictures = read_callable(f"{name}:pictures", label="label")
    assert (pictures.kind, pictures.inputs.shape, pictures.classes) == ("image", (2, 2, 4, 1), ("no", "yes"))
    assert pictures.inputs[:, 0, 0, 0].tolist() == [5, 6]
    assert pictures.labels.tolist() == [1, 0]


def test_bad_places(module: Any) -> None:
    name = module("def rows():\n    return 3\n")
    broken, needs = module("1 / 0"), module("import not_a_package_anywhere")
    assert "U170 'rows' is not a place; write package.module:function" in refusal("rows")
    assert "U170 no module 'nothing_of_this_name'" in refusal("nothing_of_this_name:rows")
    assert f"U170 {name} has no function 'row'; did you mean 'rows'?" in refusal(f"{name}:row")
    assert f"U170 importing {broken} raised ZeroDivisionError" in refusal(f"{broken}:rows")
    assert f"U170 {needs} needs the module 'not_a_package_anywhere', which is not installed" in refusal(f"{needs}:rows")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 3", "U173 {} gave int; give a DataFrame, (inputs, labels), a dictionary with inputs and labels"),
        ("return {'x': 1}", "U173 {} gave a dictionary with x; it needs 'inputs'"),
        ("raise KeyError('no')", "U172 {} raised KeyError: 'no'"),
        ("return np.zeros((3, 2)), [1]", "U125 {} gave 3 inputs but 1 labels"),
        ("return pd.DataFrame({'a': []})", "U106 {} gave no rows"),
        ("return pd.DataFrame([[1, 2]], columns=['a', 'a'])", "U104 {} gave the column 'a' more than once"),
        ("return pd.DataFrame({'a': [1, np.inf]})", "U109 column 'a' of {} has an infinite number in row 1"),
        ("return np.array([[1.0], [np.nan]]), [0, 1]", "U121 {} has NaN in row 1"),
    ],
)
def test_bad_answers(module: Any, body: str, says: str) -> None:
    name = module(f"def rows():\n    {body}\n")
    assert says.format(f"{name}:rows") in refusal(f"{name}:rows")
