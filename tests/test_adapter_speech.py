"""Hugging Face audio models as teachers, with tiny checkpoints of random weights that are made here."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run

from understudy.adapters import hugging_face_speech
from understudy.checks.teachers import check_teacher
from understudy.errors import TeacherError
from understudy.signals import frame_lengths
from understudy.students import speech
from understudy.students._sound import fit_log_mel
from understudy.tasks import Task

RATE = 16000
WORDS = Task("recognition", ("one", "two", "three"))
CLASSES = Task("multiclass", ("one", "two", "three"))
SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _quiet_library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def wav2vec2(folder: Path, *, head: str, **more: Any) -> Path:
    """A wav2vec2 with a head, its feature extractor, and a vocabulary of words."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES.classes))
    config = transformers.Wav2Vec2Config(
        **{**SMALL, **more}, vocab_size=6, pad_token_id=2, id2label=names, label2id={name: number for number, name in names.items()}
    )
    getattr(transformers, head)(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=False).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({"three": 0, "four": 1, "<pad>": 2, "one": 3, "two": 4, "|": 5}))
    return folder


def whisper(folder: Path) -> Path:
    """The encoder of a Whisper with a head for classes."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    names = dict(enumerate(CLASSES.classes))
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_mel_bins=20, max_source_positions=50, vocab_size=30, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=3, begin_suppress_tokens=None, id2label=names, label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    transformers.WhisperForAudioClassification(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=20, sampling_rate=RATE, chunk_length=1).save_pretrained(folder)
    return folder


def clips(count: int = 6, samples: int = 9600) -> np.ndarray:
    waves = np.zeros((count, samples), dtype=np.int16)
    random = np.random.default_rng(0)
    for row in range(count):
        length = samples - 1000 * row
        waves[row, :length] = random.normal(size=length) * 2000 + 1
    return waves


@pytest.mark.parametrize(
    "make", [lambda folder: wav2vec2(folder, head="Wav2Vec2ForSequenceClassification"), whisper], ids=["wav2vec2", "whisper"]
)
def test_a_classifier_answers_as_the_library_does(tmp_path: Path, make: Any) -> None:
    transformers = pytest.importorskip("transformers")
    folder, waves = make(tmp_path / "model"), clips()
    teacher = hugging_face_speech.load(f"hf:{folder}", task=CLASSES, rate=RATE)
    assert teacher.classes == CLASSES.classes
    assert [problem for problem in check_teacher(teacher, waves) if problem.level == "error"] == []
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    prepared = extractor(waves[0].astype(np.float32) / 32768, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(**prepared).logits
    torch.testing.assert_close(teacher.signals(waves)["logits"][:1], theirs, rtol=1e-4, atol=1e-5)


def test_a_ctc_model_answers_on_the_students_frames(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, waves = wav2vec2(tmp_path / "model", head="Wav2Vec2ForCTC"), clips()
    teacher = hugging_face_speech.load(f"hf:{folder}", task=WORDS, rate=RATE)
    said = teacher.signals(waves)["logits"]
    features = fit_log_mel(torch.from_numpy(waves), RATE, scale=True, flatten=False)
    student = speech.convnet(40, WORDS.outputs, width=8, frames=True).eval()(features(torch.from_numpy(waves)))
    assert said.shape == student.shape
    ends = frame_lengths(said)
    assert (ends <= frame_lengths(student)).all() and (ends >= frame_lengths(student) - 2).all()
    model = transformers.AutoModelForCTC.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    prepared = extractor(waves[0].astype(np.float32) / 32768, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        theirs = model(prepared.input_values).logits[0]
    torch.testing.assert_close(said[0, : ends[0]], theirs[:, [3, 4, 0, 2]], rtol=1e-4, atol=1e-5)
    assert [problem for problem in check_teacher(teacher, waves) if problem.level == "error"] == []


def refusal(place: Path, **options: Any) -> str:
    with pytest.raises(TeacherError) as caught:
        hugging_face_speech.load(f"hf:{place}", **{"task": WORDS, "rate": RATE, **options})
    return str(caught.value)


def test_what_cannot_teach_is_refused(tmp_path: Path) -> None:
    folder = wav2vec2(tmp_path / "ctc", head="Wav2Vec2ForCTC")
    assert refusal(folder, rate=8000).endswith("hears 16,000 samples a second, the rows have 8,000; set data.rate = 16000")
    said = refusal(folder, task=Task("recognition", ("one", "tow")))
    assert said.startswith("U433 the word 'tow' is no token of") and "did you mean 'two'?" in said
    assert "U014" in refusal(folder, task=CLASSES), "a head for tokens is none for classes"
    faster = wav2vec2(tmp_path / "fast", head="Wav2Vec2ForCTC", conv_stride=(5, 2, 2, 2, 2, 2, 1))
    assert "answers every 10 ms, the students for sound every 20 ms" in refusal(faster)
    assert "the task is regression" in refusal(folder, task=Task("regression"))


def test_a_published_model_teaches_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = wav2vec2(tmp_path / "model", head="Wav2Vec2ForSequenceClassification")
    waves = clips(60, 4000 + 60 * 1000)[:, :4000].copy()
    waves += np.random.default_rng(1).integers(-50, 50, waves.shape).astype(np.int16)
    np.savez(tmp_path / "clips.npz", waveforms=waves, labels=np.array(CLASSES.classes)[np.arange(60) % 3])
    said = [
        "data.kind=audio", "teaching.batch_size=32", "student.model=speech.convnet", "student.options={width=8, depth=1}", "train.epochs=2",
        "teacher.accept_score=true", "measure.latency=false", "measure.resamples=100", f"data.rate={RATE}",
    ]  # fmt: skip
    words = [word for each in said for word in ("--set", each)]
    status = run(monkeypatch, "distill", "--teacher", f"hf:{folder}", "--data", tmp_path / "clips.npz", "--out", tmp_path / "run", *words)
    assert status == 0, capsys.readouterr().err
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    assert card["models"]["exported"]["fidelity"]["agreement"]["mean"] >= 0
    assert "matched by name" in capsys.readouterr().out


def test_a_ctc_models_answers_are_reused_and_asked_in_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = wav2vec2(tmp_path / "model", head="Wav2Vec2ForCTC")
    waves = (np.random.default_rng(1).normal(size=(40, 4000)) * 2000).astype(np.int16)
    np.savez(tmp_path / "clips.npz", waveforms=waves, labels=np.array(["one two", "two three", "three one", "one"])[np.arange(40) % 4])
    said = [
        "task=recognition", "control=false", "data.kind=audio", f"data.rate={RATE}", "student.model=speech.convnet",
        "student.options={width=8, depth=1}", "train={epochs=1, batch_size=8, augment={shift=100}}", "teacher.accept_score=true",
        "measure={latency=false, resamples=100}",
    ]  # fmt: skip

    def do(verb: str, name: str, teacher: str, views: str) -> int:
        own = [f"teaching.views={views}", f"teacher.source={teacher}", f"data.train={tmp_path / 'clips.npz'}", f"out={tmp_path / name}"]
        return run(monkeypatch, verb, *(word for each in [*said, *own] for word in ("--set", each)))

    assert do("teach", "stored", f"hf:{folder}", "2") == 0, capsys.readouterr().err
    assert do("distill", "again", str(tmp_path / "stored" / "transfer"), "2") == 0, capsys.readouterr().err
    assert "no teacher is needed" in capsys.readouterr().out
    assert do("distill", "live", f"hf:{folder}", "'live'") == 0, capsys.readouterr().err
    assert not (tmp_path / "live" / "transfer" / "training").exists()
    assert do("distill", "both", str(tmp_path / "stored" / "transfer"), "'live'") == 2
    assert "U327 stored answers cannot be asked in the loop" in capsys.readouterr().err
    assert not (tmp_path / "both" / "seed-0").exists()
