"""A server as a teacher: any endpoint that speaks OpenAI's chat completions, asked about each row of a table (or text) once.

Three kinds of answer: the log-probabilities of the first token (`logprobs`), one class in words (`label`), or the shares of
several such answers (`votes`). Every reply is kept on disk under the hash of its request, so the teacher answers the same
whatever is asked beside a row, and a run that was stopped pays for nothing twice.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, final
from urllib.parse import urlsplit

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from understudy.adapters._loading import existing
from understudy.adapters._remote import Asker, Budget, Cache, Pace, Request
from understudy.adapters._replies import (
    PARSING,
    AskFor,
    Reply,
    check_prompt,
    choose_options,
    columns_of,
    default_prompt,
    fields_of,
    fill,
    instruction,
    read_label,
    read_logprobs,
    shares,
)
from understudy.answers import to_logits
from understudy.data.rows import Rows
from understudy.errors import TeacherError, did_you_mean
from understudy.signals import LOGITS, Signals
from understudy.tasks import Task
from understudy.teachers import digest

FIRST = 16
"""Requests made before it is looked at whether any of the answers can be used."""


class ApiOptions(BaseModel):
    """`[teacher.options]` of a remote teacher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, description="the model's name at the server")
    prompt: str | None = Field(None, description="text with {column} fields; every column on a line when there is none")
    prompt_file: str | None = Field(None, description="a file that holds the prompt")
    answer: Literal["logprobs", "label", "votes"] = Field("logprobs", description="how an answer becomes a distribution")
    ask_for: AskFor = Field("letters", description="lettered options, or the class names themselves")
    samples: int = Field(5, ge=2, description="votes: answers per row")
    smoothing: float = Field(0.0, ge=0, description="votes: added to the count of every class; 1 is Laplace's rule")
    top_logprobs: int = Field(20, ge=1, description="logprobs: most probable tokens that are asked for")
    min_mass: float = Field(0.5, ge=0, le=1, description="logprobs: least probability of all options together; below is no answer")
    temperature: float | None = Field(None, ge=0, description="of the server's sampling: 1 for votes, else 0")
    max_tokens: int | None = Field(None, ge=1, description="longest answer: 1 for logprobs, else 16 (32 for names)")
    body: dict[str, Any] = Field(default_factory=dict, description="further fields of every request")
    key_env: str | None = Field(None, description="environment variable that holds the key")
    concurrency: int = Field(8, ge=1, description="requests under way at once")
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    attempts: int = Field(6, ge=1, description="of one request, while the error may pass")
    timeout_ms: float = Field(60_000, gt=0, description="for one attempt")
    backoff_ms: float = Field(500, ge=0, description="bound of the first random wait; it doubles")
    max_backoff_ms: float = Field(30_000, ge=0)
    max_wait_ms: float = Field(600_000, ge=0, description="longest Retry-After that is waited for")
    price_prompt: float | None = Field(None, ge=0, description="per million tokens sent")
    price_completion: float | None = Field(None, ge=0, description="per million tokens received")
    max_cost: float | None = Field(None, ge=0, description="stops before more than this is spent, earlier runs included")
    max_missing: float = Field(0.05, ge=0, lt=1, description="largest share of rows that may stay without an answer")
    cache: str | None = Field(None, description="folder in which answers are kept; the run's own by default")


FREE_TO_CHANGE = (
    "key_env", "concurrency", "requests_per_minute", "tokens_per_minute", "attempts", "timeout_ms", "backoff_ms", "max_backoff_ms",
    "max_wait_ms", "price_prompt", "price_completion", "max_cost", "max_missing",
)  # fmt: skip
"""Options that change how the server is asked, not what it says: a run goes on with others."""


@final
class ApiTeacher:
    """A model behind a server, with the answers it gave. A row that it gave no readable answer to is NaN in every column."""

    def __init__(self, url: str, options: ApiOptions, *, task: Task, columns: list[str], cache: Path) -> None:
        self.name = f"{options.model} at {urlsplit(url).netloc}"
        self.classes = task.classes
        self.options = options
        self.task = task
        self._url = url
        self._choices = choose_options(task.classes, options.ask_for, first_token=options.answer == "logprobs")
        self._prompt = _prompt(options, columns)
        check_prompt(self._prompt, columns)
        self._instruction = instruction(task.classes, self._choices)
        self._samples = options.samples if options.answer == "votes" else 1
        file = cache / f"answers-{digest(url.encode(), options.model.encode())[:12]}.jsonl"
        self._asker = _asker(url, options, Cache(file, digest(json.dumps(self.fingerprint(), sort_keys=True).encode())))

    @property
    def max_missing(self) -> float:
        return self.options.max_missing

    @property
    def requests_sent(self) -> int:
        """Requests made by this object, repeated attempts included."""
        return self._asker.sent

    @property
    def spent(self) -> float:
        """What all kept answers cost, by the prices given."""
        return self._asker.spent

    def signals(self, inputs: Any) -> Signals:
        rows = self._requests(inputs)
        replies = self._asker.cache.replies
        wanted = list({request.key: request for row in rows for request in row if request.key not in replies}.values())
        self._ask(wanted)
        answers = np.full((len(rows), len(self.classes)), np.nan)
        for number, row in enumerate(rows):
            read = self._read([replies[request.key] for request in row])
            if read is not None:
                answers[number] = read
        said = torch.full(answers.shape, torch.nan)
        answered = torch.from_numpy(~np.isnan(answers).any(axis=1))
        said[answered] = to_logits(torch.from_numpy(answers)[answered], "probabilities", self.task)
        return {LOGITS: said}

    def quote(self, inputs: Any, further: int = 0) -> str:
        """How many requests these rows and `further` ones like them need, and what they would cost. Nothing is sent."""
        asker, rows = self._asker, self._requests(inputs)
        wanted = {request.key: request for row in rows for request in row}
        left = [request for key, request in wanted.items() if key not in asker.cache.replies]
        count = len(left) + further * self._samples
        told = f"{count:,} requests to {self._url} ({len(wanted) - len(left):,} more are answered already)"
        measured = len(asker.cache.replies)
        if measured:
            each = [side / measured for side in asker.cache.tokens]
            how = f"measured on {measured:,} answers"
        else:
            some = left or list(wanted.values())
            # text in the usual languages has about four bytes a token
            each = [sum(r.tokens[0] for r in some) / 4 / max(len(some), 1), float(some[0].tokens[1]) if some else 0.0]
            how = "estimated from the length of the prompts"
        told += f", about {count * each[0]:,.0f} tokens to send and {count * each[1]:,.0f} to receive, {how}"
        if self.options.price_prompt is None and self.options.price_completion is None:
            return told + "; no prices are given (teacher.options.price_prompt, price_completion), so the cost is not known"
        cost, most = asker.budget.cost([count * side for side in each]), self.options.max_cost
        told += f": cost about {cost:.4g}" + (f", {asker.spent:.4g} spent before" if measured else "")
        if most is None:
            return told + "; no max_cost is given"
        if asker.spent + cost > most:
            return told + f". That is more than max_cost = {most:g}: it will stop there and keep what it has"
        return told + f"; max_cost = {most:g}"

    def fingerprint(self) -> dict[str, str]:
        said = self.options
        return {
            "url": self._url,
            "model": said.model,
            "prompt": digest(self._prompt.encode(), self._instruction.encode()),
            "classes": digest(*(name.encode() for name in self.classes)),
            "answer": f"{said.answer}, {said.ask_for}, {self._samples} samples, smoothing {said.smoothing:g}, min_mass {said.min_mass:g}",
            "sampling": json.dumps(self._sampling(), sort_keys=True),
            "parsing": PARSING,
        }

    def parameters(self) -> None:
        return None

    def _sampling(self) -> dict[str, Any]:
        said = self.options
        first = said.answer == "logprobs"
        longest = said.max_tokens or (1 if first else 16 if said.ask_for == "letters" else 32)
        temperature = said.temperature if said.temperature is not None else float(said.answer == "votes")
        sampling: dict[str, Any] = {"temperature": temperature}
        if "max_completion_tokens" not in said.body:
            sampling["max_tokens"] = longest
        if first:
            sampling |= {"logprobs": True, "top_logprobs": said.top_logprobs}
        return sampling | said.body

    def _requests(self, inputs: Any) -> list[list[Request]]:
        """The requests of each row, one per sample."""
        columns = columns_of(inputs)
        lacking = [name for name in fields_of(self._prompt) if name not in columns]
        if lacking:
            raise TeacherError(f"the rows have no column {lacking[0]!r}; {did_you_mean(lacking[0], columns)}", code="U330")
        sampling = self._sampling()
        longest = int(sampling.get("max_tokens", sampling.get("max_completion_tokens", 0)))
        rows = []
        for row in range(len(inputs)):
            text = f"{fill(self._prompt, columns, row)}\n\n{self._instruction}"
            body = {"model": self.options.model, "messages": [{"role": "user", "content": text}], **sampling}
            whole = json.dumps([self._url, body], sort_keys=True).encode()
            # a token has at least one byte; 32 for what the server puts around a message
            tokens = (len(text.encode()) + 32, longest)
            rows.append([Request(digest(whole, str(sample).encode()), body, tokens) for sample in range(self._samples)])
        return rows

    def _ask(self, requests: list[Request]) -> None:
        """Ask, a few first while no answer could be used yet: a wrong recipe should cost little."""
        replies = self._asker.cache.replies
        while requests:
            proved = any(self._vote(reply) is not None for reply in replies.values())
            now = len(requests) if proved else FIRST
            self._asker.ask(requests[:now])
            if not proved and all(self._vote(replies[request.key]) is None for request in requests[:now]):
                raise TeacherError(
                    f"none of the first {len(requests[:now])} answers of {self.name} can be used. The first: "
                    f"{self._why(replies[requests[0].key])}. They are kept in {self._asker.cache.path}",
                    code="U338",
                )
            requests = requests[now:]

    def _read(self, replies: list[Reply]) -> np.ndarray[Any, Any] | None:
        if self.options.answer == "logprobs":
            return self._first_token(replies[0])
        return shares(
            [self._label(reply) for reply in replies],
            len(self.classes),
            smoothing=self.options.smoothing if self.options.answer == "votes" else 0.0,
        )

    def _vote(self, reply: Reply) -> Any:
        return self._first_token(reply) if self.options.answer == "logprobs" else self._label(reply)

    def _first_token(self, reply: Reply) -> np.ndarray[Any, Any] | None:
        return read_logprobs(reply["top"], self._choices, least=self.options.min_mass) if "top" in reply else None

    def _label(self, reply: Reply) -> int | None:
        return read_label(reply["text"], self._choices, self.classes) if "text" in reply else None

    def _why(self, reply: Reply) -> str:
        """Why this reply is no answer, in words."""
        if "problem" in reply:
            return f"{reply['problem']} ({reply['raw'][:120]!r})"
        if self.options.answer != "logprobs":
            return f"{reply['text'][:120]!r} names none of the classes, or several"
        if "top" not in reply:
            return "it has no logprobs; if this server gives none, set teacher.options.answer = 'votes' or 'label'"
        tokens = ", ".join(repr(token) for token, _ in reply["top"][:5])
        return f"its most probable first tokens are {tokens}, and the options {', '.join(self._choices)} hold less than min_mass"


def load(source: str, *, task: Task, rows: Rows, options: dict[str, Any], cache: Path | None) -> ApiTeacher:
    """The model behind an address such as https://host/v1; `cache` is where answers are kept unless the options say."""
    url = _address(source)
    if not task.single_label:
        raise TeacherError(
            f"a remote teacher gives one class per row; this task is {task.kind}. Give a function or predictions", code="U332"
        )
    said = _options(options)
    if said.max_cost is not None and said.price_prompt is None and said.price_completion is None:
        raise TeacherError(
            "teacher.options.max_cost needs the prices per million tokens: give price_prompt and price_completion", code="U330"
        )
    folder = Path(said.cache) if said.cache is not None else cache
    if folder is None:
        raise TeacherError("say in which folder answers are kept: teacher.options.cache = 'answers'", code="U330")
    return ApiTeacher(url, said, task=task, columns=list(columns_of(rows.take(slice(0, 1)).inputs)), cache=folder)


def _address(source: str) -> str:
    """The address to post to; it may hold no user, password or query, which could be secret."""
    parts = urlsplit(source)
    if not parts.hostname or parts.query or parts.fragment or "@" in parts.netloc:
        raise TeacherError(
            "teacher.source must be http(s)://host/path without user, password or query; a key belongs in the environment variable "
            "that teacher.options.key_env names",
            code="U330",
        )
    url = source.rstrip("/")
    return url if url.endswith("/chat/completions") else f"{url}/chat/completions"


def _options(given: dict[str, Any]) -> ApiOptions:
    try:
        return ApiOptions.model_validate(given)
    except ValidationError as error:
        told = []
        for found in error.errors():
            name = str(found["loc"][0])
            if found["type"] == "extra_forbidden":
                told.append(f"{name}: unknown option; {did_you_mean(name, ApiOptions.model_fields)}")
            else:
                told.append(f"{name}: {'missing' if found['type'] == 'missing' else found['msg']}")
        raise TeacherError("\n  ".join(["teacher.options of a remote teacher:", *told]), code="U330") from None


def _prompt(said: ApiOptions, columns: list[str]) -> str:
    if said.prompt is not None and said.prompt_file is not None:
        raise TeacherError("teacher.options has prompt and prompt_file; give one", code="U330")
    if said.prompt_file is None:
        return said.prompt if said.prompt is not None else default_prompt(columns)
    return existing(said.prompt_file).read_text(encoding="utf-8").strip()


def _asker(url: str, said: ApiOptions, cache: Cache) -> Asker:
    return Asker(
        url=url,
        secret=None if said.key_env is None else _key(said.key_env),
        cache=cache,
        budget=Budget(said.price_prompt or 0.0, said.price_completion or 0.0, said.max_cost),
        pace=Pace(said.requests_per_minute, said.tokens_per_minute),
        concurrency=said.concurrency,
        attempts=said.attempts,
        timeout=said.timeout_ms / 1000,
        backoff=said.backoff_ms / 1000,
        longest_backoff=said.max_backoff_ms / 1000,
        longest_wait=said.max_wait_ms / 1000,
    )


def _key(name: str) -> str:
    key = os.environ.get(name, "").strip()
    if not key:
        raise TeacherError(f"the environment variable {name} (teacher.options.key_env) is not set; export it with the key", code="U331")
    if not key.isascii() or not key.isprintable():
        raise TeacherError(f"what the environment variable {name} holds cannot be a key: it is not plain characters", code="U331")
    return key
