"""Language models as teachers of a classification: `hf:PLACE` with a prompt, and for each class the words that say it.

The class whose words are likeliest after the prompt is the answer; nothing is generated. Every score is the log-likelihood of
the words, a sum over their tokens or, with `normalise`, their mean, so that classes with long names are not at a loss. All words of one
token are read from one pass over the prompt; longer ones share the passes over what they have in common.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from understudy.adapters._hugging_face import checked, is_decoder, longest, read_model, read_tokenizer, tokenizer_file
from understudy.adapters._loading import file_digest
from understudy.adapters._pretrained import folder_of
from understudy.errors import TeacherError, did_you_mean
from understudy.tasks import Task
from understudy.teachers import TorchTeacher

Array = np.ndarray[Any, Any]

OPTIONS = ("prompt", "verbalisers", "normalise", "max_length", "batch_size")


def load(
    place: str,
    *,
    task: Task,
    pairs: bool = False,
    pretrained: bool = False,
    options: dict[str, Any] | None = None,
    device: str | None = None,
) -> TorchTeacher:
    """The language model in a folder, asked by `options.prompt`.

    TeacherError U386 for a prompt that cannot be asked, U387 for words that do not tell the classes apart, U388 for other tasks and models.
    """
    said = checked(options, OPTIONS, place)
    if not task.single_label:
        raise TeacherError(
            f"teacher.options.prompt: a language model is asked which one class a text has, and the task is {task.kind}; make vectors "
            "of it with a head fitted on the labels: teacher.options.pooling = 'last'",
            code="U388",
        )
    template = _checked_template(str(said.get("prompt", "")), pairs)
    folder = folder_of(place, pretrained=pretrained)
    if not is_decoder(folder, place):
        raise TeacherError(
            f"{place} is no language model that reads from left to right, so no words follow its prompt; {_decoders()}", code="U388"
        )
    model = read_model(folder, place, "AutoModelForCausalLM", what="a language model", advice="Save the model with its language head")
    tokenizer = read_tokenizer(folder, place, any_padding=True)
    stem = template.rstrip(" ")
    words = _words(task, said.get("verbalisers"), between=template[len(stem) :], newline=stem[-1:].isspace())
    tails = [_tail(tokenizer, stem, said) for said in words]
    _refuse_alike(task, words, tails)
    scores = _Scores(model, tails, normalise=bool(said.get("normalise", False)))
    room = int(said.get("max_length") or longest(model, tokenizer)) - scores.kept
    prepare = PromptPreparation(tokenizer, stem, scores.sequences, room, file_digest(tokenizer_file(folder)))
    needed = len(prepare.tokens([prepare.filled([""] * (1 + pairs))])[0])
    if needed >= room:
        told = f"takes {needed} tokens without a text, and {place} reads {max(room, 0)} beside the words of the classes"
        raise TeacherError(f"teacher.options.prompt {told}; shorten it", code="U386")
    return TorchTeacher(
        scores, task=task, classes=task.classes, prepare=prepare, name=place, batch_size=int(said.get("batch_size", 16)), device=device
    )


def _decoders() -> str:
    return "give one such as GPT-2 or Llama, or teacher.options.pooling = 'mean' for vectors with a head fitted on the labels"


def _checked_template(template: str, pairs: bool) -> str:
    """The prompt, when it says where a text goes."""
    wanted = ["{first}", "{second}"] if pairs else ["{text}"]
    absent = [name for name in wanted if name not in template]
    if absent:
        example = "'{first}\\nSame as: {second}\\nAnswer:'" if pairs else "'{text}\\nTopic:'"
        told = f"teacher.options.prompt = {template!r} has no {' and no '.join(absent)}, where a row's text goes"
        raise TeacherError(f"{told}; write it as in {example}", code="U386")
    return template


def _words(task: Task, given: Any, *, between: str, newline: bool) -> list[str]:
    """What says each class after the prompt: the words given for it, or a space and its name."""
    if given is None:
        space = between or ("" if newline else " ")
        return [space + name for name in task.classes]
    if not isinstance(given, dict):
        raise TeacherError("teacher.options.verbalisers names words for each class: { sport = ' sport', money = ' money' }", code="U387")
    strange = next((name for name in given if name not in task.classes), None)
    if strange is not None:
        raise TeacherError(f"teacher.options.verbalisers: no class {strange!r}; {did_you_mean(strange, task.classes)}", code="U387")
    absent = [name for name in task.classes if not str(given.get(name, "")).strip()]
    if absent:
        shown = ", ".join(map(repr, absent[:6])) + (f" and {len(absent) - 6} more" if len(absent) > 6 else "")
        told = f"teacher.options.verbalisers has words for {len(task.classes) - len(absent)} of {len(task.classes)} classes"
        fix = "Give words for each, or leave the option out to use the classes' names"
        raise TeacherError(f"{told}; missing: {shown}. {fix}", code="U387")
    return [between + str(given[name]) for name in task.classes]


def _tail(tokenizer: Any, stem: str, words: str) -> list[int]:
    """The tokens of these words where they stand after the prompt."""
    before = stem[max(stem.rfind("}") + 1, 0) :] or "a"
    alone = tokenizer(before, add_special_tokens=False)["input_ids"]
    both = tokenizer(before + words, add_special_tokens=False)["input_ids"]
    if both[: len(alone)] == alone and len(both) > len(alone):
        return [int(token) for token in both[len(alone) :]]
    return [int(token) for token in tokenizer(words, add_special_tokens=False)["input_ids"]]


def _refuse_alike(task: Task, words: Sequence[str], tails: Sequence[Sequence[int]]) -> None:
    """Words that are no tokens, or the same tokens as those of another class."""
    seen: dict[tuple[int, ...], str] = {}
    for name, said, tail in zip(task.classes, words, tails, strict=True):
        other = seen.setdefault(tuple(tail), name)
        if not tail or other != name:
            told = "are no token of its vocabulary" if not tail else f"are the same tokens as those of {other!r}"
            fix = "give other words in teacher.options.verbalisers"
            raise TeacherError(f"the words {said!r} for the class {name!r} {told}; {fix}", code="U387")


@final
class PromptPreparation(nn.Module):
    """Texts in their prompt to int64 [rows, sequences, length]: the prompt and then each of `sequences`; -1 fills up on the left."""

    def __init__(self, tokenizer: Any, template: str, sequences: Sequence[Sequence[int]], room: int, content: str) -> None:
        super().__init__()
        self.tokenizer, self.template, self.sequences, self.room, self.content = tokenizer, template, sequences, room, content

    def forward(self, inputs: Any) -> Tensor:
        rows = np.asarray(inputs, dtype=object)
        rows = rows.reshape(len(rows), -1)
        prompts = self.tokens([self.filled(row) for row in rows.tolist()])
        prompts = [each if len(each) <= self.room else self._shortened(rows[at].tolist(), each) for at, each in enumerate(prompts)]
        whole = [[*each, *tail] for each in prompts for tail in self.sequences]
        counts = np.array([len(each) for each in whole], dtype=np.int64)
        most = int(counts.max(initial=1))
        packed = np.full((len(whole), most), -1, dtype=np.int64)
        packed[np.arange(most) >= most - counts[:, None]] = [token for each in whole for token in each]
        return torch.from_numpy(packed.reshape(len(rows), len(self.sequences), most))

    def filled(self, texts: Sequence[str]) -> str:
        """The prompt with these texts in it."""
        if len(texts) == 1:
            return self.template.replace("{text}", texts[0])
        before, _, rest = self.template.partition("{first}")
        return "".join([before.replace("{second}", texts[1]), texts[0], rest.replace("{second}", texts[1])])

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each, with the marks that the model expects at a begin and without that of an end."""
        if not prompts:
            return []
        found = [list(each) for each in self.tokenizer(list(prompts))["input_ids"]]
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id} - {None}
        return [each[:-1] if len(each) > 1 and each[-1] in ends else each for each in found]

    def _shortened(self, texts: list[str], tokens: list[int]) -> list[int]:
        """The prompt with as much of its texts as there is room for: the texts are cut at their ends, never the prompt."""
        while len(tokens) > self.room and any(texts):
            share = self.room / len(tokens)
            texts = [text[: min(int(len(text) * share), max(len(text) - 1, 0))] for text in texts]
            tokens = self.tokens([self.filled(texts)])[0]
        return tokens

    def extra_repr(self) -> str:
        return f"tokenizer={self.content}, template={self.template!r}, room={self.room}"


@final
class _Scores(nn.Module):
    """A language model as a module from prompts, each followed by what its words begin with, to a log-likelihood for each class.

    The last token of no word is read, only foretold; so a sequence is all of a word but that, and words that begin alike share one.
    """

    def __init__(self, model: nn.Module, tails: Sequence[Sequence[int]], *, normalise: bool) -> None:
        super().__init__()
        self.model, self.normalise = model, normalise
        starts = {tuple(tail[:-1]) for tail in tails}
        self.sequences = sorted(one for one in starts if not any(other != one and other[: len(one)] == one for other in starts))
        longest_start = max(map(len, self.sequences))
        self.kept = longest_start + 1
        self.placed = "position_ids" in inspect.signature(type(model).forward).parameters
        most = max(map(len, tails))
        where = torch.zeros(3, len(tails), most, dtype=torch.int64)
        share = torch.zeros(len(tails), most)
        for at, tail in enumerate(tails):
            sequence = next(number for number, one in enumerate(self.sequences) if one[: len(tail) - 1] == tuple(tail[:-1]))
            places = longest_start - len(self.sequences[sequence]) + torch.arange(len(tail))
            where[:, at, : len(tail)] = torch.stack([torch.full((len(tail),), sequence), places, torch.tensor(list(tail))])
            share[at, : len(tail)] = 1 / len(tail) if normalise else 1.0
        self.register_buffer("where", where)
        self.register_buffer("share", share)

    def forward(self, packed: Tensor) -> Tensor:
        flat = packed.flatten(0, 1)
        there = (flat >= 0).long()
        given = {"input_ids": flat.clamp_min(0), "attention_mask": there}
        if self.placed:
            given["position_ids"] = (there.cumsum(dim=1) - 1).clamp_min(0)
        logits = self.model(**given, use_cache=False, logits_to_keep=self.kept).logits[:, -self.kept :].float()
        logits = logits.unflatten(0, packed.shape[:2])
        sequence, place, token = self.get_buffer("where")
        found = logits[:, sequence, place, token] - logits.logsumexp(dim=-1)[:, sequence, place]
        return (found * self.get_buffer("share")).sum(dim=-1)
