"""Audio: a folder or .zip of sound files, or a .npz of waveforms, as a Source: int16 [rows, samples], zeros after each clip's end.

One sub-folder per class; or no sub-folders and no labels; or a CSV that names the files; or `train/`, `validation/`, `test/`. Every
file is decoded whole, mixed to one channel, resampled to the stated rate, cut or padded to one length. A clip ends at its last
sample that is not zero: nothing else marks the padding, so a graph that reads the samples can find the end by itself.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd

from understudy.data._files import Files, by_csv, by_folders, open_files, strange
from understudy.data._npz import load_arrays, one_of
from understudy.data._source import Source, split_words
from understudy.errors import DataError, MissingExtraError, Problem, did_you_mean

Array = np.ndarray[Any, Any]

ENDINGS = (".wav", ".flac", ".ogg", ".oga", ".aiff", ".aif", ".mp3")
_TOLERATED = 0.01
"""Part of the clips that is left out with a warning, because they are broken or silent; more is an error."""
_SILENT = 33
"""A clip whose largest sample is below this (-60 dB of full scale) has nothing in it."""
_CLIPPED = 0.001
"""A clip with a larger share of its samples at full scale was recorded too loud."""
_SHORTEST = 0.02
"""Seconds; less is one frame of features."""
_WAVEFORMS = ("waveforms", "audio")
_LABELS = ("labels", "y", "targets", "label")
_CLASSES = ("class_names", "classes")


@final
@dataclass(frozen=True)
class _Clip:
    """Samples int16 at the stated rate, and the rate they were recorded at."""

    samples: Array
    rate: int


def has_audio(path: Path) -> bool:
    """Whether a folder has a sound file anywhere below it."""
    return path.is_dir() and any(item.suffix.casefold() in ENDINGS for item in path.rglob("*"))


def read_audio(
    path: str | Path,
    *,
    rate: int,
    seconds: float | None = None,
    labels_csv: str | Path | None = None,
    file_column: str = "file",
    label_column: str | list[str] | None = None,
    group: str | None = None,
    encoding: str = "utf-8",
    workers: int | None = None,
) -> Source:
    """The clips under a folder, in a .zip or in a .npz file, at `rate` samples per second and `seconds` long (or as the longest is).

    DataError U160-U164 says what is wrong with the files' places and labels, U420-U426 with the sound. Broken and silent clips
    up to 1 % are left out with a warning; clipped ones, and ones with a lower rate, are warned of by name.
    """
    path = Path(path)
    if path.suffix.casefold() == ".npz":
        plan, names, clips = _from_arrays(path, rate, label_column, group)
    else:
        with open_files(path, ENDINGS, "sound files") as files:
            if labels_csv is None:
                plan = by_folders(files.names, path.name, "audio", "sound files")
                if group is not None:
                    raise DataError(f"data.group = {group!r} is a column of the labels' CSV: name that in data.labels", code="U425")
            else:
                plan = by_csv(
                    files.names, Path(labels_csv), file_column, label_column, encoding, "audio", "sound files", group_column=group
                )
            plan = replace(plan, problems=(*plan.problems, *strange(files.others, path.name, "sound files")))
            names = files.names
            clips = _decoded(files, rate, workers or min(8, os.cpu_count() or 1))
    return _assembled(plan, names, clips, rate, seconds, path.name)


def _assembled(plan: Source, names: list[str], clips: Sequence[_Clip | str], rate: int, seconds: float | None, where: str) -> Source:
    """The clips that can be used as one array, with their labels, and what was noticed."""
    if not names:
        raise DataError(f"{where} has no clips", code="U106")
    broken = {name: clip for name, clip in zip(names, clips, strict=True) if isinstance(clip, str)}
    good = [(at, clip) for at, clip in enumerate(clips) if not isinstance(clip, str)]
    shortest = math.ceil(_SHORTEST * rate)
    broken |= {names[at]: f"{len(clip.samples) / rate:.3f} s long" for at, clip in good if len(clip.samples) < shortest}
    silent = {names[at]: "silent" for at, clip in good if len(clip.samples) >= shortest and _loudest(clip.samples) < _SILENT}
    problems = [*plan.problems]
    problems += _left_out(broken, len(names), where, "cannot be used", "U420", "Save them again, or remove them")
    problems += _left_out(silent, len(names), where, "are silent (below -60 dB of full scale)", "U421", "Record them again, or remove them")
    kept = [(at, clip) for at, clip in good if names[at] not in broken and names[at] not in silent]
    problems += _noticed([(names[at], clip) for at, clip in kept], rate, where)
    longest = max(len(clip.samples) for _, clip in kept)
    length = longest if seconds is None else round(seconds * rate)
    cut = [names[at] for at, clip in kept if len(clip.samples) > length]
    if cut:
        told = f"{len(cut)} of {len(names)} clips of {where} are longer than data.seconds = {seconds:g} and lose their end: {_some(cut)}"
        problems.append(Problem("U424", told, "warning"))
    inputs = np.zeros((len(kept), length), dtype=np.int16)
    for row, (_, clip) in enumerate(kept):
        inputs[row, : len(clip.samples)] = clip.samples[:length]
    chosen = np.array([at for at, _ in kept], dtype=np.int64)
    labels = plan.labels
    if isinstance(labels, pd.Series | pd.DataFrame):
        labels = labels.iloc[chosen].reset_index(drop=True)
    elif labels is not None:
        labels = labels[chosen]
    return replace(
        plan,
        inputs=inputs,
        labels=labels,
        names=np.array(names)[chosen],
        split=None if plan.split is None else plan.split[chosen],
        groups=None if plan.groups is None else plan.groups[chosen],
        problems=tuple(problems),
    )


def _left_out(bad: dict[str, str], count: int, where: str, what: str, code: str, advice: str) -> Iterator[Problem]:
    if len(bad) > _TOLERATED * count:
        shown = "\n  ".join(name if why == "silent" else f"{name}: {why}" for name, why in list(bad.items())[:12])
        told = f"{len(bad)} of {count} clips of {where} {what}:\n  {shown}\n{advice} (up to 1 % are left out with a warning)"
        raise DataError(told, code=code)
    if bad:
        shown = ", ".join(name if why == "silent" else f"{name} ({why})" for name, why in list(bad.items())[:6])
        yield Problem(code, f"{len(bad)} of {count} clips of {where} {what} and are left out: {shown}", "warning")


def _noticed(clips: Sequence[tuple[str, _Clip]], rate: int, where: str) -> Iterator[Problem]:
    """What does not keep a clip from being used: recorded too loud, or at too low a rate."""
    loud = [name for name, clip in clips if _full(clip.samples) > _CLIPPED]
    if loud:
        told = f"{len(loud)} of {len(clips)} clips of {where} are clipped (over 0.1 % of their samples at full scale): {_some(loud)}"
        yield Problem("U422", told, "warning")
    low = [(name, clip.rate) for name, clip in clips if clip.rate < rate]
    if low:
        slowest = min(found for _, found in low)
        told = f"{len(low)} of {len(clips)} clips of {where} have fewer samples per second ({slowest:,}) than data.rate = {rate}"
        hint = f"nothing is in them above {slowest // 2:,} Hz. Set data.rate = {slowest} when most clips are so"
        yield Problem("U423", f"{told}: {_some([name for name, _ in low])}; {hint}", "warning")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _loudest(samples: Array) -> int:
    return int(np.abs(samples.astype(np.int32)).max(initial=0))


def _full(samples: Array) -> float:
    return float((np.abs(samples.astype(np.int32)) >= 32767).mean())


# --- files ----------------------------------------------------------------------------------------------------------


def _decoded(files: Files, rate: int, workers: int) -> list[_Clip | str]:
    """Each file's clip, or what is wrong with it."""
    try:
        import soundfile
    except ImportError:
        raise MissingExtraError("soundfile", "speech") from None

    def decode(name: str) -> _Clip | str:
        data = files.read(name)
        if not data:
            return "empty file"
        try:
            samples, found = soundfile.read(io.BytesIO(data), dtype="float64", always_2d=True)
        except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
            return f"not a sound file that can be read ({str(error).strip().rstrip('.')})"
        return _clip(samples.mean(axis=1), int(found), rate)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(decode, files.names))


def _clip(samples: Array, found: int, rate: int) -> _Clip | str:
    """Samples in -1..1 as they are kept."""
    if not np.isfinite(samples).all():
        return "has NaN or infinite samples"
    return _Clip(to_whole(resampled(samples, found, rate)), found)


def resampled(samples: Array, found: int, rate: int) -> Array:
    """A waveform at another rate, by a polyphase filter (scipy.signal.resample_poly, Kaiser window with beta 5)."""
    if found == rate or not len(samples):
        return samples
    from scipy.signal import resample_poly

    divisor = math.gcd(found, rate)
    return np.asarray(resample_poly(samples, rate // divisor, found // divisor))


def to_whole(samples: Array) -> Array:
    """Samples in -1..1 as int16, cut at full scale.

    >>> to_whole(np.array([0.0, 0.5, -1.0, 2.0])).tolist()
    [0, 16384, -32768, 32767]
    """
    return np.rint(samples * 32768).clip(-32768, 32767).astype(np.int16)


# --- arrays ---------------------------------------------------------------------------------------------------------


def _from_arrays(
    path: Path, rate: int, label_column: str | list[str] | None, group: str | None
) -> tuple[Source, list[str], list[_Clip | str]]:
    """Waveforms of a .npz file: `waveforms` [rows, samples] (and `lengths`), or one long `audio` with `offsets` [rows + 1].

    `audio_hi` and `audio_lo`, the two bytes of each sample, stand for `audio`. `rate` is that of the file, data.rate when left out.
    """
    arrays = load_arrays(path)
    if {"audio_hi", "audio_lo"} <= arrays.keys():
        high, low = arrays.pop("audio_hi"), arrays.pop("audio_lo")
        arrays["audio"] = (high.astype(np.uint16) << 8 | low).view(np.int16)
    key = one_of(arrays, _WAVEFORMS, path.name, "sound")
    if key is None:
        told = f"{path.name} has the keys {', '.join(arrays)}; sound is `waveforms` [rows, samples], or `audio` with `offsets`"
        raise DataError(told, code="U426")
    found = int(arrays["rate"].ravel()[0]) if "rate" in arrays else rate
    clips = [_clip(_floats(piece, path.name), found, rate) for piece in _pieces(arrays, key, path.name)]
    label_key = label_column if isinstance(label_column, str) and label_column in arrays else one_of(arrays, _LABELS, path.name, "labels")
    labels = None if label_key is None else arrays[label_key]
    class_key = one_of(arrays, _CLASSES, path.name, "class names")
    if group is not None and group not in arrays:
        raise DataError(f"no key {group!r} (data.group) in {path.name}; {did_you_mean(group, arrays)}", code="U425")
    for name in (label_key, group, "split" if "split" in arrays else None):
        if name is not None and len(arrays[name]) != len(clips):
            raise DataError(f"{path.name} has {len(clips)} clips but {len(arrays[name])} rows in {name!r}", code="U125")
    plan = Source(
        "audio",
        None,
        labels,
        classes=None if class_key is None else tuple(str(name) for name in arrays[class_key].ravel()),
        split=split_words(arrays["split"], f"'split' of {path.name}") if "split" in arrays else None,
        groups=None if group is None else arrays[group].astype(str).astype(object),
    )
    return plan, [f"{path.name} row {at}" for at in range(len(clips))], clips


def _pieces(arrays: dict[str, Array], key: str, where: str) -> list[Array]:
    said = arrays[key]
    if said.dtype != np.int16 and said.dtype.kind != "f":
        told = f"{key!r} of {where} is {said.dtype}; samples are int16, or floats from -1 to 1"
        raise DataError(told, code="U426")
    if said.ndim == 2:
        lengths = arrays.get("lengths", np.full(len(said), said.shape[1]))
        if len(lengths) != len(said) or (lengths < 0).any() or (lengths > said.shape[1]).any():
            raise DataError(f"'lengths' of {where} does not fit {key!r} of the shape {list(said.shape)}", code="U426")
        return [row[:length] for row, length in zip(said, lengths, strict=True)]
    offsets = arrays.get("offsets")
    if said.ndim != 1 or offsets is None or offsets[0] < 0 or offsets[-1] > len(said) or (np.diff(offsets) < 0).any():
        told = f"{key!r} of {where} has the shape {list(said.shape)}; one long signal needs `offsets`, rising numbers of [rows + 1]"
        raise DataError(told, code="U426")
    return [said[start:end] for start, end in pairwise(offsets)]


def _floats(samples: Array, where: str) -> Array:
    if samples.dtype == np.int16:
        return np.asarray(samples / 32768)
    if len(samples) and np.abs(samples).max() > 2:
        raise DataError(
            f"the samples of {where} reach {np.abs(samples).max():g}; floats go from -1 to 1, whole numbers as int16", code="U426"
        )
    return samples.astype(np.float64)
