"""Rows that a Python function gives: `package.module:function`, called without arguments.

It may return a DataFrame, (inputs, labels), a dictionary with `inputs` and maybe `labels`, `classes`, `split`, a scikit-learn Bunch,
a map-style torch Dataset, or a Hugging Face Dataset.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from understudy.data._source import Source, as_inputs, check_columns, split_words, take_apart
from understudy.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]


def read_callable(
    said: str, kind: str = "auto", *, label: str | list[str] | None = None, ignore: Sequence[str] = (), split_column: str | None = None
) -> Source:
    """The rows of `package.module:function`; modules beside the current folder are found too.

    `label`, `ignore` and `split_column` are for tables. DataError U170-U173 says what is wrong with the place or what it gave.

    >>> source = read_callable("sklearn.datasets:load_iris")
    >>> source.kind, source.inputs.shape, source.classes
    ('array', (150, 4), ('setosa', 'versicolor', 'virginica'))
    """
    function = _find(said)
    try:
        given = function()
    except Exception as error:
        raise DataError(f"{said} raised {type(error).__name__}: {error}", code="U172") from error
    options = {"label": label, "ignore": ignore, "split": split_column}
    datasets, torch_data = sys.modules.get("datasets"), sys.modules.get("torch.utils.data")
    if datasets is not None and isinstance(given, datasets.Dataset):
        return _hugging_face(given, said, kind, options)
    if torch_data is not None and isinstance(given, torch_data.Dataset):
        return _torch_dataset(given, said, kind)
    if isinstance(given, pd.DataFrame):
        return _frame(given, said, options)
    if isinstance(given, Mapping):
        return _mapping(given, said, kind, options)
    if isinstance(given, tuple) and len(given) in (1, 2):
        return _pair(given[0], given[1] if len(given) == 2 else None, said, kind, options)
    raise DataError(
        f"{said} gave {type(given).__name__}; give a DataFrame, (inputs, labels), a dictionary with inputs and labels,"
        " a scikit-learn Bunch, a torch Dataset or a Hugging Face Dataset (one split)",
        code="U173",
    )


def _find(said: str) -> Any:
    module_name, colon, name = said.partition(":")
    if not colon or not module_name or not name:
        raise DataError(f"{said!r} is not a place; write package.module:function", code="U170")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise DataError(f"no module {module_name!r} in {here} or among the installed packages", code="U170") from None
        raise DataError(f"{module_name} needs the module {error.name!r}, which is not installed", code="U170") from None
    except Exception as error:
        raise DataError(f"importing {module_name} raised {type(error).__name__}: {error}", code="U170") from error
    found = getattr(module, name, None)
    if not callable(found):
        there = [other for other in vars(module) if not other.startswith("_") and callable(getattr(module, other))]
        raise DataError(f"{module_name} has no function {name!r}; {did_you_mean(name, there)}", code="U170")
    return found


def _frame(given: pd.DataFrame, said: str, options: dict[str, Any]) -> Source:
    frame = given.reset_index(drop=True)
    frame.columns = pd.Index([str(name) for name in frame.columns])
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise DataError(f"{said} gave the column {twice[0]!r} more than once", code="U104")
    if not len(frame):
        raise DataError(f"{said} gave no rows", code="U106")
    check_columns(list(frame.columns), said, **options)
    parts = take_apart(frame, said, None, **options)
    numbers = parts.inputs.select_dtypes("number")
    infinite = [name for name in numbers.columns if np.isinf(numbers[name].to_numpy(dtype=np.float64, na_value=np.nan)).any()]
    if infinite:
        row = int(np.flatnonzero(np.isinf(numbers[infinite[0]].to_numpy(dtype=np.float64, na_value=np.nan)))[0])
        raise DataError(f"column {infinite[0]!r} of {said} has an infinite number in row {row}", code="U109")
    return Source("table", parts.inputs, parts.labels, split=parts.split)


def _pair(inputs: Any, labels: Any, said: str, kind: str, options: dict[str, Any], classes: Any = None, split: Any = None) -> Source:
    names = None if classes is None else tuple(str(name) for name in classes)
    if isinstance(inputs, pd.DataFrame) and kind in ("auto", "table"):
        source = _frame(inputs, said, options | {"label": None} if labels is not None else options)
        found, values = "table", source.inputs
        labels = source.labels if labels is None else labels
        split = source.split if split is None else split
    else:
        found, values = as_inputs(np.asarray(inputs), kind, said)
    if labels is not None:
        labels = labels.reset_index(drop=True) if isinstance(labels, pd.Series | pd.DataFrame) else np.asarray(labels)
        if len(labels) != len(values):
            raise DataError(f"{said} gave {len(values)} inputs but {len(labels)} labels", code="U125")
    words = None if split is None else split_words(split, f"the split of {said}")
    return Source("table" if found == "table" else "image" if found == "image" else "array", values, labels, None, names, words)


def _mapping(given: Mapping[str, Any], said: str, kind: str, options: dict[str, Any]) -> Source:
    if "inputs" in given:
        return _pair(given["inputs"], given.get("labels"), said, kind, options, given.get("classes"), given.get("split"))
    if "data" in given:
        target = given.get("target")
        codes = target is not None and np.asarray(target).dtype.kind in "iu" and np.ndim(target) == 1
        classes = given.get("target_names") if codes else None
        return _pair(given["data"], target, said, kind, options, classes)
    there = ", ".join(map(str, given))
    raise DataError(f"{said} gave a dictionary with {there}; it needs 'inputs' and maybe 'labels' and 'classes'", code="U173")


def _torch_dataset(given: Any, said: str, kind: str) -> Source:
    try:
        count = len(given)
    except TypeError:
        raise DataError(f"{said} gave a torch dataset without a length; a map-style Dataset is needed", code="U173") from None
    if not count:
        raise DataError(f"{said} gave no rows", code="U106")
    items = [given[position] for position in range(count)]
    paired = isinstance(items[0], tuple | list) and len(items[0]) == 2
    inputs = [_plain(item[0] if paired else item) for item in items]
    labels = np.array([_scalar(item[1]) for item in items]) if paired else None
    classes = getattr(given, "classes", None)
    found, values = as_inputs(_channels_last(_stacked(inputs, said), kind), kind, said)
    return Source(found, values, labels, None, None if classes is None else tuple(str(name) for name in classes))


def _plain(value: Any) -> Array:
    """A tensor, a picture or an array as an array; pictures get three channels unless they are grey."""
    if type(value).__module__.startswith("PIL."):
        value = value if value.mode in ("L", "RGB") else value.convert("RGB")
    array: Array = np.asarray(value)
    return array


def _scalar(value: Any) -> Any:
    label = np.asarray(value)
    return label.item() if label.ndim == 0 else label


def _stacked(inputs: list[Array], said: str) -> Array:
    shapes = {item.shape for item in inputs}
    if len(shapes) > 1:
        row = next(at for at, item in enumerate(inputs) if item.shape != inputs[0].shape)
        raise DataError(
            f"{said} gave items of {len(shapes)} shapes: row 0 is {list(inputs[0].shape)}, row {row} is {list(inputs[row].shape)};"
            " resize them to one",
            code="U123",
        )
    return np.stack(inputs)


def _channels_last(values: Array, kind: str) -> Array:
    """What torchvision's ToTensor gives (channels first, 0 to 1 in steps of 1/255) back as pixels, when images are asked for."""
    if kind != "image" or values.ndim != 4 or values.shape[1] not in (1, 3) or values.shape[-1] in (1, 3):
        return values
    values = values.transpose(0, 2, 3, 1)
    if values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1 and np.abs(values * 255 - np.rint(values * 255)).max() < 1e-3:
        return np.rint(values * 255).astype(np.uint8)
    return values


def _hugging_face(given: Any, said: str, kind: str, options: dict[str, Any]) -> Source:
    """A `datasets.Dataset`: a column of pictures becomes images, anything else a table."""
    features, label = given.features, options["label"]
    classes = getattr(features.get(label), "names", None) if isinstance(label, str) else None
    pictures = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if not pictures:
        source = _frame(given.to_pandas(), said, options)
        return Source("table", source.inputs, source.labels, None, None if classes is None else tuple(classes), source.split)
    check_columns(list(features), said, **options)
    inputs = _stacked([_plain(picture) for picture in given[pictures[0]]], said)
    labels = (
        None if label is None else given.select_columns(label).to_pandas() if isinstance(label, list) else pd.Series(list(given[label]))
    )
    found, values = as_inputs(inputs, "image" if kind == "auto" else kind, said)
    return Source(found, values, labels, None, None if classes is None else tuple(classes))
