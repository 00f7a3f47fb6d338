from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import chain, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from markupsafe import escape

from launch.report.charts import Chart, Line, draw
from launch.report.page import write_report
from launch.report.panels import charts_of
from launch.report.read import read_run
from launch.report.render import source_hash
from launch.report.tables import Details, ShareBar, _busy, select_samples, table, time_by_phase
from launch.report.timeline import Bar, Timeline
from rlhf.errors import UserError
from tests.launch.report.folder import HOSTILE, hostile_run, write_rows

GAP = "rollout/logprob_gap_mean"


class Seen(HTMLParser):
    """Tags with their attributes, and the text in each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._within: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "line", "path", "circle", "rect"):
            self._within.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._within and self._within[-1] == tag:
            self._within.pop()

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._within[-1] if self._within else "", []).append(data)


@pytest.fixture
def html(tmp_path: Path) -> str:
    return write_report(hostile_run(tmp_path)).read_text(encoding="utf-8")


def test_hostile_text_stays_text(html: str) -> None:
    seen = Seen(html)
    names = [tag for tag, _ in seen.tags]
    assert [attributes for tag, attributes in seen.tags if tag == "script"] == [
        {"type": "application/json", "id": "readings"},
        {},
    ]
    assert not {"img", "link", "iframe", "object", "base", "form"} & set(names)
    attributes = {name for _, given in seen.tags for name in given}
    assert not {name for name in attributes if name.startswith("on") or name in ("style", "src", "srcset")}
    assert {given["href"][:1] for tag, given in seen.tags if tag == "a" and given["href"]} == {"#"}
    # prompts of three samples, one response, prompt and answer of the comparison, event, config key and value, ...
    assert sum(HOSTILE in words for words in seen.texts["div"]) >= 8
    assert "open sesame" not in html
    (readings,) = re.findall(r'id="readings">(.*?)</script>', html)
    assert not set("<>&") & set(readings)
    assert any("<script>" in words for chart in json.loads(readings) for _, words in chart)


def test_the_policy_allows_this_script_and_style_alone(html: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    hashes = f"script-src {source_hash(script)}; style-src {source_hash(style)}"
    assert policy == f"default-src 'none'; {hashes}; base-uri 'none'; form-action 'none'"
    assert source_hash("abc") == "'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='"


def test_what_html_cannot_hold_is_made_visible() -> None:
    assert "a\u2400\u2421\\ud800&lt;" in table(["a"], [["a\x00\x7f\ud800<"]], "t")


def test_every_kind_of_cell_is_escaped() -> None:
    cells = [HOSTILE, Details(HOSTILE, [HOSTILE]), None, True, 0.5, ShareBar(0.5)]
    drawn = table([HOSTILE], [cells], HOSTILE, HOSTILE, HOSTILE)
    assert not {"script", "img"} & {tag for tag, _ in Seen(drawn).tags}
    assert drawn.count(escape(HOSTILE)) == 7  # head, cell, text, detail, label and two notes
    chart = Chart(title=HOSTILE, unit=HOSTILE, lines=[Line(name=HOSTILE, points=((0, 1.0),))], levels=[(HOSTILE, 1.0)])
    assert not {"script", "img"} & {tag for tag, _ in Seen(draw(chart, 0)).tags}
    assert draw(chart, 0).count(escape(HOSTILE)) == 6  # title twice, unit, line twice, level


def test_a_stage_without_a_single_number_makes_a_page(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft" / "metrics.jsonl", [])
    assert "no metrics yet" in write_report(tmp_path).read_text(encoding="utf-8")


def test_every_kind_of_stage_has_its_curves(tmp_path: Path) -> None:
    write_rows(tmp_path / "sft" / "metrics.jsonl", [{"step": k, "train/loss": 3 - k} for k in range(2)])
    interval = {"eval/accuracy_ci_low": 0.5, "eval/accuracy_ci_high": 0.8}
    write_rows(tmp_path / "reward" / "metrics.jsonl", [{"step": k, "eval/accuracy": 0.6} | interval for k in range(2)])
    html = write_report(tmp_path, tmp_path / "other.html").read_text(encoding="utf-8")
    assert not (tmp_path / "report.html").exists()
    assert re.findall(r"<h4>(.*?)</h4>", html) == ["Loss", "Accuracy"]
    assert html.count('class="band band-0"') == 1


@pytest.mark.parametrize(
    ("limit", "staleness", "drawn"), [(0.25, 0, [0.25]), (0.0, 0, [0.0]), (None, 0, [1e-4]), (0.25, 1, [])]
)
def test_the_gap_has_the_limit_that_its_canary_checks(
    limit: float | None, staleness: int, drawn: list[float], tmp_path: Path
) -> None:
    """Of float32 the default is 1e-4 (docs/canaries.md); stale samples have none."""
    write_rows(tmp_path / "ppo" / "metrics.jsonl", [{"step": k, GAP: 1e-6} for k in range(2)])
    config = {"canaries": {"logprob_gap_limit": limit}, "model": {"dtype": "float32"}, "ppo": {"staleness": staleness}}
    (tmp_path / "ppo" / "config.yaml").write_text(json.dumps(config))
    charts = chain.from_iterable(charts_of(read_run(tmp_path).stages[0]).values())
    assert [level for chart in charts for _, level in chart.levels] == drawn


def test_the_command_writes_or_refuses(tmp_path: Path) -> None:
    hostile_run(tmp_path / "r")
    command = [sys.executable, "-m", "launch.cli", "report"]
    done = subprocess.run([*command, tmp_path / "r"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'r' / 'report.html'}\n")
    refused = subprocess.run([*command, tmp_path], capture_output=True, text=True)
    assert refused.returncode == 2 and "is no run's folder" in refused.stderr and "Traceback" not in refused.stderr
    with pytest.raises(UserError, match="cannot write"):
        write_report(tmp_path / "r", tmp_path / "missing" / "x.html")


def test_samples_are_of_steps_over_the_whole_run() -> None:
    rows = [{"step": step, "score": 0.5, "response": f"answer {step}"} for step in range(100)]
    steps = [row["step"] for row, _ in select_samples(rows)]
    assert len(steps) == 10 and (steps[0], steps[-1]) == (0, 99)
    assert {after - before for before, after in pairwise(steps)} == {11}


def test_a_busy_share_is_of_time_and_not_of_steps() -> None:
    """Busy for the whole of a step of 10 s, idle in one of 90 s: a tenth of the time."""
    work = [Bar(name="update", begin=0.0, end=10.0)]
    timeline = Timeline(steps={0: (0.0, 10.0), 1: (10.0, 100.0)}, phases=[], actors={"policy rank 0": work})
    _, mean, least, most, *_ = _busy("policy rank 0", timeline)
    assert (mean, least, most) == (10.0, 0.0, 100.0)


def test_the_start_is_in_no_step() -> None:
    metrics = {"time/start": ((0, 9.0),), "time/rollout": ((0, 1.0),), "time/step": ((0, 2.0),)}
    stage: Any = SimpleNamespace(name="ppo", metrics=metrics)
    [html] = time_by_phase(stage)
    text = " ".join(re.sub(r"<[^>]*>", " ", html).split())
    assert "rollout 1 1 1 1 50" in text and "start 9 1 9 9" in text and "450" not in text
