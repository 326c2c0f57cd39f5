"""Speech from the command line: folders of clips in, an artifact that reads .wav files with numpy alone out; features as librosa's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import pytest
import soundfile
import torch
from commands import run
from scipy.signal import resample_poly

from understudy.exporting import predict_template
from understudy.students import speech
from understudy.students._sound import LogMel, fit_log_mel, mel_filters

RATE = 8000


# --- features -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "window", "mels"), [(8000, 200, 40), (16000, 400, 80), (22050, 512, 64)])
def test_mel_filters_are_those_of_librosa(rate: int, window: int, mels: int) -> None:
    theirs = librosa.filters.mel(sr=rate, n_fft=window, n_mels=mels)
    assert np.abs(mel_filters(rate, window, mels) - theirs).max() < 1e-7


def test_log_mel_is_that_of_librosa() -> None:
    waves = (np.random.default_rng(0).normal(size=(3, 8000)) * [[30], [3000], [9000]]).astype(np.int16)
    ours = LogMel(RATE, 40, 200, 80, flatten=False).log_mel(torch.from_numpy(waves) / 32768).numpy()
    for row, wave in enumerate(waves):
        power = librosa.feature.melspectrogram(y=wave.astype(np.float32) / 32768, sr=RATE, n_fft=200, hop_length=80, n_mels=40)
        assert np.abs(ours[row] - np.log(np.maximum(power, 1e-10))).max() < 1e-3


def test_features_are_standardised_over_the_frames_that_count() -> None:
    waves = np.zeros((8, 4000), dtype=np.int16)
    waves[:, :1600] = np.random.default_rng(0).normal(size=(8, 1600)) * 2000
    made = fit_log_mel(torch.from_numpy(waves), RATE, scale=True, flatten=False)
    found = made(torch.from_numpy(waves))
    assert found.shape == (8, 41, 51)
    mask = found[:, -1]
    assert (mask.sum(1) == 20).all(), "1,600 samples are 20 steps of 80"
    assert not found[:, :-1, 20:].any()
    inside = found[:, :-1, :20]
    assert inside.mean((0, 2)).abs().max() < 1e-4
    assert (inside.var((0, 2), unbiased=False) - 1).abs().max() < 1e-3


def test_loudness_changes_no_feature() -> None:
    waves = np.zeros((2, 4000), dtype=np.int16)
    waves[:, :3000] = np.random.default_rng(0).normal(size=3000) * [[8000], [400]]
    loud, soft = LogMel(RATE, 40, 200, 80, flatten=False)(torch.from_numpy(waves))
    assert (loud - soft).abs().max() < 0.1
    assert (loud[:-1, 5:30] - soft[:-1, 5:30]).abs().mean() < 0.01


@pytest.mark.parametrize("build", [speech.convnet, speech.transformer], ids=["convnet", "transformer"])
def test_padding_changes_no_answer(build: Any) -> None:
    clip = (np.random.default_rng(0).normal(size=(2, 3000)) * 2000).astype(np.int16)
    features = LogMel(RATE, 40, 200, 80, flatten=False)
    network = build(40, 5, width=16, seed=0).eval()
    short, long = (features(torch.from_numpy(np.pad(clip, ((0, 0), (0, more))))) for more in (1000, 9000))
    with torch.inference_mode():
        assert torch.allclose(network(short), network(long), atol=1e-5)


def test_a_student_of_the_recipe_is_small() -> None:
    assert sum(weight.numel() for weight in speech.convnet(40, 10, width=32, depth=3).parameters()) < 50_000


# --- predict.py -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("found", "rate"), [(44100, 8000), (8000, 16000), (16000, 8000), (11025, 16000)])
def test_predict_resamples_as_the_training_did(found: int, rate: int) -> None:
    samples = np.random.default_rng(0).normal(size=found // 3 + 7)
    divisor = np.gcd(found, rate)
    theirs = resample_poly(samples, rate // divisor, found // divisor)
    ours = predict_template.resample(samples, found, rate)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-9


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_predict_reads_every_width_of_wav(tmp_path: Path, subtype: str) -> None:
    samples = 0.5 * np.sin(np.arange(2000) / 9)
    soundfile.write(tmp_path / "x.wav", np.stack([samples, samples], 1), RATE, subtype=subtype)
    read = predict_template.read_sound(tmp_path / "x.wav", {"rate": RATE, "samples": 2500})
    assert read.shape == (2500,)
    assert not read[2000:].any()
    theirs = soundfile.read(tmp_path / "x.wav", dtype="float64")[0].mean(axis=1)
    assert np.abs(theirs - samples).max() < 0.01
    assert np.abs(read[:2000] - theirs * 32768).max() <= 0.5


def test_predict_refuses_what_is_no_wav_or_silent(tmp_path: Path) -> None:
    said = {"rate": RATE, "samples": 100}
    (tmp_path / "x.wav").write_bytes(b"no sound")
    soundfile.write(tmp_path / "f.wav", np.ones(100) / 2, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "s.wav", np.zeros(100), RATE)
    for name, sentence in (("x", "no .wav file of whole numbers"), ("f", "Convert it to WAV with 16 bits"), ("s", "s.wav is silent")):
        with pytest.raises(predict_template.PredictError, match=sentence):
            predict_template.read_sound(tmp_path / f"{name}.wav", said)


# --- the whole way --------------------------------------------------------------------------------------------------


def tones(folder: Path, count: int = 16) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        for name, hertz in (("high", 1900), ("low", 400), ("middle", 1000)):
            time = np.arange(rng.integers(1200, 2400)) / RATE
            wave = 0.3 * np.sin(2 * np.pi * (hertz + 5 * number) * time) + 0.05 * rng.normal(size=len(time))
            (folder / name).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name / f"{number}.wav", wave, RATE)


def test_from_a_folder_of_clips_to_an_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tones(tmp_path / "clips")
    (tmp_path / "run.toml").write_text(
        f"""
        out = "{tmp_path / "run"}"
        data = {{ train = "{tmp_path / "clips"}", rate = {RATE} }}
        teaching.views = 2
        student = {{ model = "speech.convnet", options = {{ width = 8, depth = 1 }} }}
        train = {{ epochs = 8, batch_size = 8, lr = 1e-2, augment = {{ shift = 200, gain = 6 }} }}
        measure = {{ latency = false, resamples = 100 }}
        [teacher.train]
        model = "speech.transformer"
        options = {{ width = 16, depth = 1, heads = 2 }}
        epochs = 5
        batch_size = 8
        lr = 3e-3
        """
    )
    assert run(monkeypatch, "distill", tmp_path / "run.toml") == 0, capsys.readouterr().err
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    assert card["models"]["exported"]["quality"]["accuracy"]["mean"] > 0.8
    artifact = tmp_path / "run" / "artifact"
    said = json.loads((artifact / "signature.json").read_text())["inputs"][0]
    assert (said["dtype"], said["kind"]) == ("int16", "audio")
    assert run(monkeypatch, "predict", artifact, tmp_path / "clips", "--out", tmp_path / "said.csv") == 0
    lines = (tmp_path / "said.csv").read_text().splitlines()
    right = sum(line.startswith(f"{word}/") and line.split(",")[1] == word for line in lines[1:] for word in ("high", "low", "middle"))
    assert right / 48 > 0.8


def test_views_of_sound_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tones(tmp_path / "clips", count=8)
    said = ["--data", tmp_path / "clips", "--out", tmp_path / "run", "--student", "speech.convnet", "--set", f"data.rate={RATE}"]
    said += ["--set", "teacher.train.model=speech.convnet", "--set", "teacher.train.epochs=1", "--set", "teacher.accept_score=true"]
    said += ["--set", "train.augment={shift=200}", "--set", "teaching.views=all"]
    assert run(monkeypatch, "distill", *said) == 2
    assert "U320 teaching.views = 'all' counts through every view; what can be counted are shifts" in capsys.readouterr().err


def test_a_network_for_sound_refuses_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "\n".join(f"{number},{number % 2}" for number in range(40))
    (tmp_path / "x.csv").write_text(f"a,y\n{rows}\n")
    said = ["--data", tmp_path / "x.csv", "--label", "y", "--student", "speech.convnet", "--out", tmp_path / "run"]
    assert run(monkeypatch, "distill", *said, "--set", "teacher.train.model=forest") == 2
    assert "U427 speech.convnet hears sound; these rows are of kind 'table'" in capsys.readouterr().err
