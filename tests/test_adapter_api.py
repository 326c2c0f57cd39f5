"""A remote teacher against a real server on this machine, which is slow, rude, wrong, expensive and sometimes not there."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from commands import run

from understudy import check_teacher
from understudy.adapters import api
from understudy.adapters._replies import choose_options, columns_of, read_body, read_label, read_logprobs, shares
from understudy.data import encoding
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.errors import RecipeError, TeacherError
from understudy.make.lessons import training_set
from understudy.make.rows import Loaded
from understudy.objectives import Objective
from understudy.recipe import parse
from understudy.sections import OptimizerSection
from understudy.signals import Batch
from understudy.students.trees import tree
from understudy.tasks import Task
from understudy.teaching import reask, teach
from understudy.training.gradient import train
from understudy.training.trees import fit_estimator

TASK = Task("binary", ("no", "yes"))
KEY = "sk-0123456789-very-secret"
FAST = {"backoff_ms": 1, "max_backoff_ms": 4, "timeout_ms": 5000}


def completion(text: str, top: dict[str, float] | None = None, usage: tuple[int, int] = (100, 1)) -> dict[str, Any]:
    """The body of a chat completion; `top` are probabilities of first tokens."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    if top is not None:
        listed = [{"token": token, "logprob": math.log(p)} for token, p in top.items()]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": listed}]}
    return {"choices": [choice], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}


def row_of(body: dict[str, Any]) -> int:
    """Which row a prompt is about: the number after `x:`."""
    found = re.search(r"x: (\d+)", body["messages"][0]["content"])
    assert found is not None
    return int(found[1])


def sure(row: int) -> dict[str, Any]:
    """Odd rows are B (yes) with 0.8, even rows A (no) with 0.8."""
    high, low = ("B", "A") if row % 2 else ("A", "B")
    return completion(high, {high: 0.8, low: 0.2})


Reply = dict[str, Any] | tuple[int, dict[str, str], str] | str | None
"""A completion; status, headers and body; a raw body; or None to hang up without a word."""


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # a full queue makes a client wait a second


class Server:
    """Counts what it is asked; `behave(row, times asked)` says what it answers."""

    def __init__(self, behave: Callable[[int, int], Reply] | None = None, port: int = 0) -> None:
        self.behave = behave or (lambda row, times: sure(row))
        self.asked: Counter[int] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Condition()
        self.server = Listener(("127.0.0.1", port), self._handler())
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def total(self) -> int:
        return sum(self.asked.values())

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            wbufsize = -1  # head and body in one packet

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                row = row_of(body)
                with outer.lock:
                    outer.asked[row] += 1
                    times = outer.asked[row]
                    outer.bodies.append(body)
                    outer.headers.append(dict(self.headers))
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                    outer.lock.notify_all()
                said = outer.behave(row, times)
                with outer.lock:
                    outer.under_way -= 1  # before the answer goes, since the client's next request may follow at once
                with suppress(OSError):  # the client gave up
                    self._answer(said)

            def _answer(self, said: Reply) -> None:
                if said is None:
                    self.close_connection = True
                    return
                plain = said if isinstance(said, str) else json.dumps(said)
                status, headers, text = said if isinstance(said, tuple) else (200, {}, plain)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


@contextmanager
def serving(behave: Callable[[int, int], Reply] | None = None) -> Iterator[Server]:
    server = Server(behave)
    try:
        yield server
    finally:
        server.close()


def table(count: int) -> Rows:
    frame = pd.DataFrame({"x": range(count), "colour": ["red", "blue"] * (count // 2) + ["red"] * (count % 2)})
    return Rows("table", frame, content_keys(frame, "table"), np.arange(count) % 2)


def remote(url: str, folder: Path, rows: Rows, task: Task = TASK, **options: Any) -> api.ApiTeacher:
    return api.load(url, task=task, rows=rows, options={"model": "m", **FAST, **options}, cache=folder)


def ask(teacher: api.ApiTeacher, rows: Rows) -> np.ndarray[Any, Any]:
    """Probabilities [rows, classes], NaN where there is no answer."""
    return np.asarray(teacher.signals(rows.inputs)["logits"].exp().numpy())


# --- reading, by hand -----------------------------------------------------------------------------------------------


def test_first_token_forms_are_added_up() -> None:
    top = [["A", math.log(0.30)], [" A", math.log(0.10)], ["a", math.log(0.05)], ["B.", math.log(0.15)], ["The", math.log(0.40)]]
    assert read_logprobs(top, ("A", "B"), least=0.5) == pytest.approx([0.45 / 0.60, 0.15 / 0.60])
    assert read_logprobs(top, ("A", "B"), least=0.61) is None
    names = [["pos", math.log(0.2)], [" Positive", math.log(0.2)], ["neg", math.log(0.1)]]
    assert read_logprobs(names, ("positive", "negative"), least=0.5) == pytest.approx([0.8, 0.2])


def test_votes_become_shares() -> None:
    assert shares([0, 0, 1, 2, 0], 4, smoothing=0.0) == pytest.approx([0.6, 0.2, 0.2, 0.0])
    assert shares([0, 0, 1, 2, 0], 4, smoothing=1.0) == pytest.approx([4 / 9, 2 / 9, 2 / 9, 1 / 9])
    assert shares([0, 0, 1, None, None], 2, smoothing=0.0) == pytest.approx([2 / 3, 1 / 3])
    assert shares([0, 1, None, None], 2, smoothing=0.0) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", 1), (" (b) ", 1), ("**B**", 1), ("B. yes", 1), ("Answer: B", 1), ("The answer is no.", 0), ("YES!", 1), ("A\n\nBecause B", 0),
        ("A. yes", None), ("A or B", None), ("C", None), ("maybe", None), ("", None), ("not yes", None),
    ],
)  # fmt: skip
def test_labels_are_read_or_not_never_guessed(text: str, expected: int | None) -> None:
    assert read_label(text, ("A", "B"), ("no", "yes")) == expected


def test_classes_that_could_be_confused_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with serving() as server:
        for classes, options, said in [
            (("negative", "neutral"), {"ask_for": "names"}, "may begin with the same token"),
            (("Yes", "yes"), {"ask_for": "names", "answer": "label"}, "differ in case"),
            (("B", "A"), {}, "is also the letter of another option"),
            (tuple(f"c{i}" for i in range(27)), {}, "more than there are letters"),
        ]:
            with pytest.raises(TeacherError, match=said) as error:
                remote(server.url, tmp_path, table(2), Task("multiclass", classes), **options)
            assert error.value.code == "U332"
        assert server.total == 0
    assert choose_options(("negative", "neutral"), "letters", first_token=True) == ("A", "B")


def test_a_whole_number_is_written_the_same_however_its_column_was_read() -> None:
    frame = pd.DataFrame({"x": [7.0, float("nan")], "t": ["a", None]})
    assert columns_of(frame) == {"x": ["7", "(missing)"], "t": ["a", "(missing)"]}
    assert columns_of(np.array(["good film", "bad film"])) == {"text": ["good film", "bad film"]}


# --- asking ---------------------------------------------------------------------------------------------------------


def test_log_probabilities_teach_and_every_row_is_asked_once(tmp_path: Path) -> None:
    rows, four = table(40), threading.Barrier(4)

    def behave(row: int, times: int) -> Reply:
        four.wait(10)  # nobody is answered before four are there
        return sure(row)

    with serving(behave) as server:
        teacher = remote(server.url, tmp_path, rows, concurrency=4)
        assert check_teacher(teacher, rows.inputs) == []
        assert ask(teacher, rows) == pytest.approx(np.where(np.arange(40)[:, None] % 2 == [0, 1], 0.8, 0.2), abs=1e-6)
        taught = teach(teacher, rows, tmp_path / "set", task=TASK, batch_size=7, progress=False)
        reask(teacher, rows, taught)
        again = remote(server.url, tmp_path, rows)
        assert ask(again, rows) == pytest.approx(ask(teacher, rows))
        assert set(server.asked.values()) == {1} and server.total == 40
        assert server.most_under_way == 4
        body = server.bodies[0]
        assert body["model"] == "m" and body["max_tokens"] == 1 and body["logprobs"] is True and body["temperature"] == 0
        assert "A. no\nB. yes" in body["messages"][0]["content"] and "colour: " in body["messages"][0]["content"]


def test_what_decides_the_answers_is_in_the_fingerprint(tmp_path: Path) -> None:
    rows = table(2)
    first = remote("http://127.0.0.1:9/v1", tmp_path, rows).fingerprint()
    assert remote("http://127.0.0.1:9/v1", tmp_path, rows, concurrency=2, max_missing=0.2).fingerprint() == first
    for options in ({"model": "n"}, {"prompt": "{x}?"}, {"temperature": 0.5}, {"answer": "label"}, {"body": {"seed": 1}}):
        assert remote("http://127.0.0.1:9/v1", tmp_path, rows, **options).fingerprint() != first
    assert remote("http://127.0.0.1:8/v1", tmp_path, rows).fingerprint() != first


def test_votes_are_separate_requests_and_resume(tmp_path: Path) -> None:
    rows = table(3)
    with serving(lambda row, times: completion("B" if times <= row + 1 else "A")) as server:
        teacher = remote(server.url, tmp_path, rows, answer="votes", samples=4, concurrency=1)
        assert ask(teacher, rows)[:, 1] == pytest.approx([0.25, 0.5, 0.75], abs=1e-6)
        smoothed = remote(server.url, tmp_path / "other", rows, answer="votes", samples=4, smoothing=1.0, concurrency=1)
        assert server.total == 12 and server.bodies[0]["temperature"] == 1
        server.asked.clear()
        assert ask(smoothed, rows)[:, 1] == pytest.approx([2 / 6, 3 / 6, 4 / 6], abs=1e-6)


def test_errors_that_pass_are_tried_again(tmp_path: Path) -> None:
    def behave(row: int, times: int) -> Reply:
        if times > 2:
            return sure(row)
        return [(500, {}, "oops"), (503, {}, ""), None, (429, {"Retry-After": "0"}, "slow down")][row % 4]

    rows = table(8)
    with serving(behave) as server:
        teacher = remote(server.url, tmp_path, rows)
        assert np.isfinite(ask(teacher, rows)).all()
        assert set(server.asked.values()) == {3}
        assert teacher.requests_sent == 24


def test_a_server_that_hangs_is_left_after_the_timeout(tmp_path: Path) -> None:
    release = threading.Event()

    def behave(row: int, times: int) -> Reply:
        if row == 1 and times == 1:
            release.wait(5)
        return sure(row)

    rows = table(3)
    with serving(behave) as server:
        assert np.isfinite(ask(remote(server.url, tmp_path, rows, timeout_ms=150), rows)).all()
        assert server.asked == {0: 1, 1: 2, 2: 1}
        release.set()


def test_retry_after_is_kept_to_and_too_long_a_wait_is_refused(tmp_path: Path) -> None:
    times_of: list[float] = []
    import time

    def behave(row: int, times: int) -> Reply:
        times_of.append(time.monotonic())
        return (429, {"Retry-After": "0.3"}, "") if times == 1 else sure(row)

    rows = table(1)
    with serving(behave) as server:
        ask(remote(server.url, tmp_path, rows), rows)
        assert times_of[1] - times_of[0] >= 0.3
    later = formatdate(time.time() + 3600, usegmt=True)
    with serving(lambda row, times: (429, {"Retry-After": later}, "")) as server:
        with pytest.raises(TeacherError, match="longer than max_wait_ms") as error:
            ask(remote(server.url, tmp_path / "b", rows), rows)
        assert error.value.code == "U334" and server.total == 1


def test_requests_and_tokens_are_paced(tmp_path: Path) -> None:
    import time

    rows = table(5)
    with serving() as server:
        started = time.monotonic()
        ask(remote(server.url, tmp_path, rows, requests_per_minute=1200), rows)
        assert time.monotonic() - started >= 4 * 0.05
        tokens = len(server.bodies[0]["messages"][0]["content"]) + 33
        started = time.monotonic()
        ask(remote(server.url, tmp_path / "b", rows, tokens_per_minute=tokens * 1200), rows)
        assert time.monotonic() - started >= 4 * 0.045


def test_a_server_that_dies_and_comes_back_is_waited_for(tmp_path: Path) -> None:
    rows, first = table(30), Server()
    port = first.port
    revived: list[Server] = []

    def behave(row: int, times: int) -> Reply:
        if first.total == 11:
            threading.Thread(target=lambda: (first.close(), revived.append(Server(port=port)))).start()
        return sure(row) if first.total <= 10 else None

    first.behave = behave
    try:
        teacher = remote(first.url, tmp_path, rows, concurrency=1, attempts=12, backoff_ms=20, max_backoff_ms=200)
        assert np.isfinite(ask(teacher, rows)).all()
        assert set(revived[0].asked.values()) == {1}
        answered = {row for row in range(30) if row not in revived[0].asked}
        assert len(answered) == 10 and all(first.asked[row] == 1 for row in answered)
    finally:
        for server in revived:
            server.close()


def test_a_server_that_stays_away_stops_the_asking_and_keeps_what_there_is(tmp_path: Path) -> None:
    rows = table(20)
    with serving(lambda row, times: sure(row) if row < 12 else (500, {}, "down")) as server:
        teacher = remote(server.url, tmp_path, rows, concurrency=1, attempts=3)
        with pytest.raises(TeacherError, match="no answer in 3 attempts: 500 down. 12 answers are kept") as error:
            ask(teacher, rows)
        assert error.value.code == "U334" and server.total == 12 + 3
        server.behave = lambda row, times: sure(row)
        assert np.isfinite(ask(remote(server.url, tmp_path, rows), rows)).all()
        assert all(server.asked[row] == 1 for row in range(12)) and server.total == 12 + 3 + 8


def test_rubbish_is_kept_counted_and_never_guessed(tmp_path: Path) -> None:
    rubbish: dict[int, Reply] = {
        3: "<html>gateway", 5: {"choices": []}, 7: completion("A"), 9: completion("Hm", {"Hm": 0.9, "A": 0.1}), 11: '{"choices": [{"mess',
    }  # fmt: skip
    rows = table(40)
    with serving(lambda row, times: rubbish.get(row, sure(row))) as server:
        teacher = remote(server.url, tmp_path, rows, max_missing=0.2)
        assert np.flatnonzero(np.isnan(ask(teacher, rows)).all(axis=1)).tolist() == sorted(rubbish)
        assert check_teacher(teacher, rows.inputs) == []
        taught = teach(teacher, rows, tmp_path / "set", task=TASK, progress=False)
        reask(teacher, rows, taught, n=40)
        stored = taught.gather("logits", taught.positions(rows.keys))
        assert torch.equal(stored.isnan().all(dim=1), torch.tensor([row in rubbish for row in range(40)]))
        strict = remote(server.url, tmp_path, rows, max_missing=0.1)
        with pytest.raises(TeacherError, match=r"no readable answer to 5 of 40 rows \(12.5%\), allowed are 10.0%") as error:
            teach(strict, rows, tmp_path / "other", task=TASK, progress=False)
        assert error.value.code == "U335"
        assert set(server.asked.values()) == {1}
    kept = next(tmp_path.glob("answers-*.jsonl")).read_text()
    assert "<html>gateway" in kept and kept.count("\n") == 40


def test_a_row_that_the_server_refuses_has_no_answer(tmp_path: Path) -> None:
    rows = table(30)
    refused = (400, {}, json.dumps({"error": {"message": "content filter"}}))
    with serving(lambda row, times: refused if row == 4 else sure(row)) as server:
        teacher = remote(server.url, tmp_path, rows)
        assert np.isnan(ask(teacher, rows)).all(axis=1).nonzero()[0].tolist() == [4]
        assert np.isnan(ask(remote(server.url, tmp_path, rows), rows)[4]).all() and set(server.asked.values()) == {1}
    with serving(lambda row, times: refused) as server:
        with pytest.raises(TeacherError, match="refuses the request: 400 content filter") as error:
            ask(remote(server.url, tmp_path / "b", rows), rows)
        assert error.value.code == "U336" and server.total == api.FIRST


def test_answers_that_cannot_be_used_at_all_stop_after_a_few(tmp_path: Path) -> None:
    rows = table(60)
    with serving(lambda row, times: completion("A")) as server:
        with pytest.raises(TeacherError, match="it has no logprobs; .*answer = 'votes' or 'label'") as error:
            ask(remote(server.url, tmp_path, rows), rows)
        assert error.value.code == "U338" and server.total == api.FIRST
        assert np.isfinite(ask(remote(server.url, tmp_path, rows, answer="label"), rows)).all()


def test_spending_stops_before_the_cap_and_goes_on_from_there(tmp_path: Path) -> None:
    rows = table(30)
    with serving(lambda row, times: completion("A", {"A": 0.9, "B": 0.1}, usage=(100, 1))) as server:
        # 100 tokens at 10,000 per million: 1 for each answer, and at most the bytes of a prompt for one under way
        options = {"price_prompt": 10_000, "price_completion": 0, "concurrency": 4}
        poor = remote(server.url, tmp_path, rows, max_cost=6, **options)
        assert "30 requests" in poor.quote(rows.inputs) and "estimated" in poor.quote(rows.inputs)
        assert "more than max_cost = 6" in poor.quote(rows.inputs) and server.total == 0
        with pytest.raises(TeacherError, match="stopped before spending more than teacher.options.max_cost = 6") as error:
            ask(poor, rows)
        assert error.value.code == "U333"
        kept = server.total
        assert 4 <= kept <= 6 and poor.spent == pytest.approx(kept) and poor.spent <= 6
        with pytest.raises(TeacherError, match="max_cost"):
            ask(remote(server.url, tmp_path, rows, max_cost=6, **options), rows)
        rich = remote(server.url, tmp_path, rows, max_cost=100, **options)
        assert f"cost about {30 - kept}, {kept} spent before" in rich.quote(rows.inputs) and "measured on" in rich.quote(rows.inputs)
        ask(rich, rows)
        assert set(server.asked.values()) == {1} and server.total == 30 and rich.spent == pytest.approx(30)
    with pytest.raises(TeacherError, match="needs the prices"):
        remote(server.url, tmp_path, rows, max_cost=1)


CLIENT = """
import sys, pandas as pd, numpy as np
from pathlib import Path
from understudy.adapters import api
from understudy.data.keys import content_keys
from understudy.data.rows import Rows
from understudy.tasks import Task
frame = pd.DataFrame({"x": range(20), "colour": ["red", "blue"] * 10})
rows = Rows("table", frame, content_keys(frame, "table"), np.arange(20) % 2)
options = {"model": "m", "concurrency": 2}
api.load(sys.argv[1], task=Task("binary", ("no", "yes")), rows=rows, options=options, cache=Path(sys.argv[2])).signals(frame)
"""


def test_a_client_killed_half_way_pays_for_nothing_twice(tmp_path: Path) -> None:
    release, held = threading.Event(), []

    def behave(row: int, times: int) -> Reply:
        with server.lock:
            wait = not release.is_set() and server.total > 11
            if wait:
                held.append(row)
                server.lock.notify_all()
        if wait:
            release.wait(20)
            return None
        return sure(row)

    with serving(behave) as server:
        client = subprocess.Popen([sys.executable, "-c", CLIENT, server.url, str(tmp_path)])
        with server.lock:
            assert server.lock.wait_for(lambda: len(held) == 2, timeout=60)
        client.send_signal(signal.SIGKILL)
        client.wait()
        release.set()
        cache = next(tmp_path.glob("answers-*.jsonl"))
        assert cache.read_bytes().count(b"\n") == 11
        # a crash in the middle of a line, and a byte that flipped: neither is believed
        lines = cache.read_bytes().splitlines(keepends=True)
        lines[0] = lines[0].replace(b'"text": "A"', b'"text": "B"').replace(b'"text": "B"', b'"text": "C"')
        cache.write_bytes(b"".join(lines) + lines[1][:40])
        rows = table(20)
        answers = ask(remote(server.url, tmp_path, rows), rows)
        assert answers == pytest.approx(np.where(np.arange(20)[:, None] % 2 == [0, 1], 0.8, 0.2), abs=1e-6)
        twice = {row for row, times in server.asked.items() if times > 1}
        assert set(held) < twice and len(twice) == 3 and server.total == 23
        assert ask(remote(server.url, tmp_path, rows), rows) == pytest.approx(answers) and server.total == 23


# --- keys and mistakes ----------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_never_kept_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    rows = table(20)
    with serving(lambda row, times: completion(f"A {KEY}", {"A": 0.9, KEY: 0.1})) as server:
        ask(remote(server.url, tmp_path, rows, key_env="TEACHER_KEY"), rows)
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in server.headers)
    with serving(lambda row, times: (401, {}, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}))) as server:
        with pytest.raises(TeacherError, match=r"401 Incorrect API key provided: \(key\); check the key") as error:
            ask(remote(server.url, tmp_path / "b", rows, key_env="TEACHER_KEY", concurrency=1), rows)
        assert error.value.code == "U336" and KEY not in str(error.value) and server.total == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"modle": "m"}, "U330", "did you mean 'model'"),
        ({"concurrency": 0, "attempts": 0}, "U330", "attempts: "),
        ({"prompt": "{y}?"}, "U330", r"the prompt has \{y\}, which is no column"),
        ({"prompt": "hello"}, "U330", "names no column"),
        ({"prompt": "{x}", "prompt_file": "p.txt"}, "U330", "give one"),
        ({"prompt_file": "absent.txt"}, "U029", "no file"),
        ({"key_env": "NO_SUCH_KEY"}, "U331", "NO_SUCH_KEY .* is not set"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(tmp_path: Path, options: dict[str, Any], code: str, said: str) -> None:
    with pytest.raises(TeacherError, match=said) as error:
        remote("http://127.0.0.1:9/v1", tmp_path, table(2), **options)
    assert error.value.code == code


def test_a_prompt_comes_from_a_file_and_braces_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Look: {{x: {x}}} in {colour}\n")
    with serving() as server:
        ask(remote(server.url, tmp_path, table(1), prompt_file=str(tmp_path / "prompt.txt")), table(1))
        assert server.bodies[0]["messages"][0]["content"].startswith("Look: {x: 0} in red\n\nWhich")


def test_a_reply_without_usage_counts_as_the_most_it_can_have_been() -> None:
    body = json.dumps({"choices": [{"message": {"content": "A"}}]})
    assert read_body(body, (50, 1)) == {"text": "A", "usage": [50, 1]}
    assert read_body("nope", (50, 1))["usage"] == [50, 1]


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("https://host/v1", {"api_key": KEY}, "a recipe holds no key"),
        ("https://host/v1", {"key_env": KEY}, "the name of an environment variable"),
        (f"https://me:{KEY}@host/v1", {}, "without user, password or query"),
        (f"https://host/v1?key={KEY}", {}, "without user, password or query"),
    ],
)
def test_a_key_in_a_recipe_is_refused_before_the_recipe_is_copied(source: str, options: dict[str, str], said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        parse({"out": "runs/x", "data": {"train": "x.csv"}, "teacher": {"source": source, "options": {"model": "m", **options}}})
    assert KEY not in str(error.value)


# --- rows without an answer, in training ----------------------------------------------------------------------------


def test_rows_without_an_answer_take_no_part_in_the_soft_term() -> None:
    objective = Objective.soft_labels(alpha=0.5, temperature=2.0, task=TASK)
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.5, 0.5]], requires_grad=True)
    said, labels = torch.tensor([[0.0, 1.0], [0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1, 0])
    answered = torch.tensor([True, False, True])
    total, terms = objective({"logits": student}, Batch(torch.zeros(3, 1), labels, None, {"logits": said}, answered))
    kept = objective({"logits": student[answered]}, Batch(torch.zeros(2, 1), labels[answered], None, {"logits": said[answered]}))[1]
    whole = objective({"logits": student}, Batch(torch.zeros(3, 1), labels, None, {"logits": said}))[1]
    assert terms["soft_target"] == pytest.approx(float(kept["soft_target"]))
    assert terms["cross_entropy"] == pytest.approx(float(whole["cross_entropy"]))
    total.backward()
    # the row without an answer still learns its label, with its share of the hard term
    assert student.grad is not None and student.grad[1, 0] == pytest.approx(0.5 / 3 * float(student[1].detach().softmax(0)[0]), abs=1e-6)


def test_a_network_is_trained_on_rows_with_and_without_an_answer() -> None:
    said = torch.tensor([[2.0, 0.0], [torch.nan, torch.nan]] * 8)
    inputs = pd.DataFrame({"x": np.arange(16.0)})
    rows = Rows("table", inputs, content_keys(inputs, "table"), np.arange(16) % 2, split=np.array(["train"] * 16))
    loaded = Loaded(rows, TASK, encoding.TableEncoding.fit(inputs, 4), ())
    data = training_set(loaded, rows, None, {"logits": said}, views=1, augment=None)
    assert data.answered is not None and data.answered.tolist() == [True, False] * 8
    module = torch.nn.Linear(1, 2)
    objective = Objective.soft_labels(task=TASK)
    done = train(module, objective, data, task=TASK, options=OptimizerSection(epochs=2, batch_size=4), seed=0, progress=False)
    assert done.steps == 8 and all(parameter.isfinite().all() for parameter in module.parameters())
    whole = training_set(loaded, rows, None, {"logits": said.nan_to_num(1.0)}, views=1, augment=None)
    assert whole.answered is None


def test_trees_give_rows_without_an_answer_their_label_and_drop_those_without_one() -> None:
    features = np.array([[0.0], [1.0], [2.0], [3.0]], dtype=np.float32)
    said = np.log(np.array([[0.75, 0.25], [0.5, 0.5], [0.5, 0.5], [0.25, 0.75]]))
    answered = np.array([True, False, False, True])
    labels = np.array([0, 1, -1, -1])
    fitted = fit_estimator(tree(TASK), features, task=TASK, labels=labels, teacher=said, answered=answered)
    # row 1 has its label alone; row 2 has nothing and falls to a neighbour
    assert fitted.predict_proba(features[[0, 1, 3]]) == pytest.approx(np.array([[0.75, 0.25], [0.0, 1.0], [0.25, 0.75]]))
    assert fitted.tree_.n_node_samples[0] == 5


RECIPE = """
out = "{out}"
[data]
train = "{data}"
label = "bought"
[teacher]
source = "{url}"
[teacher.options]
model = "m"
key_env = "TEACHER_KEY"
prompt = "A customer, x: {{x}}, saw {{colour}}. Did they buy?"
price_prompt = 10000
price_completion = 0
max_cost = 70
[student]
model = "tree"
options = {{ leaves = 16 }}
[measure]
latency = false
resamples = 100
"""


def test_from_a_server_to_a_measured_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    x = np.arange(400)
    colours = np.where(x % 3 == 0, "red", "blue")
    bought = np.where((x > 200) ^ (x % 11 == 0), "yes", "no")
    pd.DataFrame({"x": x, "colour": colours, "bought": bought}).to_csv(tmp_path / "rows.csv", index=False)

    def behave(row: int, times: int) -> Reply:
        if row % 50 == 7:
            return completion(f"I cannot say ({KEY})", {"I": 1.0})
        yes = 0.9 if row > 200 else 0.2
        return completion("B", {"B": yes, "A": 1 - yes})

    with serving(behave) as server:
        said = RECIPE.format(out=tmp_path / "run", data=tmp_path / "rows.csv", url=server.url)
        (tmp_path / "recipe.toml").write_text(said)
        assert run(monkeypatch, "check", str(tmp_path / "recipe.toml")) == 0
        quoted = capfd.readouterr().out
        assert "400 requests" in quoted and "cost about" in quoted and "max_cost = 70" in quoted and server.total == 0
        assert run(monkeypatch, "distill", str(tmp_path / "recipe.toml")) == 2
        stopped = capfd.readouterr().err
        assert "U333 stopped before spending more than teacher.options.max_cost = 70" in stopped and 60 < server.total <= 70
        assert run(monkeypatch, "distill", str(tmp_path / "recipe.toml"), "--set", "teacher.options.max_cost=1000") == 0
        assert set(server.asked.values()) == {1} and server.total == 400
        printed = capfd.readouterr()
    card = json.loads((tmp_path / "run" / "scorecard.json").read_text())
    assert "U339 the teacher has no readable answer to 8 of 400 rows" in printed.out
    assert card["models"]["student"]["fidelity"]["agreement"]["mean"] > 0.9
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert KEY not in quoted + stopped + printed.out + printed.err
