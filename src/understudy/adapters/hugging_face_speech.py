"""Hugging Face audio models as teachers: `hf:FOLDER` or `hf:owner/name` on rows of sound, read by `transformers`.

Classifiers of clips (wav2vec2, HuBERT, the encoder of Whisper with a head, ...) for classes, and CTC models (wav2vec2, ...) for
recognition, whose words must be tokens of the model's vocabulary. A whole Whisper, which writes text and has no frames, teaches a
recognition by its transcripts, as Distil-Whisper is taught (Gandhi, von Platen & Rush 2023, arXiv:2311.00430).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from understudy.adapters._loading import file_digest, require
from understudy.adapters._pretrained import folder_of, quiet
from understudy.adapters._writing import Vocabulary, laid_out
from understudy.errors import TeacherError, did_you_mean
from understudy.signals import CERTAIN
from understudy.tasks import Task
from understudy.teachers import TorchTeacher, digest

OPTIONS = ("batch_size",)
WRITING = (*OPTIONS, "language", "words")
"""Those of a Whisper that writes: the language it is told, and what it may write for a word of the data."""
STEP = 0.02
"""Seconds from frame to frame of the students for sound, and of wav2vec2."""


def load(
    place: str,
    *,
    task: Task,
    rate: int,
    classes: Sequence[str] | None = None,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
    device: str | None = None,
) -> TorchTeacher:
    """The audio classifier, or for recognition the CTC model, in a folder, in full precision.

    TeacherError U014 without a head, U408 when it cannot be read, U432 for another rate, U433 for other words, U434 for other frames,
    U437 for words that a text cannot say.
    """
    said = dict(options or {})
    if task.kind not in ("binary", "multiclass", "recognition"):
        raise TeacherError(f"{place} answers classes or words, the task is {task.kind}", code="U010")
    folder = folder_of(place, pretrained=pretrained)
    writes = task.kind == "recognition" and _kind(folder, place) == "whisper"
    known = WRITING if writes else OPTIONS
    strange = sorted(set(said) - set(known))
    if strange:
        raise TeacherError(f"teacher.options: there is no {strange[0]!r} for {place}; there is: {', '.join(known)}", code="U408")
    extractor, model = _read(folder, place, "AutoFeatureExtractor"), _model(folder, place, task)
    if int(extractor.sampling_rate) != rate:
        told = f"{place} hears {extractor.sampling_rate:,} samples a second, the rows have {rate:,}"
        raise TeacherError(f"{told}; set data.rate = {extractor.sampling_rate}", code="U432")
    prepare = SoundPreparation(extractor, _digest(folder))
    common: dict[str, Any] = {
        "task": task,
        "prepare": prepare,
        "name": place,
        "batch_size": int(said.get("batch_size", 16)),
        "device": device,
    }
    if writes:
        return TorchTeacher(_writing(folder, place, model, task, rate, said), classes=None, **common)
    if task.kind == "recognition":
        columns = _columns(folder, place, task)
        _check_frames(model, place, rate)
        return TorchTeacher(_Recognising(model, columns, rate), classes=None, **common)
    return TorchTeacher(_Classifying(model), classes=classes or _names(model), **common)


@final
class SoundPreparation(nn.Module):
    """Sound int16 [rows, samples] to what the model's own feature extractor gives, and each row's number of samples before it.

    Every row is padded to the rows' full length, so that an answer does not depend on the rows beside it.
    """

    def __init__(self, extractor: Any, content: str) -> None:
        super().__init__()
        self.extractor, self.content = extractor, content
        self.most: int | None = extractor.to_dict().get("n_samples")  # those of Whisper cut what is longer, and say nothing

    def forward(self, inputs: Any) -> Tensor:
        rows = np.asarray(inputs)
        ends = np.maximum(np.where(rows != 0, np.arange(1, rows.shape[1] + 1), 0).max(axis=1, initial=0), 1)
        if self.most is not None and len(ends) and ends.max() > self.most:
            hears, rate = self.most / self.extractor.sampling_rate, self.extractor.sampling_rate
            told = f"the model hears {hears:g} s of a clip, and one has {ends.max() / rate:.2f} s"
            raise TeacherError(f"{told}: its end would be lost. Cut the clips, or set data.seconds = {hears:g}", code="U450")
        clips = [row[:end].astype(np.float32) / 32768 for row, end in zip(rows, ends, strict=True)]
        spectral = self.extractor.model_input_names[0] == "input_features"
        asked: dict[str, Any] = {} if spectral else {"padding": "max_length", "max_length": rows.shape[1], "truncation": True}
        found = self.extractor(clips, sampling_rate=self.extractor.sampling_rate, return_tensors="np", **asked)
        values = torch.from_numpy(np.ascontiguousarray(found[self.extractor.model_input_names[0]], dtype=np.float32))
        # one tensor for the module: what is heard, and in front of it how long it is and may become
        counts = torch.from_numpy(np.stack([ends, np.full(len(rows), rows.shape[1])], axis=1).astype(np.float32))
        front = counts.reshape(len(rows), *[1] * (values.ndim - 2), 2).expand(*values.shape[:-1], 2)
        return torch.cat([front, values], dim=-1)

    def extra_repr(self) -> str:
        return f"extractor={self.content}"


def _taken_apart(packed: Tensor) -> tuple[Tensor, Tensor, int]:
    """What is heard, each row's number of samples, and the length of all rows."""
    first = packed.reshape(len(packed), -1, packed.shape[-1])[:, 0, :2].long()
    return packed[..., 2:], first[:, 0], int(first[0, 1]) if len(first) else 0


@final
class _Classifying(nn.Module):
    """An audio classifier of the library as a module from prepared sound to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.masked = "attention_mask" in type(model).forward.__code__.co_varnames

    def forward(self, packed: Tensor) -> Tensor:
        values, ends, _ = _taken_apart(packed)
        logits: Tensor = self.model(values, **_mask(values, ends, self.masked)).logits
        return logits


@final
class _Recognising(nn.Module):
    """A CTC model of the library: logits of the task's words and the blank on the students' frames, certain after a row's end."""

    def __init__(self, model: nn.Module, columns: Sequence[int], rate: int) -> None:
        super().__init__()
        self.model, self.hop = model, round(0.01 * rate)
        self.register_buffer("columns", torch.tensor(columns), persistent=False)

    def forward(self, packed: Tensor) -> Tensor:
        values, ends, samples = _taken_apart(packed)
        said = self.model(values, **_mask(values, ends, True)).logits[..., self.columns]
        frames = (2 + samples // self.hop) // 2
        said = functional.pad(said, (0, 0, 0, max(0, frames - said.shape[1])))[:, :frames]
        lengths = self.model._get_feat_extract_output_lengths(ends)  # type: ignore[operator]
        ended = torch.arange(frames, device=said.device) >= lengths[:, None]
        certain = torch.zeros(said.shape[-1], device=said.device)
        certain[-1] = CERTAIN
        return torch.where(ended[..., None], certain, said)


@final
class _Writing(nn.Module):
    """A sequence-to-sequence recogniser of the library: its likeliest text, token by token, as one path over the students' frames."""

    def __init__(self, model: Any, tokenizer: Any, vocabulary: Vocabulary, outputs: int, rate: int, asked: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self.tokenizer, self.vocabulary = model, tokenizer, vocabulary
        self.outputs, self.hop, self.asked = outputs, round(0.01 * rate), dict(asked)

    def forward(self, packed: Tensor) -> Tensor:
        values, ends, samples = _taken_apart(packed)
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of the library about its own settings
            most = int(self.model.config.max_target_positions)
            tokens = self.model.generate(values, do_sample=False, num_beams=1, max_length=most, **self.asked)
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        frames = [(2 + end // self.hop) // 2 for end in ends.tolist()]
        said = [self.vocabulary.read(text) for text in texts]
        return laid_out(said, (2 + samples // self.hop) // 2, frames, self.outputs).to(values.device)

    def extra_repr(self) -> str:
        words = digest(repr((self.vocabulary.codes, self.vocabulary.words)).encode())
        tokens = digest(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        return f"words={words}, tokens={tokens}, generation={digest(self.model.generation_config.to_json_string().encode())}, {self.asked}"


def _mask(values: Tensor, ends: Tensor, masked: bool) -> dict[str, Tensor]:
    if not masked or values.ndim != 2:
        return {}
    return {"attention_mask": (torch.arange(values.shape[1], device=values.device) < ends[:, None]).long()}


def _read(folder: Path, place: str, reader: str, **options: Any) -> Any:
    transformers = require("transformers", "transformers")
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice of the library about its own settings
            return getattr(transformers, reader).from_pretrained(folder, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TeacherError(f"{place} cannot be read by {reader}: {str(error).strip().splitlines()[0][:200]}", code="U408") from error


def _kind(folder: Path, place: str) -> str:
    """The family of the model in a folder, as the library calls it."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type"))
    except (OSError, ValueError) as error:
        raise TeacherError(f"{place} cannot be read: its config.json is none ({error})", code="U408") from error


def _writing(folder: Path, place: str, model: Any, task: Task, rate: int, said: Mapping[str, Any]) -> _Writing:
    """A Whisper and its tokens, told in which language it hears."""
    asked = {"language": str(said["language"]), "task": "transcribe"} if "language" in said else {}
    words = said.get("words", {})
    if not isinstance(words, Mapping):
        raise TeacherError('teacher.options.words is what it may write for a word of the data, such as { three = "3" }', code="U437")
    tokenizer = _read(folder, place, "AutoTokenizer")
    return _Writing(model, tokenizer, Vocabulary(task, words), task.outputs, rate, asked)


def _model(folder: Path, place: str, task: Task) -> Any:
    reader = "AutoModelForCTC" if task.kind == "recognition" else "AutoModelForAudioClassification"
    if task.kind == "recognition" and _kind(folder, place) == "whisper":
        reader = "AutoModelForSpeechSeq2Seq"
    # written out, not fused: the same numbers whatever the rows beside are
    model, told = _read(folder, place, reader, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    missing = sorted(told["missing_keys"])
    if missing:
        raise TeacherError(
            f"{place} has no weights for {missing[0]} ({len(missing)} in all): its answers would be random. Give a model that was trained "
            f"for this task ({task.kind})",
            code="U014",
        )
    return model.eval()


def _columns(folder: Path, place: str, task: Task) -> list[int]:
    """The column of each word of the task among the model's tokens, then that of its blank."""
    file = folder / "vocab.json"
    if not file.is_file():
        raise TeacherError(f"{place} has no vocab.json that says what its tokens are", code="U433")
    tokens: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
    strange = next((word for word in task.classes if word not in tokens), None)
    if strange is not None:
        told = f"the word {strange!r} is no token of {place}; {did_you_mean(strange, tokens)}"
        raise TeacherError(f"{told}. A model of letters teaches labels that are letters with spaces between them", code="U433")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return [*(tokens[word] for word in task.classes), int(config["pad_token_id"])]


def _check_frames(model: Any, place: str, rate: int) -> None:
    step = math.prod(model.config.conv_stride) / rate
    if abs(step - STEP) > 1e-6:
        told = f"{place} answers every {1000 * step:g} ms, the students for sound every {1000 * STEP:g} ms"
        raise TeacherError(f"{told}: their frames cannot be compared", code="U434")


def _digest(folder: Path) -> str:
    return file_digest(folder / "preprocessor_config.json")


def _names(model: Any) -> tuple[str, ...] | None:
    """The published class names; None for those that only count."""
    names = tuple(str(model.config.id2label[number]) for number in range(model.config.num_labels))
    return None if all(name == f"LABEL_{number}" for number, name in enumerate(names)) else names
