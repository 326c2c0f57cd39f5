"""The sections of a recipe: every option with its default, its limits and what it means. Imports no torch.

Adding an option: add a field with its default and a description here; read it in `make`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A part of a recipe: unknown words are errors."""

    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)


class InputSection(Section):
    """One of several inputs of each row: columns of the table that data.train names, or files beside it."""

    column: str | list[str] | None = Field(None, description="the column (columns, of a table) of data.train that holds it")
    train: str | None = Field(None, description="a folder or zip of images or sound, or .npz, that holds it, where no column does")
    validation: str | None = Field(None, description="the same for data.validation; train is looked through when left out")
    test: str | None = Field(None, description="the same for data.test; train is looked through when left out")
    by: str = Field(
        "row",
        description="what joins it to its row: a column of data.train that holds the file's name (with or without its ending), row (the "
        "n-th belongs to the n-th row) or label (any of the same class, drawn)",
    )
    shared: bool = Field(False, description="one file may belong to several rows")
    kind: Literal["auto", "table", "array", "image", "audio", "text"] = Field(
        "auto", description="a column is a text unless it is to be a table"
    )
    image_size: tuple[int, int] | None = Field(None, description="as data.image_size, for this input")
    grey: bool = Field(False, description="as data.grey, for this input")

    @model_validator(mode="after")
    def _one_place(self) -> InputSection:
        if self.column is not None and self.train is not None:
            raise ValueError("an input is a column of data.train or in files of its own (train): give one of them")
        return self


class DataSection(Section):
    """Where the rows are."""

    root: str = Field(".", description="folder from which the paths below start")
    train: str = Field(
        description="CSV, CSV.gz, Parquet, .jsonl (texts), .npz, a folder or zip of images or sounds, WebDataset .tar, a folder of .txt, "
        "or module:function"
    )
    validation: str | None = Field(None, description="given validation rows; otherwise split off train")
    test: str | None = Field(None, description="given test rows; otherwise split off train")
    kind: Literal["auto", "table", "array", "image", "audio", "text"] = "auto"
    text: str | list[str] | None = Field(None, description="column that holds the text; a list of two means pairs of texts")
    join: str | None = Field(None, description="texts: what stands between the columns of data.text, which become one text")
    separator: str | None = Field(None, description="what stands between the labels of one cell, as in `joy,love`; means multilabel")
    vocabulary: int = Field(8000, ge=10, description="texts: most tokens of the tokenizer that is learned from the training rows")
    max_length: int = Field(128, ge=1, description="texts: tokens that are read of each")
    tokenizer: str | None = Field(None, description="texts: tokenizer.json, its folder, or the sentences:NAME or hf:NAME that has it")
    label: str | list[str] | None = Field(None, description="label column; a list of columns means multilabel")
    labels: str | None = Field(None, description="CSV with the labels of images or sound files: columns `file` and the label column")
    file: str = Field("file", description="column of the labels CSV that names the file (with or without its ending)")
    split: str | None = Field(None, description="column that holds train, validation or test")
    classes: list[str] | str | None = Field(
        None, description="class names in the wanted order, or a text file with one per line; the last is positive in a binary task"
    )
    ignore: list[str] = Field(default_factory=list, description="columns that are not inputs")
    missing: list[str] = Field(default_factory=lambda: ["?"], description="texts that mean missing, beside the empty cell")
    encoding: str = Field("utf-8", description="text encoding of CSV files")
    overlap: Literal["refuse", "drop", "allow"] = Field("refuse", description="training rows that are also validation or test rows")
    image_size: tuple[int, int] | None = Field(None, description="height, width to which images are resized")
    grey: bool = Field(False, description="read images in one channel")
    rate: int = Field(16000, ge=1000, description="samples per second to which sound is resampled")
    seconds: float | None = Field(None, gt=0, description="length to which sound is cut or padded; without, the longest clip's")
    group: str | None = Field(
        None, description="sound: column of the labels CSV, or key of the .npz, whose rows stay in one split, such as the speaker"
    )
    strings: int = Field(0, ge=0, description="sound: this many rows, each made by joining clips of one speaker, for task = 'recognition'")
    words: tuple[int, int] = Field((3, 7), description="least and most clips of such a string")
    max_levels: int = Field(64, ge=2, description="levels kept of a categorical column; the rest count as unknown")
    inputs: dict[str, InputSection] = Field(
        default_factory=dict, description='several named inputs of each row: {text = "title", image = {train = "photos.zip", by = "id"}}'
    )
    unpaired: Literal["refuse", "drop"] = Field("refuse", description="rows that lack one of their inputs")

    @field_validator("inputs", mode="before")
    @classmethod
    def _columns(cls, said: Any) -> Any:
        """A word alone is the column that holds the input."""
        if not isinstance(said, dict):
            return said
        return {name: {"column": place} if isinstance(place, str) else place for name, place in said.items()}


class SplitSection(Section):
    """How rows are split when no split is given."""

    validation: float = Field(0.15, gt=0, lt=1)
    test: float = Field(0.15, gt=0, lt=1)
    seed: int = 0


class OptimizerSection(Section):
    """How a network is trained."""

    epochs: int = Field(30, ge=0)
    stop: float = Field(1.0, gt=0, le=1, description="fraction of the epochs after which training ends, on the schedule of all of them")
    batch_size: int = Field(128, ge=1, description="of text.bag 32 where it is not said")
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(1e-3, ge=0, description="of text.bag 5e-3 where it is not said")
    weight_decay: float = Field(1e-4, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only, Nesterov")
    momentum_gap: float | None = Field(
        None,
        gt=0,
        description="sgd only: the teacher's gradient has momentum + gap, that of the labels momentum - gap (DOT; published 0.075)",
    )
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    steps: list[float] = Field(default_factory=lambda: [0.5, 0.75], description="fractions of training at which lr is divided by ten")
    warmup: float = Field(0.02, ge=0, lt=1, description="fraction of training with rising lr")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    max_norm: float | None = Field(None, gt=0, description="largest norm of the weights that enter a unit, kept after every step")
    accumulate: int = Field(1, ge=1, description="batches per step")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights that are kept")
    patience: int | None = Field(None, ge=1, description="epochs without a better validation metric before stopping")
    keep: Literal["last", "best"] = Field("last", description="weights handed on: last epoch or best on validation")
    precision: Literal["no", "bf16", "fp16"] = "no"
    max_time: float | None = Field(None, gt=0, description="seconds of training; the schedule is fitted to it")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["balanced"] | list[float] | None = None
    augment: dict[str, Any] = Field(
        default_factory=dict,
        description="views. Images: shift = 4 (pixels), flip = true, crop = 0.5 (least share of the area), colour = 0.3; "
        "randaugment = 9, operations = 2, transform = module:factory; sound: shift = 800 (samples), speed = 0.1, gain = 6 (decibels); "
        "arrays and images: mixup = 0.2; all rows: noise = 0.1. Of several inputs each may have its own: photo = { flip = true }",
    )
    device: str = Field("auto", description="auto, cpu, cuda, mps")

    @model_validator(mode="after")
    def _one_end(self) -> OptimizerSection:
        if self.stop < 1 and self.max_time is not None:
            raise ValueError("stop counts epochs and max_time seconds: give one of them")
        gap = self.momentum_gap
        if gap is not None and (self.optimizer != "sgd" or self.clip is not None or self.precision == "fp16"):
            raise ValueError("momentum_gap goes with optimizer = 'sgd', without clip and fp16")
        if gap is not None and not gap <= self.momentum < 1 - gap:
            raise ValueError(f"momentum must lie between momentum_gap and 1 - momentum_gap (got {self.momentum:g} and {gap:g})")
        return self


OWN = {"text.bag": {"lr": 5e-3, "batch_size": 32}}
"""What a model needs otherwise than others: a bag meets most of its vectors in few rows, so few small steps leave them as they began."""


def with_own(model: Any, train: Any) -> Any:
    """A section of training with what its model needs, where the recipe does not say it."""
    return {**OWN[model], **train} if isinstance(model, str) and model in OWN and isinstance(train, dict) else train


class TeacherTrainSection(OptimizerSection):
    """A teacher trained from the labels when there is none yet."""

    model: str = Field(
        "mlp",
        description="mlp, convnet, text.transformer (or .bag, .static), speech.recurrent (or .convnet, .transformer), boosted, forest, "
        "timm:NAME, keras:NAME or module:factory",
    )
    options: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    stops: list[float] = Field(
        default_factory=list,
        description="train one teacher for each of these values of stop, and take the one whose student is best on validation rows",
    )

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, said: Any) -> Any:
        return with_own(said.get("model"), said) if isinstance(said, dict) else said

    @model_validator(mode="after")
    def _stops_of_a_network(self) -> TeacherTrainSection:
        if self.stops and (self.stop < 1 or self.max_time is not None or self.model in ("forest", "boosted")):
            raise ValueError("stops are for a network that is trained for a number of epochs: leave out stop and max_time")
        if not all(0 < stop <= 1 for stop in self.stops) or len(set(self.stops)) < len(self.stops):
            raise ValueError(f"stops must be different fractions above 0 and at most 1 (got {self.stops})")
        return self


class TeacherMember(Section):
    """One teacher."""

    name: str | None = Field(None, description="members: store its own answers too, as teachers/NAME/logits")
    weight: float = Field(1.0, gt=0, description="members: how much it counts beside the others")
    source: str | None = Field(
        None,
        description=".skops, .joblib, .pkl, .json/.ubj (XGBoost), .txt (LightGBM), predictions .parquet/.csv/.npz, "
        ".keras, a SavedModel's folder, keras:NAME, a run's folder transfer or its address (s3://...), "
        "module:factory, timm:NAME, http(s)://host/v1 (a server)",
    )
    weights: str | None = Field(None, description=".safetensors or .pt state dict for a torch module")
    train: TeacherTrainSection | None = None
    trust: bool = Field(False, description="allow files that can execute code when loaded")
    classes: list[str] | str | None = Field(None, description="the teacher's class names in its order, or a text file with one per line")
    output: Literal["auto", "logits", "probabilities", "values"] = "auto"
    pretrained: bool = Field(False, description="timm: download the published weights")
    options: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for the factory, or of a server")
    inputs: list[str] = Field(default_factory=list, description="which of data.inputs it reads; all of them when left out")
    image_size: tuple[int, int] | None = None
    mean: list[float] | None = None
    std: list[float] | None = None

    @property
    def is_remote(self) -> bool:
        """Whether the teacher is asked over a network."""
        return self.source is not None and self.source.lower().startswith(("http://", "https://"))

    @property
    def is_mirrored(self) -> bool:
        """Whether the teacher is the answers at an address of fsspec."""
        return self.source is not None and "://" in self.source and not self.is_remote

    @model_validator(mode="after")
    def _no_secret(self) -> TeacherMember:
        # a recipe is copied into the run's folder before the teacher is made, so this cannot wait until then
        if self.is_mirrored:
            _address("source", str(self.source))
        if self.is_remote:
            named = self.options.get("key_env")
            if named is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(named)):
                raise ValueError("options.key_env is the name of an environment variable, not the key itself")
            if any(
                word in name.lower() for name in self.options for word in ("api_key", "apikey", "token_auth", "authorization", "secret")
            ):
                raise ValueError("a recipe holds no key: export it in an environment variable and name that in options.key_env")
            if re.search(r"@|\?", str(self.source)):
                raise ValueError("source is an address without user, password or query; a key belongs in the variable that key_env names")
        return self


class TeacherSection(TeacherMember):
    """The teacher, or several of them."""

    cohort: bool = Field(False, description="written by [cohort]: the mean of its members is measured in the teacher's place")
    members: list[TeacherMember] = Field(default_factory=list, description="an ensemble")
    combine: Literal["probabilities", "logits", "entropy", "confidence"] = Field(
        "probabilities",
        description="members: the mean of their probabilities or logits; entropy: more weight to who is surer of a row; "
        "confidence: to who is nearer to its label, where it has one",
    )
    expect: float | None = Field(None, description="validation metric the teacher should reach; more than 0.05 below is refused")
    accept_mapping: bool = Field(False, description="take class order as given although nothing proves it")
    accept_score: bool = Field(False, description="go on although the teacher scores near chance")

    @model_validator(mode="after")
    def _one_origin(self) -> TeacherSection:
        given = [self.source is not None, self.train is not None, bool(self.members), self.cohort]
        if sum(given) != 1:
            raise ValueError("a teacher is exactly one of source = ..., [teacher.train] or [[teacher.members]]")
        if any((member.source is None) == (member.train is None) for member in self.members):
            raise ValueError("each of [[teacher.members]] is exactly one of source = ... and [teacher.members.train]")
        return self


class TeachingSection(Section):
    """How the teacher is asked."""

    batch_size: int = Field(256, ge=1)
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="of every stored number, where the encoding is dense")
    encoding: Literal["dense", "top-k", "sampled", "auto"] = Field(
        "dense",
        description="dense: every class; top-k: the largest and the mass of the rest; sampled: the largest and unbiased draws from the "
        "rest; auto: the smallest of dense and top-k within max_loss",
    )
    top: int = Field(32, ge=1, description="classes stored exactly by top-k and sampled")
    draws: int = Field(16, ge=1, description="classes drawn from the rest by sampled")
    max_loss: float = Field(1e-3, gt=0, description="auto: mean KL to the full answer, in nats, that may be lost")
    out_of_fold: Literal["auto"] | int = Field("auto", description="folds for an estimator that can be refitted; 0 asks it on its own rows")
    views: Literal["all", "live"] | Annotated[int, Field(ge=1)] = Field(
        1,
        description="augmented versions of each training row that the teacher answers: a number (view 0 is the plain row), all (every "
        "shift and mirror image there is: the same training as with a live teacher) or live (the teacher answers in the loop)",
    )
    word_errors: float | None = Field(
        None,
        ge=0,
        description="recognition: rows whose label the teacher's words differ from in more than this share learn nothing from it; 0.1 "
        "where the teacher writes text (Whisper), no limit otherwise",
    )
    shard_rows: int = Field(8192, ge=1)
    store: str | None = Field(
        None,
        description="an address such as s3://bucket/sets/digits, to which the transfer sets are copied shard by shard, and from which "
        "another machine goes on: any file system of fsspec",
    )

    @field_validator("store")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        return None if value is None else _address("store", value)


class FurtherSection(Section):
    """A file of further texts without labels."""

    path: str = Field(description="as data.train, below data.root")
    text: str | list[str] | None = Field(None, description="its column of texts; data.text when left out")
    join: str | None = Field(None, description="what stands between several columns that become one text")


class RowsSection(Section):
    """Fewer rows or labels than are given, and rows beyond them."""

    take: int = Field(0, ge=0, description="use this many rows of data.train, chosen by their content and split.seed; 0: all of them")
    labelled: Annotated[int, Field(ge=1)] | None = Field(
        None, description="keep the labels of so many training rows, as many of each class as before; the teacher labels the others"
    )
    unlabelled: list[FurtherSection] = Field(default_factory=list, description="texts that the teacher labels, beside the training rows")
    synthetic: int = Field(0, ge=0, description="teacher-labelled synthetic rows per training row (MUNGE)")
    swap: float = Field(0.5, ge=0, le=1, description="MUNGE: chance to take a cell from the nearest neighbour")
    local_variance: float = Field(1.0, gt=0, description="MUNGE: larger means less noise")


class StudentSection(Section):
    """The small model."""

    model: str = Field(
        "mlp",
        description="tree, boosted, mlp, convnet, speech.convnet (or .recurrent, .transformer), timm:NAME, module:factory or "
        "sklearn:module.Class",
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="sizes: leaves, depth, rounds, hidden, width, ...; prepare = { image_size, mean, std }: its own picture, of sound "
        "{ level = false }",
    )
    inputs: list[str] = Field(default_factory=list, description="which of data.inputs it reads; all of them when left out")


def _address(place: str, value: str) -> str:
    if "://" not in value:
        raise ValueError(f"{place} is an address such as s3://bucket/sets/digits (got {value!r}); the run's own folder is out")
    if re.match(r"[^/]*:[^/]*@", value.partition("://")[2]):
        raise ValueError(f"{place} is an address without user or password: keys belong where fsspec's driver looks for them")
    return value


def _temperature(value: float) -> float:
    if not value > 0:
        raise ValueError(f"temperature must be > 0 (got {value:g}). For hard labels use objective.target = 'hard'")
    if not 0.05 <= value <= 100:
        raise ValueError(f"temperature must lie between 0.05 and 100 (got {value:g}); published values are 1 to 20")
    return value


def _moving_temperature(value: float | str | dict[str, Any]) -> float | str | dict[str, Any]:
    """A temperature, or the ends between which it moves: none of them may be 0."""
    if isinstance(value, dict) and not value.get("learned"):
        if value.get("warmup"):
            raise ValueError("a temperature cannot be warmed up from 0; give start and end")
        ends = {"start": value.get("start", 0.0), "end": value.get("end", 1.0)}
        for end in ("end",) if value.get("schedule", "constant") == "constant" else ("start", "end"):
            if isinstance(ends[end], int | float):
                _temperature(ends[end])
    elif isinstance(value, int | float):
        _temperature(value)
    return value


class TermSection(Section):
    """One term of the objective."""

    loss: str = Field(description="its place in understudy.losses (logits.soft_target) or module:function")
    weight: float | str | dict[str, Any] = Field(
        1.0, description='a number, {schedule = "linear", start = 0, end = 1, warmup = 0.1}, {share = 0.3} or module:function of progress'
    )
    features: Literal["auto"] | None = Field(None, description="pair the layers of both networks: the same as leaving them out")
    student: str | list[str] | None = Field(None, description="layers of the student; pairs of stages or the embedding when left out")
    teacher: str | list[str] | None = Field(None, description="as many layers of the teacher")
    connector: Literal["auto", "none", "linear", "convolution", "attention"] | None = Field(
        None, description="what makes their shapes alike, trained and thrown away"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="of the loss; temperature may be a schedule or {learned = true}")

    @field_validator("weight")
    @classmethod
    def _not_negative(cls, value: float | str | dict[str, Any]) -> float | str | dict[str, Any]:
        # here and not in the annotation, where a wrong number would be told once for each kind of value
        if isinstance(value, float) and not value >= 0:
            raise ValueError("Input should be greater than or equal to 0")
        return value

    @field_validator("options")
    @classmethod
    def _positive(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "temperature" in value:
            _moving_temperature(value["temperature"])
        return value


class ObjectiveSection(Section):
    """What the student learns from: soft_labels(alpha, temperature), or terms."""

    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher; 1 - alpha is the weight of the labels")
    temperature: float | str | dict[str, Any] = Field(
        2.0, description="softening; 0.05 to 100, a schedule as of a weight, {learned = true} or module:function of progress"
    )
    choose: bool = Field(
        False,
        description="try four pairs of alpha and temperature for a quarter of the epochs each, take the best on validation rows",
    )
    terms: list[TermSection] = Field(default_factory=list)
    target: Literal["soft", "hard"] = Field("soft", description="trees: the teacher's distribution or its best class")

    @field_validator("temperature")
    @classmethod
    def _positive(cls, value: float | str | dict[str, Any]) -> float | str | dict[str, Any]:
        return _moving_temperature(value)


class CohortMember(Section):
    """A network that learns beside the student."""

    model: str = Field("mlp", description="mlp, convnet, timm:NAME or module:factory")
    options: dict[str, Any] = Field(default_factory=dict)


class CohortSection(Section):
    """Networks that teach each other while they learn, in the place of a teacher; the first is the student."""

    method: Literal["mutual", "collaborative"] = Field("mutual", description="mutual (DML) or collaborative (KDCL)")
    target: Literal["minlogit", "linear", "naive"] = Field("minlogit", description="collaborative: how the one target is made")
    size: int = Field(2, description="networks in all, of the student's model; with members, these and the student")
    members: list[CohortMember] = Field(default_factory=list, description="models of the others; without, they are the student's")
    temperature: float | None = Field(None, gt=0, description="at which the others are heard; published: mutual 1, collaborative 2")
    weight: float = Field(1.0, gt=0, description="of what the others say, beside the labels with weight 1")
    own_views: bool = Field(False, description="each member sees its rows in views of its own (train.augment)")

    @property
    def count(self) -> int:
        """How many networks learn together."""
        return 1 + len(self.members) if self.members else self.size


class ChainLink(Section):
    """An assistant: a network that the one before it teaches, and that teaches the one after it."""

    model: str = Field("mlp", description="mlp, convnet, timm:NAME or module:factory")
    options: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    train: OptimizerSection | None = Field(None, description="how it is trained; without, as the student")


class GenerationsSection(Section):
    """Networks of the student's model, each taught by the one before; the student is the last."""

    count: int = Field(2, ge=1, description="generations that are taught, the student's included")
    together: bool = Field(False, description="measure the mean of all generations too")


class MeasureSection(Section):
    """What counts as a gain."""

    margin: float = Field(0.002, ge=0, description="differences smaller than this do not matter (NO GAIN)")
    resamples: int = Field(1000, ge=100)
    latency: bool = True
    require: list[str] = Field(default_factory=list, description='gates such as "agreement>=0.95"')


class ExportSection(Section):
    """The deployable file."""

    tolerance: float = Field(0.002, ge=0, description="largest drop of the metric from student to exported file")
