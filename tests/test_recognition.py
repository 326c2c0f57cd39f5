"""Recognition of connected words: labels, metrics and terms by hand, strings made of single words, and the whole way."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import run
from published import cases

from understudy.data import joining, labelling
from understudy.data._source import Source
from understudy.ensembles import Ensemble
from understudy.errors import DataError, RecipeError
from understudy.exporting import predict_template
from understudy.exporting._graphs import open_session
from understudy.losses.sequences import ctc_frames
from understudy.measuring import scorecard as cards
from understudy.measuring._transcripts import transcripts, word_errors
from understudy.objectives import Objective
from understudy.sections import OptimizerSection
from understudy.signals import CERTAIN, Batch, frame_lengths
from understudy.students import speech
from understudy.students._sound import fit_log_mel
from understudy.students.preprocessing import assemble
from understudy.tasks import Task
from understudy.teachers import FakeTeacher
from understudy.terms import OnFrames
from understudy.training.cohort import train_cohort
from understudy.training.gradient import TrainingSet

RATE = 8000
TASK = Task("recognition", ("one", "two", "three"))


def frames(*paths: list[int], length: int = 8) -> np.ndarray:
    """Logits that say these tokens (3 is the blank), and the certain blank after them."""
    said = np.zeros((len(paths), length, 4), dtype=np.float32)
    said[:, :, 3] = CERTAIN
    for row, path in enumerate(paths):
        said[row, : len(path)] = 0.1 + 5 * np.eye(4)[path]
    return said


# --- labels and metrics ---------------------------------------------------------------------------------------------


def test_labels_are_words_in_their_order() -> None:
    raw = pd.Series(["10 2", "2", None, "10 10 2"])
    task, labels, problems = labelling.decide("recognition", raw, None)
    assert task == Task("recognition", ("2", "10"))
    assert labels is not None
    assert labels.tolist() == [[1, 0, -1], [0, -1, -1], [-1, -1, -1], [1, 1, 0]]
    assert task.labelled(labels).tolist() == [True, True, False, True]
    assert labelling.to_names(labels, task).tolist() == ["10 2", "2", None, "10 10 2"]
    assert (task.outputs, task.metric, problems) == (3, "word_accuracy", [])


def test_a_word_that_was_not_declared() -> None:
    with pytest.raises(DataError, match=r"U430 row 1 says 'tow'; did you mean 'two'\? \(data.classes\)"):
        labelling.decide("recognition", pd.Series(["one two", "tow"]), ["one", "two"])


def test_transcripts_leave_out_repeats_and_blanks() -> None:
    said = transcripts(frames([0, 0, 3, 0, 1], [3, 3], [2]))
    assert said.tolist() == [[0, 0, 1], [-1, -1, -1], [2, -1, -1]]


def reference_errors(said: list[int], true: list[int]) -> int:
    """Levenshtein's distance, as it is defined."""
    if not said or not true:
        return len(said) + len(true)
    changed = reference_errors(said[:-1], true[:-1]) + (said[-1] != true[-1])
    return min(changed, reference_errors(said[:-1], true) + 1, reference_errors(said, true[:-1]) + 1)


def test_word_errors_by_their_definition() -> None:
    random = np.random.default_rng(0)
    rows = [(random.integers(0, 3, random.integers(0, 5)), random.integers(0, 3, random.integers(0, 6))) for _ in range(80)]
    said, true = (np.array([np.pad(row[side], (0, 6 - len(row[side])), constant_values=-1) for row in rows]) for side in (0, 1))
    assert word_errors(said, true).tolist() == [reference_errors(list(a), list(b)) for a, b in rows]


def test_word_error_rate_counts_words_and_not_rows() -> None:
    answers = frames([0, 3, 1], [2])
    labels = np.array([[0, 1, 2, 2], [1, -1, -1, -1]])
    figures = cards.quality(answers, labels, TASK)
    assert figures == {"word_accuracy": pytest.approx(2 / 5), "word_error_rate": pytest.approx(3 / 5), "sentence_accuracy": 0.0}
    same = cards.fidelity(answers, frames([0, 0, 1], [2]), TASK)
    assert same["agreement"] == 1.0
    assert same["kl"] > 0


def test_a_scorecard_of_a_recognition_has_intervals() -> None:
    random = np.random.default_rng(0)
    words = random.integers(0, 3, (60, 3))
    labels = words.copy()
    right = frames(*[[a, 3, b, 3, c] for a, b, c in words.tolist()])
    worse = frames(*[[a, 3, b, 3, (c + (at % 3 == 0)) % 3] for at, (a, b, c) in enumerate(words.tolist())])
    card = cards.measure({"teacher": [right], "control": [worse], "student": [right], "exported": [right]}, labels, TASK)
    rate = card["models"]["control"]["quality"]["word_error_rate"]
    assert rate["mean"] == pytest.approx(20 / 180)
    assert rate["low"] < rate["mean"] < rate["high"]
    assert card["verdict"]["word"] == "GAIN"
    assert card["disagreements"] == [] and card["per_class"] == []


# --- networks and terms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [speech.convnet, speech.recurrent, speech.transformer])
def test_networks_answer_each_frame_and_are_certain_after_the_end(build: Any) -> None:
    features = torch.randn(3, 41, 31)
    features[:, -1] = 1
    features[1, :, 12:] = 0
    said = build(40, 4, width=8, frames=True, seed=0, **({"heads": 2} if build is speech.transformer else {})).eval()(features)
    assert said.shape == (3, 16, 4)
    assert frame_lengths(said).tolist() == [16, 6, 16]
    assert frame_lengths(said.half()).tolist() == [16, 6, 16], "as it is stored"


def test_frames_have_equal_votes_as_published() -> None:
    for case in cases("ctc_frame_kd"):
        student, teacher = (torch.as_tensor(case[f"{who}_logits"]) for who in ("student", "teacher"))
        lengths = torch.as_tensor(case["lengths"])
        best = teacher.topk(2).values
        if (best[..., 0] == best[..., 1]).any():
            continue  # which of two equal tokens is the best depends on their order, and the blank's is another one here
        if int(case["blank"]) != student.shape[-1] - 1:
            student, teacher = (each.roll(-1, -1) for each in (student, teacher))
        after = torch.arange(student.shape[1]) >= lengths[:, None]
        padding = torch.zeros(student.shape[-1], dtype=student.dtype)
        padding[-1] = CERTAIN
        student, teacher = (torch.where(after[..., None], padding, each) for each in (student, teacher))
        options = {"temperature": float(case["temperature"])}
        task = Task("recognition", tuple("abcdefghij"[: student.shape[-1] - 1]))
        for name, more in (("loss", {}), ("loss_blank_eliminated", {"without_blank": student.shape[-1] - 1})):
            objective = Objective.from_terms([("sequences.ctc_frames", 1.0, options | more)], task)
            total, _ = objective({"logits": student}, Batch(student, None, None, {"logits": teacher}))
            torch.testing.assert_close(float(total), float(case[name]), rtol=1e-6, atol=1e-9)


def test_the_default_objective_is_ctc_and_the_teachers_frames() -> None:
    assert (
        Objective.soft_labels(alpha=0.5, temperature=2.0, task=TASK)
        .formula()
        .startswith("0.5 * ctc_labels(student, labels) + 0.5 * ctc_frames(")
    )


@pytest.mark.parametrize(("place", "task"), [("logits.soft_target", TASK), ("sequences.ctc_frames", Task("binary", ("no", "yes")))])
def test_terms_of_another_task_are_refused(place: str, task: Task) -> None:
    with pytest.raises(RecipeError, match=f"is not for a {task.kind} task; use"):
        Objective.from_terms([(place, 1.0, {})], task)


# --- strings of words -----------------------------------------------------------------------------------------------


def words(count: int = 60) -> Source:
    """Tones: three words by six speakers."""
    random = np.random.default_rng(0)
    inputs = np.zeros((count, 1600), dtype=np.int16)
    for row in range(count):
        length = random.integers(800, 1600)
        inputs[row, :length] = 6000 * np.sin(2 * np.pi * (400 + 600 * (row % 3) + 10 * (row // 3 % 6)) * np.arange(1, length + 1) / RATE)
    labels = np.array(["one", "two", "three"], dtype=object)[np.arange(count) % 3]
    return Source("audio", inputs, labels, groups=np.array([str(row // 3 % 6) for row in range(count)], dtype=object))


def test_strings_join_words_of_one_speaker_and_are_functions_of_seed_and_number() -> None:
    source = words()
    split = np.where(source.groups == "5", "test", "train") if source.groups is not None else None
    given = Source("audio", source.inputs, source.labels, split=split, groups=source.groups)
    made, again = (joining.join_clips(given, 24, (2, 4), rate=RATE, seed=1) for _ in range(2))
    assert (made.inputs == again.inputs).all()
    assert (made.inputs != joining.join_clips(given, 24, (2, 4), rate=RATE, seed=2).inputs[:, : made.inputs.shape[1]]).any()
    counts = {len(text.split()) for text in made.labels}
    assert counts == {2, 3, 4}
    assert made.split is not None and made.groups is not None
    assert np.count_nonzero(made.split == "test") == 4
    assert set(made.groups[made.split == "test"]) == {"5"}
    assert made.classes == ("one", "three", "two")
    power = np.abs(np.fft.rfft(made.inputs[0].astype(float)))
    heard = {
        word
        for word, hertz in (("one", 400), ("two", 1000), ("three", 1600))
        if power[round(hertz * made.inputs.shape[1] / RATE) :][:200].max() > 3e5
    }
    assert heard >= set(made.labels[0].split())


def test_strings_need_labels() -> None:
    with pytest.raises(DataError, match="U429 data.strings joins clips whose words are known"):
        joining.join_clips(Source("audio", words().inputs), 3, (2, 4), rate=RATE, seed=0)


def test_predict_says_the_words() -> None:
    said = frames([0, 0, 3, 0, 2], [3])
    assert [predict_template.transcript(row, TASK.classes) for row in said] == ["one one three", ""]


# --- the whole way --------------------------------------------------------------------------------------------------


REAL_TIME = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "real_time.py"))


@pytest.mark.parametrize(("level", "causal"), [(True, True), (False, False), (False, True)])
def test_how_far_a_network_hears(level: bool, causal: bool) -> None:
    clip = words().inputs[:4].ravel()
    clip = clip[clip != 0]
    network = speech.convnet(40, 4, width=8, depth=2, kernel=5, causal=causal, frames=True, seed=0)
    module = assemble(fit_log_mel(torch.from_numpy(clip[None]), RATE, scale=True, flatten=False, level=level), network).eval()

    def ask(wave: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(wave[None]))[0].softmax(-1).numpy()

    before, after = REAL_TIME["reach"](ask, clip, RATE)
    # two layers of five frames around, the two of the start and half a window; all of it earlier when causal
    assert before is None if level else before in ((1600, 1760, 1920) if causal else (800, 960, 1120))
    assert after is None if level else after <= (320 if causal else 1280)


def test_prepare_of_sound_knows_level_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = words()
    np.savez(tmp_path / "words.npz", waveforms=source.inputs, labels=source.labels.astype(str))
    said = ["--data", tmp_path / "words.npz", "--set", "data.kind=audio", "--set", "data.rate=8000", "--teacher", "train:speech.convnet"]
    said += ["--student", "speech.convnet", "--out", tmp_path / "run"]
    for own, told in (("{loudness=1}", "no 'loudness'; there is: level"), ("{level=3}", "level = 3: true or false")):
        assert run(monkeypatch, "distill", *said, "--set", f"student.options.prepare={own}") == 2
        assert told in " ".join(capsys.readouterr().err.split())


def test_from_single_words_to_a_recogniser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = words()
    np.savez(tmp_path / "words.npz", waveforms=source.inputs, labels=source.labels.astype(str), who=source.groups.astype(str))
    (tmp_path / "run.toml").write_text(
        f"""
        out = "{tmp_path / "run"}"
        task = "recognition"
        measure = {{ latency = false, resamples = 100 }}
        student = {{ model = "speech.convnet", options = {{ width = 16, depth = 2, causal = true, prepare = {{ level = false }} }} }}
        train = {{ epochs = 10, batch_size = 4, lr = 1e-2, clip = 5.0 }}

        [data]
        train = "{tmp_path / "words.npz"}"
        kind = "audio"
        rate = {RATE}
        group = "who"
        strings = 90
        words = [1, 2]

        [teacher.train]
        model = "speech.convnet"
        options = {{ width = 24, depth = 2 }}
        epochs = 12
        batch_size = 4
        lr = 1e-2
        clip = 5.0

        [[objective.terms]]
        loss = "sequences.ctc_labels"

        [[objective.terms]]
        loss = "sequences.ctc_frames"

        [[objective.terms]]
        loss = "sequences.best_path"
        """
    )
    assert run(monkeypatch, "distill", tmp_path / "run.toml") == 0, capsys.readouterr().err
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    assert card["models"]["teacher"]["quality"]["word_accuracy"]["mean"] > 0.5
    exported = card["models"]["exported"]["quality"]
    assert exported["word_accuracy"]["mean"] == pytest.approx(1 - exported["word_error_rate"]["mean"])
    said = json.loads((tmp_path / "run" / "artifact" / "signature.json").read_text())["outputs"][0]["shape"]
    assert said == ["rows", "frames", 4]
    # what it hears of a piece is what it hears of the whole
    session = open_session(tmp_path / "run" / "artifact" / "model.onnx")
    clip = np.concatenate([wave[wave != 0] for wave in source.inputs[:12]])
    ask = lambda wave: session.run(["probabilities"], {"rows": wave[None]})[0][0]  # noqa: E731
    before, after = REAL_TIME["reach"](ask, clip, RATE)
    assert 0 < before <= 0.5 * RATE
    assert after <= 0.04 * RATE
    heard = REAL_TIME["Pieces"](ask, RATE, RATE // 10, before, after).hear(clip)
    assert heard.shape == ask(clip).shape
    assert np.abs(heard - ask(clip)).max() < 1e-4
    measured = ["real_time.py", str(tmp_path / "run" / "artifact"), "--clips", "2", "--chunk", "0.1"]
    monkeypatch.setattr(sys, "argv", measured)
    capsys.readouterr()
    REAL_TIME["main"]()
    told = capsys.readouterr().out
    assert str(tmp_path / "run" / "artifact") in told
    assert all(line in told for line in ("whole clips         real-time factor", "pieces of 0.1 s     real-time factor", "(causal)"))
    monkeypatch.setattr(sys, "argv", ["real_time.py", str(tmp_path)])
    with pytest.raises(SystemExit):
        REAL_TIME["main"]()
    assert "is no artifact" in capsys.readouterr().err


SMALL = """
task = "recognition"
seeds = [0]
measure = {{ latency = false, resamples = 100 }}
train = {{ epochs = 1, batch_size = 4 }}

[data]
train = "{words}"
kind = "audio"
rate = 8000
group = "who"
strings = 40
words = [1, 2]
"""
LESSON = """
[teacher]
accept_score = true
train = { model = "speech.convnet", options = { width = 12, depth = 1 }, epochs = 1, batch_size = 4 }
"""


def small(folder: Path, name: str, more: str) -> Path:
    """A recipe of few strings and one epoch."""
    source = words()
    np.savez(folder / "words.npz", waveforms=source.inputs, labels=source.labels.astype(str), who=source.groups.astype(str))
    said = f'out = "{folder / name}"' + SMALL.format(words=folder / "words.npz") + more
    (folder / f"{name}.toml").write_text(said, encoding="utf-8")
    return folder / f"{name}.toml"


def test_stored_answers_teach_a_recogniser_without_their_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    student = '\n[student]\nmodel = "speech.convnet"\noptions = { width = 8, depth = 1 }\n'
    assert run(monkeypatch, "teach", small(tmp_path, "first", LESSON + student)) == 0, capsys.readouterr().err
    stored = f'\n[teacher]\naccept_score = true\nsource = "{tmp_path / "first" / "transfer"}"\n'
    assert run(monkeypatch, "distill", small(tmp_path, "second", stored + student)) == 0, capsys.readouterr().err
    cards = [json.loads((tmp_path / "second" / "scorecard.json").read_text())]
    assert set(cards[0]["models"]) == {"teacher", "control", "student", "exported"}
    live = student + '\n[teaching]\nviews = "live"\n'
    path = small(tmp_path, "third", LESSON + live)
    shifted = "train = { epochs = 1, batch_size = 4, augment = { shift = 100 } }"
    path.write_text(path.read_text().replace("train = { epochs = 1, batch_size = 4 }", shifted), encoding="utf-8")
    assert run(monkeypatch, "distill", path) == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (LESSON + '\n[student]\nmodel = "tree"\n', "U428 tree gives one answer for a clip; a recognition needs one for each frame"),
        (LESSON + '\n[student]\nmodel = "speech.convnet"\n[teaching]\nencoding = "top-k"\n', "U428 teaching.encoding = 'top-k'"),
        ('\n[student]\nmodel = "speech.convnet"\n[cohort]\nmethod = "collaborative"\n[[cohort.members]]\nmodel = "speech.convnet"\n',
         "U352 cohort.method = 'collaborative' is for classes that exclude each other"),
    ],
)  # fmt: skip
def test_what_a_recognition_cannot_have(
    more: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "distill", small(tmp_path, "run", more)) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "seed-0").exists()


STUDENT = '\n[student]\nmodel = "speech.convnet"\noptions = { width = 8, depth = 1 }\n'
OTHER = 'model = "speech.convnet"\noptions = { width = 10, depth = 1 }\n'


@pytest.mark.parametrize(
    ("more", "there"),
    [
        ('[cohort]\nmethod = "mutual"\n' + f"[[cohort.members]]\n{OTHER}" * 2, "cohort/held_out"),
        (f"{LESSON}[[chain]]\n{OTHER}", "chain/assistant-1"),
        (f"{LESSON}[generations]\ncount = 2\ntogether = true\n", "chain/generation-1"),
        ('[teacher]\naccept_score = true\n'
         + f"[[teacher.members]]\n[teacher.members.train]\nepochs = 1\nbatch_size = 4\n{OTHER}" * 2, "transfer/training"),
    ],
    ids=["cohort", "chain", "generations", "members"],
)  # fmt: skip
def test_what_a_recognition_can_be_combined_with(
    more: str, there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "distill", small(tmp_path, "run", STUDENT + more)) == 0, capsys.readouterr().err
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    assert {"teacher", "control", "student", "exported"} <= set(card["models"])
    assert list((tmp_path / "run").rglob(there))


@pytest.mark.parametrize("members", [2, 3])
def test_several_recognisers_end_where_all_have_ended(members: int) -> None:
    said = torch.stack([torch.from_numpy(frames([0, 3, 1], [2, 2])) for _ in range(members)])
    mean = Ensemble([FakeTeacher(TASK) for _ in range(members)], task=TASK).together(said)
    assert frame_lengths(mean).tolist() == frame_lengths(said[0]).tolist() == [3, 2]


def test_a_cohort_hears_the_others_up_to_a_rows_end() -> None:
    heard: list[list[int]] = []

    def listening(student: torch.Tensor, teacher: torch.Tensor, *, lengths: torch.Tensor) -> torch.Tensor:
        heard.append(sorted(lengths.tolist()))
        return ctc_frames(student, teacher, lengths=lengths)

    features = torch.randn(4, 41, 31, generator=torch.Generator().manual_seed(0))
    features[:, -1] = 1
    features[1, :, 12:] = 0
    members = [speech.convnet(40, 4, width=8, depth=1, frames=True, seed=seed) for seed in range(3)]
    data = TrainingSet(features, torch.tensor([[0, 1], [2, -1], [1, 0], [2, 2]]), None, {})
    options = OptimizerSection(epochs=1, batch_size=4, device="cpu")
    train_cohort(
        members, Objective([OnFrames(listening, weight=1.0, name="listening")]), data, task=TASK, options=options, seed=0, progress=False
    )
    assert heard and all(lengths == [6, 16, 16, 16] for lengths in heard)


TERMS = "".join(f'[[objective.terms]]\nloss = "sequences.{name}"\n' for name in ("ctc_labels", "best_path", "likeliest_labels"))


def test_the_terms_on_whole_texts_are_explained_and_taught_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small(tmp_path, "run", STUDENT + LESSON + TERMS)
    assert run(monkeypatch, "explain", path) == 0
    told = capsys.readouterr().out
    assert "likeliest_labels(student, teacher, hypotheses=4)" in told and "best_path(student, teacher)" in told
    assert "-sum_{y in best} w(y) log sum_{paths that collapse to y}" in told, "its formula"
    assert "reads: logits" in told and "control = 1 * ctc_labels(student, labels)" in told
    assert run(monkeypatch, "distill", path) == 0, capsys.readouterr().err
    logged = [json.loads(line) for line in next((tmp_path / "run").glob("seed-0/student/*.jsonl")).read_text().splitlines()]
    assert any("likeliest_labels" in json.dumps(line) for line in logged)


def test_the_n_best_reach_the_student() -> None:
    objective = Objective.from_terms([("sequences.likeliest_labels", 1.0, {"hypotheses": 3})], TASK)
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 8, 4, requires_grad=True), torch.from_numpy(frames([0, 0, 3, 1], [2, 3, 3, 2, 1]))
    before, _ = objective({"logits": student}, Batch(student, None, None, {"logits": teacher}))
    before.backward()
    assert student.grad is not None and bool((student.grad.abs().amax(dim=(1, 2)) > 0).all())
    after, _ = objective({"logits": (student - student.grad).detach()}, Batch(student, None, None, {"logits": teacher}))
    assert float(after) < float(before.detach())
