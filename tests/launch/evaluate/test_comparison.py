"""``rlhf evaluate --comparison`` as a user calls it: table, judge, votes, lint, power, and refusals."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main
from launch.evaluate.comparison import describe
from rlhf import http_retries
from rlhf.evaluation.bootstrap import Estimate
from rlhf.feedback.records import Answer, Choice
from tests.rlhf.arms.comparison_files import write_comparison, write_votes
from tests.rlhf.evaluation.judge_service import Rule, judging, pick, tagged

ROOT = Path(__file__).parents[3]
N = 30
JUDGE = "judge={{url: 'http://127.0.0.1:1/v1', model: m}}"
KEY = "sk-9QmZx4Tt71LcVb2n"
ITEMS = [
    {"prompt": f"Question {i}: what is worth seeing in town number {i * i}?", "reference": f"The castle on hill {i}"}
    for i in range(N)
]
GOOD = [f"See the castle on hill {i}" for i in range(N)]
BAD = ["There is nothing of interest to be found in that place, as far as anybody knows" for _ in range(N)]
SCORERS = """
def inverted(prompts, responses):
    return [-float("castle" in text) for text in responses]

def noise(prompts, responses):
    return [float((len(prompt) * 31 + number * 17) % 7 + ("castle" in text) * ((number * 13) % 3 - 1) * 9)
            for number, (prompt, text) in enumerate(zip(prompts, responses))]
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_retries, "FIRST_WAIT", 0.01)


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def prefer_the_castle(prompt: str) -> object:
    if "<answer_a>" not in prompt:
        return {"reason": "", "score": 9 if "castle" in tagged(prompt, "answer") else 2}
    return pick("castle" in tagged(prompt, "answer_a"))


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(1, 4, "2.5 [1, 4]"), (1, None, "2.5 [1, ?]"), (None, 4, "2.5 [?, 4]"), (None, None, "2.5")],
)
def test_an_end_that_is_not_known_is_shown_as_such(low: float | None, high: float | None, text: str) -> None:
    assert describe(Estimate(value=2.5, low=low, high=high, items=9)) == text


def comparison(folder: Path, **settings: Any) -> Path:
    return write_comparison(folder, ITEMS, {"base": BAD, "arm": GOOD}, **settings)


def test_one_table_with_the_judge_people_and_gates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_JUDGE", KEY)
    (tmp_path / "scorers.py").write_text(SCORERS)
    write_votes(
        tmp_path / "votes.db",
        [
            (item["prompt"], Answer(text=bad), Answer(text=good), Choice.SECOND_MUCH)
            for item, bad, good in zip(ITEMS, BAD, GOOD)
        ],
    )
    with judging(prefer_the_castle) as service:
        path = comparison(
            tmp_path,
            metrics=["rouge1", "judge_win_rate", "judge_score"],
            scorers={name: f"{tmp_path}/scorers.py:{name}" for name in ("inverted", "noise")},
            judge={
                "url": f"http://127.0.0.1:{service.server_port}/v1",
                "model": "judge",
                "key_variable": "MY_JUDGE",
            },
            votes="votes.db",
        )
        assert evaluate("--comparison", path, "--out", tmp_path / "report.json") == 0
        calls = len(service.asked)
        assert calls == 2 * N + 2 * N  # both orders of each pair, and a score of each answer
        first = (tmp_path / "report.json").read_text()
        assert evaluate("--comparison", path, "--out", tmp_path / "report.json") == 0
        assert len(service.asked) == calls
    report = json.loads(first)
    assert report["usage"]["failures"] == 0
    again = json.loads((tmp_path / "report.json").read_text())
    assert {**again, "usage": None} == {**report, "usage": None}
    gates = {each["metric"]: (each["verdict"], each["can_gate"]) for each in report["agreement"]}
    assert gates["rouge1"] == gates["judge_score"] == gates["judge_win_rate"] == ("agrees", True)
    assert gates["inverted"] == ("inverted", False)
    assert gates["noise"] == ("undecided", False)
    cells = {(cell["metric"], cell["arm"]): cell for cell in report["table"]}
    # "The castle on hill 3" in "See the castle on hill 3": 5 of 5 and of 6 words are common, so F = 10/11.
    assert cells["rouge1", "arm"]["mean"]["value"] == pytest.approx(10 / 11)
    assert cells["judge_score", "arm"]["difference"]["value"] == 7.0
    assert report["judged"]["arm"]["pairs"]["corrected"]["value"] == 1.0
    assert report["ranking_by_people"][1]["strength"] > 3
    printed = capfd.readouterr().out
    assert "may gate" in printed and "cannot gate: it prefers the answers that people reject" in printed
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes(), file
    assert KEY not in printed


def test_without_votes_no_metric_may_gate(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--comparison", comparison(tmp_path), "--power", "0.1", "--out", tmp_path / "out.json") == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert {each["can_gate"] for each in report["agreement"]} == {False}
    assert report["prompts_needed"]["chrf"]["arm"] >= 2
    assert "cannot gate: people voted on no two answers of this run" in " ".join(capfd.readouterr().out.split())


def test_equal_answers_need_an_unknown_number_of_prompts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_comparison(tmp_path, ITEMS, {"base": BAD, "arm": BAD}, metrics=["length"])
    assert evaluate("--comparison", path, "--power", "0.1", "--out", tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["prompts_needed"] == {"length": {"arm": None}}
    assert "not known: no difference varies" in " ".join(capfd.readouterr().out.split())


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (lambda prompt: pick(True), "warning: the judge on arm: both orders agree in 0% of the pairs; use another"),
        (
            lambda prompt: prefer_the_castle(prompt) if "Question 1" in prompt else "no JSON",
            "warning: judge_win_rate of arm: the judge failed on 19 of 30 items",
        ),
        (prefer_the_castle, ""),
    ],
)
def test_a_judge_that_goes_by_position_or_fails_mostly_is_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], rule: Rule, said: str
) -> None:
    with judging(rule) as service:
        judge = {"url": f"http://127.0.0.1:{service.server_port}/v1", "model": "judge"}
        path = comparison(tmp_path, metrics=["judge_win_rate"], judge=judge)
        assert evaluate("--comparison", path) == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert said in printed and ("warning" in printed) == bool(said)


def test_lint_exits_with_1_and_names_rows(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = comparison(tmp_path, required=["reference"])
    assert evaluate("--comparison", path, "--lint", f"train=[{tmp_path}/arm.jsonl]") == 1
    found = [line for line in capfd.readouterr().out.splitlines() if "leak from training: question" in line]
    assert len(found) == N
    assert f"{tmp_path}/items.jsonl:1: leak from training: question as in {tmp_path}/arm.jsonl:1" in found[0]


def test_a_clean_set_passes_the_lint(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prompts = ["Which ferry leaves first?", "Where do locals eat at noon?", "How cold is January up north?"]
    items = [{"prompt": prompt, "reference": prompt[::-1]} for prompt in prompts]
    path = write_comparison(tmp_path, items, {"base": prompts}, required=["reference"], longest_answer=50)
    assert evaluate("--comparison", path, "--lint") == 0
    assert "no findings" in capfd.readouterr().out


def test_power_alone_prints_sample_sizes(capfd: pytest.CaptureFixture[str]) -> None:
    assert evaluate("--power", "0.05") == 0
    # z = 2.8016; the variance is 0.55 · 0.45 = 0.2475 without ties: 7.8489 · 0.2475/0.0025 = 777.04.
    assert "778" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to evaluate"),
        (["--lint"], "--lint has no effect with an evaluation without --comparison"),
        (["--power", "0.7"], "a win rate has at most 0.5 above chance"),
        (["--power", "-1"], "is no difference"),
        (["--power", "1e-200"], "is below the rounding of any metric"),
        (["--comparison", "{path}", "metrics=[]"], "nothing to measure why: metrics is empty"),
        (["--comparison", "{path}", "metrics=[answer_relevancy]", JUDGE], "answer_relevancy compares embeddings"),
        (["--comparison", "{path}", "--reward-model", "m"], "--reward-model has no effect with --comparison"),
        (["--comparison", "{path}", "--lint", "--power", "0.1"], "--power has no effect with --lint"),
        (["--comparison", "{path}", "base=sft"], "base = 'sft' is no arm"),
        (["--comparison", "{path}", "metrics=[rogue]"], "metrics has 'rogue'"),
        (["--comparison", "{path}", "metrics=[judge_score]"], "judge_score needs a judge"),
        (["--comparison", "{path}", "metrics=[bert_score]"], "bert_score needs an encoder"),
        (["--comparison", "{path}", "metrics=[consistency]"], "consistency compares several answers"),
        (["--comparison", "{path}", "metric=[length]"], "metric is no key of a comparison"),
        (["--comparison", "{path}", "seed=-1"], "seed: "),
        (["--comparison", "{path}", "scores=[reward]"], "arm base has no score 'reward' why: its rows have none"),
        (["--comparison", "{path}", "scores=[chrf]"], "two metrics have the name 'chrf'"),
        (["--comparison", "{path}", "lm_eval={{models: {{sft: m}}, tasks: [t]}}"], "has 'sft', which is no arm"),
        (["--comparison", "{path}", "lm_eval={{models: {{base: m}}, tasks: []}}"], "lm_eval has no task or no model"),
        (["--comparison", "{path}", "--power", "inf"], "--power inf is no difference"),
        (
            ["--comparison", "{path}", "items=none.jsonl"],
            "correct 'none.jsonl', or name another file in the comparison",
        ),
        (["--comparison", "{path}", "judge={{url: 'ftp://x', model: m}}"], "judge.url = 'ftp://x' is no address"),
        (
            ["--comparison", "{path}", "judge={{url: 'localhost:8000', model: m}}"],
            "judge.url=http://127.0.0.1:8000/v1, or https://...",
        ),
        (["--comparison", "{path}", "--category", "subset"], "--category has no effect with --comparison"),
        (["--comparison", "{path}", "--out", "/dev/null"], "no file can be written there"),
        (
            ["--comparison", "{path}", "cache=/none/replies.jsonl", "judge={{url: 'http://127.0.0.1:1/v1', model: m}}"],
            "'/none/replies.jsonl' cannot be written",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    path = comparison(tmp_path)
    assert evaluate(*(each.format(path=path) for each in arguments)) == 2
    assert message in " ".join(capfd.readouterr().err.split())


def test_a_metric_without_its_column_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    items = [{"prompt": "One?", "reference": "1"}, {"prompt": "Two?"}]
    path = write_comparison(tmp_path, items, {"base": ["1", "2"]}, metrics=["chrf"])
    assert evaluate("--comparison", path) == 2
    assert "chrf needs the column reference" in capfd.readouterr().err


def test_ctrl_c_keeps_the_replies_that_were_paid_for(tmp_path: Path) -> None:
    """In a process of its own: only there is a signal what Ctrl-C sends."""
    held, order = threading.Event(), count()

    def rule(prompt: str) -> object:
        if next(order) >= 10:
            held.wait(60)
        return prefer_the_castle(prompt)

    with judging(rule) as service:
        judge = {"url": f"http://127.0.0.1:{service.server_port}/v1", "model": "judge", "connections": 2}
        path = comparison(tmp_path, metrics=["judge_score"], judge=judge)
        command = [sys.executable, "-m", "launch.cli", "evaluate", "--comparison", str(path)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & has it ignored
        )
        end = time.monotonic() + 120
        while len(service.asked) < 12:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        held.set()
        assert process.returncode == 130 and "Traceback" not in errors, errors
        kept = len((tmp_path / "judge_replies.jsonl").read_text().splitlines())
        assert kept == 10
        asked = len(service.asked)
        assert evaluate("--comparison", path) == 0
        assert len(service.asked) - asked == 2 * N - kept
