"""The likeliest label sequences of a CTC model, by prefix beam search over a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

_PRIME = 1_000_003


def likeliest(log_p: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
    """The `count` best label sequences of each row's frames [batch, time, tokens], the blank being the last token, best first.

    Gives labels int64 [batch, count, most] and how many count int64 [batch, count]. Of each prefix the search keeps the mass of paths
    that end in a blank and of those that do not (Graves & Jaitly 2014, "Towards end-to-end speech recognition", section 4.3).
    """
    rows, frames, tokens = log_p.shape
    blank = tokens - 1
    nothing = float("-inf")
    ended = log_p.new_full((rows, width), nothing)  # paths that end in a blank
    spoken = log_p.new_full((rows, width), nothing)  # paths that end in the prefix's last label
    ended[:, 0] = 0
    names = torch.zeros(rows, width, dtype=torch.int64, device=log_p.device)
    names[:, 1:] = -torch.arange(1, width, device=log_p.device)  # places that hold no prefix yet, alike to none
    last = torch.full_like(names, blank)
    labels = torch.full((rows, width, frames), -1, dtype=torch.int64, device=log_p.device)
    counts = torch.zeros_like(names)
    words = torch.arange(blank, device=log_p.device)
    for frame in log_p.unbind(1):
        whole = torch.logaddexp(ended, spoken)
        stay_ended = whole + frame[:, blank, None]
        again = frame.gather(1, last)
        stay_spoken = torch.where(counts > 0, spoken + again, nothing)
        # a label after itself needs a blank between
        before = torch.where(words == last[..., None], ended[..., None], whole[..., None])
        longer = before + frame[:, None, :blank]
        longer_names = names[..., None] * _PRIME + words + 1
        # a longer prefix that is among the kept ones already gives them its mass
        same = longer_names[:, :, :, None] == names[:, None, None, :]
        given = torch.where(same, longer[..., None], nothing).flatten(1, 2).logsumexp(1)
        stay_spoken = torch.logaddexp(stay_spoken, given)
        longer = longer.masked_fill(same.any(-1), nothing).flatten(1)
        kept = torch.cat([torch.logaddexp(stay_ended, stay_spoken), longer], dim=1).topk(width, dim=1).indices
        new = kept >= width
        origin = torch.where(new, (kept - width) // blank, kept)
        word = (kept - width).clamp(min=0) % blank
        ended = torch.cat([stay_ended, torch.full_like(longer, nothing)], dim=1).gather(1, kept)
        spoken = torch.cat([stay_spoken, longer], dim=1).gather(1, kept)
        names = torch.where(new, longer_names.flatten(1).gather(1, (kept - width).clamp(min=0)), names.gather(1, origin))
        last = torch.where(new, word, last.gather(1, origin))
        counts = counts.gather(1, origin)
        labels = labels.gather(1, origin[..., None].expand(-1, -1, frames))
        labels = torch.where(new[..., None] & (torch.arange(frames, device=log_p.device) == counts[..., None]), word[..., None], labels)
        counts = counts + new
    best = torch.logaddexp(ended, spoken).topk(count, dim=1).indices
    counts = counts.gather(1, best)
    most = max(1, int(counts.max())) if counts.numel() else 1
    return labels.gather(1, best[..., None].expand(-1, -1, frames))[..., :most], counts
