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

from understudy import pairing
from understudy.answers import Combine
from understudy.data import (
    arrays,
    audio,
    callables,
    encoding,
    images,
    joining,
    keys,
    labelling,
    splitting,
    synthetic,
    tables,
    texts,
    tokenizing,
    views,
)
from understudy.data._source import Source
from understudy.data.pairs import PairEncoding
from understudy.data.rows import Paired, Rows
from understudy.errors import DataError, Problem, RecipeError, TeacherError, did_you_mean
from understudy.features import asked_layers
from understudy.objectives import Objective
from understudy.pools import Pool, Processes
from understudy.recipe import DataSection, FurtherSection, OptimizerSection, Recipe, TeacherMember, TeacherTrainSection
from understudy.signals import LOGITS, Signals, is_answered
from understudy.store.encodings import Dense, Encoding, Sampled, TopK
from understudy.store.transfer_set import TransferSet
from understudy.students import convnet, fusion, mlp, preprocessing, speech, text, trees
from understudy.students.student import Student
from understudy.tasks import Task
from understudy.teachers import Ensemble, Reading, Teacher, take
from understudy.training.gradient import Ask, Augment, Mixture, TrainingSet

TREES = ("tree", "boosted")
FUSION, DUAL = "fusion", "dual"
BRANCHES = {"image": "convnet", "text": "text.bag", "audio": "speech.convnet", "table": "mlp", "array": "mlp"}
"""What reads an input of each kind where the recipe does not say."""
Encoder = encoding.TableEncoding | tokenizing.TextEncoding | PairEncoding | None
"""What makes raw rows into what a student's graph reads; arrays and images need none."""


@final
@dataclass(frozen=True)
class Loaded:
    """Rows with their splits, what their labels mean, and what was noticed on the way; for `text.static` where they came from."""

    rows: Rows
    task: Task
    encoding: Encoder
    problems: tuple[Problem, ...]
    rate: int = 16000
    source: Recipe | None = None
    cache: Path | None = None
    reads: tuple[str, ...] = ()

    def seen_by(self, names: Sequence[str]) -> Loaded:
        """The rows as a model sees them that reads these inputs only; as they are where they have one input."""
        if not isinstance(self.encoding, PairEncoding):
            return self
        return replace(self, rows=self.rows.only(names), encoding=self.encoding.only(names), reads=tuple(names))


# --- rows -----------------------------------------------------------------------------------------------------------


def load_rows(recipe: Recipe, cache: Path | None = None) -> Loaded:
    """Read, label, key and split the rows."""
    said = recipe.data
    pairing.check_names(recipe)
    places = {"train": said.train, "validation": said.validation, "test": said.test}
    sources = {part: _source(said, part, place, cache) for part, place in places.items() if place is not None}
    sources["train"] = _grouped(recipe, sources)
    sources = _joined(recipe, sources)
    problems = [problem for source in sources.values() for problem in source.problems]
    task, labels = _labels(recipe, sources, problems)
    sources = _same_length(sources)
    _same_inputs(sources)
    parts = {part: _rows(source, labels[part], sources["train"]) for part, source in sources.items()}
    rows = _split(recipe, parts, task)
    rows, more = _without_overlap(rows, said.overlap)
    fitted = _encoder(recipe, rows.part("train"))
    return Loaded(rows, task, fitted, (*problems, *more, *_cut(rows, fitted)), said.rate, recipe, cache)


def _encoder(recipe: Recipe, train: Rows) -> Encoder:
    """What a student reads of rows of this kind, learned from the training rows; None where it reads them as they are."""
    if isinstance(train.inputs, Paired):
        return PairEncoding.fit(train.inputs, {name: _encoder(recipe, train.only([name])) for name in train.inputs.parts})
    if train.kind == "text":
        return _tokenizer(recipe, train.inputs)
    return encoding.TableEncoding.fit(train.inputs, recipe.data.max_levels) if train.kind == "table" else None


def _cut(rows: Rows, fitted: Encoder) -> list[Problem]:
    """A warning where many texts are longer than what is read of them."""
    if isinstance(fitted, PairEncoding):
        return [found for name in fitted.names for found in _cut(rows.only([name]), fitted.only([name]))]
    return fitted.check(rows.inputs[:: max(1, len(rows) // 2000)]) if isinstance(fitted, tokenizing.TextEncoding) else []


def _grouped(recipe: Recipe, sources: dict[str, Source]) -> Source:
    """The training rows, with a split that keeps groups whole where groups were asked for."""
    train, asked = sources["train"], recipe.data.group
    if asked is None or train.split is not None:
        return train
    if train.groups is None:
        raise DataError(
            f"data.group = {asked!r} is read of sound only; the rows are of kind {train.kind!r}: mark a data.split", code="U425"
        )
    for part in ("validation", "test"):
        theirs = sources[part].groups if part in sources else None
        shared = set() if theirs is None else set(train.groups) & set(theirs)
        if shared:
            told = f"{asked} {', '.join(sorted(map(str, shared))[:6])} is in data.train and in data.{part}"
            raise DataError(f"{told}: leave data.{part} out, and whole groups are split off data.train", code="U425")
    shares = {
        part: 0.0 if part in sources else share for part, share in (("validation", recipe.split.validation), ("test", recipe.split.test))
    }
    return replace(train, split=splitting.split_groups(train.groups, seed=recipe.split.seed, **shares))


def _tokenizer(recipe: Recipe, train: Any) -> tokenizing.TextEncoding:
    """The student's tokenizer: learned from the training texts, or the one that data.tokenizer names."""
    said, place = recipe.data, recipe.data.tokenizer
    if place is None and (recipe.student.model == "text.static" or "cut" in recipe.student.options):
        place = _encoder_of(recipe)
    if place is None:
        return tokenizing.TextEncoding.fit(train, vocabulary=said.vocabulary, length=said.max_length)
    if place.startswith(("sentences:", "hf:")):
        from understudy.adapters import _pretrained

        file = _pretrained.folder_of(place) / "tokenizer.json"
    else:
        file = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    special = "cut" in recipe.student.options
    return tokenizing.TextEncoding.read(file, length=said.max_length, pairs=train.ndim == 2, special=special)


def _joined(recipe: Recipe, sources: dict[str, Source]) -> dict[str, Source]:
    """Connected words made of the clips of each part, where strings were asked for; no clip is in two splits."""
    said = recipe.data
    if not said.strings:
        return sources
    train = sources["train"]
    if train.kind != "audio":
        raise DataError(f"data.strings joins clips of sound, the rows are of kind {train.kind!r}", code="U429")
    if train.split is None:
        shares = {
            part: 0.0 if part in sources else share
            for part, share in (("validation", recipe.split.validation), ("test", recipe.split.test))
        }
        train = replace(train, split=splitting.split_groups(_names(train), seed=recipe.split.seed, **shares))
    made = {}
    for number, (part, source) in enumerate((sources | {"train": train}).items()):
        count = max(1, round(said.strings * len(source.inputs) / len(train.inputs)))
        made[part] = joining.join_clips(source, count, said.words, rate=said.rate, seed=recipe.split.seed * 3 + number)
    return made


def _source(said: DataSection, part: str, place: str, cache: Path | None) -> Source:
    """The rows of one part, with all their inputs."""
    if not said.inputs:
        return _read(said, place, cache)
    return pairing.read_pairs(said, part, lambda one, where: _read(one, where, cache))  # type: ignore[arg-type]


def _read(said: DataSection, place: str, cache: Path | None) -> Source:
    label = said.label if said.labels is None else None
    if said.kind == "text" or (said.kind == "auto" and said.text is not None):
        return _read_text(said, place, label)
    if ":" in place and not Path(place).exists() and not Path(said.root, place).exists():
        return callables.read_callable(place, said.kind, label=label, ignore=said.ignore, split_column=said.split)
    path = Path(said.root, place)
    name = path.name.lower()
    if said.kind == "audio" or (said.kind == "auto" and audio.has_audio(path)):
        return audio.read_audio(
            path,
            rate=said.rate,
            seconds=said.seconds,
            labels_csv=Path(said.root, said.labels) if said.labels is not None else None,
            file_column=said.file,
            label_column=said.label,
            group=said.group,
            encoding=said.encoding,
        )
    if name.endswith(".npz"):
        source = arrays.read_arrays(path, "auto" if said.kind == "table" else said.kind)
        if source.kind == "image" and said.image_size is not None:
            return replace(source, inputs=images.resized(source.inputs, said.image_size))
        return source
    if said.kind == "auto" and (name.endswith((".jsonl", ".jsonl.gz", ".ndjson")) or texts.has_texts(path)):
        return _read_text(said, place, label)
    if path.is_dir() or name.endswith(".zip"):
        labels_csv = Path(said.root, said.labels) if said.labels is not None else None
        return images.read_images(
            path,
            image_size=said.image_size,
            grey=said.grey,
            labels_csv=labels_csv,
            file_column=said.file,
            label_column=said.label or "label",
            encoding=said.encoding,
            cache=None if cache is None else cache / f"{path.stem}-{zlib.crc32(str(path.resolve()).encode()):08x}.npy",
        )
    return tables.read_table(path, label=label, ignore=said.ignore, missing=said.missing, encoding=said.encoding, split_column=said.split)


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

    if recipe.task == "matching":
        return pairing.matching(recipe, sources)
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
    inputs = _like(source.inputs, like.inputs, source.kind)
    return Rows(source.kind, inputs, keys.content_keys(inputs, source.kind), labels, split=source.split, names=_names(source))


def _same_length(sources: dict[str, Source]) -> dict[str, Source]:
    """Sound of several files with zeros up to one length; other rows as they are."""
    first = sources["train"].inputs
    if isinstance(first, Paired):
        made = dict(sources)
        for name in first.parts:
            halves = _same_length({part: Source(source.inputs.kinds[name], source.inputs[name]) for part, source in sources.items()})
            made = {
                part: replace(source, inputs=replace(source.inputs, parts={**source.inputs.parts, name: halves[part].inputs}))
                for part, source in made.items()
            }
        return made
    if any(source.kind != "audio" for source in sources.values()):
        return sources
    longest = max(source.inputs.shape[1] for source in sources.values())
    return {
        part: replace(source, inputs=np.pad(source.inputs, ((0, 0), (0, longest - source.inputs.shape[1]))))
        for part, source in sources.items()
    }


def _like(inputs: Any, train: Any, kind: str) -> Any:
    if isinstance(inputs, Paired):
        return replace(inputs, parts={name: _like(part, train[name], inputs.kinds[name]) for name, part in inputs.parts.items()})
    return inputs[list(train.columns)] if kind == "table" else inputs


def _same_inputs(sources: dict[str, Source]) -> None:
    first = sources["train"]
    if isinstance(first.inputs, Paired):
        for name, kind in first.inputs.kinds.items():
            halves = {part: Source(source.inputs.kinds[name], source.inputs[name]) for part, source in sources.items()}
            _same_inputs({"train": Source(kind, first.inputs[name]), **halves})
        return
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
    if train.kind in ("image", "audio", "pair"):
        raise RecipeError(
            "rows.synthetic makes rows of tables and arrays; for images and sound set teaching.views and train.augment", code="U061"
        )
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


AUGMENTATIONS = ("shift", "flip", "crop", "colour", "noise", "mixup", "speed", "gain", "randaugment", "operations", "transform")


def build_views(options: OptimizerSection, rows: Rows, fitted: Encoder, *, counted: bool = False) -> views.Views | None:
    """What the views of these training rows are, None without `augment`; `counted` goes through a finite set instead of drawing."""
    said = {name: value for name, value in options.augment.items() if value}
    unknown = sorted(set(said) - set(AUGMENTATIONS))
    if unknown:
        raise RecipeError(f"augment: unknown option {unknown[0]!r}; {did_you_mean(unknown[0], AUGMENTATIONS)}", code="U002")
    if not said:
        return None
    if isinstance(rows.inputs, Paired):
        return _pair_views(options, rows, counted)
    if rows.kind == "text":
        raise RecipeError("train.augment changes images and numbers; for texts use student.options.drop_words, or more texts", code="U412")
    numbers: dict[str, Any] = {name: float(said[name]) for name in ("crop", "colour", "noise", "mixup", "speed", "gain") if name in said}
    partners = views.Partners.of(rows) if "mixup" in said and rows.kind != "table" else None
    columns: tuple[tuple[str, int, float], ...] = ()
    if rows.kind == "table" and "noise" in said:
        assert isinstance(fitted, encoding.TableEncoding)
        encoded = fitted.encode(rows.inputs)
        places = [(column.name, at) for at, column in enumerate(fitted.columns) if column.type == "number"]
        scales = np.nan_to_num(np.nanstd(encoded.astype(np.float64), axis=0))
        columns = tuple((name, at, float(scales[at])) for name, at in places)
    moves: dict[str, Any] = {"shift": int(said.get("shift", 0)), "flip": bool(said.get("flip"))}
    made = views.Views(rows.kind, columns=columns, partners=partners, policies=_policies(said), **moves, **numbers)
    return replace(made, enumerated=True) if counted and made.finite else made


def _policies(said: dict[str, Any]) -> tuple[views.Policy, ...]:
    """The views that torchvision, or a transform of the user's own, makes."""
    from understudy.adapters import torchvision_views

    made = []
    if "operations" in said and "randaugment" not in said:
        raise RecipeError("augment.operations belongs to randaugment; set augment.randaugment = 9", code="U002")
    if "randaugment" in said:
        made.append(torchvision_views.randaugment(said["randaugment"], said.get("operations", 2)))
    if "transform" in said:
        made.append(torchvision_views.own_transform(str(said["transform"])))
    return tuple(made)


def _pair_views(options: OptimizerSection, rows: Rows, counted: bool) -> views.Views | None:
    """Views of the pictures among several inputs; the other inputs of a row stay as they are."""
    assert isinstance(rows.inputs, Paired)
    names = [name for name, kind in rows.inputs.kinds.items() if kind == "image"]
    wrong = [name for name, value in options.augment.items() if value and (not names or name in ("noise", "mixup"))]
    if wrong:
        told = "none of the inputs is an image" if not names else "it is not for rows of several inputs"
        raise RecipeError(f"augment.{wrong[0]}: {told}; take it out of train.augment", code="U519")
    made = build_views(options, rows.only(names[:1]), None, counted=counted)
    return None if made is None else replace(made, of=tuple(names))


def views_seen(made: views.Views | None, loaded: Loaded) -> Augment | None:
    """The same views for a model that reads some of the inputs, made from what it reads; None where none of those changes."""
    if made is None or not made.of:
        return made
    plain, layout = replace(made, of=()), loaded.encoding
    if loaded.rows.kind != "pair":
        return plain if loaded.reads[0] in made.of else None
    assert isinstance(layout, PairEncoding)

    def seen(rows: torch.Tensor, keys: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> torch.Tensor:
        parts = zip(layout.names, layout.split(rows), strict=True)
        return torch.from_numpy(layout.join([(plain(part, keys, view) if name in made.of else part).numpy() for name, part in parts]))

    return seen


# --- teachers -------------------------------------------------------------------------------------------------------


def load_teacher(said: TeacherMember, task: Task, rows: Rows, cache: Path | None = None) -> Teacher:
    """The teacher that `source` names, which is given the inputs of each row that it reads."""
    kept = Path(str(said.source))
    if not isinstance(rows.inputs, Paired) or kept.is_dir() or kept.name.lower().endswith((".parquet", ".csv", ".csv.gz", ".npz")):
        return _load_teacher(said, task, rows, cache)  # answers that are kept are found by the key of the whole row
    return Reading(_load_teacher(said, task, rows.only(said.inputs), cache), said.inputs or list(rows.inputs.parts))


def _load_teacher(said: TeacherMember, task: Task, rows: Rows, cache: Path | None = None) -> Teacher:
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


def build_pool(workers: int | None, on: str | None) -> Pool | None:
    """Who asks the teacher: this process (None), processes here, or the actors of a cluster."""
    if on is None:
        return None if workers in (None, 1) else Processes(int(workers or 1))
    from understudy.adapters import ray_cluster

    return ray_cluster.RayPool(_cluster(on), workers)


def train_on(on: str, ranks: int | None, work: Callable[[], Any], folder: Path) -> None:
    """Do this work in ranks of one training on a cluster, two of them unless it is said."""
    from understudy.adapters import ray_cluster

    ray_cluster.train_on(_cluster(on), ranks or 2, work, folder)


def _cluster(on: str) -> str:
    if on != "ray" and not on.startswith("ray://"):
        raise RecipeError(f"--on {on!r}: say ray (the cluster that this machine is part of) or ray://host:10001", code="U464")
    return on


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


def train_estimator_teacher(said: TeacherTrainSection, task: Task, rows: Rows, folder: Path, *, reads: Sequence[str] = ()) -> Teacher:
    """A forest or boosted trees trained from the labels; kept in the run's folder, so that it is trained once."""
    from understudy.adapters import sklearn

    if rows.kind == "text":
        told = "fit a pipeline that begins with a TfidfVectorizer and give its file as teacher.source, or train text.transformer"
        raise RecipeError(f"[teacher.train] model = {said.model!r} reads tables and arrays, these rows are texts: {told}", code="U411")
    file = folder / f"{said.model}.joblib"
    if not file.exists():
        assert rows.labels is not None
        made = sklearn.train_estimator(said.model, rows.inputs, rows.labels, task, options=said.options, seed=said.seed)  # type: ignore[arg-type]
        sklearn.save(made, file)
    loaded = sklearn.load(file, task=task, trust=True)
    return Reading(loaded, reads) if reads else loaded


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
    if kind in ("table", "text", "pair"):
        assert fitted is not None
        return torch.from_numpy(np.ascontiguousarray(fitted.encode(inputs)))
    return torch.from_numpy(np.ascontiguousarray(inputs))


def build_student(
    model: str, options: dict[str, Any], loaded: Loaded, encoded: torch.Tensor, labels: np.ndarray[Any, Any] | None, *, seed: int, name: str
) -> Student:
    """An untrained model by name, with the preprocessing fitted on the encoded training rows."""
    task, kind = loaded.task, loaded.rows.kind
    if kind == "pair" or model in (FUSION, DUAL):
        return _fusion(model, options, loaded, encoded, labels, seed=seed, name=name)
    if (kind == "text") != model.startswith("text.") and not is_custom(model):
        there = "are texts, which text.bag, text.transformer and text.static" if kind == "text" else f"are of kind {kind!r}, which others"
        raise RecipeError(f"the model {model!r} does not read these rows: they {there} read; set student.model", code="U411")
    options, own = {name: value for name, value in options.items() if name != "prepare"}, options.get("prepare")
    if own is not None and (kind != "image" or is_estimator(model)):
        raise RecipeError(f"options.prepare is for networks on images; {model!r} reads rows of kind {kind!r}: take it out", code="U504")
    if is_estimator(model):
        prepared = preprocessing.fit_preprocessing(encoded, kind, loaded.encoding, scale=False, flatten=True, rate=loaded.rate)
        if model.startswith("sklearn:"):
            estimator = trees.estimator(model, options, seed=seed)
        elif model == "tree":
            estimator = _called(trees.tree, task, options, seed=seed)
        else:
            estimator = _called(trees.boosted, task, options, seed=seed)
        return Student(name, task, encoding=loaded.encoding, preprocessing=prepared, estimator=estimator, reads=loaded.reads)
    flat = model == "mlp"
    prepared = preprocessing.fit_preprocessing(encoded, kind, loaded.encoding, scale=True, flatten=flat, rate=loaded.rate)
    prepared = prepared if own is None else preprocessing.as_asked(prepared, own)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "text":
            network = _text_network(model, options, loaded, seed)
        else:
            network = _network(model, options, prepared(encoded[:2]), task, kind, seed)
    values = labels if task.kind == "regression" else None
    module = preprocessing.assemble(prepared, network, values=values)
    return Student(name, task, encoding=loaded.encoding, module=module, reads=loaded.reads)


def _fusion(
    model: str, options: dict[str, Any], loaded: Loaded, encoded: torch.Tensor, labels: np.ndarray[Any, Any] | None, *, seed: int, name: str
) -> Student:
    """A network that reads several inputs: a branch for each, built by name, and a head over all of them."""
    layout, task = loaded.encoding, loaded.task
    wanted = DUAL if task.kind == "matching" else FUSION
    if isinstance(layout, PairEncoding) and model != wanted and model in (DUAL, FUSION):
        raise RecipeError(f"{model!r} is not for a {task.kind} task; take the model {wanted!r}", code="U516")
    if not isinstance(layout, PairEncoding) or model != wanted:
        told = "reads one input of these rows" if model != FUSION else "joins several inputs, and these rows have one"
        raise RecipeError(f"{model!r} {told}: name one in inputs, or take the model 'fusion' for several", code="U516")
    said = dict(options)
    width, drop = task.width or int(said.pop("width", 64)), float(said.pop("drop", 0.0))
    vector = Task("multilabel", tuple(map(str, range(width))))
    branches: dict[str, nn.Module] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for each, kind, one, part in zip(layout.names, layout.kinds, layout.encodings, layout.split(encoded), strict=True):
            own = dict(said.pop(each, {}))
            called = str(own.pop("model", BRANCHES[kind]))
            prepared = preprocessing.fit_preprocessing(part, kind, one, scale=True, flatten=called == "mlp", rate=loaded.rate)
            half, features = replace(loaded, task=vector, encoding=one), prepared(part[:2])
            network = _text_network(called, own, half, seed) if kind == "text" else _network(called, own, features, vector, kind, seed)
            branches[each] = preprocessing.assemble(prepared, network)
        if model == DUAL and said:
            raise RecipeError(
                f"student.options for dual: there is no {next(iter(said))!r}; {did_you_mean(next(iter(said)), layout.names)}", code="U063"
            )
        head = nn.Identity() if model == DUAL else _called(fusion.fusion_head, width * len(branches), task.outputs, said)
    blanks = {each: layout.blank(each) for each in layout.names}
    joint = fusion.Fusion(branches, head, blanks=blanks, drop=drop)
    values = labels if task.kind == "regression" else None
    module = preprocessing.assemble(fusion.Apart(layout), joint, values=values)
    return Student(name, task, encoding=layout, module=module, reads=loaded.reads)


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
    if model == "text.static":
        return _static_network(options, loaded, shared)
    if model == "text.transformer" and "cut" in options:
        return _cut_network(options, loaded, shared)
    if model == "text.transformer":
        return _called(text.transformer, fitted.size, task.outputs, {**shared, "length": fitted.length, **options})
    if is_custom(model):
        from understudy.adapters import torch_module

        return torch_module.build(model, options, seed=seed)
    raise RecipeError(f"no model {model!r}; {did_you_mean(model, ['text.bag', 'text.transformer', 'text.static'])}", code="U063")


def _cut_network(options: dict[str, Any], loaded: Loaded, shared: dict[str, Any]) -> nn.Module:
    """Some layers of a published encoder under a new head."""
    from understudy.adapters import hugging_face

    assert isinstance(loaded.encoding, tokenizing.TextEncoding) and loaded.source is not None
    rest = {name: value for name, value in options.items() if name not in ("cut", "encoder")}
    body = hugging_face.cut(_encoder_of(loaded.source), list(options["cut"]), padding=int(shared["padding"]), length=loaded.encoding.length)
    return _called(text.headed, body, body.width, loaded.task.outputs, {"pairs": shared["pairs"], **rest})


STATIC = ("encoder", "width", "smoothing", "corpus", "corpus_epochs", "corpus_lr", "relations")
"""Options of text.static that say how its vectors are made; the others are those of its head."""


def _static_network(options: dict[str, Any], loaded: Loaded, shared: dict[str, Any]) -> nn.Module:
    """Static vectors of the encoder's tokens, made once and kept in the run's cache, under a head."""
    from understudy.adapters import static_vectors

    assert isinstance(loaded.encoding, tokenizing.TextEncoding) and loaded.source is not None
    said = {name: options[name] for name in STATIC if name in options}
    made = static_vectors.distill(
        _encoder_of(loaded.source),
        loaded.encoding,
        width=int(said.get("width", 256)),
        smoothing=float(said.get("smoothing", 1e-3)),
        corpus=_corpus(loaded, said.get("corpus", [])),
        epochs=int(said.get("corpus_epochs", 0)),
        lr=float(said.get("corpus_lr", 1e-3)),
        relations=float(said.get("relations", 0.0)),
        cache=loaded.cache,
    )
    rest = {name: value for name, value in options.items() if name not in said}
    return _called(text.static, made.vectors, made.weights, loaded.task.outputs, {**shared, **rest})


def _encoder_of(recipe: Recipe) -> str:
    """The encoder that the student begins with: the one that is named, or the teacher."""
    place, cut = str(recipe.student.options.get("encoder", recipe.teacher.source)), "cut" in recipe.student.options
    if place.startswith("sentences:") or (cut and place.startswith("hf:")):
        return place
    what = "text.transformer with `cut` begins with layers" if cut else "text.static begins with the vectors"
    raise RecipeError(f"{what} of a sentence encoder: set student.options.encoder = 'sentences:NAME'", code="U416")


def _corpus(loaded: Loaded, files: list[dict[str, Any]]) -> np.ndarray[Any, Any]:
    """The training texts and those of further files, each once."""
    assert loaded.source is not None
    said = loaded.source.data
    parts = [loaded.rows.part("train").inputs.ravel()]
    for each in [FurtherSection.model_validate(file) for file in files]:
        source = texts.read_texts(Path(said.root, each.path), text=each.text or said.text, join=each.join, encoding=said.encoding)
        parts.append(source.inputs.ravel())
    return np.concatenate(parts)


SPEECH: dict[str, Callable[..., nn.Module]] = {
    "speech.convnet": speech.convnet,
    "speech.recurrent": speech.recurrent,
    "speech.transformer": speech.transformer,
}


def _network(model: str, options: dict[str, Any], features: torch.Tensor, task: Task, kind: str, seed: int) -> nn.Module:
    if model in SPEECH:
        if kind != "audio":
            raise RecipeError(f"{model} hears sound; these rows are of kind {kind!r}: use mlp or convnet", code="U427")
        return _called(SPEECH[model], features.shape[1] - 1, task.outputs, options, frames=task.kind == "recognition")
    if task.kind == "recognition":
        there = ", ".join(SPEECH)
        raise RecipeError(f"{model} gives one answer for a clip; a recognition needs one for each frame: use {there}", code="U428")
    if model == "mlp":
        return _called(mlp.mlp, features.shape[1], task.outputs, options)
    if model == "convnet":
        if features.ndim != 4:
            other = "sound: use speech.convnet" if kind == "audio" else "a table or flat arrays: use mlp, tree or boosted"
            raise RecipeError(f"a convnet reads images; these rows are {other}", code="U063")
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
    known = ["tree", "boosted", "mlp", "convnet", *SPEECH, "timm:NAME", "keras:NAME", "package.module:factory", "sklearn:package.Class"]
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
        if rows.kind not in ("table", "text", "pair"):
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
    mixture = None if train.labels is None else _mixture(augment, task, train.labels)
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
        mixture=mixture,
    )


def _mixture(seen: Any, task: Task, labels: np.ndarray[Any, Any]) -> Mixture | None:
    """The labels and shares of mixed rows, whose partners are the training rows and whatever was made of them.

    A row whose partner has no label keeps its own.
    """
    if not isinstance(seen, views.Views) or seen.partners is None:
        return None
    made = len(seen.partners.inputs) - len(labels)
    fill = -1 if task.single_label else np.nan
    every = np.concatenate([labels, np.full((made, *labels.shape[1:]), fill, dtype=labels.dtype)])
    known, plain = task.labelled(every), torch.from_numpy(np.where(task.labelled(every).reshape(-1, *[1] * (every.ndim - 1)), every, 0))
    plain = plain.to(torch.from_numpy(every[:0]).dtype)

    def mixture(keys: np.ndarray[Any, Any], view: np.ndarray[Any, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        found = views.mixture_of(seen, keys, view)
        assert found is not None
        partner, share = found
        return plain[torch.from_numpy(partner)], torch.from_numpy(np.where(known[partner], share, 1).astype(np.float32))

    return mixture


def with_steps_of(options: OptimizerSection, rows: int, like: int) -> OptimizerSection:
    """The control sees fewer rows when only some are labelled; give it as many steps as the student gets."""
    if rows == like or options.max_time is not None:
        return options
    per_epoch, wanted = max(1, rows // options.batch_size), max(1, like // options.batch_size) * options.epochs
    return options.model_copy(update={"epochs": math.ceil(wanted / per_epoch)})
