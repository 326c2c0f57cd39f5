"""Log-mel features of a waveform as matrix products, so that a student's graph takes samples and ONNX holds every step.

The filters are those of Slaney's Auditory Toolbox as librosa makes them by default (`librosa.filters.mel`), the spectrogram that of
`librosa.feature.melspectrogram` with a periodic Hann window and zeros beyond both ends.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Array = np.ndarray[Any, Any]

FLOOR = 1e-10
"""Power below this counts as this: -100 dB."""
_KNEE, _LINEAR, _STEP = 1000.0, 200 / 3, math.log(6.4) / 27
"""Slaney's scale: linear up to the knee in hertz, then logarithmic."""


@final
class LogMel(nn.Module):
    """Waveforms int16 [rows, samples] -> float32 [rows, mels + 1, frames]: standardised log-mel features, and a mask.

    The last channel is 1 where a frame starts before the clip's end (its last sample that is not zero) and 0 in the padding,
    where the features are 0 too. `window` and `hop` are in samples; `mean` and `std` have one value per mel. Without `level` a clip
    is heard as loud as it is: nothing in a frame then depends on the rest of the clip, so that it may be heard piece by piece.
    """

    filters: Tensor
    waves: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        rate: int,
        mels: int,
        window: int,
        hop: int,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        *,
        flatten: bool,
        level: bool = True,
    ) -> None:
        super().__init__()
        self.spec = {
            "kind": "audio",
            "rate": rate,
            "mels": mels,
            "window": window,
            "hop": hop,
            "mean": mean,
            "std": std,
            "flatten": flatten,
            "level": level,
        }
        self.hop, self.window, self.flatten, self.level = hop, window, flatten, level
        self.features: list[str] = []
        self.register_buffer("filters", torch.from_numpy(mel_filters(rate, window, mels)))
        self.register_buffer("waves", torch.from_numpy(fourier_waves(window))[:, None, :])
        self.register_buffer("mean", torch.tensor(mean or [0.0] * mels, dtype=torch.float32)[:, None])
        self.register_buffer("std", torch.tensor(std or [1.0] * mels, dtype=torch.float32)[:, None])

    def forward(self, encoded: Tensor) -> Tensor:
        logs = self.log_mel(self.heard(encoded))
        mask = self.mask(encoded, logs.shape[2])
        values = (logs - self.mean) / self.std * mask
        found = torch.cat([values, mask.expand(-1, 1, -1)], dim=1)
        return found.flatten(1) if self.flatten else found

    def heard(self, encoded: Tensor) -> Tensor:
        """The samples as float32, at one level or as loud as they are."""
        return levelled(encoded) if self.level else encoded.to(torch.float32) / 32768

    def log_mel(self, samples: Tensor) -> Tensor:
        """Natural logarithm of the mel power spectrum of float32 samples, [rows, mels, 1 + samples // hop]."""
        parts = functional.conv1d(samples[:, None, :], self.waves, stride=self.hop, padding=self.window // 2)
        real, imaginary = parts.chunk(2, dim=1)
        power = torch.matmul(self.filters, real * real + imaginary * imaginary)
        return power.clamp(min=FLOOR).log()

    def mask(self, encoded: Tensor, frames: int) -> Tensor:
        """1 where a frame's middle lies before the end of its clip, float32 [rows, 1, frames]; the first frame always counts."""
        places = torch.arange(1, encoded.shape[1] + 1, device=encoded.device, dtype=torch.float32)
        ends = torch.where(encoded != 0, places, 0.0).amax(dim=1, keepdim=True).clamp(min=1)
        starts = torch.arange(0, frames * self.hop, self.hop, device=encoded.device, dtype=torch.float32)
        return (starts < ends).to(torch.float32)[:, None, :]


def fit_log_mel(
    encoded: Tensor,
    rate: int,
    *,
    scale: bool,
    flatten: bool,
    level: bool = True,
    mels: int = 40,
    window: float = 0.025,
    hop: float = 0.01,
) -> LogMel:
    """Features at this rate, standardised per mel by the frames of the encoded training clips; `window` and `hop` in seconds."""
    size = 2 * round(window * rate / 2)
    said: dict[str, Any] = {"rate": rate, "mels": mels, "window": size, "hop": round(hop * rate), "level": level}
    plain = LogMel(**said, flatten=False)
    if not scale:
        return LogMel(**said, flatten=flatten)
    total, squares, count = torch.zeros(mels, dtype=torch.float64), torch.zeros(mels, dtype=torch.float64), 0.0
    with torch.inference_mode():
        for piece in encoded.split(256):
            logs = plain.log_mel(plain.heard(piece))
            mask = plain.mask(piece, logs.shape[2])
            total += (logs * mask).sum((0, 2)).double()
            squares += (logs.square() * mask).sum((0, 2)).double()
            count += float(mask.sum())
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=1e-6).sqrt()
    return LogMel(**said, mean=mean.tolist(), std=std.tolist(), flatten=flatten)


def levelled(encoded: Tensor) -> Tensor:
    """Samples divided by the root of their mean square up to the clip's end, float32: who speaks softly is heard as well.

    Levels below -80 dB of full scale are not raised further.
    """
    samples = encoded.to(torch.float32) / 32768
    places = torch.arange(1, encoded.shape[1] + 1, device=encoded.device, dtype=torch.float32)
    ends = torch.where(encoded != 0, places, 0.0).amax(dim=1, keepdim=True).clamp(min=1)
    return samples / (samples.square().sum(dim=1, keepdim=True) / ends + 1e-8).sqrt()


def fourier_waves(window: int) -> Array:
    """Cosines, then sines, of the discrete Fourier transform under a periodic Hann window, float32 [2 * (window // 2 + 1), window]."""
    at = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * at / window)
    turns = 2 * np.pi * np.outer(np.arange(window // 2 + 1), at) / window
    return (np.concatenate([np.cos(turns), np.sin(turns)]) * hann).astype(np.float32)


def mel_filters(rate: int, window: int, mels: int) -> Array:
    """Triangles of equal area on Slaney's scale from 0 to rate / 2, float32 [mels, window // 2 + 1]."""
    edges = _hertz(np.linspace(0, _mel(rate / 2), mels + 2))
    bins = np.linspace(0, rate / 2, window // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    triangles = np.minimum(rising, falling).clip(0)
    return (triangles * (2 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def _mel(hertz: float) -> float:
    return hertz / _LINEAR if hertz < _KNEE else _KNEE / _LINEAR + math.log(hertz / _KNEE) / _STEP


def _hertz(mel: Array) -> Array:
    knee = _KNEE / _LINEAR
    return np.where(mel < knee, mel * _LINEAR, _KNEE * np.exp(_STEP * (mel - knee)))
