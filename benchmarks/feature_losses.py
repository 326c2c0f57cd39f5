"""Losses on features, relations, embeddings and attention beside the plainest PyTorch expression of each formula.

    python benchmarks/feature_losses.py [rounds]

Forward and backward in one process, in alternating rounds, float32 on one CPU thread: the medians, the median of the paired
ratios (one above 1.2 is marked, and the exit status is then 1), and the peak of what the allocator handed out during one
forward and backward, inputs left out, as the profiler records it. Hidden states are set beside an expression that keeps
padding out of the gradient, as ours does.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from understudy.losses import attention_maps, attentions, channels, contrastive, dense, embeddings, layers, relations

LIMIT = 1.2
ROUNDS = 31

Loss = Callable[[Tensor], Tensor]
Comparison = tuple[str, Tensor, Loss, Loss]
"""Name, the student's input, ours and the plain expression, each to one value per row."""


def numbers(*shape: int, seed: int) -> Tensor:
    """The same numbers each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_layers() -> Iterator[Comparison]:
    """Place by place: [64, 64, 16, 16]."""
    s, t = (numbers(64, 64, 16, 16, seed=seed) for seed in (0, 1))
    raw, margins = numbers(64, seed=2), -numbers(64, seed=3).abs()

    def plain_levels(s: Tensor) -> Tensor:
        value, weight, whole = (s - t).pow(2).mean((1, 2, 3)), 1.0, 1.0
        for size in (4, 2, 1):
            weight /= 2
            whole += weight
            value = value + weight * (functional.adaptive_avg_pool2d(s, size) - functional.adaptive_avg_pool2d(t, size)).pow(2).mean(
                (1, 2, 3)
            )
        return value / whole

    def plain_variational(s: Tensor) -> Tensor:
        v = (functional.softplus(raw) + 1e-5).view(1, -1, 1, 1)
        return (0.5 * ((s - t) ** 2 / v + v.log())).mean((1, 2, 3))

    def plain_boundaries(s: Tensor) -> Tensor:
        low = (s + 1) ** 2 * ((s > -1) & (t <= 0))
        return (low + (s - 1) ** 2 * ((s <= 1) & (t > 0))).sum((1, 2, 3))

    def plain_partial(s: Tensor) -> Tensor:
        u = torch.max(t, margins.view(1, -1, 1, 1))
        return (functional.mse_loss(s, u, reduction="none") * ((s > u) | (u > 0)).float()).sum((1, 2, 3))

    def plain_factors(s: Tensor) -> Tensor:
        return (functional.normalize(s.flatten(1)) - functional.normalize(t.flatten(1))).abs().mean(1)

    plain_mse: Loss = lambda s: functional.mse_loss(s, t, reduction="none").mean((1, 2, 3))  # noqa: E731
    yield "layers.hint", s, lambda s: layers.hint(s, t), plain_mse
    yield "layers.feature_alignment", s, lambda s: layers.feature_alignment(s, t), plain_mse
    yield "layers.hierarchical_context", s, lambda s: layers.hierarchical_context(s, t), plain_levels
    yield "layers.variational_information", s, lambda s: layers.variational_information(s, t, raw_variances=raw), plain_variational
    yield "layers.activation_boundaries", s, lambda s: layers.activation_boundaries(s, t), plain_boundaries
    yield "layers.partial_distance", s, lambda s: layers.partial_distance(s, t, margins=margins), plain_partial
    yield "layers.factor_transfer", s, lambda s: layers.factor_transfer(s, t), plain_factors


def on_channels() -> Iterator[Comparison]:
    """Where and how channels are active: [64, 64, 16, 16]."""
    s, t = (numbers(64, 64, 16, 16, seed=seed) for seed in (0, 1))

    def plain_attention(s: Tensor) -> Tensor:
        mine, theirs = (functional.normalize(each.pow(2).mean(1).flatten(1)) for each in (s, t))
        return (mine - theirs).pow(2).mean(1)

    def plain_classes(s: Tensor) -> Tensor:
        mine, theirs = (functional.normalize(functional.adaptive_avg_pool2d(each, 2).flatten(2), dim=2) for each in (s, t))
        return (mine - theirs).pow(2).mean((1, 2))

    def plain_selectivity(s: Tensor) -> Tensor:
        x, y = (functional.normalize(each.flatten(2), dim=2) for each in (s, t))
        kernels = [torch.einsum("bcp,bdp->bcd", a, b).pow(2).mean((1, 2)) for a, b in ((x, x), (y, y), (x, y))]
        return kernels[0] + kernels[1] - 2 * kernels[2]

    def plain_broadcast(s: Tensor) -> Tensor:
        """RepDistiller's way: every pair of channels times every position."""
        x, y = (functional.normalize(each[:8].flatten(2), dim=2) for each in (s, t))
        kernels = [(a[:, :, None] * b[:, None]).sum(-1).pow(2).mean((1, 2)) for a, b in ((x, x), (y, y), (x, y))]
        return kernels[0] + kernels[1] - 2 * kernels[2]

    def plain_correlation(s: Tensor) -> Tensor:
        mine, theirs = (functional.normalize(each.flatten(2) @ each.flatten(2).mT, dim=2) for each in (s, t))
        return (mine - theirs).pow(2).sum((1, 2)) / s.shape[1]

    def plain_flow(s: Tensor) -> Tensor:
        mine, theirs = (torch.einsum("bchw,bdhw->bcd", each, each.roll(1, 1)) / 256 for each in (s, t))
        return (mine - theirs).pow(2).mean((1, 2))

    def plain_distribution(s: Tensor) -> Tensor:
        p, q = (s / 4).flatten(2).log_softmax(2), (t / 4).flatten(2).softmax(2)
        return functional.kl_div(p, q, reduction="none").sum(2).mean(1) * 16

    def plain_pixels(s: Tensor) -> Tensor:
        return functional.kl_div((s / 2).log_softmax(1), (t / 2).softmax(1), reduction="none").sum(1).mean((1, 2)) * 4

    yield "attention_maps.attention_transfer", s, lambda s: attention_maps.attention_transfer(s, t), plain_attention
    yield "attention_maps.class_attention", s, lambda s: attention_maps.class_attention(s, t), plain_classes
    yield "channels.neuron_selectivity", s, lambda s: channels.neuron_selectivity(s, t), plain_selectivity
    yield "channels.neuron_selectivity, 8 rows, broadcast", s, lambda s: channels.neuron_selectivity(s[:8], t[:8]), plain_broadcast
    yield "channels.channel_correlation", s, lambda s: channels.channel_correlation(s, t), plain_correlation
    yield "channels.solution_flow", s, lambda s: channels.solution_flow((s, s.roll(1, 1)), (t, t.roll(1, 1))), plain_flow
    yield "dense.channel_distribution", s, lambda s: dense.channel_distribution(s, t), plain_distribution
    yield "dense.pixel_soft_target", s, lambda s: dense.pixel_soft_target(s, t, temperature=2.0), plain_pixels


def on_rows() -> Iterator[Comparison]:
    """Relations and contrast: [256, 128], and [64, 64, 16, 16] for similarities."""
    maps, their_maps = (numbers(64, 64, 16, 16, seed=seed) for seed in (0, 1))
    s, t = (numbers(256, 128, seed=seed) for seed in (0, 1))

    def plain_similarity(s: Tensor) -> Tensor:
        mine, theirs = (functional.normalize(each.flatten(1) @ each.flatten(1).T) for each in (s, their_maps))
        return (mine - theirs).pow(2).mean(1)

    def plain_distance(s: Tensor) -> Tensor:
        mine, theirs = ((each[:, None] - each).square().sum(2).clamp_min(1e-12).sqrt() for each in (s, t))
        mine, theirs = (each / each[each > 1e-5].mean() for each in (mine, theirs))
        return functional.smooth_l1_loss(mine, theirs, reduction="none").mean(1)

    def plain_angle(s: Tensor) -> Tensor:
        ways = [functional.normalize(each[None] - each[:, None], dim=2) for each in (s, t)]
        mine, theirs = (torch.bmm(each, each.mT) for each in ways)
        return functional.smooth_l1_loss(mine, theirs, reduction="none").mean((1, 2))

    def plain_probabilities(s: Tensor) -> Tensor:
        mine, theirs = (each / (each.norm(dim=1, keepdim=True) + 1e-7) for each in (s, t))
        mine, theirs = ((each @ each.T + 1) / 2 for each in (mine, theirs))
        mine, theirs = (each / each.sum(1, keepdim=True) for each in (mine, theirs))
        return (theirs * ((theirs + 1e-7) / (mine + 1e-7)).log()).mean(1)

    def plain_congruence(s: Tensor) -> Tensor:
        mine, theirs = (functional.normalize(each) @ functional.normalize(each).T for each in (s, t))
        mine, theirs = (math.exp(-0.8) * (1 + 0.8 * each + 0.32 * each**2) for each in (mine, theirs))
        return (mine - theirs).pow(2).mean(1)

    def plain_contrast(s: Tensor) -> Tensor:
        logits = functional.normalize(s) @ functional.normalize(t).T / 0.07
        return functional.cross_entropy(logits, torch.arange(len(s)), reduction="none")

    yield "relations.similarity_preserving", maps, lambda s: relations.similarity_preserving(s, their_maps), plain_similarity
    yield "relations.relational_distance", s, lambda s: relations.relational_distance(s, t), plain_distance
    yield "relations.relational_angle", s, lambda s: relations.relational_angle(s, t), plain_angle
    yield "relations.probabilistic_transfer", s, lambda s: relations.probabilistic_transfer(s, t), plain_probabilities
    yield "relations.correlation_congruence", s, lambda s: relations.correlation_congruence(s, t), plain_congruence
    yield "contrastive.in_batch_contrast", s, lambda s: contrastive.in_batch_contrast(s, t), plain_contrast


def on_pairs() -> Iterator[Comparison]:
    """Images and texts [256, 128] each; CRD with 64 rows, 1024 negatives and 50,000 entries."""
    s, t = (numbers(2, 256, 128, seed=seed) for seed in (0, 1))
    anchors, theirs = (functional.normalize(numbers(64, 128, seed=seed), dim=1) for seed in (2, 3))
    bank, other = (functional.normalize(numbers(50_000, 128, seed=seed), dim=1) for seed in (4, 5))
    places = torch.randint(50_000, (64, 1025), generator=torch.Generator().manual_seed(6))

    def plain_interaction(s: Tensor) -> Tensor:
        (mi, mt), (ti, tt) = functional.normalize(s, dim=2), functional.normalize(t, dim=2)
        target = torch.arange(256)
        ways = [functional.cross_entropy(a @ b.T / 0.07, target, reduction="none") for a, b in ((mi, tt), (mt, ti))]
        return (ways[0] + ways[1]) / 2

    def plain_relation(s: Tensor) -> Tensor:
        (mi, mt), (ti, tt) = functional.normalize(s, dim=2), functional.normalize(t, dim=2)
        ours, target = mi @ mt.T / 0.07, ti @ tt.T / 0.07
        ways = [functional.kl_div(a.log_softmax(1), b.softmax(1), reduction="none").sum(1) for a, b in ((ours, target), (ours.T, target.T))]
        return (ways[0] + ways[1]) / 2

    def plain_estimation(s: Tensor) -> Tensor:
        noise, value = 1024 / 50_000, torch.zeros(64)
        for anchor, entries in ((s, other), (theirs, bank)):
            p = torch.exp(torch.bmm(entries[places], anchor[:, :, None]).squeeze(2) / 0.5 - 11)
            value = value - (p[:, 0] / (p[:, 0] + noise + 1e-7)).log() - (noise / (p[:, 1:] + noise + 1e-7)).log().sum(1)
        return value

    def estimation(s: Tensor) -> Tensor:
        constants = {"student_log_partition": 11.0, "teacher_log_partition": 11.0}
        given = {"student_bank": bank, "teacher_bank": other, "positions": places, "temperature": 0.5}
        return contrastive.contrastive_representation(s, theirs, **given, **constants)  # type: ignore[arg-type]

    yield "contrastive.interactive_contrast", s, lambda s: contrastive.interactive_contrast((s[0], s[1]), (t[0], t[1])), plain_interaction
    yield "contrastive.contrastive_relation", s, lambda s: contrastive.contrastive_relation((s[0], s[1]), (t[0], t[1])), plain_relation
    yield "contrastive.contrastive_representation", anchors, estimation, plain_estimation


def on_text() -> Iterator[Comparison]:
    """Embeddings [256, 128], hidden states [16, 128, 384] with 12 heads, scores [8, 12, 128, 128]."""
    s, t = (numbers(256, 128, seed=seed) for seed in (0, 1))
    hidden, their_hidden = (numbers(16, 128, 384, seed=seed) for seed in (2, 3))
    scores, their_scores = (numbers(8, 12, 128, 128, seed=seed) * 9 for seed in (4, 5))
    layers_of, their_layers = (numbers(256, 6, 384, seed=seed) for seed in (6, 7))
    mask = torch.arange(128) < torch.linspace(32, 128, 16)[:, None]

    def plain_margin(s: Tensor) -> Tensor:
        return ((s[:, :1] - s[:, 1:]) - (t[:, :1] - t[:, 1:])).pow(2).mean(1)

    def plain_patient(s: Tensor) -> Tensor:
        return (functional.normalize(s, dim=2) - functional.normalize(their_layers, dim=2)).pow(2).sum((1, 2))

    def plain_hidden_mse(s: Tensor) -> Tensor:
        values = functional.mse_loss(s.masked_fill(~mask[..., None], 0), their_hidden, reduction="none").mean(2)
        return (values * mask).sum(1) / mask.sum(1)

    def plain_hidden_cosine(s: Tensor) -> Tensor:
        values = 1 - functional.cosine_similarity(s.masked_fill(~mask[..., None], 0), their_hidden, dim=2)
        return (values * mask).sum(1) / mask.sum(1)

    def plain_looks(states: Tensor) -> Tensor:
        heads = states.unflatten(2, (12, 32)).transpose(1, 2)
        return (heads @ heads.mT / math.sqrt(32)).masked_fill(~mask[:, None, None], -1e4)

    def plain_relation(s: Tensor) -> Tensor:
        p, q = plain_looks(s).log_softmax(3), plain_looks(their_hidden).softmax(3)
        values = functional.kl_div(p, q, reduction="none").sum(3) * mask[:, None]
        return values.sum((1, 2)) / (12 * mask.sum(1))

    def plain_scores(s: Tensor) -> Tensor:
        mine, theirs = (torch.where(each <= -100, torch.zeros_like(each), each) for each in (s, their_scores))
        return (mine - theirs).pow(2).mean((1, 2, 3))

    def distribution(s: Tensor) -> Tensor:
        return attentions.attention_distribution((s, s), (their_hidden, their_hidden), heads=12, mask=mask)

    cosine: Loss = lambda s: 1 - functional.cosine_similarity(s, t)  # noqa: E731
    yield "embeddings.embedding_cosine", s, lambda s: embeddings.embedding_cosine(s, t), cosine
    yield (
        "embeddings.embedding_mse",
        s,
        lambda s: embeddings.embedding_mse(s, t),
        lambda s: functional.mse_loss(s, t, reduction="none").mean(1),
    )
    yield "embeddings.score_margin", s, lambda s: embeddings.score_margin(s, t), plain_margin
    yield "embeddings.patient_hidden", layers_of, lambda s: embeddings.patient_hidden(s, their_layers), plain_patient
    yield "embeddings.hidden_mse", hidden, lambda s: embeddings.hidden_mse(s, their_hidden, mask=mask), plain_hidden_mse
    yield "embeddings.hidden_cosine", hidden, lambda s: embeddings.hidden_cosine(s, their_hidden, mask=mask), plain_hidden_cosine
    yield "attentions.self_relation", hidden, lambda s: attentions.self_relation(s, their_hidden, heads=12, mask=mask), plain_relation
    yield "attentions.attention_distribution", hidden, distribution, plain_relation
    yield "attentions.attention_scores", scores, lambda s: attentions.attention_scores(s, their_scores), plain_scores


def step(loss: Loss, student: Tensor) -> None:
    """One forward and backward."""
    student.grad = None
    loss(student).mean().backward()


def seconds(loss: Loss, student: Tensor) -> float:
    """Time of one forward and backward."""
    start = time.perf_counter()
    step(loss, student)
    return time.perf_counter() - start


def peak(loss: Loss, student: Tensor) -> float:
    """Most bytes that were handed out and not yet given back during one forward and backward, in MiB."""
    student.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss(student).mean().backward()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / 2**20


def main() -> int:
    """Print the table."""
    torch.set_num_threads(1)
    rounds, slow = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS, 0
    print(f"torch {torch.__version__}, float32, one CPU thread, medians of {rounds} alternating rounds, milliseconds; peaks in MiB")
    print(f"{'loss':48} {'shape':>18} {'understudy':>10} {'plain':>8} {'ratio':>6} {'peak':>7} {'plain':>7}")
    for group in (on_layers, on_channels, on_rows, on_pairs, on_text):
        for name, given, ours, plain in group():
            leaf = given.clone().requires_grad_()
            torch.testing.assert_close(ours(leaf), plain(leaf), rtol=1e-4, atol=1e-5)
            for loss in (ours, plain):
                step(loss, leaf)
            times = [(seconds(ours, leaf), seconds(plain, leaf)) for _ in range(rounds)]
            mine, theirs = (statistics.median(column) * 1e3 for column in zip(*times, strict=True))
            ratio = statistics.median(first / second for first, second in times)
            slow += ratio > LIMIT
            memory = f"{peak(ours, leaf):7.1f} {peak(plain, leaf):7.1f}"
            mark = f"  above {LIMIT}" if ratio > LIMIT else ""
            print(f"{name:48} {list(given.shape)!s:>18} {mine:10.2f} {theirs:8.2f} {ratio:6.2f} {memory}{mark}", flush=True)
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
