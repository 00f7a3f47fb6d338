"""``rlhf doctor``: checks whether this machine, or every node of a running cluster, is fit for a run."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Overrides, Run

if TYPE_CHECKING:
    from launch.doctor.examine import Bench, NodeRequest
    from launch.doctor.findings import Fault, Row
    from launch.doctor.needs import Hardware
    from launch.doctor.nodes import Examined, NodeReply
    from rlhf.config.schema import Recipe

PURPOSE = "check versions, GPUs, memory, disk, ports, clocks and credentials, here or on every node of a cluster"
EXAMPLE = "rlhf doctor recipes/llama_70b_cluster.yaml --cluster"
JOIN_SECONDS = 60.0
"""Time that a running cluster may take to accept this process."""
SECONDS = 20.0
"""Deadline of a question to this machine alone."""
PLAN_SECONDS = 180.0
"""Deadline of a computation with the plan, which may import PyTorch: long, since it depends on no other machine."""
HERE, ALL = "this machine", "all nodes"


def run(
    *,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="YAML file: its needs of memory and disk are checked too")
    ] = None,
    overrides: Overrides,
    cluster: Annotated[bool, typer.Option("--cluster", help="check every node of the running Ray cluster")] = False,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="address of that cluster (default: placement.ray_address, or auto)"),
    ] = None,
    stage: Annotated[Run, typer.Option(help="the command that the recipe is checked for")] = "pipeline",
    as_json: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """Print the table.

    Raises:
        UserError: a check failed, or the recipe is wrong.
    """
    from launch.doctor.show import as_values, counts, show
    from rlhf.config.load import load_recipe
    from rlhf.errors import UserError
    from rlhf.tracking.quiet import quiet_framework_logs

    loaded = load_recipe(recipe, overrides) if recipe else None
    address = address or (loaded and loaded.placement.ray_address) or ("auto" if cluster else None)
    with tempfile.TemporaryDirectory() as folder, quiet_framework_logs(Path(folder) / "log"):
        rows = _cluster_rows(address, loaded, stage) if address else _own_rows(loaded, stage)
    print(json.dumps(as_values(rows), indent=2)) if as_json else show(rows, sys.stdout)
    if count := counts(rows)["failed"]:
        names = ", ".join(dict.fromkeys(row.check for row in rows if row.finding.status == "failed"))
        fix = "each failed row has its own; docs/doctor.md explains them"
        raise UserError(f"{count} check{'s' if count > 1 else ''} failed: {names}", fix=fix)


def _own_rows(recipe: Recipe | None, stage: Any) -> list[Row]:
    """Run every check of this machine alone."""
    from launch.doctor.examine import gather, node_rows

    pins, asked = _questions(recipe)
    facts = gather(asked)
    hardware = _hardware([facts], [len(os.sched_getaffinity(0))])
    bench = _bench(recipe, stage, pins, facts.versions, hardware)
    return [*node_rows(HERE, facts, bench), *_driver_rows(recipe), *_plan_rows(recipe, stage, hardware)]


def _cluster_rows(address: str, recipe: Recipe | None, stage: Any) -> list[Row]:
    """Run every check on every node, and those of all nodes together."""
    from launch.doctor import versions
    from launch.doctor.asking import answer
    from launch.doctor.findings import Fault

    pins, asked = _questions(recipe)
    examined = _examined(address, asked)
    if isinstance(examined, Fault):
        return [_not_joined(address, examined), *_own_rows(recipe, stage)]
    answered = [each for each in examined.answers if not isinstance(each.facts, Fault)]
    hardware = _hardware([each.facts for each in answered], [each.node.cpus for each in answered])
    here = answer(partial(versions.gather, asked.packages), SECONDS)
    bench = _bench(recipe, stage, pins, here, hardware)
    rows = [*_together_rows(examined), *_driver_rows(recipe), *_plan_rows(recipe, stage, hardware)]
    return [*rows, *(row for each in examined.answers for row in _answer_rows(each, bench))]


def _questions(recipe: Recipe | None) -> tuple[Any, NodeRequest]:
    """The pinned versions, and the questions to every node."""
    from launch.doctor.asking import answer
    from launch.doctor.examine import NodeRequest
    from launch.doctor.findings import Fault
    from launch.doctor.versions import names_of, read_pins
    from rlhf.config.schema import Recipe

    pins = answer(read_pins, SECONDS)
    runs = Path((recipe or Recipe(name="any")).runs_dir).expanduser().absolute()
    ray = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    return pins, NodeRequest(packages=() if isinstance(pins, Fault) else names_of(pins), runs=runs, ray=ray)


def _hardware(facts: Sequence[Any], cpus: Sequence[int]) -> Hardware:
    """Hardware for a run: the nodes with GPUs if there are any, otherwise all nodes."""
    from launch.doctor.needs import Hardware

    gpus = [each.gpus.gpus for each in facts if each.has_gpus]
    cores = min((count for count in cpus if count), default=1)
    if not gpus:
        return Hardware(nodes=max(1, len(facts)), cpus=cores)
    smallest = min((gpu for each in gpus for gpu in each), key=lambda gpu: gpu.memory)
    return Hardware(nodes=len(gpus), cpus=cores, gpus=min(len(each) for each in gpus), gpu=smallest)


def _bench(recipe: Recipe | None, stage: Any, pins: Any, here: Any, hardware: Hardware) -> Bench:
    from launch.doctor.asking import answer
    from launch.doctor.examine import Bench
    from launch.doctor.needs import needs_of

    needs = None if recipe is None else answer(partial(needs_of, recipe, stage, hardware), PLAN_SECONDS)
    return Bench(pins=pins, here=here, needs=needs)


def _driver_rows(recipe: Recipe | None) -> list[Row]:
    """Checks of the machine on which a run is started."""
    from launch.doctor.asking import answer
    from launch.doctor.credentials import check_login, gather_login
    from launch.doctor.findings import Row, run_check
    from rlhf.config.schema import TrackingConfig

    login = answer(partial(gather_login, recipe.tracking if recipe else TrackingConfig()), 2 * SECONDS)
    return [Row(check="W&B", node=HERE, finding=run_check(check_login, login))]


def _plan_rows(recipe: Recipe | None, stage: Any, hardware: Hardware) -> list[Row]:
    from launch.doctor.asking import answer
    from launch.doctor.findings import Row, run_check
    from launch.doctor.needs import check_plan

    if recipe is None:
        return []
    finding = answer(partial(check_plan, recipe, stage, hardware), PLAN_SECONDS)
    return [Row(check="plan", node=ALL, finding=run_check(lambda made: made, finding))]


def _examined(address: str, asked: NodeRequest) -> Examined | Fault:
    """The answers of the cluster's nodes; a ``Fault`` if it cannot be joined or queried."""
    from actors.cluster import join
    from launch.doctor.asking import answer
    from launch.doctor.findings import Fault

    joined = answer(partial(join, address), JOIN_SECONDS)
    if isinstance(joined, Fault):
        return joined
    import ray

    from launch.doctor.findings import described
    from launch.doctor.nodes import cluster_nodes, examine

    try:
        with _marker(asked.runs) as marker:
            return examine(cluster_nodes(), asked, marker)
    except Exception as error:  # the cluster ended, or the connection to it was lost
        return Fault(reason=described(error))
    finally:
        ray.shutdown()


@contextmanager
def _marker(runs: Path) -> Iterator[Path | Fault]:
    """A marker file for every node to find; a ``Fault`` if it cannot be created, for example on a dead file server."""
    from actors.shared_folder import marker
    from launch.doctor.asking import answer

    with ExitStack() as stack:
        made = answer(partial(stack.enter_context, marker(runs)), SECONDS)
        yield made


def _not_joined(address: str, fault: Fault) -> Row:
    from launch.doctor.findings import Row, failed

    fix = "`ray status` there; the address and port, RAY_AUTH_MODE and the token, and the versions must be its own"
    found = f"{address} could not be queried: {fault.reason}; below is this machine alone"
    return Row(check="cluster", node=HERE, finding=failed(found, fix))


def _together_rows(examined: Examined) -> list[Row]:
    """Checks of all nodes together."""
    from launch.doctor.findings import Row, ok, run_check
    from launch.doctor.nccl import check_across

    nodes = [each.node for each in examined.answers]
    gpus, cpus = sum(node.counted.gpus for node in nodes), sum(node.cpus for node in nodes)
    found = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}, {gpus} GPUs and {cpus} cores by Ray's count"
    across = run_check(check_across, examined.across)
    return [Row(check="cluster", node=ALL, finding=ok(found)), Row(check="NCCL of all", node=ALL, finding=across)]


def _answer_rows(answer: NodeReply, bench: Bench) -> list[Row]:
    """The rows of one node; a single failed row if it did not answer."""
    from launch.doctor.examine import node_rows
    from launch.doctor.findings import Fault, Row, failed

    if isinstance(answer.facts, Fault):
        fix = "check that the node is reachable and has this project's folder at the same path, with its environment"
        finding = failed(f"could not be examined: {answer.facts.reason}", fix)
        return [Row(check="node", node=answer.node.name, finding=finding)]
    return node_rows(answer.node.name, answer.facts, bench, answer.joined)
