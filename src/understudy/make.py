"""Recipe -> live objects. The only module that knows both worlds, and the only importer of adapters.

Each function takes the recipe and gives one thing the pipeline needs: rows, a teacher, a student, objectives, the set
of rows a student trains on. Nothing here decides what happens next; that is pipeline.py.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import nn

from understudy.answers import Combine
from understudy.data import (
    arrays,
    callables,
    encoding,
    images,
    keys,
    labelling,
    splitting,
    synthetic,
    tables,
    tars,
    texts,
    tokenizing,
    views,
)
from understudy.data._source import Source
from understudy.data.rows import Rows
from understudy.errors import DataError, Problem, RecipeError, TeacherError, did_you_mean
from understudy.features import asked_layers
from understudy.objectives import Objective
from understudy.recipe import DataSection, OptimizerSection, Recipe, TeacherMember, TeacherTrainSection
from understudy.signals import LOGITS, Signals, is_answered
from understudy.store.encodings import Dense, Encoding, Sampled, TopK
from understudy.store.transfer_set import TransferSet
from understudy.students import convnet, mlp, preprocessing, text, trees
from understudy.students.student import Student
from understudy.tasks import Task
from understudy.teachers import Ensemble, Teacher, take
from understudy.training.gradient import Ask, TrainingSet

TREES = ("tree", "boosted")
Encoder = encoding.TableEncoding | tokenizing.TextEncoding | None
"""What makes raw rows into what a student's graph reads; arrays and images need none."""


@final
@dataclass(frozen=True)
class Loaded:
    """Rows with their splits, what their labels mean, and what was noticed on the way."""

    rows: Rows
    task: Task
    encoding: Encoder
    problems: tuple[Problem, ...]


# --- rows -----------------------------------------------------------------------------------------------------------


def load_rows(recipe: Recipe, cache: Path | None = None) -> Loaded:
    """Read, label, key and split the rows."""
    said = recipe.data
    sources = {"train": _read(said, said.train, cache)}
    for part, place in (("validation", said.validation), ("test", said.test)):
        if place is not None:
            sources[part] = _read(said, place, cache)
    problems = [problem for source in sources.values() for problem in source.problems]
    task, labels = _labels(recipe, sources, problems)
    _same_inputs(sources)
    parts = {part: _rows(source, labels[part], sources["train"]) for part, source in sources.items()}
    rows = _split(recipe, parts, task)
    rows, more = _without_overlap(rows, said.overlap)
    fitted: Encoder = encoding.TableEncoding.fit(rows.part("train").inputs, said.max_levels) if rows.kind == "table" else None
    if rows.kind == "text":
        fitted = _tokenizer(recipe, rows.part("train").inputs)
        more += fitted.check(rows.inputs[:: max(1, len(rows) // 2000)])
    return Loaded(rows, task, fitted, (*problems, *more))


def _tokenizer(recipe: Recipe, train: Any) -> tokenizing.TextEncoding:
    """The student's tokenizer: learned from the training texts, or the one that data.tokenizer names."""
    said, place = recipe.data, recipe.data.tokenizer
    if place is None:
        return tokenizing.TextEncoding.fit(train, vocabulary=said.vocabulary, length=said.max_length)
    if place.startswith(("sentences:", "hf:")):
        from understudy.adapters import _pretrained

        file = _pretrained.folder_of(place) / "tokenizer.json"
    else:
        file = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    special = "cut" in recipe.student.options
    return tokenizing.TextEncoding.read(file, length=said.max_length, pairs=train.ndim == 2, special=special)


def _read(said: DataSection, place: str, cache: Path | None) -> Source:
    label = said.label if said.labels is None else None
    shown: dict[str, Any] = {"image_size": said.image_size, "grey": said.grey}
    if said.kind == "text" or (said.kind == "auto" and said.text is not None):
        return _read_text(said, place, label)
    if ":" in place and not Path(place).exists() and not Path(said.root, place).exists():
        return callables.read_callable(
            place, said.kind, label=label, ignore=said.ignore, split_column=said.split, cache=_cached(cache, Path(place)), **shown
        )
    path = Path(said.root, place)
    name = path.name.lower()
    if name.endswith(tars.ENDINGS):
        return tars.read_tars(path, said.kind, cache=_cached(cache, path), **shown)
    if name.endswith(".npz"):
        return arrays.read_arrays(path, "auto" if said.kind == "table" else said.kind)
    if said.kind == "auto" and (name.endswith((".jsonl", ".jsonl.gz", ".ndjson")) or texts.has_texts(path)):
        return _read_text(said, place, label)
    if path.is_dir() or name.endswith(".zip"):
        labels_csv = Path(said.root, said.labels) if said.labels is not None else None
        return images.read_images(
            path,
            **shown,
            labels_csv=labels_csv,
            file_column=said.file,
            label_column=said.label or "label",
            encoding=said.encoding,
            cache=_cached(cache, path),
        )
    return tables.read_table(path, label=label, ignore=said.ignore, missing=said.missing, encoding=said.encoding, split_column=said.split)


def _cached(cache: Path | None, path: Path) -> Path | None:
    """The file in which the rows of a place are kept."""
    return None if cache is None else cache / f"{path.stem.replace(':', '-')}-{zlib.crc32(str(path.resolve()).encode()):08x}.npy"


def _read_text(said: DataSection, place: str, label: str | list[str] | None) -> Source:
    options: dict[str, Any] = {"text": said.text, "join": said.join, "label": label, "split_column": said.split}
    path = Path(said.root, place)
    if ":" in place and not path.exists():
        import pandas as pd

        source = callables.read_callable(place)
        if not isinstance(source.inputs, pd.DataFrame):
            raise DataError(f"{place} gave rows of kind {source.kind}; texts come as a DataFrame with a column of them", code="U400")
        return texts.texts_of(source.inputs, place, None, **options)
    return texts.read_texts(path, encoding=said.encoding, **options)


def _labels(recipe: Recipe, sources: dict[str, Source], problems: list[Problem]) -> tuple[Task, dict[str, Any]]:
    """One Task for all parts: classes are the union of the names seen, unless they are declared."""
    import pandas as pd

    given = {part: source.labels for part, source in sources.items() if source.labels is not None}
    declared = recipe.data.classes or next((list(source.classes) for source in sources.values() if source.classes), None)
    if not given:
        task, _, found = labelling.decide(recipe.task, None, declared)
        problems += found
        return task, dict.fromkeys(sources)
    joined = pd.concat([pd.DataFrame(labels) for labels in given.values()], ignore_index=True)
    raw = joined if joined.shape[1] > 1 else joined.iloc[:, 0]
    names = np.concatenate([_names(sources[part]) for part in given])
    word = recipe.task
    if recipe.data.separator is not None and joined.shape[1] == 1:
        raw, word = labelling.spread(joined.iloc[:, 0], recipe.data.separator, declared, names), "multilabel"
    task, labels, found = labelling.decide(word, raw, declared, names)
    problems += found
    assert labels is not None
    ends = np.cumsum([len(given[part]) for part in given])[:-1]
    split = dict(zip(given, np.split(labels, ends), strict=True))
    return task, {part: split.get(part) for part in sources}


def _names(source: Source) -> np.ndarray[Any, Any]:
    return np.array([f"row {i}" for i in range(len(source.inputs))]) if source.names is None else np.asarray(source.names)


def _rows(source: Source, labels: Any, like: Source) -> Rows:
    # keyed on the columns that training rows have: a further column must not hide that a row is the same
    inputs = source.inputs[list(like.inputs.columns)] if source.kind == "table" else source.inputs
    return Rows(source.kind, inputs, keys.content_keys(inputs, source.kind), labels, split=source.split, names=_names(source))


def _same_inputs(sources: dict[str, Source]) -> None:
    first = sources["train"]
    for part, source in sources.items():
        if source.kind != first.kind:
            raise DataError(f"the train rows are of kind {first.kind!r}, the {part} rows of kind {source.kind!r}", code="U060")
        if source.kind == "table":
            missing = [column for column in first.inputs.columns if column not in source.inputs.columns]
            if missing:
                advice = did_you_mean(missing[0], map(str, source.inputs.columns))
                raise DataError(f"the {part} rows have no column {missing[0]!r}; {advice}", code="U060")
        elif source.inputs.shape[1:] != first.inputs.shape[1:]:
            raise DataError(f"train rows have shape {first.inputs.shape[1:]}, {part} rows {source.inputs.shape[1:]}", code="U060")


def _split(recipe: Recipe, parts: dict[str, Rows], task: Task) -> Rows:
    said = recipe.split
    return splitting.combine(
        parts["train"],
        parts.get("validation"),
        parts.get("test"),
        task=task,
        validation_part=said.validation,
        test_part=said.test,
        seed=said.seed,
    )


def _without_overlap(rows: Rows, overlap: str) -> tuple[Rows, list[Problem]]:
    if overlap != "drop":
        return rows, []
    shared = splitting.overlap(rows)
    if not len(shared):
        return rows, []
    keep = np.setdiff1d(np.arange(len(rows)), shared)
    text = f"{len(shared):,} rows that are also held-out rows were taken out of training (data.overlap = 'drop')"
    return rows.take(keep), [Problem("U129", text, "warning")]


def synthetic_rows(recipe: Recipe, train: Rows, task: Task, seed: int = 0) -> Rows | None:
    """Rows without labels beside the training rows: MUNGE rows, `rows.synthetic` of each, or the texts of `rows.unlabelled`."""
    said = recipe.rows
    if said.unlabelled:
        return _unlabelled(recipe, train)
    if not said.synthetic:
        return None
    if train.kind == "image":
        raise RecipeError("rows.synthetic makes rows of tables and arrays; for images set teaching.views and train.augment", code="U061")
    if train.kind == "text":
        raise RecipeError("rows.synthetic makes rows of tables and arrays; for texts name files in rows.unlabelled", code="U061")
    made = synthetic.munge(train.inputs, multiple=said.synthetic, swap=said.swap, local_variance=said.local_variance, seed=seed)
    found = keys.content_keys(made, train.kind)
    return Rows(train.kind, made, found, names=np.array([f"synthetic {i}" for i in range(len(found))]))


def _unlabelled(recipe: Recipe, train: Rows) -> Rows | None:
    """Further texts, each once, without those that are rows of the recipe's data."""
    if train.kind != "text":
        raise RecipeError(f"rows.unlabelled is for texts, the rows are of kind {train.kind!r}; use rows.synthetic", code="U414")
    said, parts = recipe.data, []
    for each in recipe.rows.unlabelled:
        source = texts.read_texts(Path(said.root, each.path), text=each.text or said.text, join=each.join, encoding=said.encoding)
        if source.inputs.shape[1:] != train.inputs.shape[1:]:
            raise DataError(f"{each.path} (rows.unlabelled) and data.train differ: single texts in one, pairs in the other", code="U414")
        parts.append(source)
    inputs = np.concatenate([source.inputs for source in parts])
    found = keys.content_keys(inputs, "text")
    known = {tuple(key) for place in _given(said) for key in keys.content_keys(_read(said, place, None).inputs, "text").tolist()}
    _, first = np.unique(found, axis=0, return_index=True)
    fresh = np.array([position for position in np.sort(first) if tuple(found[position].tolist()) not in known], dtype=np.int64)
    if not len(fresh):
        return None
    names = np.concatenate([_names(source) for source in parts])
    return Rows("text", inputs[fresh], found[fresh], names=names[fresh])


def _given(said: DataSection) -> list[str]:
    return [place for place in (said.train, said.validation, said.test) if place is not None]


AUGMENTATIONS = ("shift", "flip", "crop", "colour", "noise", "mixup")


def build_views(options: OptimizerSection, rows: Rows, fitted: Encoder, *, counted: bool = False) -> views.Views | None:
    """What the views of these training rows are, None without `augment`; `counted` goes through a finite set instead of drawing."""
    said = {name: value for name, value in options.augment.items() if value}
    unknown = sorted(set(said) - set(AUGMENTATIONS))
    if unknown:
        raise RecipeError(f"augment: unknown option {unknown[0]!r}; {did_you_mean(unknown[0], AUGMENTATIONS)}", code="U002")
    if not said:
        return None
    if rows.kind == "text":
        raise RecipeError("train.augment changes images and numbers; for texts use student.options.drop_words, or more texts", code="U412")
    numbers: dict[str, Any] = {name: float(said[name]) for name in ("crop", "colour", "noise", "mixup") if name in said}
    partners = views.Partners.of(rows) if "mixup" in said and rows.kind != "table" else None
    columns: tuple[tuple[str, int, float], ...] = ()
    if rows.kind == "table" and "noise" in said:
        assert isinstance(fitted, encoding.TableEncoding)
        encoded = fitted.encode(rows.inputs)
        places = [(column.name, at) for at, column in enumerate(fitted.columns) if column.type == "number"]
        scales = np.nan_to_num(np.nanstd(encoded.astype(np.float64), axis=0))
        columns = tuple((name, at, float(scales[at])) for name, at in places)
    made = views.Views(
        rows.kind, shift=int(said.get("shift", 0)), flip=bool(said.get("flip")), columns=columns, partners=partners, **numbers
    )
    return replace(made, enumerated=True) if counted and made.finite else made


# --- teachers -------------------------------------------------------------------------------------------------------


def load_teacher(said: TeacherMember, task: Task, rows: Rows, cache: Path | None = None) -> Teacher:
    """The teacher that `source` names, through the adapter for its kind of file; a server's answers are kept in `cache`."""
    from understudy.adapters import api, boosters, keras, predictions, sklearn, stored, timm_models, torch_module
    from understudy.adapters import callables as functions

    source, classes = str(said.source), _class_names(said.classes)
    name = source.lower()
    weights = None if said.weights is None else (said.weights if said.weights == "factory" else str(Path(said.weights)))
    picture: dict[str, Any] = {"image_size": said.image_size, "mean": said.mean, "std": said.std}
    if said.is_remote:
        return api.load(source, task=task, rows=rows, options=said.options, cache=cache)
    if source.startswith(("hf:", "sentences:")):
        return _text_teacher(said, task, rows, cache)
    if source.startswith("keras:") or name.endswith((".keras", ".h5")) or keras.is_saved_model(Path(source)):
        return keras.load(
            source,
            task=task,
            classes=classes,
            output=said.output,
            trust=said.trust,
            weights=weights,
            pretrained=said.pretrained,
            options=said.options,
            **picture,
        )
    if source.startswith("timm:"):
        return timm_models.load(
            source, task=task, classes=classes, pretrained=said.pretrained, weights=weights, options=said.options, **picture
        )
    if ":" in source and not Path(source).exists():
        if weights is not None:
            return torch_module.load(
                source, weights=weights, classes=classes, output=said.output, task=task, options=said.options, **picture
            )
        return functions.load(source, classes=classes, output=said.output, task=task)
    path = Path(source)
    if not path.exists():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
            if path.parent.is_dir()
            else f"there is no folder {path.parent}"
        )
        raise TeacherError(f"no teacher at {source}; {near}", code="U062")
    if path.is_dir():
        return stored.load(path, kind=rows.kind, task=task)
    if name.endswith((".skops", ".joblib", ".pkl", ".pickle")):
        return sklearn.load(path, trust=said.trust, task=task, classes=classes)
    if name.endswith((".ubj", ".json", ".txt", ".bst", ".lgb")):
        return boosters.load(path, task=task, classes=classes)
    if name.endswith((".parquet", ".csv", ".csv.gz", ".npz")):
        return predictions.load(path, rows=rows, task=task, classes=classes, output=said.output)
    raise TeacherError(
        f"teacher.source = {source!r} is of no kind known here: .skops, .joblib, .pkl, .json or .ubj (XGBoost), .txt (LightGBM), "
        ".parquet, .csv or .npz (predictions), .keras, a SavedModel's folder, a run's folder `transfer`, package.module:factory, "
        "timm:NAME, keras:NAME, "
        "http(s)://host/v1",
        code="U062",
    )


def _text_teacher(said: TeacherMember, task: Task, rows: Rows, cache: Path | None) -> Teacher:
    from understudy.adapters import hugging_face, sentences

    source, classes = str(said.source), _class_names(said.classes)
    if rows.kind != "text":
        raise TeacherError(f"{source} reads texts, the rows are of kind {rows.kind!r}; name the column of texts: data.text", code="U411")
    if source.startswith("hf:"):
        return hugging_face.load(source, task=task, classes=classes, pretrained=said.pretrained, options=said.options)
    return sentences.load(source, task=task, rows=rows, cache=cache, pretrained=said.pretrained, options=said.options)


def free_teacher_options(said: TeacherMember) -> list[str]:
    """The options of a teacher that a run may go on with others of, since its answers do not depend on them."""
    from understudy.adapters import api

    return [f"teacher.options.{name}" for name in api.FREE_TO_CHANGE] if said.is_remote else []


def stored_sets(teacher: Teacher | None) -> dict[str, TransferSet] | None:
    """The transfer sets behind a teacher that is nothing but them."""
    from understudy.adapters.stored import StoredTeacher

    return teacher.sets if isinstance(teacher, StoredTeacher) else None


def build_ensemble(members: list[Teacher], task: Task, said: Sequence[TeacherMember], combine: Combine = "probabilities") -> Ensemble:
    """Several teachers as one; when all have a name, or their answers are weighed by the labels, each one's own are kept too."""
    given = [member.name for member in said if member.name is not None]
    if given and len(given) < len(members):
        raise RecipeError(f"name all {len(members)} teacher.members, or none: {', '.join(given)} have one", code="U323")
    names = given or ([str(number) for number in range(1, len(members) + 1)] if combine == "confidence" else [])
    return Ensemble(members, task=task, names=names, weights=[member.weight for member in said], combine=combine)


def weighed_answers(ask: Ask, ensemble: Ensemble, labels: torch.Tensor, temperature: float) -> Ask:
    """Answers of an ensemble that is weighed by the labels of its rows, from what each member says of them."""
    signal = ensemble.task.signal

    def weighed(rows: torch.Tensor, view: torch.Tensor | None, inputs: torch.Tensor) -> Signals:
        said = ask(rows, view, inputs)
        own = torch.stack([said[f"teachers/{name}/{signal}"] for name in ensemble.names])
        return {**said, signal: ensemble.together(own, labels[rows], temperature=temperature)}

    return weighed


def build_encoding(recipe: Recipe, temperature: float) -> Encoding | Literal["auto"]:
    """How the teacher's answers are stored."""
    said = recipe.teaching
    if said.encoding == "auto":
        return "auto"
    if said.encoding == "dense":
        return Dense(said.dtype)
    return TopK(said.top) if said.encoding == "top-k" else Sampled(said.top, said.draws, temperature)


def temperature_of(objective: Objective) -> float:
    """The one temperature at which the terms read the teacher's answers, 1 when none has a say; RecipeError for several."""
    found = set()
    for term in objective.active:
        parameter = inspect.signature(term.loss).parameters.get("temperature")
        if any(name.endswith(LOGITS) for name in term.reads) and parameter is not None:
            if "temperature" in term.moving or term.learned is not None:
                raise RecipeError(
                    f"the temperature of {term.name!r} moves, and an encoding that stores some classes only fills the rest for one; "
                    'set teaching.encoding = "dense"',
                    code="U348",
                )
            found.add(float(term.options.get("temperature", parameter.default)))
    if len(found) > 1:
        said = " and ".join(f"{each:g}" for each in sorted(found))
        raise RecipeError(
            f"the terms read the teacher at temperatures {said}, and an encoding that stores some classes only fills the rest for one; "
            'give them one temperature, or set teaching.encoding = "dense"',
            code="U324",
        )
    return found.pop() if found else 1.0


def train_estimator_teacher(said: TeacherTrainSection, task: Task, rows: Rows, folder: Path) -> Teacher:
    """A forest or boosted trees trained from the labels; kept in the run's folder, so that it is trained once."""
    from understudy.adapters import sklearn

    file = folder / f"{said.model}.joblib"
    if not file.exists():
        assert rows.labels is not None
        made = sklearn.train_estimator(said.model, rows.inputs, rows.labels, task, options=said.options, seed=said.seed)  # type: ignore[arg-type]
        sklearn.save(made, file)
    return sklearn.load(file, task=task, trust=True)


def _class_names(said: list[str] | str | None) -> tuple[str, ...] | None:
    if said is None or isinstance(said, list):
        return None if said is None else tuple(map(str, said))
    path = Path(said)
    if not path.exists():
        raise TeacherError(f"teacher.classes names the file {said!r}, which does not exist: one class name per line", code="U062")
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


# --- students -------------------------------------------------------------------------------------------------------


def is_estimator(model: str) -> bool:
    """Whether the student is fitted by scikit-learn or LightGBM rather than by gradient steps."""
    return model in TREES or model.startswith("sklearn:")


def is_custom(model: str) -> bool:
    """Whether the student is a torch module of the user's own."""
    return ":" in model and not model.startswith(("timm:", "keras:", "sklearn:"))


def encode(inputs: Any, kind: str, fitted: Encoder) -> torch.Tensor:
    """Raw inputs as a student's graph reads them."""
    if kind in ("table", "text"):
        assert fitted is not None
        return torch.from_numpy(np.ascontiguousarray(fitted.encode(inputs)))
    return torch.from_numpy(np.ascontiguousarray(inputs))


def build_student(
    model: str, options: dict[str, Any], loaded: Loaded, encoded: torch.Tensor, labels: np.ndarray[Any, Any] | None, *, seed: int, name: str
) -> Student:
    """An untrained model by name, with the preprocessing fitted on the encoded training rows."""
    task, kind = loaded.task, loaded.rows.kind
    if (kind == "text") != model.startswith("text.") and not is_custom(model):
        there = "are texts, which text.bag, text.transformer and text.static" if kind == "text" else f"are of kind {kind!r}, which others"
        raise RecipeError(f"the model {model!r} does not read these rows: they {there} read; set student.model", code="U411")
    if is_estimator(model):
        prepared = preprocessing.fit_preprocessing(encoded, kind, loaded.encoding, scale=False, flatten=True)
        if model.startswith("sklearn:"):
            estimator = trees.estimator(model, options, seed=seed)
        elif model == "tree":
            estimator = _called(trees.tree, task, options, seed=seed)
        else:
            estimator = _called(trees.boosted, task, options, seed=seed)
        return Student(name, task, encoding=loaded.encoding, preprocessing=prepared, estimator=estimator)
    flat = model == "mlp"
    prepared = preprocessing.fit_preprocessing(encoded, kind, loaded.encoding, scale=True, flatten=flat)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "text":
            network = _text_network(model, options, loaded, seed)
        else:
            network = _network(model, options, prepared(encoded[:2]), task, seed)
    values = labels if task.kind == "regression" else None
    return Student(name, task, encoding=loaded.encoding, module=preprocessing.assemble(prepared, network, values=values))


def _called(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    *before, said = args
    try:
        return function(*before, **said, **options)
    except TypeError as error:
        strange = next((name for name in said if name not in inspect.signature(function).parameters), None)
        known = [name for name, each in inspect.signature(function).parameters.items() if each.kind is each.KEYWORD_ONLY and name != "seed"]
        told = error if strange is None else f"there is no {strange!r}; {did_you_mean(strange, known)}"
        raise RecipeError(f"student.options for {function.__name__}: {told}", code="U063") from None


def _text_network(model: str, options: dict[str, Any], loaded: Loaded, seed: int) -> nn.Module:
    fitted, task = loaded.encoding, loaded.task
    assert isinstance(fitted, tokenizing.TextEncoding)
    shared = {"padding": fitted.padding, "pairs": fitted.pairs}
    if model == "text.bag":
        return _called(text.bag, fitted.size, task.outputs, {**shared, **options})
    if model == "text.transformer":
        return _called(text.transformer, fitted.size, task.outputs, {**shared, "length": fitted.length, **options})
    if is_custom(model):
        from understudy.adapters import torch_module

        return torch_module.build(model, options, seed=seed)
    raise RecipeError(f"no model {model!r}; {did_you_mean(model, ['text.bag', 'text.transformer', 'text.static'])}", code="U063")


def _network(model: str, options: dict[str, Any], features: torch.Tensor, task: Task, seed: int) -> nn.Module:
    if model == "mlp":
        return _called(mlp.mlp, features.shape[1], task.outputs, options)
    if model == "convnet":
        if features.ndim != 4:
            raise RecipeError("a convnet reads images; these rows are a table or flat arrays: use mlp, tree or boosted", code="U063")
        return _called(convnet.convnet, features.shape[1], task.outputs, {"size": tuple(features.shape[2:]), **options})
    if model.startswith("timm:"):
        from understudy.adapters import timm_models

        said = dict(options)
        pretrained = bool(said.pop("pretrained", False))
        return timm_models.build(
            model.removeprefix("timm:"), classes=task.outputs, pretrained=pretrained, in_chans=features.shape[1], options=said
        )
    if model.startswith("keras:"):
        from understudy.adapters import keras

        return keras.student(model.removeprefix("keras:"), features=features.shape[1:], classes=task.outputs, options=options, seed=seed)
    if ":" in model:
        from understudy.adapters import torch_module

        return torch_module.build(model, options, seed=seed)
    known = ["tree", "boosted", "mlp", "convnet", "timm:NAME", "keras:NAME", "package.module:factory", "sklearn:package.Class"]
    raise RecipeError(f"no model {model!r}; {did_you_mean(model, known)}", code="U063")


# --- objectives and training sets -----------------------------------------------------------------------------------


def build_objective(recipe: Recipe, task: Task, labels: np.ndarray[Any, Any] | None) -> Objective:
    """What the student learns from."""
    said, options = recipe.objective, recipe.train
    scale = _scale(task, labels)
    if said.terms:
        return Objective.from_terms([(term.loss, term.weight, asked_layers(term.model_dump()) | term.options) for term in said.terms], task)
    return Objective.soft_labels(
        alpha=said.alpha,
        temperature=said.temperature,
        task=task,
        label_smoothing=options.label_smoothing,
        class_weights=_class_weights(options, task, labels),
        scale=scale,
    )


def build_label_objective(options: OptimizerSection, task: Task, labels: np.ndarray[Any, Any] | None) -> Objective:
    """The objective of the control, and of a teacher trained here: the labels alone."""
    return Objective.labels_only(
        task, label_smoothing=options.label_smoothing, class_weights=_class_weights(options, task, labels), scale=_scale(task, labels)
    )


def _scale(task: Task, labels: np.ndarray[Any, Any] | None) -> float:
    if task.kind != "regression" or labels is None:
        return 1.0
    return float(labels[task.labelled(labels)].std()) or 1.0


def _class_weights(options: OptimizerSection, task: Task, labels: np.ndarray[Any, Any] | None) -> torch.Tensor | None:
    said = options.class_weights
    if said is None or task.kind == "regression" or labels is None:
        return None
    if said == "balanced":
        if not task.single_label:
            raise RecipeError("train.class_weights = 'balanced' is for tasks with one class per row", code="U063")
        counts = np.bincount(labels[labels >= 0], minlength=task.outputs).clip(min=1)
        return torch.tensor(counts.sum() / (len(counts) * counts), dtype=torch.float32)
    if len(said) != task.outputs:
        raise RecipeError(f"train.class_weights has {len(said)} weights for {task.outputs} classes", code="U063")
    return torch.tensor(said, dtype=torch.float32)


def stored_answers(taught: TransferSet, keys: np.ndarray[Any, Any], signals: Sequence[str], *, temperature: float | None = None) -> Ask:
    """The stored signals of a batch in its views, read from the transfer set's files as they are asked."""
    positions = taught.positions(keys)

    def ask(rows: torch.Tensor, view: torch.Tensor | None, inputs: torch.Tensor) -> Signals:
        chosen = None if view is None else view.numpy()
        return {signal: taught.gather(signal, positions[rows.numpy()], chosen, temperature=temperature) for signal in signals}

    return ask


def live_answers(teacher: Teacher, rows: Rows, made: views.Views | None) -> Ask:
    """The teacher's answers to a batch in its views, asked in the loop; a table's views are made from its raw rows."""

    def ask(positions: torch.Tensor, view: torch.Tensor | None, inputs: torch.Tensor) -> Signals:
        if rows.kind not in ("table", "text"):
            return teacher.signals(inputs.numpy())
        chosen = positions.numpy()
        raw = take(rows.inputs, chosen)
        return teacher.signals(raw if view is None or made is None else made(raw, rows.keys[chosen], view.numpy()))

    return ask


def training_set(
    loaded: Loaded,
    train: Rows,
    extra: Rows | None,
    teacher: Signals,
    *,
    views: int,
    augment: Callable[..., Any] | None,
    only_labelled: bool = False,
    ask: Ask | None = None,
) -> TrainingSet:
    """Encoded rows with labels and the teacher's signals, aligned; `teacher` covers train then extra."""
    task = loaded.task
    labels = train.labels
    inputs = encode(train.inputs, train.kind, loaded.encoding)
    row_keys = train.keys
    if only_labelled:
        assert labels is not None
        chosen = np.flatnonzero(task.labelled(labels))
        inputs, labels, row_keys = inputs[torch.from_numpy(chosen)], labels[chosen], row_keys[chosen]
    elif extra is not None:
        inputs = torch.cat([inputs, encode(extra.inputs, extra.kind, loaded.encoding)])
        row_keys = np.concatenate([row_keys, extra.keys])
        if labels is not None:
            fill = -1 if task.single_label else np.nan
            labels = np.concatenate([labels, np.full((len(extra), *labels.shape[1:]), fill, dtype=labels.dtype)])
    answered: torch.Tensor | None = None
    if teacher:
        answered = torch.stack([is_answered(said) for said in teacher.values()]).all(dim=0)
        answered = None if bool(answered.all()) else answered
    if answered is not None:
        # NaN must not reach the gradient of any loss
        teacher = {name: said.nan_to_num(0.0) for name, said in teacher.items()}
    mask = None if labels is None else task.labelled(labels)
    whole = mask is None or bool(mask.all())
    return TrainingSet(
        inputs=inputs,
        labels=None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)),
        labelled=None if whole or mask is None else torch.from_numpy(mask),
        teacher=teacher,
        keys=row_keys,
        views=views,
        augment=augment,
        ask=ask,
        answered=answered,
    )


def with_steps_of(options: OptimizerSection, rows: int, like: int) -> OptimizerSection:
    """The control sees fewer rows when only some are labelled; give it as many steps as the student gets."""
    if rows == like or options.max_time is not None:
        return options
    per_epoch, wanted = max(1, rows // options.batch_size), max(1, like // options.batch_size) * options.epochs
    return options.model_copy(update={"epochs": math.ceil(wanted / per_epoch)})
