"""Draws a run as one picture that fills a terminal of any size.

Texts of a model, of the recipe and of errors are drawn through ``console.one_line`` and ``rich.text.Text``, never as
markup.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby

from rich.box import ROUNDED
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.layout import Layout
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from launch.report.read import STAGES
from launch.watch.describe import GOOD, TROUBLE, describe_sample, local_time
from launch.watch.events import EventGroup, fit_events, fold_events
from launch.watch.follow import Row
from launch.watch.spark import sparkline
from launch.watch.view import ActorRow, RunView, history, phases, rates, step_seconds
from rlhf.tracking.console import format_seconds, one_line

SMALLEST = (40, 10)
"""Columns and lines below which nothing useful can be drawn."""
LOOP = ("rollout", "score", "advantages", "update", "publish")
"""The phases of a PPO step, in order."""
FINE_STATES = ("serving", "current")
GONE_STATES = ("gone",)
"""States of the members of a run that has ended: none of them is in more trouble than the others."""
HEAD_LINES = 6
"""Lines of the head with one line of the run's state."""
MOST_STATE_LINES = 4
"""Most lines of the state: the end of a run is a sentence or two."""
LONG_SECONDS = 99.5
"""From here on, times are shown as minutes and hours."""
MOST_MEMBERS = 12
"""Number of members beyond which their panel shows roles and grows no further."""
FRAME = 2
"""Lines, or columns, of a panel's frame."""
WIDE = 56
"""Columns from which the numbers' panel shows ranges."""
_VALUE_COLUMNS, _SPAN_COLUMNS = 10, 24


def picture(view: RunView, width: int, height: int, footer: str = "") -> RenderableType:
    """Draw the state of a run in ``width`` columns and ``height`` lines."""
    width, height = max(width, SMALLEST[0]), max(height, SMALLEST[1])
    states = _states(view, width - 2 * FRAME, min(MOST_STATE_LINES, max(1, (height - 2) // 4 - 1)))
    head_lines = HEAD_LINES - 1 + len(states)
    rest = height - head_lines
    members = len(view.members)
    wanted = FRAME + max(len(history(view)), members if members <= MOST_MEMBERS else 0, 3)
    middle = min(wanted, max(3, rest * 45 // 100))
    below = rest - middle
    root = Layout()
    parts = [Layout(_head(view, states, width, footer), size=head_lines), Layout(name="middle", size=middle)]
    texts = _texts(view, width - 2 * FRAME, below)
    root.split_column(*parts, *texts)
    left = Layout(_numbers(view, width if not view.members else width // 2, middle - FRAME))
    sides = [left] if not view.members else [left, Layout(_members(view.members, middle - FRAME))]
    root["middle"].split_row(*sides)
    return root


def _panel(body: RenderableType, title: str, style: str = "cyan") -> Panel:
    return Panel(body, title=Text(title), title_align="left", box=ROUNDED, border_style=style, padding=(0, 1))


# The head: the run's progress.


def _head(view: RunView, states: Sequence[Text], width: int, footer: str) -> RenderableType:
    inner = width - 2 * FRAME
    rows = [_stages(view), _progress(view, inner), _phases(view, inner), *states]
    for row in rows:
        row.truncate(inner, overflow="ellipsis")
    panel = _panel(Group(*rows), f"{one_line(view.title)} · {_shorten(view.source, max(10, inner - 40))}")
    panel.border_style = _colour(view)
    panel.subtitle, panel.subtitle_align = Text(footer, style="dim"), "right"
    return panel


def _colour(view: RunView) -> str:
    if view.ending is not None:
        return "green" if view.ending.good else "red"
    return "yellow" if view.warning else "cyan"


def _shorten(text: str, width: int) -> str:
    text = one_line(text)
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def _stages(view: RunView) -> Text:
    """``sft ✓  reward ✓  ppo``"""
    row = Text()
    names = [name for name in STAGES if name in view.finished or name == view.stage]
    for name in names:
        over, here = name in view.finished, name == view.stage
        row.append(f"{name}", style="bold" if here else "")
        row.append(" ✓  " if over else "  ", style="green")
    for name, value in rates(view).items():
        row.append(f"  {value:,.3g}" if value < 100 else f"  {value:,.0f}", style="bold")
        row.append(f" {name}", style="dim")
    return row


def _progress(view: RunView, width: int) -> Text:
    """``step 12 of 100 ━━━━╸──── 12%  about 5:32 left``"""
    if view.steps is None:
        return Text(f"{view.done} steps done" if view.done else "no step done yet")
    left = view.seconds_left
    time_left = "" if left is None or view.ending is not None else f"  about {format_seconds(left)} left"
    if (each := step_seconds(view.metrics.items)) is not None:
        time_left += f" {_seconds(each)} a step"
    share = min(1.0, view.done / max(1, view.steps))
    label, percent = f"step {view.done} of {view.steps} ", f" {100 * share:.0f}%"
    length = max(8, min(60, width - len(label) - len(percent) - len(time_left)))
    full = int(share * length)
    row = Text(label, style="bold")
    row.append("━" * full, style="green").append("─" * (length - full), style="dim")
    return row.append(percent).append(time_left, style="cyan")


def _phases(view: RunView, width: int) -> Text:
    """The phases with their seconds in the last step; the current one is highlighted, with its own."""
    last = phases(view)
    names = list(LOOP) if view.stage == "ppo" and (last or view.phase) else []
    names += [name for name in last if name not in names]
    names += [view.phase] if view.phase and view.phase not in names else []
    row = _phase_row(names, last, view)
    return row if row.cell_len <= width else _phase_row(names, {}, view)


def _phase_row(names: Sequence[str], last: Mapping[str, float], view: RunView) -> Text:
    row = Text()
    for name in names:
        row.append(" › " if row else "", style="dim")
        if name == view.phase and view.ending is None:
            row.append(f" {name} {format_seconds(view.phase_seconds or 0.0)} ", style="bold reverse")
        else:
            row.append(name).append(_seconds(last.get(name)), style="dim")
    return row


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f" {seconds:.2g}s" if seconds < LONG_SECONDS else f" {format_seconds(seconds)}"


def _states(view: RunView, width: int, lines: int) -> list[Text]:
    """The state of the run in at most ``lines`` lines, broken between words."""
    state = _state(view)
    parts = textwrap.wrap(state.plain, width) or [""]
    if len(parts) > lines:
        parts[lines - 1 :] = [" ".join(parts[lines - 1 :])]  # too long, and cut
    return [Text(part, style=state.style) for part in parts]


def _state(view: RunView) -> Text:
    if view.ending is not None:
        return Text(one_line(view.ending.text), style="bold green" if view.ending.good else "bold red")
    if view.warning:
        return Text(one_line(view.warning), style="bold yellow")
    if view.stage in view.finished:
        return Text(f"{view.stage} is finished; its process continues with the next stage", style="green")
    if view.step is not None and view.phase:
        return Text(f"in {view.phase} of step {view.step}, counted from 0", style="dim")
    return Text("starting" if not view.done else "", style="dim")


# The middle: numbers and members.


def _numbers(view: RunView, width: int, lines: int) -> RenderableType:
    table = Table.grid(padding=(0, 1), expand=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, justify="right", style="bold")
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="dim")
    spans = width >= WIDE
    found = history(view)
    names = max(map(len, found), default=0)
    bars = max(4, width - names - _VALUE_COLUMNS - 2 * FRAME - (_SPAN_COLUMNS if spans else 2))
    for name, values in list(found.items())[:lines]:
        known = [value for value in values if value is not None]
        span = f"{min(known):.3g} to {max(known):.3g}" if spans else ""
        table.add_row(name, f"{known[-1]:.4g}", Text(sparkline(values, bars), style="cyan"), span)
    return _panel(table if found else Text("no step yet", style="dim"), "numbers")


def _members(members: Sequence[ActorRow], lines: int) -> RenderableType:
    """One line per member, or one line per role if there are more members than lines."""
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, ratio=1, overflow="ellipsis", style="dim")
    if len(members) <= lines:
        for member in members:
            table.add_row(Text(member.name), _colour_state(member.state), Text(_where(member)))
    else:
        for name, state, where in _by_role(members)[:lines]:
            table.add_row(Text(name), _colour_state(state), Text(where))
    return _panel(table, "members")


def _where(member: ActorRow) -> str:
    parts = [member.node, "" if member.heartbeat_age is None else f"heard {format_seconds(member.heartbeat_age)} ago"]
    return "  ".join(filter(None, parts)) or ("" if member.process is None else f"process {member.process}")


def _by_role(members: Sequence[ActorRow]) -> list[tuple[str, str, str]]:
    """Members in trouble by name and first, the others by role, with their numbers of members and nodes."""
    grouped = (*FINE_STATES, *GONE_STATES)
    troubled = [member for member in members if member.state not in grouped]
    rows = [(member.name, member.state, _where(member)) for member in troubled]
    fine = sorted((member for member in members if member.state in grouped), key=lambda member: member.role)
    for role, some in groupby(fine, key=lambda member: member.role):
        group = list(some)
        nodes = len({member.node for member in group})
        states = Counter(member.state for member in group)
        rows.append((f"{role} ×{len(group)}", states.most_common(1)[0][0], f"on {nodes} node{'s'[: nodes > 1]}"))
    return rows


def _colour_state(state: str) -> Text:
    style = "green" if state in FINE_STATES else "red" if state in ("dead", "stalled", "gone") else "yellow"
    return Text(state, style=style)


# Below: samples, events and log.


def _texts(view: RunView, width: int, lines: int) -> list[Layout]:
    """Samples, events and a job's log, if present. Each has a share of the lines, and unused lines go to the first
    one."""
    panels: list[tuple[str, int, Callable[[int, int], RenderableType]]] = []
    events, log = fold_events(view.events.items), view.log.items
    if view.samples:
        step = one_line(view.samples[-1].get("step"))
        panels.append((f"samples of step {step}", lines, partial(_samples, view.samples)))
    if log:
        panels.append(("the job's log", len(log), partial(_log, log)))
    if events or not log:
        panels.append(("events", max(1, len(events)), partial(_events, events)))
    share = lines // len(panels)
    others = [min(share, FRAME + needed) for _, needed, _ in panels[1:]]
    sizes = [lines - sum(others), *others]
    return [
        Layout(_panel(draw(width, max(1, size - FRAME)), title), size=size)
        for (title, _, draw), size in zip(panels, sizes, strict=True)
    ]


def _events(events: Sequence[EventGroup], width: int, lines: int) -> RenderableType:
    if not events:
        return Text("none so far", style="dim")
    return Group(*(_event(group, width) for group in fit_events(events, lines)))


def _log(log: Sequence[str], width: int, lines: int) -> RenderableType:
    return Group(*(_cut(Text(line), width) for line in log[-lines:]))


def _samples(samples: Sequence[Row], width: int, lines: int) -> RenderableType:
    """As many samples as fit, each with its details, its prompt and its response."""
    each = max(3, lines // max(1, len(samples)))
    body: list[RenderableType] = []
    for sample in samples[: max(1, lines // each)]:
        body.append(_cut(Text(describe_sample(sample), style="cyan"), width))
        body.append(_cut(Text(f"› {_end(one_line(sample.get('prompt', '')), width - 2)}", style="dim"), width))
        body += _wrap(one_line(sample.get("response", "")), width, each - 2)
    return Group(*body[:lines])


def _end(text: str, width: int) -> str:
    """The end of a prompt, which is the part that is answered."""
    return text if len(text) <= width else f"…{text[len(text) - width + 1 :]}"


def _wrap(text: str, width: int, lines: int) -> list[Text]:
    """Wrap a text to at most ``lines`` lines, breaking full lines anywhere; the last one is cut."""
    rows: list[Text] = []
    while text and len(rows) + 1 < lines:
        count = _count_fitting(text, width)
        rows.append(Text(text[:count]))
        text = text[count:]
    return [*rows, _cut(Text(text), width)] if text else rows


def _count_fitting(text: str, width: int) -> int:
    """Number of characters of a text that fit into ``width`` columns, at least one."""
    count = min(len(text), width)
    while count > 1 and cell_len(text[:count]) > width:
        count -= 1
    return count


def _event(group: EventGroup, width: int) -> Text:
    style = "red" if group.kind in TROUBLE else "green" if group.kind in GOOD else "yellow"
    row = Text(local_time(group.last) or " " * 8, style="dim")
    return _cut(row.append("  ").append(group.describe(), style="dim" if group.is_routine else style), width)


def _cut(text: Text, width: int) -> Text:
    text.truncate(max(1, width), overflow="ellipsis")
    return text
