"""A whole Whisper as the teacher of a recognition: what it writes, in the words of the data, with a checkpoint trained here."""

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
from understudy.adapters._writing import Vocabulary, laid_out
from understudy.checks.teachers import check_teacher
from understudy.errors import TeacherError
from understudy.losses.sequences import best_path, likeliest_labels
from understudy.make.lessons import trusted_answers
from understudy.measuring._transcripts import transcripts
from understudy.signals import frame_lengths, is_written
from understudy.tasks import Task

RATE = 16000
TASK = Task("recognition", ("one", "three", "two"))
HEARD = [("one two", "One, two."), ("two three", "TWO three!"), ("three one", "Four."), ("one three", "two three")]
"""What is said in each kind of clip, and what the model has learned to write: right, right, outside the vocabulary, half wrong."""
TERMS = '[[objective.terms]]\nloss = "sequences.ctc_labels"\n[[objective.terms]]\nloss = "sequences.best_path"\n'


@pytest.fixture(scope="module", autouse=True)
def _quiet_library() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def clips(count: int) -> np.ndarray:
    """Tones, the kinds in turn, no two the same."""
    random = np.random.default_rng(0)
    time = np.arange(8000) / RATE
    waves = np.stack([4000 * np.sin(2 * np.pi * (500 + 900 * (row % 4)) * time) for row in range(count)])
    return (waves + random.normal(size=waves.shape) * 100).astype(np.int16)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Whisper that has learned to write the four texts, in a folder as the library saves it."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("whisper")
    pieces = ["<pad>", "<s>", "</s>", "<start>", *sorted({word for _, text in HEARD for word in text.split()})]
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start>"]})
    tokenizer.save_pretrained(folder)
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, sampling_rate=RATE, chunk_length=1)
    extractor.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, num_mel_bins=20, max_source_positions=50, max_target_positions=12, vocab_size=len(pieces), pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, begin_suppress_tokens=None, dropout=0.0,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config)
    waves = [wave.astype(np.float32) / 32768 for wave in clips(8)]
    heard = torch.from_numpy(extractor(waves, sampling_rate=RATE, return_tensors="np")["input_features"])
    texts = [[*tokenizer.encode(HEARD[row % 4][1]), 2] for row in range(8)]
    labels = torch.tensor([text + [-100] * (4 - len(text)) for text in texts])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(input_features=heard, labels=labels).loss
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05
    model.save_pretrained(folder)
    return folder


def test_a_text_in_the_words_of_the_data() -> None:
    words = Vocabulary(TASK, {"1": "one"})
    assert words.read("One -- TWO, three!") == [0, 2, 1]
    assert words.read("1 two") == [0, 2]
    assert words.read("one four") is None, "what is outside the vocabulary is not guessed"
    letters = Vocabulary(Task("recognition", ("|", "a", "b", "'")))
    assert letters.read("Ab, ba'b") == [1, 2, 0, 2, 1, 3, 2]
    assert Vocabulary(Task("recognition", tuple("0123"))).read("31, 2") == [3, 1, 2]
    with pytest.raises(TeacherError, match="U437 the words 'One' and 'one' are one without case and punctuation"):
        Vocabulary(Task("recognition", ("One", "one")))
    with pytest.raises(TeacherError, match="U437 teacher.options.words: 'for' .* is no word of the data"):
        Vocabulary(TASK, {"4": "for"})


def test_texts_along_the_frames_and_the_losses_that_read_them() -> None:
    answers = laid_out([[0, 0, 2], None, [1, 1], [1]], 6, [6, 6, 2, 3], TASK.outputs)
    assert transcripts(answers.numpy()).tolist() == [[0, 0, 2], [-1, -1, -1], [-1, -1, -1], [1, -1, -1]]
    assert frame_lengths(answers).tolist() == [6, 0, 0, 3], "what is not known or does not fit says nothing"
    assert is_written(answers) and is_written(answers.half())
    torch.manual_seed(0)
    for loss in (best_path, likeliest_labels):
        student = torch.randn(4, 6, TASK.outputs, requires_grad=True)
        values = loss(student, answers)
        values.sum().backward()
        assert values[0] > 0 and values[3] > 0 and values[1:3].tolist() == [0, 0]
        assert student.grad is not None
        assert (student.grad.flatten(1).abs().amax(1) > 0).tolist() == [True, False, False, True]


def test_a_whisper_answers_what_it_writes(whisper: Path) -> None:
    waves = clips(8)
    waves[4, 4000:] = 0
    teacher = hugging_face_speech.load(f"hf:{whisper}", task=TASK, rate=RATE)
    said = teacher.signals(waves)["logits"]
    assert said.shape == (8, 26, 4), "the frames of the students"
    assert transcripts(said.numpy())[:4].tolist() == [[0, 2], [2, 1], [-1, -1], [2, 1]]
    assert int(frame_lengths(said)[4]) <= 13
    assert [problem for problem in check_teacher(teacher, waves) if problem.level == "error"] == []
    told = hugging_face_speech.load(f"hf:{whisper}", task=TASK, rate=RATE, options={"words": {"four": "three"}})
    assert transcripts(told.signals(waves[2:3])["logits"].numpy()).tolist() == [[1]]
    assert told.fingerprint() != teacher.fingerprint()
    with pytest.raises(TeacherError, match=r"U450 the model hears 1 s of a clip, and one has 1.50 s: .* data.seconds = 1"):
        teacher.signals(np.ones((1, 24000), dtype=np.int16))
    with pytest.raises(TeacherError, match=r"no 'beams' for hf:.*; there is: batch_size, language, words"):
        hugging_face_speech.load(f"hf:{whisper}", task=TASK, rate=RATE, options={"beams": 2})


def recipe(folder: Path, name: str, source: str, more: str) -> Path:
    np.savez(folder / "clips.npz", waveforms=clips(60), labels=np.array([HEARD[row % 4][0] for row in range(60)]))
    (folder / f"{name}.toml").write_text(
        f"""
        out = "{folder / name}"
        task = "recognition"
        measure = {{ latency = false, resamples = 100 }}
        data = {{ train = "{folder / "clips.npz"}", kind = "audio", rate = {RATE} }}
        teacher = {{ source = "{source}", accept_score = true }}
        student = {{ model = "speech.convnet", options = {{ width = 8, depth = 1 }} }}
        train = {{ epochs = 2, batch_size = 16 }}
        {more}
        """
    )
    return folder / f"{name}.toml"


def test_a_whisper_teaches_from_the_command_line(
    whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = recipe(tmp_path, "run", f"hf:{whisper}", TERMS)
    assert run(monkeypatch, "distill", place) == 0, capsys.readouterr()
    told = " ".join(capsys.readouterr().out.split())

    assert "the teacher's words of" in told and "what the data's words cannot say" in told and "U438" in told
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    assert 0.4 < card["models"]["teacher"]["quality"]["word_accuracy"]["mean"] < 0.9
    assert set(card["models"]["exported"]["fidelity"]) == {"agreement"}, "no distance of frames from a teacher that has none"
    # what it wrote is reused without it, under the same limit
    again = recipe(tmp_path, "again", str(tmp_path / "run" / "transfer"), TERMS)
    assert run(monkeypatch, "distill", again) == 0, capsys.readouterr()
    assert "U438" in " ".join(capsys.readouterr().out.split())
    trusting = recipe(tmp_path, "trusting", str(tmp_path / "run" / "transfer"), TERMS + "[teaching]\nword_errors = 9\n")
    assert run(monkeypatch, "train", trusting) == 0, capsys.readouterr()
    weights = [next((tmp_path / name / "seed-0" / "student").glob("*.safetensors")) for name in ("run", "again", "trusting")]
    first, same, other = (file.read_bytes() for file in weights)
    assert first == same and first != other, "the limit decides what is learned"


def test_rows_that_the_label_contradicts_teach_nothing() -> None:
    answers = laid_out([[0, 2], [0, 2], [1]], 6, [6, 6, 6], TASK.outputs)
    labels = torch.tensor([[0, 2], [0, 1], [-1, -1]])
    everything = torch.arange(3)
    for most, lengths in ((0.1, [6, 0, 6]), (0.5, [6, 6, 6])):
        said = trusted_answers(lambda rows, view, inputs: {"logits": answers[rows]}, labels, most)(everything, None, everything)
        assert frame_lengths(said["logits"]).tolist() == lengths


def test_a_whisper_is_asked_in_the_loop_and_heads_a_chain(
    whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    between = '[[chain]]\nmodel = "speech.convnet"\noptions = { width = 12, depth = 1 }\n[teaching]\nviews = "live"\nword_errors = 0.5\n'
    place = recipe(tmp_path, "run", f"hf:{whisper}", TERMS + between)
    place.write_text(place.read_text().replace("batch_size = 16 }", "batch_size = 16, augment = { shift = 50 } }"))
    assert run(monkeypatch, "distill", place) == 0, capsys.readouterr()
    assert list((tmp_path / "run" / "chain").glob("assistant-1*"))


def test_a_limit_of_words_needs_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "\n".join(f"{number},{number % 2}" for number in range(60))
    (tmp_path / "x.csv").write_text(f"a,y\n{rows}\n")
    said = ["--data", tmp_path / "x.csv", "--label", "y", "--out", tmp_path / "run", "--set", "teaching.word_errors=0.2"]
    assert run(monkeypatch, "distill", *said, "--set", "teacher.train.model=forest", "--set", "student.model=mlp") == 2
    assert "U436 teaching.word_errors counts words, and the task is binary" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("terms", ["", '[[objective.terms]]\nloss = "sequences.ctc_frames"\n'])
def test_terms_that_compare_frames_are_refused(
    terms: str, whisper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "distill", recipe(tmp_path, "run", f"hf:{whisper}", terms)) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "U435" in told and "does not say when its words were said" in told and "sequences.best_path" in told
    assert not (tmp_path / "run" / "transfer").exists()
