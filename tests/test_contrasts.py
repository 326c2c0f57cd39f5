"""The memory bank: found by key, drawn by seed, blended as published, and the same after a resume."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from understudy.contrasts import MemoryBank
from understudy.data.keys import content_keys
from understudy.errors import InputError
from understudy.losses.contrastive import contrastive_representation, log_partition

GOLDEN = Path(__file__).parent / "golden" / "crd_nce.npz"


def keys_of(rows: int) -> Tensor:
    return torch.from_numpy(content_keys(pd.DataFrame({"x": np.arange(rows)}), "table"))


def bank_of(rows: int = 30, **options: object) -> MemoryBank:
    return MemoryBank(keys_of(rows), 4, **{"seed": 3, **options})  # type: ignore[arg-type]


def test_rows_are_found_by_key_whatever_the_order() -> None:
    keys = keys_of(500)
    bank = MemoryBank(keys, 2, seed=0)
    mixed = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(bank.keys[bank.positions(keys[mixed])], keys[mixed])
    again = MemoryBank(keys[mixed], 2, seed=0)
    assert torch.equal(again.positions(keys), bank.positions(keys))


def test_keys_that_share_a_half_are_told_apart() -> None:
    halves = torch.tensor([-(2**63), -1, 0, 1, 2**63 - 1])
    keys = torch.cartesian_prod(halves, halves)
    bank = MemoryBank(keys, 2, seed=0)
    assert torch.equal(bank.keys[bank.positions(keys)], keys)
    assert torch.equal(bank.positions(bank.keys), torch.arange(25))


@pytest.mark.parametrize("missing", [[5, 5], [1, 2], [2**63 - 1, 0], [-(2**63), 1]])
def test_a_row_that_is_not_there_is_refused(missing: list[int]) -> None:
    bank = MemoryBank(torch.tensor([[1, 1], [2, 2], [5, 1]]), 2, seed=0)
    with pytest.raises(InputError, match="1 of 2 rows are not in the memory bank of 3 rows. Make the bank from") as caught:
        bank.positions(torch.tensor([[2, 2], missing]))
    assert caught.value.code == "U316"


def test_negatives_are_all_other_rows_alike() -> None:
    bank = bank_of(6)
    drawn = bank.draw(torch.tensor([0, 2, 5]), 20_000)
    assert torch.equal(drawn[:, 0], torch.tensor([0, 2, 5]))
    for row, own in enumerate((0, 2, 5)):
        shares = torch.bincount(drawn[row, 1:], minlength=6) / 20_000
        assert shares[own] == 0
        torch.testing.assert_close(shares[torch.arange(6) != own], torch.full((5,), 0.2), rtol=0, atol=0.02)


def test_negatives_are_of_other_classes_where_classes_are_known() -> None:
    keys = keys_of(9)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 0])
    bank = MemoryBank(keys, 2, seed=0, labels=labels)
    positions = bank.positions(keys)
    by_position = torch.empty_like(labels)
    by_position[positions] = labels
    drawn = bank.draw(positions, 5_000)[:, 1:]
    assert (by_position[drawn] != labels[:, None]).all()
    for row, label in enumerate(labels):
        assert len(drawn[row].unique()) == int((labels != label).sum())


def test_draws_depend_on_the_seed_and_on_how_many_came_before() -> None:
    first, second, other = bank_of(), bank_of(), bank_of(seed=4)
    here = torch.arange(5)
    one, two = first.draw(here, 50), first.draw(here, 50)
    torch.rand(7)  # the global random state has no say
    assert torch.equal(second.draw(here, 50), one)
    assert torch.equal(second.draw(here, 50), two)
    assert not torch.equal(one, two)
    assert not torch.equal(other.draw(here, 50), one)
    assert not torch.equal(other.embeddings, first.embeddings)


def test_embeddings_start_apart_and_of_length_one() -> None:
    embeddings = bank_of(50).embeddings
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(50))
    assert torch.cdist(embeddings, embeddings).fill_diagonal_(9).min() > 0.01


def test_a_bank_goes_on_where_it_was_saved(tmp_path: Path) -> None:
    bank = bank_of()
    here = torch.arange(6)
    bank.draw(here, 8)
    bank.update(here, torch.ones(6, 4))
    bank.partition(lambda: torch.tensor(2.5))
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    expected = copy.deepcopy(bank).draw(here, 8)
    resumed = bank_of(seed=3)
    resumed.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    assert torch.equal(resumed.embeddings, bank.embeddings)
    assert torch.equal(resumed.draw(here, 8), expected)
    assert resumed.partition(lambda: torch.tensor(9.0)).item() == 2.5
    assert torch.equal(resumed.positions(bank.keys), torch.arange(30))


def test_nothing_of_it_is_a_parameter() -> None:
    assert list(bank_of().parameters()) == []


def test_published_updates_of_the_bank() -> None:
    with np.load(GOLDEN, allow_pickle=False) as held:
        for case in range(int(held["n_cases"])):
            own = torch.from_numpy(held[f"sample_idx_{case}"])[:, 0]
            for side in ("student", "teacher"):
                there = torch.from_numpy(held[f"{side}_bank_{case}"])
                keys = torch.arange(len(there))[:, None].repeat(1, 2)
                bank = MemoryBank(keys, there.shape[1], seed=0, momentum=held[f"momentum_{case}"].item()).double()
                bank.embeddings.copy_(there)
                bank.update(own, torch.from_numpy(held[f"{side}_embeddings_{case}"]))
                expected = torch.from_numpy(held[f"{side}_bank_updated_{case}"])
                torch.testing.assert_close(bank.embeddings, expected, rtol=1e-12, atol=1e-12)


def test_a_student_learns_from_the_banks_to_find_its_own_row() -> None:
    """Forty steps as a term would make them; the partition is that of the first batch."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.nn.functional.normalize(torch.randn(30, 4, generator=generator), dim=1)
    student = torch.randn(30, 4, generator=generator).requires_grad_()
    ours, theirs = bank_of(), bank_of()
    optimizer = torch.optim.SGD([student], lr=1.0)
    losses = []
    for _ in range(40):
        embeddings = torch.nn.functional.normalize(student, dim=1)
        here = torch.arange(30)
        candidates = ours.draw(here, 16)
        partitions = {
            "student_log_partition": theirs.partition(
                lambda e=embeddings, c=candidates: log_partition(e, theirs.embeddings, c, temperature=0.3)
            ),
            "teacher_log_partition": ours.partition(lambda c=candidates: log_partition(teacher, ours.embeddings, c, temperature=0.3)),
        }
        rows = contrastive_representation(
            embeddings,
            teacher,
            student_bank=ours.embeddings.clone(),
            teacher_bank=theirs.embeddings.clone(),
            positions=candidates,
            temperature=0.3,
            **partitions,
        )
        optimizer.zero_grad()
        rows.mean().backward()
        optimizer.step()
        ours.update(here, embeddings.detach())
        theirs.update(here, teacher)
        losses.append(rows.mean().item())
    assert losses[-1] < 0.8 * losses[0]
    assert torch.nn.functional.cosine_similarity(student, teacher).mean() > 0.5


@pytest.mark.parametrize(
    ("keys", "options", "code", "said"),
    [
        (torch.zeros(3, 2), {}, "U315", r"keys must be int64 \[entries, 2\].*they are \[3, 2\] of float32"),
        (torch.zeros(3, dtype=torch.int64), {}, "U315", r"they are \[3\] of int64"),
        (torch.tensor([[1, 1], [1, 1], [2, 1]]), {}, "U315", "1 of 3 keys are there twice. Give each row once"),
        (torch.tensor([[1, 1], [2, 1]]), {"labels": torch.zeros(3)}, "U315", r"one class per key: 2 keys, labels \[3\]"),
        (torch.tensor([[1, 1], [2, 1]]), {"momentum": 1.0}, "U315", r"below 1 \(got 1\): at 1 the bank would never change"),
        (torch.tensor([[1, 1], [2, 1]]), {"labels": torch.zeros(2)}, "U317", "2 rows of one class, so that no row has a negative"),
        (torch.tensor([[1, 1]]), {}, "U317", "1 rows of one class"),
    ],
)
def test_what_cannot_be_a_bank_is_refused(keys: Tensor, options: dict[str, object], code: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        MemoryBank(keys, 4, **{"seed": 0, **options})  # type: ignore[arg-type]
    assert caught.value.code == code
