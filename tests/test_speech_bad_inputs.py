"""What can be wrong with sound and its texts, through the command line: each is refused or warned of before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from commands import run

RATE = 8000
WORDS = ("one", "two", "three")


def tone(number: int, seconds: float = 0.25, level: float = 0.4) -> np.ndarray:
    return level * np.sin(2 * np.pi * (400 + 600 * (number % 3) + number) * np.arange(round(seconds * RATE)) / RATE)


def clips(folder: Path, count: int = 24) -> None:
    """Clips of two words each, and clips.csv with the columns file and text."""
    (folder / "clips").mkdir()
    lines = ["file,text"]
    for number in range(count):
        soundfile.write(folder / "clips" / f"{number}.wav", tone(number), RATE)
        lines.append(f"{number}.wav,{WORDS[number % 3]} {WORDS[(number + 1) % 3]}")
    (folder / "clips.csv").write_text("\n".join(lines), encoding="utf-8")


def line(folder: Path, text: str, number: int = 23) -> None:
    """Another line for one of the clips."""
    lines = (folder / "clips.csv").read_text(encoding="utf-8").splitlines()
    (folder / "clips.csv").write_text("\n".join([*lines[: number + 1], text, *lines[number + 2 :]]), encoding="utf-8")


def clip(samples: np.ndarray, rate: int = RATE) -> Callable[[Path], None]:
    return lambda folder: soundfile.write(folder / "clips" / "23.wav", samples, rate)


def empty(folder: Path) -> None:
    for file in (folder / "clips").iterdir():
        file.unlink()


def check(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    """`understudy check` of a recognition of these clips."""
    said = [
        f"out={folder / 'run'}", "task=recognition", "data.kind=audio", f"data.rate={RATE}", f"data.labels={folder / 'clips.csv'}",
        "data.label=text", "teacher.train.model=speech.convnet", "student.model=speech.convnet", *more,
    ]  # fmt: skip
    words = [word for each in said for word in ("--set", each)]
    return run(monkeypatch, "check", "--data", folder / "clips", *words)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (clip(np.zeros(2000)), "U421 1 of 24 clips of clips are silent"),
        (clip(tone(23, 0.01)), "23.wav: 0.010 s long"),
        (lambda folder: (folder / "clips" / "23.wav").write_bytes(b"RIFF no sound"), "U420 1 of 24 clips of clips cannot be used"),
        (lambda folder: (folder / "clips" / "23.wav").write_bytes(b""), "23.wav: empty file"),
        (empty, "U160 no sound files in"),
        (lambda folder: line(folder, "24.wav,one two"), "U162 1 files named in clips.csv are not there, first '24.wav' (line 25)"),
        (lambda folder: (folder / "clips.csv").unlink(), "U100"),
        (lambda folder: line(folder, "23.wav," + " one" * 8), "U439 1 of 24 texts need more frames than their clips have"),
    ],
    ids=["silent", "short", "corrupt", "empty-file", "empty-folder", "missing-clip", "no-labels", "long-text"],
)  # fmt: skip
def test_what_is_refused(
    spoil: Callable[[Path], None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips(tmp_path)
    spoil(tmp_path)
    assert check(tmp_path, monkeypatch) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_word_that_was_not_declared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips(tmp_path)
    line(tmp_path, "23.wav,one tow")
    assert check(tmp_path, monkeypatch, "data.classes=['one', 'two', 'three']") == 2
    assert "says 'tow'; did you mean 'two'? (data.classes)" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (clip((tone(23) * 9).clip(-1, 1)), "U422 1 of 24 clips of clips are clipped (over 0.1 % of their samples at full scale): 23.wav"),
        (clip(tone(23), RATE // 2), "U423 1 of 24 clips of clips have fewer samples per second (4,000) than data.rate = 8000: 23.wav"),
    ],
    ids=["clipped", "slow"],
)
def test_what_is_warned_of(
    spoil: Callable[[Path], None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips(tmp_path)
    spoil(tmp_path)
    status = check(tmp_path, monkeypatch)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert told in " ".join(captured.out.split())


def test_few_texts_that_are_too_long_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clips(tmp_path, 120)
    line(tmp_path, "23.wav," + " one" * 8)
    status = check(tmp_path, monkeypatch)
    captured = capsys.readouterr()
    assert status == 0, captured.err
    assert "U439 1 of 120 texts need more frames" in " ".join(captured.out.split())
