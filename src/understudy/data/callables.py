"""Rows that a Python function gives: `package.module:function`, called without arguments.

It may return a DataFrame, (inputs, labels), a dictionary with `inputs` and maybe `labels`, `classes`, `split`, a scikit-learn Bunch,
a torch Dataset (map-style or iterable, WebDataset's among them), or a Hugging Face Dataset (streaming or not).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from understudy.data._source import Source, as_inputs, check_columns, split_words, take_apart
from understudy.data._streams import Pictures, gathered
from understudy.errors import DataError, did_you_mean

Array = np.ndarray[Any, Any]


def read_callable(
    said: str,
    kind: str = "auto",
    *,
    label: str | list[str] | None = None,
    ignore: Sequence[str] = (),
    split_column: str | None = None,
    image_size: tuple[int, int] | None = None,
    grey: bool = False,
    cache: Path | None = None,
) -> Source:
    """The rows of `package.module:function`; modules beside the current folder are found too.

    `label`, `ignore` and `split_column` are for tables, `image_size` and `grey` for pictures of a dataset. What comes a row at a time
    goes into the .npy file `cache`, so that memory holds a part of it alone. DataError U170-U173 says what is wrong with the place
    or what it gave.

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
    pictures = Pictures(image_size, grey)
    if datasets is not None and isinstance(given, datasets.Dataset | datasets.IterableDataset):
        return _hugging_face(given, said, kind, options, pictures, cache)
    if torch_data is not None and isinstance(given, torch_data.Dataset):
        return _torch_dataset(given, said, kind, pictures, cache)
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


def _torch_dataset(given: Any, said: str, kind: str, pictures: Pictures, cache: Path | None) -> Source:
    """A map-style dataset by its length, an iterable one to its end; a row at a time."""
    import torch

    items: Any = given
    if not isinstance(given, torch.utils.data.IterableDataset):
        try:
            items = (given[position] for position in range(len(given)))
        except TypeError:
            raise DataError(f"{said} gave a torch dataset without a length; give one with, or an IterableDataset", code="U173") from None
    named = ((f"row {position}", item) for position, item in enumerate(items))
    return gathered(named, said, kind, pictures=pictures, cache=cache, classes=getattr(given, "classes", None))


def _hugging_face(given: Any, said: str, kind: str, options: dict[str, Any], pictures: Pictures, cache: Path | None) -> Source:
    """A `datasets.Dataset` or a streaming one: a column of pictures becomes images, anything else a table."""
    streamed = type(given).__name__ == "IterableDataset"
    features, label = given.features or {}, options["label"]
    first = next(iter(given), None) if streamed else None
    if streamed and first is None:
        raise DataError(f"{said} gave no rows", code="U106")
    columns = list(features) or list(first or {})
    classes = getattr(features.get(label), "names", None) if isinstance(label, str) else None
    shown = [name for name in columns if type(features.get(name)).__name__ == "Image" or _is_picture((first or {}).get(name))]
    if not shown:
        frame = _streamed_frame(given) if streamed else given.to_pandas()
        source = _frame(frame, said, options)
        return replace(source, classes=None if classes is None else tuple(classes))
    check_columns(columns, said, **options)
    several = label if isinstance(label, list) else None

    def of(row: Any) -> Any:
        if label is None:
            return row[shown[0]]
        return row[shown[0]], row[label] if several is None else [row[name] for name in several]

    named = ((f"row {position}", of(row)) for position, row in enumerate(given))
    source = gathered(named, said, "image" if kind == "auto" else kind, pictures=pictures, cache=cache, classes=classes)
    if several is not None:
        source = replace(source, labels=pd.DataFrame(source.labels, columns=several))
    return source


def _is_picture(value: Any) -> bool:
    return type(value).__module__.startswith("PIL.")


def _streamed_frame(given: Any) -> pd.DataFrame:
    """The rows of a streaming dataset as a table, which holds them all; never as Python objects all at once."""
    parts = [pd.DataFrame(part) for part in given.iter(batch_size=1024)]
    return pd.concat(parts, ignore_index=True)
