"""Asking a server many times: bounded, paced, patient, within a budget, and every answer kept on disk the moment it is there.

An answer with status 200 has been paid for: it is kept whatever it holds, and never asked for again. Errors that pass
(429, 5xx, lost connections, time-outs) are tried again; others stop the asking after what is under way has been kept.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, final

from understudy.adapters._loading import require
from understudy.adapters._replies import RAW_KEPT, Reply, read_body
from understudy.errors import TeacherError
from understudy.teachers import digest

if sys.platform != "win32":
    import fcntl

_PASSING = {408, 409, 425, 429}
_OF_THE_ROW = {400, 413, 422}
"""Statuses that may be about one row (too long, filtered); before any answer came they are taken to be about the recipe."""


@final
class Cache:
    """Replies by request, in a file that only grows: one line of JSON each, with its own check sum.

    A line that a crash left half-written, or that was damaged, is not believed: its request is asked again.
    """

    def __init__(self, path: Path, teacher: str) -> None:
        self.path = path
        self._teacher = teacher
        self._synced = 0.0
        self.replies: dict[str, Reply] = {}
        self.tokens = [0, 0]
        self.damaged = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise TeacherError(f"answers cannot be kept in {path}: {error.strerror}. Set teacher.options.cache", code="U337") from None
        self._load()

    def __del__(self) -> None:
        file, self._file = getattr(self, "_file", -1), -1
        if file >= 0:
            os.close(file)

    def keep(self, key: str, reply: Reply) -> None:
        """Append a reply: one write, so that a killed process leaves whole lines, on the disk within about a second."""
        line = json.dumps({"key": key, "teacher": self._teacher, "reply": reply, "check": _check(key, self._teacher, reply)}) + "\n"
        try:
            self._append(line.encode())
        except OSError as error:
            raise TeacherError(
                f"an answer cannot be kept in {self.path}: {error.strerror}; make room, the same command goes on", code="U337"
            ) from None
        self._count(key, reply)

    def sync(self, *, at_once: bool = True) -> None:
        """Bring what was appended to the disk."""
        if at_once or time.monotonic() - self._synced > 1:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def _append(self, line: bytes) -> None:
        if sys.platform != "win32":
            fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            size = os.fstat(self._file).st_size
            torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
            line = b"\n" * torn + line
            if os.write(self._file, line) != len(line):
                raise OSError(28, "no space left on the disk")
        finally:
            if sys.platform != "win32":
                fcntl.flock(self._file, fcntl.LOCK_UN)
        self.sync(at_once=False)

    def _load(self) -> None:
        for line in self.path.read_bytes().splitlines():
            try:
                said = json.loads(line)
                key, teacher, reply = said["key"], said["teacher"], said["reply"]
                sound = said["check"] == _check(key, teacher, reply)
            except (ValueError, KeyError, TypeError):
                sound = False
            if not sound:
                self.damaged += bool(line)
            elif teacher == self._teacher:
                self._count(key, reply)

    def _count(self, key: str, reply: Reply) -> None:
        self.replies[key] = reply
        for side in (0, 1):
            self.tokens[side] += reply["usage"][side]


def _check(key: str, teacher: str, reply: Reply) -> str:
    return digest(key.encode(), teacher.encode(), json.dumps(reply, sort_keys=True).encode())


@final
@dataclass
class Budget:
    """What may be spent, and what requests under way may yet cost; prices are per million tokens."""

    prompt_price: float
    completion_price: float
    most: float | None
    reserved: float = 0.0
    settled: asyncio.Condition | None = None

    def cost(self, tokens: Sequence[float]) -> float:
        """The price of tokens (prompt, completion)."""
        return (tokens[0] * self.prompt_price + tokens[1] * self.completion_price) / 1e6

    async def reserve(self, cost: float, spent: Callable[[], float]) -> bool:
        """Set aside the most a request can cost; waits for requests under way, False when it does not fit even alone."""
        assert self.settled is not None
        async with self.settled:
            while self.most is not None and spent() + self.reserved + cost > self.most + 1e-12:
                if self.reserved <= 1e-12:
                    return False
                await self.settled.wait()
            self.reserved += cost
        return True

    async def release(self, cost: float) -> None:
        """The request is over; what it cost is among what is spent."""
        assert self.settled is not None
        async with self.settled:
            self.reserved = max(self.reserved - cost, 0.0)
            self.settled.notify_all()


@final
@dataclass
class Pace:
    """Evenly spaced turns: so many requests, or tokens, a minute."""

    requests: float | None
    tokens: float | None
    following: float = 0.0

    async def turn(self, tokens: int) -> None:
        """Wait until a request of so many tokens may go."""
        now = time.monotonic()
        at = max(now, self.following)
        step = max(60 / self.requests if self.requests else 0.0, 60 * tokens / self.tokens if self.tokens else 0.0)
        self.following = at + step
        if at > now:
            await asyncio.sleep(at - now)

    def pause(self, seconds: float) -> None:
        """Nobody goes for a while."""
        self.following = max(self.following, time.monotonic() + seconds)


@final
@dataclass(frozen=True)
class Request:
    """A body to post, the key of its reply, and the most tokens it can have (prompt, completion)."""

    key: str
    body: dict[str, Any]
    tokens: tuple[int, int]


@final
@dataclass
class Asker:
    """Posts requests and keeps the replies. `secret` is sent in a header and taken out of everything that is kept or said."""

    url: str
    secret: str | None
    cache: Cache
    budget: Budget
    pace: Pace
    concurrency: int
    attempts: int
    timeout: float
    backoff: float
    longest_backoff: float
    longest_wait: float
    sent: int = 0
    _failure: TeacherError | None = None
    _refused: list[tuple[Request, str]] = field(default_factory=list)

    @property
    def spent(self) -> float:
        """The price of every reply that is kept, earlier runs included."""
        return self.budget.cost(self.cache.tokens)

    def ask(self, requests: Sequence[Request]) -> None:
        """Have a reply kept for each; TeacherError when that was not possible, after what was under way was kept."""
        self._failure, self._refused = None, []
        try:
            _run(lambda: self._all(requests))
        finally:
            self.cache.sync()
        if self._refused and not any("text" in reply for reply in self.cache.replies.values()):
            raise TeacherError(f"the server at {self.url} refuses the request: {self._refused[0][1]}", code="U336")
        for request, told in self._refused:
            self.cache.keep(request.key, {"problem": f"the server refused this row: {told}", "raw": "", "usage": [0, 0]})
        if self._failure is not None:
            raise self._failure

    async def _all(self, requests: Sequence[Request]) -> None:
        httpx = require("httpx2", "http")
        self.budget.settled, self.budget.reserved = asyncio.Condition(), 0.0
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.secret}"} if self.secret else {})
        limits = httpx.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency)
        # a loopback address is never meant for a proxy
        proxied = not self.url.split("://")[1].startswith(("127.", "localhost", "[::1]"))
        # without https there is nothing to verify, and reading the certificates takes a while
        sure = self.url.startswith("https:")
        async with httpx.AsyncClient(headers=headers, timeout=self.timeout, limits=limits, trust_env=proxied, verify=sure) as client:
            waiting = iter(requests)
            await asyncio.gather(*(self._work(client, waiting) for _ in range(min(self.concurrency, len(requests)))))

    async def _work(self, client: Any, waiting: Iterator[Request]) -> None:
        for request in waiting:
            if self._failure is not None:
                return
            try:
                await self._one(client, request)
            except TeacherError as error:
                if self._failure is None:
                    self._failure = error
                return

    async def _one(self, client: Any, request: Request) -> None:
        cost = self.budget.cost(request.tokens)
        if not await self.budget.reserve(cost, lambda: self.spent):
            raise TeacherError(
                f"stopped before spending more than teacher.options.max_cost = {self.budget.most:g}: {self.spent:.6g} is spent, the next "
                f"request may cost {cost:.6g}. {len(self.cache.replies):,} answers are kept in {self.cache.path}; "
                "the same command with --set teacher.options.max_cost=... goes on from there",
                code="U333",
            )
        try:
            await self._insist(client, request)
        finally:
            await self.budget.release(cost)

    async def _insist(self, client: Any, request: Request) -> None:
        """Ask until there is a reply; the waits are drawn between 0 and a bound that doubles (full jitter)."""
        draw, told = random.SystemRandom(), ""
        for attempt in range(self.attempts):
            if attempt and self._failure is not None:
                return
            await self.pace.turn(sum(request.tokens))
            told, pause = await self._attempt(client, request)
            if not told:
                return
            if pause > self.longest_wait:
                told += f"; it asks to wait {pause:.0f} s, longer than max_wait_ms"
                break
            if pause:
                self.pace.pause(pause)
            if attempt + 1 < self.attempts:
                await asyncio.sleep(pause + draw.uniform(0, min(self.longest_backoff, self.backoff * 2**attempt)))
        raise TeacherError(
            f"the server at {self.url} gave no answer in {self.attempts} attempts: {told}. {len(self.cache.replies):,} answers are kept in "
            f"{self.cache.path}; the same command goes on from there",
            code="U334",
        )

    async def _attempt(self, client: Any, request: Request) -> tuple[str, float]:
        """What went wrong, and how long the server wants to be left alone; ("", 0) when it is over."""
        httpx = require("httpx2", "http")
        self.sent += 1
        try:
            # the client's own time-outs begin again with every byte
            async with asyncio.timeout(self.timeout):
                response = await client.post(self.url, content=json.dumps(request.body))
        except TimeoutError:
            return f"no answer in {self.timeout:g} s", 0.0
        except httpx.TimeoutException:
            return f"no answer in {self.timeout:g} s", 0.0
        except httpx.RequestError as error:
            return self.clean(f"{type(error).__name__}: {error}"), 0.0
        status, body = response.status_code, self.clean(response.text)
        if response.is_success:
            reply = read_body(body, request.tokens)
            # once more, because JSON may have written it with escapes
            self.cache.keep(request.key, reply | ({"text": self.clean(reply["text"])} if "text" in reply else {}))
            return "", 0.0
        told = f"{status} {_words(body)}"
        if status in _PASSING or status >= 500:
            return told, _seconds(response.headers.get("Retry-After"))
        if status in _OF_THE_ROW:
            self._refused.append((request, told))
            return "", 0.0
        mend = {401: "; check the key", 403: "; check the key", 404: "; check url and model"}.get(status, "")
        raise TeacherError(f"the server at {self.url} refuses: {told}{mend}", code="U336")

    def clean(self, text: str) -> str:
        """The text without the key, should a server say it back; what is shorter than a key (`EMPTY`) is no secret."""
        return text.replace(self.secret, "(key)") if self.secret and len(self.secret) >= 8 else text


def _words(body: str) -> str:
    """What a server says of an error, short."""
    try:
        said = json.loads(body)
        said = said.get("error", said) if isinstance(said, dict) else said
        body = said["message"] if isinstance(said, dict) and "message" in said else json.dumps(said)
    except ValueError:
        pass
    return " ".join(str(body)[:RAW_KEPT].split())[:300]


def _seconds(said: str | None) -> float:
    """Retry-After in seconds: a number, or a date."""
    if said is None:
        return 0.0
    try:
        seconds = float(said)
        return max(seconds, 0.0) if math.isfinite(seconds) else 0.0
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return 0.0
    return max((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp(), 0.0)


def _run(work: Callable[[], Any]) -> None:
    """Run a coroutine to its end; beside a loop that is running already (a notebook), in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work())
        return
    failed: list[BaseException] = []

    def alone() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
