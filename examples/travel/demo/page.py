"""The demo's page. Every number and every sentence about a result follows from the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from examples.travel.demo.figures import draw_quality, draw_traffic
from examples.travel.demo.live import CONFIG
from examples.travel.demo.place import DemoPlace, Result
from examples.travel.demo.traffic import CanaryReturn, Row, find_return, measure_traffic
from examples.travel.demo.training import FAULTY, FIRST, NEXT
from examples.travel.demo.users import LIVE_SHARE
from rlhf.feedback.store import Store
from rlhf.serving.gateway_config import load_gateway
from rlhf.serving.markdown import markdown_table
from rlhf.storage.durable import write_atomically
from rlhf.storage.jsonl import read_lines

TEXT = Path(__file__).with_name("page.md.jinja")
BINS = 60
SERVED = (4, 6)
"""Numbers of the acts in which users are served."""


@dataclass(frozen=True, kw_only=True)
class Story:
    """What the demo showed."""

    text: str
    is_better: bool
    """Whether the next round is better than the first model, by the interval of its gain."""


def describe_story(results: Sequence[Result]) -> Story:
    """One line about the outcome."""
    gain = results[4]["quality"][NEXT]["gain"]
    is_better = gain[1] is not None and gain[1] > 0
    verdict = "is better than" if is_better else "is not shown to be better than"
    text = f"{NEXT} {verdict} {FIRST}: true quality {number(gain, '+')}; it is in {results[5]['stage']}"
    return Story(text=text, is_better=is_better)


def write_page(place: DemoPlace, results: Sequence[Result], out: Path) -> Path:
    """Write the page, and its figures into ``images`` beside it; returns the page."""
    images = out.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    figures = {name: images / f"{out.stem}-{name}.png" for name in ("canary", "next", "quality")}
    found = _draw_served(place, results, figures)
    draw_quality(results[0]["quality"], results[4]["by_topic"], figures["quality"])
    window = max(rule.window_seconds for rule in load_gateway(CONFIG).kpis)
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    text = environment.from_string(TEXT.read_text(encoding="utf-8")).render(
        acts=results,
        first=FIRST,
        faulty=FAULTY,
        next=NEXT,
        sizes=place.sizes,
        seed=place.seed,
        share=LIVE_SHARE,
        minutes=sum(act["seconds"] for act in results) / 60,
        story=describe_story(results),
        returned=found,
        window=window,
        rules=load_gateway(CONFIG).kpis,
        figures={name: path.relative_to(out.parent) for name, path in figures.items()},
        has_next=figures["next"].exists(),
        table=markdown_table,
        gates=gate_rows,
        thumbs=thumb_rows,
        number=number,
        audit=[(e["who"], e["action"], e["version"], e["stage"], e["why"]) for e in results[5]["audit"]],
    )
    write_atomically(out, text)
    return out


def _draw_served(place: DemoPlace, results: Sequence[Result], figures: Mapping[str, Path]) -> CanaryReturn:
    """Draw the traffic of both acts with users; returns the faulty candidate's return."""
    seen, found = 0, None
    for number_of_act, name in zip(SERVED, ("canary", "next"), strict=True):
        state, audit = place.root / "acts" / str(number_of_act) / "state", results[number_of_act - 1]["audit"]
        log = read_lines(state / "requests.jsonl")
        rows, seen = log[seen:], len(log)  # the log of an act goes on in the next one
        figures[name].unlink(missing_ok=True)
        if not rows:
            continue
        with Store.open(state / "votes.db") as store:
            traffic = measure_traffic(rows, store.thumbs(), BINS)
        draw_traffic(traffic, list(_marks(rows, audit)), figures[name])
        found = found or find_return(rows, audit, FAULTY)
    assert found is not None  # the act fails otherwise
    return found


def _marks(rows: Sequence[Row], audit: Sequence[Row]) -> list[tuple[float, str]]:
    """Moments of the registry's entries within the time of these requests."""
    times = [row["time"] for row in rows if row["outcome"] == "answered"]
    first, last = min(times), max(times)
    return [
        (entry["time"] - first, f"{entry['version']} → {entry['stage']}")
        for entry in audit
        if first <= entry["time"] <= last
    ]


def gate_rows(decisions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Rows of a table of gates: version, step, outcome, measurements."""
    return [(d["version"], d["for"], d["outcome"], "; ".join(d["summary"])) for d in decisions]


def thumb_rows(thumbs: Mapping[str, Mapping[str, int]]) -> list[tuple[str, int, int, str]]:
    """Rows of a table of thumbs: version, up, down, fraction down."""
    return [
        (version, n["up"], n["down"], f"{n['down'] / (n['up'] + n['down']):.0%}")
        for version, n in sorted(thumbs.items())
    ]


def number(found: Sequence[float | None], sign: str = "") -> str:
    """A value with its 95% interval, if it has one."""
    value, low, high = found
    text = f"{value:{sign}.3f}"
    return text if low is None or high is None else f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]"
