"""Formats the plan as text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from launch.plan.cluster import Cluster
from launch.plan.fit import Changes
from launch.plan.members import PlannedSlot
from launch.plan.memory import GIB, PARTS
from launch.plan.plan import Placed, StagePlan, Use, phase_seconds
from launch.plan.report import Plan
from launch.plan.timing import SHARES
from rlhf.gpus import GB
from rlhf.recovery.grace import BYTES_PER_SECOND, CHECKPOINTS

Row = Sequence[str]


def show(plan: Plan) -> str:
    """Format every stage, then what does not fit and what would fix it."""
    lines = [_heading(plan.recipe.name, plan.cluster)]
    lines += [f"placement.strategy=auto is {plan.why}"] if plan.why else []
    for stage in plan.stages:
        lines += ["", *_stage(stage, plan.recipe.checkpoint.grace_seconds)]
    if (store := plan.object_store) is not None:
        lines += ["", f"Ray's object store on each node: {_gib(store)} GiB (ray start --object-store-memory={store})"]
    lines += ["", *_verdict(plan)]
    return "\n".join(lines)


def table(rows: Sequence[Row], indent: str = "    ") -> list[str]:
    """Format rows in columns: the first left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        indent
        + "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _heading(name: str, cluster: Cluster) -> str:
    size = cluster.type.memory / GIB
    nodes = "1 node" if cluster.nodes == 1 else f"{cluster.nodes} nodes"
    return (
        f"{name} on {nodes} of {cluster.gpus} {cluster.gpu}: {_counted(cluster.total, 'GPU')} of {size:.1f} GiB; "
        f"{cluster.type.link / GB:.0f} GB/s within a node, {cluster.network / GB:.0f} GB/s between nodes"
    )


def _stage(stage: StagePlan, grace_seconds: float) -> Iterator[str]:
    placed = stage.placed
    yield f"{placed.stage}: {placed.strategy}, {_sharing(placed)}"
    yield from _places(placed)
    yield "  memory of the fullest GPU of each role, in GiB, in the phase that takes most"
    yield from table(list(_memory_rows(placed)))
    if len(placed.uses[0].phases) > 1:
        yield "  the same by phase, all parts together"
        yield from table(list(_phase_rows(placed)))
    yield "  batch"
    yield from _batch(stage)
    yield f"  checkpoint\n    {_checkpoint(stage.checkpoint_bytes, grace_seconds)}"
    if stage.seconds:
        yield "  expected seconds, every sequence at its longest (a model with assumed rates, not a measurement)"
        yield from _seconds(stage)
    for problem in placed.problems:
        yield f"  does not fit: {problem}"


def _places(placed: Placed) -> Iterator[str]:
    if not placed.slots:
        return
    yield "  slots"
    roles = dict.fromkeys(slot.role for slot in placed.slots)
    for role in roles:
        own = [slot for slot in placed.slots if slot.role == role]
        each = "" if len(own[0].gpus) == 1 else f" of {len(own[0].gpus)} GPUs"
        kind = "engine" if role == "rollout" else "rank"
        yield f"    {role:<14} {_counted(len(own), kind)}{each}: {_where(own)}"


def _where(slots: Sequence[PlannedSlot]) -> str:
    by_node: dict[int, list[int]] = {}
    for slot in slots:
        by_node.setdefault(slot.node, []).extend(slot.gpus)
    return "; ".join(f"node {node} GPU {_ranges(sorted(gpus))}" for node, gpus in sorted(by_node.items()))


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3, 6`` for 0, 1, 2, 3, 6."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _all_uses(placed: Placed) -> list[Use]:
    return [*placed.uses, *placed.shared]


def _sharing(placed: Placed) -> str:
    if placed.strategy == "colocated":
        return "roles share their GPUs"
    return "; ".join(f"{use.role} share GPUs" for use in placed.shared) or "each role owns its GPUs"


def _memory_rows(placed: Placed) -> Iterator[Row]:
    uses = _all_uses(placed)
    used = [part for part in PARTS if any(getattr(use.phases[use.worst], part) for use in uses)]
    on_host = any(use.host for use in uses)
    yield ("role", "parameters", "phase", *used, "total", "margin", *(("host",) if on_host else ()))
    for use in uses:
        memory = use.phases[use.worst]
        cells = [_gib(getattr(memory, part)) for part in used]
        host = (_gib(use.host),) if on_host else ()
        yield (use.role, f"{use.parameters:,}", use.worst, *cells, _gib(memory.total), _gib(use.margin), *host)


def _phase_rows(placed: Placed) -> Iterator[Row]:
    uses = _all_uses(placed)
    yield ("role", *uses[0].phases)
    for use in uses:
        yield (use.role, *(_gib(memory.total) for memory in use.phases.values()))


def _counted(count: int, name: str, several: str = "") -> str:
    return f"{count} {name if count == 1 else several or f'{name}s'}"


def _gib(count: int) -> str:
    return f"{count / GIB:.1f}"


def _batch(stage: StagePlan) -> Iterator[str]:
    batch, engine = stage.batch, stage.placed.engine
    yield (
        f"    {batch.samples} samples of {batch.prompts} prompts, each at most {batch.prompt_tokens} + "
        f"{batch.response_tokens} tokens; {_counted(batch.updates, 'update')} of {batch.samples_per_update} samples"
        + (f", {batch.total_updates:,} in the run" if batch.total_updates is not None else "")
    )
    if engine is not None:
        limits = engine.limits
        yield f"    an engine computes at most {limits.sequences:,} sequences and {limits.tokens:,} tokens at a time"
        yield (
            f"    its KV cache holds {engine.kv_tokens:,} tokens: {engine.at_once} of the longest sequences at "
            f"once; scored in {batch.blocks} blocks"
        )
    for role, passes in batch.score_passes.items():
        yield f"    {role}: {_counted(passes, 'pass', 'passes')} on each rank to score a step"
    for role, rows in batch.update_passes.items():
        yield f"    {role}: {_counted(rows, 'micro-batch', 'micro-batches')} on each rank in an update"


def _checkpoint(size: int, grace_seconds: float) -> str:
    """The size of a checkpoint, and the rate of writing with which a stop does not lose its own."""
    stop = CHECKPOINTS * size
    text = (
        f"at most {_gib(size)} GiB; a stop may have to write {CHECKPOINTS} in "
        f"checkpoint.grace_seconds={grace_seconds:g}: {stop / grace_seconds / GB:.1f} GB/s to runs_dir"
    )
    if stop <= BYTES_PER_SECOND * grace_seconds:
        return text
    return f"{text}; at {BYTES_PER_SECOND / GB:g} GB/s that takes {math.ceil(stop / BYTES_PER_SECOND):,} seconds"


def _seconds(stage: StagePlan) -> Iterator[str]:
    for phase, parts in stage.seconds.items():
        inside = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
        yield f"    {phase:<9}{phase_seconds(phase, parts):>9.1f}  {inside}"
    yield f"    {'step':<9}{stage.step_seconds:>9.1f}  at {_shares()}"


def _shares() -> str:
    return "assumed fractions of data sheet rates: " + ", ".join(f"{name} {share}" for name, share in SHARES.items())


def _verdict(plan: Plan) -> Iterator[str]:
    if plan.fits:
        yield "It fits the GPUs. Not judged: the nodes' own memory, and whether runs_dir is fast enough for a stop."
        return
    yield "It does not fit. Smallest change found: " + (
        _settings(plan.change) if plan.change else "none on this cluster by changes of placement alone"
    )
    if plan.larger is not None:
        yield f"As it is, it fits on {plan.larger.nodes} such nodes."


def _settings(changes: Changes) -> str:
    return " ".join(f"{key}={_value(value)}" for key, value in changes.items())


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
