"""``rlhf batch`` against a service: one output row a row in order, whatever fails, stops or is killed."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.serve.batch_endpoint import KEY, SHOWN, WINDOW, EndpointBatch, EndpointJob
from rlhf.errors import UserError
from rlhf.serving.batch_output import BatchOutput, inspect_input
from rlhf.serving.batch_rows import BatchRow, parse_completion, read_batch
from rlhf.storage.jsonl import read_lines
from tests.launch.serve.live import ROOT, Stub, start_stub, wait_for
from tests.rlhf.service import Answer, serve


def write(folder: Path, rows: Sequence[Any]) -> Path:
    file = folder / "in.jsonl"
    file.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return file


def command(folder: Path, url: str, *more: str) -> list[str]:
    words = ["batch", "--endpoint", url, "--model", "travel", "--in", str(folder / "in.jsonl")]
    return [sys.executable, "-m", "launch.cli", *words, "--out", str(folder / "out.jsonl"), *more]


def run(folder: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, url, *more), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def start(folder: Path, url: str, *more: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(folder, url, *more), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def echo(number: int, asked: dict[str, Any]) -> Answer:
    """What was asked comes back, so that a row's output is known to be its own."""
    text = asked["prompt"] if "prompt" in asked else asked["messages"][-1]["content"]
    if text == "refused":
        return 400
    return {"choices": [{"message": {"content": f"re: {text}"}, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}


@pytest.fixture
def slow_stub() -> Iterator[Stub]:
    stub = start_stub("slow", "--interval", "0", "--tokens", "2")
    yield stub
    stub.kill()


def test_every_form_of_row_gets_one_row_in_order_and_bad_ones_their_reason(tmp_path: Path) -> None:
    openai = {"custom_id": "x", "url": "/v1/chat/completions", "body": {"messages": [{"role": "user", "content": "c"}]}}
    rows = [
        {"id": 7, "prompt": "a"},
        {"messages": [{"role": "user", "content": "b"}], "other": 1},
        "",
        openai,
        "no json",
        {"id": "d", "prompt": "refused"},
        {"id": "e"},
        {**openai, "url": "/v1/images"},
    ]
    write(tmp_path, rows)
    with serve(echo) as service:
        url = f"http://127.0.0.1:{service.server_port}/v1"
        done = run(tmp_path, url, "--max-tokens", "5", "--concurrency", "2")
        assert done.returncode == 0, done.stderr
        assert all(asked["model"] == "travel" and asked["max_tokens"] == 5 for asked in service.asked)
        again = run(tmp_path, url, "--max-tokens", "5")
        assert (again.returncode, len(service.asked)) == (0, 4)
        assert "is complete: 7 rows" in again.stdout
        other = run(tmp_path, url)
        assert other.returncode == 2
        assert "belongs to another job" in other.stderr
    out = read_lines(tmp_path / "out.jsonl")
    assert out[0] == {
        "row": 1,
        "id": 7,
        "response": "re: a",
        "finish_reason": "stop",
        "usage": {"total_tokens": 3},
        "error": None,
    }
    assert (out[1]["response"], out[1]["row"]) == ("re: b", 2)
    assert (out[2]["custom_id"], out[2]["error"]) == ("x", None)
    assert out[2]["response"]["body"]["choices"][0]["message"]["content"] == "re: c"
    reasons = [row["error"] for row in out[3:6]]
    assert [reason.partition(":")[0] for reason in reasons] == ["line 5", "HTTP 400", "line 7"]
    assert out[6]["error"]["message"] == "line 8: url is neither /v1/chat/completions nor /v1/completions"
    assert read_lines(tmp_path / "out.jsonl.quarantine.jsonl") == out[3:]
    assert {file.name for file in tmp_path.iterdir()} == {
        "in.jsonl",
        "out.jsonl",
        "out.jsonl.job.json",
        "out.jsonl.quarantine.jsonl",
    }
    assert "answered" in done.stdout


def test_kills_at_random_moments_lose_and_repeat_no_row(tmp_path: Path) -> None:
    rows, chance = 1000, random.Random(1)
    write(tmp_path, [{"id": number, "prompt": f"q{number}"} for number in range(rows)])
    kills = 0

    def behaviour(number: int, asked: dict[str, Any]) -> Answer:
        time.sleep(chance.uniform(0, 0.004))
        return echo(number, asked)

    with serve(behaviour) as service:
        url, partial = f"http://127.0.0.1:{service.server_port}/v1", tmp_path / "out.jsonl.partial"
        while not (tmp_path / "out.jsonl").exists():
            before = len(service.asked)
            process = start(tmp_path, url)
            if kills < 4:
                target = before + chance.randrange(20, 200)
                wait_for(lambda: len(service.asked) > target or process.poll() is not None, "requests")  # noqa: B023
                process.kill()
                kills += 1
            assert process.wait(120) in (0, -signal.SIGKILL)
            if partial.exists():
                with partial.open("ab") as file:
                    file.write(b'{"row": 1, "torn')  # what a kill in the middle of a write leaves
    out = read_lines(tmp_path / "out.jsonl")
    assert [row["id"] for row in out] == list(range(rows))
    assert [row["response"] for row in out] == [f"re: q{number}" for number in range(rows)]
    assert kills >= 3
    assert len(service.asked) < rows + 4 * 200  # only what was in progress is asked again


def test_sigterm_writes_what_is_finished_and_the_same_command_continues(tmp_path: Path, slow_stub: Stub) -> None:
    write(tmp_path, [{"prompt": f"q{number}"} for number in range(300)])
    process = start(tmp_path, f"{slow_stub.url}/v1", "--concurrency", "2")
    wait_for(lambda: slow_stub.requests > 40, "requests")
    slow_stub.behave("stall")
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75
    written = len(read_lines(tmp_path / "out.jsonl.partial"))
    assert 30 < written < 300
    slow_stub.behave("ok")
    asked = slow_stub.requests
    assert run(tmp_path, f"{slow_stub.url}/v1", "--concurrency", "2").returncode == 0
    assert len(read_lines(tmp_path / "out.jsonl")) == 300
    assert slow_stub.requests - asked == 300 - written


def test_an_outage_is_an_error_and_no_row_is_given_up_for_it(tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": f"q{number}"} for number in range(200)])

    def behaviour(number: int, asked: dict[str, Any]) -> Answer:
        return echo(number, asked) if number < 50 else 503

    with serve(behaviour) as service:
        url = f"http://127.0.0.1:{service.server_port}/v1"
        down = run(tmp_path, url, "--retries", "0", "--concurrency", "1")  # answers come in the order of rows
        assert down.returncode == 3
        assert "the same command goes on" in down.stderr
        assert [row["error"] for row in read_lines(tmp_path / "out.jsonl.partial")] == [None] * 50
        service.behaviour = echo
        assert run(tmp_path, url, "--retries", "0").returncode == 0
    assert [row["error"] for row in read_lines(tmp_path / "out.jsonl")] == [None] * 200


def test_a_row_that_the_service_fails_on_is_tried_again_and_then_reported(tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": "bad"}, {"prompt": "flaky"}, {"prompt": "good"}])

    def behaviour(number: int, asked: dict[str, Any]) -> Answer:
        before = sum(each["prompt"] == asked["prompt"] for each in service.asked)
        return 500 if asked["prompt"] == "bad" or (asked["prompt"] == "flaky" and before == 1) else echo(number, asked)

    with serve(behaviour) as service:
        done = run(tmp_path, f"http://127.0.0.1:{service.server_port}/v1", "--retries", "1")
        assert done.returncode == 0, done.stderr
        assert sum(asked["prompt"] == "bad" for asked in service.asked) == 2
    bad, flaky, good = read_lines(tmp_path / "out.jsonl")
    assert bad["error"] == "no answer after 2 attempts: HTTP 500"
    assert (flaky["response"], good["response"]) == ("re: flaky", "re: good")


def test_two_runs_of_a_job_and_wrong_options_are_refused(tmp_path: Path, slow_stub: Stub) -> None:
    url = f"{slow_stub.url}/v1"
    write(tmp_path, [{"prompt": "q"}])
    slow_stub.behave("stall")
    first = start(tmp_path, url)
    try:
        wait_for(lambda: slow_stub.requests == 1, "the first run")
        second = run(tmp_path, url)
        assert (second.returncode, "another process" in second.stderr) == (2, True)
    finally:
        first.kill()
        first.wait()
    for more in (["recipes/quickstart.yaml"], ["ppo.steps=3"]):
        assert run(tmp_path, url, *more).returncode == 2
    assert run(tmp_path, "ftp://nowhere").returncode == 2
    (tmp_path / "in.jsonl").write_text("\n\n")
    empty = run(tmp_path, url)
    assert (empty.returncode, "has no rows" in empty.stderr) == (2, True)


def test_memory_holds_a_window_of_rows_however_long_the_file_is(tmp_path: Path) -> None:
    given = write(tmp_path, [{"prompt": f"q{number}"} for number in range(120)])
    consumed, ahead = [0], [0]

    def rows() -> Iterator[BatchRow]:
        for row in read_batch(given):
            consumed[0] += 1
            ahead[0] = max(ahead[0], consumed[0] - len(service.asked))
            yield row

    with serve(echo) as service, BatchOutput(tmp_path / "out.jsonl", inspect_input(given), {}) as output:
        url = f"http://127.0.0.1:{service.server_port}/v1"
        job = EndpointJob(url=url, model="m", sampling={}, concurrency=3, retries=0, timeout_seconds=10.0)
        assert asyncio.run(EndpointBatch(job).run(rows(), output, lambda done: None)) == ""
        assert service.busiest <= 3
        assert output.finish().rows == 120
    assert ahead[0] <= WINDOW * 3


def test_a_key_at_the_cut_of_a_message_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "hunter2hunter2hunter2")
    given = write(tmp_path, [{"prompt": "q"}])
    refusal = (401, {}, b"x" * (SHOWN - 9) + b"hunter2hunter2hunter2")
    with serve(lambda *_: refusal) as service, BatchOutput(tmp_path / "out.jsonl", inspect_input(given), {}) as output:
        url = f"http://127.0.0.1:{service.server_port}/v1"
        job = EndpointJob(url=url, model="m", sampling={}, concurrency=1, retries=0, timeout_seconds=10.0)
        with pytest.raises(UserError, match="HTTP 401") as caught:
            asyncio.run(EndpointBatch(job).run(read_batch(given), output, lambda done: None))
    assert "hunter2" not in str(caught.value) and "***" in str(caught.value)


def test_an_input_that_changes_meanwhile_is_an_error_and_no_output(tmp_path: Path) -> None:
    file = write(tmp_path, [{"prompt": f"q{number}"} for number in range(6)])

    def behaviour(number: int, asked: dict[str, Any]) -> Answer:
        if number == 0:
            with file.open("a") as more:
                more.write('{"prompt": "late"}\n')
        return echo(number, asked)

    with serve(behaviour) as service:
        done = run(tmp_path, f"http://127.0.0.1:{service.server_port}/v1", "--concurrency", "1")
    assert done.returncode == 2, done.stderr
    assert "in.jsonl has changed while it was answered" in done.stderr
    assert not (tmp_path / "out.jsonl").exists()


def test_a_password_in_the_address_is_in_no_file(tmp_path: Path) -> None:
    write(tmp_path, [{"prompt": "a"}])
    with serve(echo) as service:
        assert run(tmp_path, f"http://me:hunter2hunter2@127.0.0.1:{service.server_port}/v1").returncode == 0
    assert "hunter2" not in "".join(file.read_text() for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    "answer",
    [
        b'{"choices": [{"text": ["a"]}]}',
        b'{"choices": [{"text": "a"}], "more": ' + b"[" * 600 + b"]" * 600 + b"}",
        b'{"choices": {"a": 1}}',
        b"[]",
    ],
)
def test_an_answer_that_is_none_is_a_failure_of_its_row(answer: bytes) -> None:
    assert parse_completion(answer).failure.startswith("malformed answer")
