"""A recogniser heard as it is spoken: seconds of one core per second of sound, whole clips and piece by piece, teacher beside it.

    python benchmarks/real_time.py [ARTIFACT ...] [--data fsdd/train.npz --group speakers --strings 40] [--chunk 0.5]

ARTIFACT is a folder that `understudy distill` exported for task = "recognition"; without one, three untrained networks of the
recipe fsdd_strings are exported here: as it is, with `prepare = { level = false }`, and causal as well. Without data the sound is noise
with pauses. Per network: how far from a frame the sound lies that it depends on, found by changing 20 ms of a clip and looking which
frames change; the real-time factor of whole clips; and that of pieces, each heard with as much sound before and after it as was
found, with the time per piece, and how far its answers are from those of the whole clip. Times are processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from understudy.data.audio import read_audio
from understudy.data.joining import join_clips
from understudy.exporting._graphs import open_session, to_onnx
from understudy.measuring._transcripts import transcripts, word_errors
from understudy.students import speech
from understudy.students._sound import fit_log_mel
from understudy.students.preprocessing import assemble
from understudy.students.student import Student
from understudy.tasks import Task

Array = np.ndarray[Any, Any]
Ask = Callable[[Array], Array]

FRAME = 0.02
CHANGED = 1e-4
"""A probability that moves by more than this depends on what was changed."""
CAUSAL = 0.04
"""Seconds after a frame's start in which its own window lies."""
UNKNOWN = 1.0
"""Seconds heard before and after a piece by a network whose frames depend on the whole clip."""
VARIANTS: dict[str, tuple[bool, dict[str, Any]]] = {
    "speech.convnet": (True, {}),
    "prepare = { level = false }": (False, {}),
    "level = false, causal = true": (False, {"causal": True}),
}


def main() -> None:
    """Print the figures."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("artifacts", nargs="*", type=Path)
    asked.add_argument("--data", type=Path)
    asked.add_argument("--group")
    asked.add_argument("--strings", type=int, default=0, help="join the clips of --data to so many strings of 3 to 7")
    asked.add_argument("--rate", type=int, default=8000)
    asked.add_argument("--chunk", type=float, default=0.5)
    asked.add_argument("--clips", type=int, default=40)
    said = asked.parse_args()
    torch.set_num_threads(1)
    rates = {artifact_rate(place, asked) for place in said.artifacts}
    if len(rates) > 1:
        asked.error(f"the artifacts hear {' and '.join(map(str, sorted(rates)))} samples a second: measure those of one rate together")
    rate = rates.pop() if rates else said.rate
    clips = sound(said, rate)[: said.clips]
    seconds = sum(map(len, clips)) / rate
    print(f"{len(clips)} clips, {seconds:.0f} s, {rate} samples a second; pieces of {said.chunk:g} s; one thread")
    task = Task("recognition", tuple(map(str, range(10))))
    with tempfile.TemporaryDirectory() as folder:
        files = {str(place): place / "model.onnx" for place in said.artifacts} or exported(Path(folder), clips, task, rate)
        for name, file in files.items():
            report(name, file, clips, rate, said.chunk)
    teacher = network(speech.recurrent(40, task.outputs, width=64, frames=True, seed=0), clips, rate, level=True)
    size = sum(weight.numel() for weight in teacher.parameters())
    print(f"\nspeech.recurrent, torch, untrained, as the recipe's teacher ({size:,} parameters)")
    print(f"  whole clips         real-time factor {timed(lambda wave: teacher_answer(teacher, wave), clips).sum() / seconds:.5f}")


def artifact_rate(place: Path, asked: argparse.ArgumentParser) -> int:
    """The samples a second that an exported recogniser hears."""
    if not (place / "signature.json").is_file():
        asked.error(f"{place} is no artifact: give the folder `artifact` of a run of task = 'recognition'")
    task = json.loads((place / "signature.json").read_text(encoding="utf-8"))["task"]
    if task != "recognition":
        asked.error(f"{place} is of the task {task}: it answers once for a clip, and only a recogniser is heard in pieces")
    return int(json.loads((place / "preprocessing.json").read_text(encoding="utf-8"))["rate"])


def sound(said: argparse.Namespace, rate: int) -> list[Array]:
    """The clips, int16, each up to its end."""
    if said.data is None:
        rng = np.random.default_rng(0)
        return [noise(rng, int(rng.uniform(2, 5) * rate)) for _ in range(said.clips)]
    kept = read_audio(said.data, rate=rate, group=said.group)
    if said.strings:
        kept = join_clips(kept, said.strings, (3, 7), rate=rate, seed=0)
    ends = np.where(kept.inputs != 0, np.arange(1, kept.inputs.shape[1] + 1), 0).max(axis=1)
    return [wave[:end] for wave, end in zip(kept.inputs, ends, strict=True)]


def noise(rng: np.random.Generator, samples: int) -> Array:
    """Bursts of noise between pauses that are not quite silent."""
    loud = 10 ** rng.uniform(1.5, 3.5, samples // 2000 + 1).repeat(2000)[:samples]
    wave = np.rint(rng.normal(size=samples) * loud).clip(-32768, 32767).astype(np.int16)
    wave[-1] = wave[-1] or 1
    return wave


def network(body: torch.nn.Module, clips: list[Array], rate: int, *, level: bool) -> torch.nn.Module:
    """An untrained network with the features in front of it."""
    longest = max(map(len, clips))
    rows = torch.from_numpy(np.stack([np.pad(wave, (0, longest - len(wave))) for wave in clips[:8]]))
    return assemble(fit_log_mel(rows, rate, scale=True, flatten=False, level=level), body).eval()


def teacher_answer(teacher: torch.nn.Module, wave: Array) -> Array:
    """A torch network asked about one clip."""
    with torch.inference_mode():
        return np.asarray(teacher(torch.from_numpy(wave[None])))


def exported(folder: Path, clips: list[Array], task: Task, rate: int) -> dict[str, Path]:
    """The three networks of the recipe as files."""
    files, sample = {}, torch.from_numpy(np.stack([wave[: 2 * rate] for wave in clips if len(wave) >= 2 * rate][:2]))
    for number, (name, (level, options)) in enumerate(VARIANTS.items()):
        body = speech.convnet(40, task.outputs, width=32, depth=3, frames=True, seed=0, **options)
        files[name] = folder / f"{number}.onnx"
        to_onnx(Student(name, task, module=network(body, clips, rate, level=level)), sample, files[name])
    return files


def report(name: str, file: Path, clips: list[Array], rate: int, chunk: float) -> None:
    """One network's lines."""
    session = open_session(file)
    given, wanted = session.get_inputs()[0], [session.get_outputs()[0].name]
    seconds = sum(map(len, clips)) / rate
    print(f"\n{name} ({file.stat().st_size / 1e3:.0f} kB)")
    if isinstance(given.shape[1], int):
        print(f"  reads {given.shape[1]} samples, no more and no fewer: export it again (this version frees the length) to hear pieces")
        clips = [np.pad(wave, (0, given.shape[1] - len(wave))) for wave in clips if len(wave) <= given.shape[1]]

    def ask(wave: Array) -> Array:
        return np.asarray(session.run(wanted, {given.name: wave[None]})[0][0])

    print(f"  whole clips         real-time factor {timed(ask, clips).sum() / seconds:.5f}")
    if isinstance(given.shape[1], int):
        return
    before, after = reach(ask, max(clips, key=len), rate)
    if before is None or after is None:
        print(f"  every frame depends on sound all over the clip; pieces are heard with {UNKNOWN:g} s before and after them all the same")
        before, after = before or round(UNKNOWN * rate), after or round(UNKNOWN * rate)
    pieces = Pieces(ask, rate, round(chunk / FRAME) * round(FRAME * rate), before, after)
    whole = [ask(wave) for wave in clips]
    heard = [pieces.hear(wave) for wave in clips]
    spent = np.array(pieces.spent)
    gap = max(float(np.abs(one - other).max()) for one, other in zip(whole, heard, strict=True))
    wrong = sum(int(word_errors(transcripts(a[None]), transcripts(b[None]))[0]) for a, b in zip(heard, whole, strict=True))
    words = sum(int((transcripts(each[None]) >= 0).sum()) for each in whole)
    causal = "; it hears nothing later than its own window (causal)" if after <= CAUSAL * rate else ""
    print(f"  a frame depends on  {before / rate:.2f} s before and {after / rate:.2f} s after it{causal}")
    print(f"  pieces of {chunk:g} s     real-time factor {spent.sum() / seconds:.5f}; {len(spent)} pieces, each p50 "
          f"{np.median(spent) * 1e3:.2f} ms, p95 {np.quantile(spent, 0.95) * 1e3:.2f} ms; a word is known {chunk + after / rate:.2f} s "
          "after its piece began")  # fmt: skip
    print(f"  pieces and whole    largest difference of a probability {gap:.1e}; {wrong} of {words} words differ")


def timed(ask: Ask, clips: list[Array]) -> Array:
    """Seconds of the processor for each clip, the less of two times."""
    ask(clips[0])
    spent = []
    for _ in range(2):
        times = []
        for wave in clips:
            start = time.process_time()
            ask(wave)
            times.append(time.process_time() - start)
        spent.append(times)
    return np.min(spent, axis=0)


def reach(ask: Ask, wave: Array, rate: int) -> tuple[int | None, int | None]:
    """Samples before and after the start of a frame that its answer depends on, in whole frames; None for as far as the clip goes."""
    step = round(FRAME * rate)
    plain, at = ask(wave), len(wave) // step // 2 * step
    changed = wave.copy()
    changed[at : at + step] = np.random.default_rng(0).integers(-30000, 30000, step)
    moved = np.flatnonzero(np.abs(ask(changed) - plain).max(axis=1) > CHANGED)
    first, last, middle = int(moved.min()), int(moved.max()), at // step
    ends = len(plain) - 2
    before = None if last >= ends else (last - middle + 1) * step
    after = None if first <= 1 else (middle - first + 2) * step
    return before, after


@final
@dataclass
class Pieces:
    """A clip heard a piece at a time, with `before` and `after` samples around each; the time of every piece is kept in `spent`."""

    ask: Ask
    rate: int
    piece: int
    before: int
    after: int

    def __post_init__(self) -> None:
        self.spent: list[float] = []

    def hear(self, wave: Array) -> Array:
        """The answers of all frames, [frames, outputs]."""
        step, said = round(FRAME * self.rate), []
        for start in range(0, len(wave), self.piece):
            low, high = max(0, start - self.before), min(len(wave), start + self.piece + self.after)
            last = start + self.piece >= len(wave)
            window = wave[low : len(wave) if last else high].copy()
            window[-1] = window[-1] or 1  # zeros at the end would be taken for the clip's end
            began = time.process_time()
            answer = self.ask(window)
            self.spent.append(time.process_time() - began)
            first = (start - low) // step
            said.append(answer[first:] if last else answer[first : first + self.piece // step])
        return np.concatenate(said)


if __name__ == "__main__":
    main()
