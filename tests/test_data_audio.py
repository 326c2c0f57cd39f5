"""Sound in folders, .zip and .npz files, with all the ways in which it goes wrong; groups that stay in one split; views."""

from __future__ import annotations

import wave
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from understudy.data.audio import read_audio, resampled
from understudy.data.keys import content_keys
from understudy.data.splitting import split_groups
from understudy.data.views import Views
from understudy.errors import DataError

RATE = 8000


def tone(hertz: float = 440.0, seconds: float = 0.25, rate: int = RATE, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def clip(path: Path, samples: np.ndarray, rate: int = RATE, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def words(folder: Path, count: int = 3) -> Path:
    for number in range(count):
        clip(folder / "yes" / f"{number}.wav", tone(400 + number, 0.2))
        clip(folder / "no" / f"{number}.wav", tone(900 + number, 0.25))
    return folder


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_audio(path, **{"rate": RATE, **options})
    return str(caught.value)


def told(path: Path, **options: Any) -> list[str]:
    return [str(problem) for problem in read_audio(path, **{"rate": RATE, **options}).problems]


def test_a_folder_per_class(tmp_path: Path) -> None:
    source = read_audio(words(tmp_path / "words"), rate=RATE)
    assert source.kind == "audio"
    assert source.inputs.dtype == np.int16
    assert source.inputs.shape == (6, 2000)
    assert source.labels.tolist() == ["no"] * 3 + ["yes"] * 3
    assert source.names is not None
    assert source.names.tolist()[0] == "no/0.wav"
    assert source.problems == ()
    assert not source.inputs[3:, 1600:].any(), "the shorter clips are padded at their end"
    assert np.abs(source.inputs[0] - tone(900) * 32768).max() <= 1.5


@pytest.mark.parametrize(
    ("ending", "options"), [("flac", {}), ("ogg", {"format": "OGG", "subtype": "VORBIS"}), ("wav", {"subtype": "FLOAT"})]
)
def test_other_formats_say_the_same(tmp_path: Path, ending: str, options: dict[str, Any]) -> None:
    clip(tmp_path / "a" / f"x.{ending}", tone(), **options)
    clip(tmp_path / "b" / "x.wav", tone())
    source = read_audio(tmp_path, rate=RATE)
    near = np.corrcoef(source.inputs[0], source.inputs[1])[0, 1]
    assert near > 0.99


def test_a_zip_and_a_csv_of_labels_and_speakers(tmp_path: Path) -> None:
    words(tmp_path / "words")
    with zipfile.ZipFile(tmp_path / "words.zip", "w") as archive:
        for number, path in enumerate(sorted((tmp_path / "words").rglob("*.wav"))):
            archive.write(path, f"{number}.wav")
    (tmp_path / "labels.csv").write_text("file,word,who\n" + "".join(f"{n},{'no' if n < 3 else 'yes'},{'ab'[n % 2]}\n" for n in range(6)))
    source = read_audio(tmp_path / "words.zip", rate=RATE, labels_csv=tmp_path / "labels.csv", label_column="word", group="who")
    assert source.labels.tolist() == ["no"] * 3 + ["yes"] * 3
    assert source.groups is not None
    assert source.groups.tolist() == ["a", "b"] * 3


def test_two_channels_and_another_rate_become_one_at_the_stated_rate(tmp_path: Path) -> None:
    both = np.stack([tone(440, 0.5, 44100), np.zeros(22050)], axis=1)
    clip(tmp_path / "x" / "stereo.wav", both, 44100)
    source = read_audio(tmp_path, rate=RATE)
    assert source.inputs.shape == (1, 4000)
    inner = slice(200, -200)
    assert np.abs(source.inputs[0, inner] / 32768 - tone(440, 0.5)[inner] / 2).max() < 0.003


def test_long_clips_are_cut_and_named(tmp_path: Path) -> None:
    words(tmp_path)
    clip(tmp_path / "no" / "long.wav", tone(700, 0.9))
    source = read_audio(tmp_path, rate=RATE, seconds=0.25)
    assert source.inputs.shape == (7, 2000)
    (problem,) = source.problems
    assert problem.code == "U424"
    assert problem.message.endswith("longer than data.seconds = 0.25 and lose their end: no/long.wav")


@pytest.mark.parametrize("data", [b"", b"RIFF but no sound", b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_corrupt_files_are_named(tmp_path: Path, data: bytes) -> None:
    words(tmp_path)
    (tmp_path / "yes" / "bad.wav").write_bytes(data)
    said = refusal(tmp_path)
    assert said.startswith("U420 1 of 7 clips")
    assert "yes/bad.wav: " in said


def test_a_few_corrupt_files_are_left_out(tmp_path: Path) -> None:
    words(tmp_path, 50)
    (tmp_path / "yes" / "bad.wav").write_bytes(b"no sound")
    source = read_audio(tmp_path, rate=RATE)
    assert len(source.inputs) == len(source.labels) == 100
    (problem,) = source.problems
    assert problem.level == "warning"
    assert "yes/bad.wav (not a sound file" in problem.message


def test_samples_that_are_no_numbers(tmp_path: Path) -> None:
    broken = tone()
    broken[7] = np.nan
    clip(tmp_path / "x" / "nan.wav", broken, subtype="FLOAT")
    assert "x/nan.wav: has NaN or infinite samples" in refusal(tmp_path)


def test_silence_is_refused_by_name(tmp_path: Path) -> None:
    words(tmp_path)
    clip(tmp_path / "yes" / "quiet.wav", tone(level=0.0005))
    said = refusal(tmp_path)
    assert said.startswith("U421 1 of 7 clips")
    assert "are silent" in said and "yes/quiet.wav" in said


def test_clipping_is_warned_of_by_name(tmp_path: Path) -> None:
    words(tmp_path)
    clip(tmp_path / "no" / "loud.wav", (tone() * 5).clip(-1, 1))
    (problem,) = told(tmp_path)
    assert problem.startswith("U422 1 of 7 clips")
    assert problem.endswith("no/loud.wav")


def test_a_rate_below_the_stated_one_is_warned_of_by_name(tmp_path: Path) -> None:
    words(tmp_path)
    clip(tmp_path / "no" / "slow.wav", tone(rate=4000), 4000)
    (problem,) = told(tmp_path)
    assert problem.startswith("U423 1 of 7 clips")
    assert "no/slow.wav; nothing is in them above 2,000 Hz" in problem


def test_a_folder_without_sound(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("no sound")
    assert refusal(tmp_path).startswith("U160 no sound files in")


def test_arrays_in_three_forms(tmp_path: Path) -> None:
    clips = [np.rint(tone(300 + 100 * number, 0.1 + 0.05 * number) * 32767).astype(np.int16) for number in range(3)]
    offsets = np.cumsum([0, *map(len, clips)])
    whole = np.concatenate(clips)
    padded = np.stack([np.pad(one, (0, len(clips[-1]) - len(one))) for one in clips])
    forms = {
        "padded": {"waveforms": padded, "lengths": np.array([len(one) for one in clips])},
        "long": {"audio": whole, "offsets": offsets},
        "bytes": {
            "audio_hi": (whole.view(np.uint16) >> 8).astype(np.uint8),
            "audio_lo": (whole & 255).astype(np.uint8),
            "offsets": offsets,
        },
        "floats": {"waveforms": (padded / 32768).astype(np.float32)},
    }
    for name, arrays in forms.items():
        np.savez(tmp_path / f"{name}.npz", **arrays, labels=np.array(["a", "b", "a"]), who=np.array([1, 2, 2]))
        source = read_audio(tmp_path / f"{name}.npz", rate=RATE, group="who")
        assert (source.inputs == padded).all(), name
        assert source.labels.tolist() == ["a", "b", "a"]
        assert source.groups is not None
        assert source.groups.tolist() == ["1", "2", "2"]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"X": np.zeros((2, 9))}, "U426 x.npz has the keys X; sound is `waveforms`"),
        ({"audio": np.zeros(9, np.int16)}, "needs `offsets`"),
        ({"waveforms": np.zeros((2, 900), np.uint8)}, "is uint8; samples are int16"),
        ({"waveforms": np.full((2, 900), 300.0)}, "reach 300; floats go from -1 to 1"),
        ({"waveforms": np.ones((2, 900), np.int16), "labels": np.zeros(3)}, "has 2 clips but 3 rows in 'labels'"),
    ],
)
def test_arrays_that_are_no_sound(tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    assert sentence in refusal(tmp_path / "x.npz")


def test_an_unknown_group(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", waveforms=np.ones((2, 900), np.int16), speaker=np.zeros(2))
    assert refusal(tmp_path / "x.npz", group="speakers") == "U425 no key 'speakers' (data.group) in x.npz; did you mean 'speaker'?"


def test_groups_are_in_one_split_each() -> None:
    groups = np.array([f"speaker {number % 6}" for number in range(600)])
    for seed in range(5):
        split = split_groups(groups, validation=0.17, test=0.33, seed=seed)
        assert {name: len(set(groups[split == name])) for name in ("train", "validation", "test")} == {
            "train": 3,
            "validation": 1,
            "test": 2,
        }
        assert all(len(set(split[groups == name])) == 1 for name in set(groups))
    assert len({tuple(split_groups(groups, validation=0.17, test=0.33, seed=seed)) for seed in range(5)}) > 1
    with pytest.raises(DataError, match=r"data.group has 2 different values .* too few for 3 splits"):
        split_groups(groups[:2], validation=0.1, test=0.1, seed=0)


def test_resampling_keeps_a_tone() -> None:
    assert np.abs(resampled(tone(500, 0.5, 16000), 16000, RATE)[100:-100] - tone(500, 0.5)[100:-100]).max() < 2e-3


def test_views_are_functions_of_key_and_number_and_keep_the_padding() -> None:
    rng = np.random.default_rng(0)
    waves = np.zeros((4, 4000), dtype=np.int16)
    waves[:, :2000] = rng.normal(size=(4, 2000)) * 3000
    keys = content_keys(waves, "audio")
    views = Views("audio", shift=400, speed=0.1, gain=6.0, noise=0.05)
    assert (views(waves, keys, 0) == waves).all()
    first, again = views(waves, keys, 3), views(waves[::-1], keys[::-1], 3)[::-1]
    assert first.dtype == np.int16
    assert (first == again).all()
    assert (first != views(waves, keys, 4)).any()
    ends = np.array([np.flatnonzero(wave)[-1] for wave in first])
    assert len(set(ends.tolist())) == 4, "each clip moved by its own number"
    assert (np.abs(ends - 2000) <= 400 + 0.12 * 2400).all(), "the noise stops where the clip does"


def test_shifts_and_gains_are_what_they_say() -> None:
    waves = np.zeros((64, 3000), dtype=np.int16)
    waves[:, 1000:1010] = 1000
    keys = content_keys(waves + np.arange(64, dtype=np.int16)[:, None], "audio")
    moved = Views("audio", shift=200)(waves, keys, 1)
    starts = moved.argmax(axis=1)
    assert starts.min() >= 800 and starts.max() <= 1200 and len(set(starts.tolist())) > 30
    louder = Views("audio", gain=6.0)(waves, keys, 1).max(axis=1) / 1000
    assert 0.5 <= louder.min() < 0.7 < 1.5 < louder.max() <= 2.0
    with pytest.raises(DataError, match=r"augment.flip is for images, the rows are of kind 'audio'; use augment.shift or augment.speed"):
        Views("audio", flip=True)


def test_wav_written_by_the_standard_library(tmp_path: Path) -> None:
    samples = np.rint(tone() * 32767).astype("<i2")
    (tmp_path / "x").mkdir()
    with wave.open(str(tmp_path / "x" / "a.wav"), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    assert (read_audio(tmp_path, rate=RATE).inputs[0] == samples).all()
