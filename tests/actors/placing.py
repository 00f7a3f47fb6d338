"""Places a recipe's roles on a cluster of three raylets with fictitious GPUs, and prints the node of each.

It runs in a separate process, because it joins a cluster while the tests share a local Ray.
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from actors.cluster import cluster
from actors.placement import Placement
from launch.preflight import prepare
from rlhf.config.load import load_recipe
from rlhf.errors import RLHFError, Stopped
from rlhf.placement.pools import asked
from tests.actors.raylets import STORE, make_cluster

KINDS = {8: "H100", 4: "A100"}


def place(names: dict[str, str], recipe_path: str, settings: list[str]) -> Any:
    """Node of each rank's slot, by role; or the message of an error."""
    recipe, placement = load_recipe(recipe_path, settings), None
    try:
        placement = Placement(recipe, "cuda", "ppo", 20)
        return places(placement, names)
    except RLHFError as error:
        return str(error)
    finally:
        if placement is not None:
            placement.release()


def places(placement: Placement, names: dict[str, str]) -> dict[str, list[str]]:
    """Node of each rank's slot, by role."""
    return {
        role.role: [node_of(placement.actor_options(role.role, rank), names) for rank in range(role.ranks)]
        for role in asked(placement.recipe, "ppo")
    }


def lose(own: Cluster, names: dict[str, str], recipe_path: str, settings: list[str]) -> Any:
    """The places before a node with 8 GPUs is lost, and after."""
    placement = Placement(load_recipe(recipe_path, settings), "cuda", "ppo", 20)
    before = places(placement, names)
    [node] = [node for node in own.worker_nodes if names[node.node_id] == before["critic"][0]]
    own.remove_node(node)
    after = places(placement, names)
    placement.release()
    return [before, after]


def stop(names: dict[str, str], recipe_path: str, settings: list[str]) -> Any:
    """Seconds until a wait for slots has ended after a stop was requested, and the slots that stay reserved.

    The wait is for GPUs, if too many are asked for; otherwise for a group that Ray cannot place: others hold all CPUs.
    """
    cpus = [placement_group([{"CPU": 8}]) for _ in names]
    ray.get([group.ready() for group in cpus])
    begin = time.monotonic()

    def check() -> None:
        if time.monotonic() - begin > 1.0:
            raise Stopped("SIGTERM")

    try:
        Placement(load_recipe(recipe_path, settings), "cuda", "ppo", 20, check)
    except Stopped:
        seconds, held = time.monotonic() - begin, {group.id.hex() for group in cpus}
        states = {name: group["state"] for name, group in placement_group_table().items()}
        return [seconds, [name for name, state in states.items() if state != "REMOVED" and name not in held]]
    finally:
        for group in cpus:
            remove_placement_group(group)


def node_of(options: dict[str, Any], names: dict[str, str]) -> str:
    """Where Ray has reserved the bundle that these options name."""
    where = options["scheduling_strategy"]
    table = placement_group_table(where.placement_group)
    return names[table["bundles_to_node_id"][where.placement_group_bundle_index]]


def refusal(recipe_path: str, settings: list[str]) -> str:
    """What is said before anything is placed."""
    try:
        prepare(load_recipe(recipe_path, settings), "ppo")
    except RLHFError as error:
        return str(error)
    return ""


def main() -> None:
    """Of each line of settings on standard input, a line of JSON in the file that is named: Ray itself prints."""
    own = make_cluster()
    names = {}
    for name, gpus in (("small", 4), ("left", 8), ("right", 8)):
        kind = {f"accelerator_type:{KINDS[gpus]}": 1}
        node = own.add_node(num_cpus=8, num_gpus=gpus, resources=kind, object_store_memory=STORE)
        names[node.node_id] = name
    commands = {
        "refuse": refusal,
        "place": partial(place, names),
        "stop": partial(stop, names),
        "lose": partial(lose, own, names),
    }
    with cluster(own.address), open(sys.argv[1], "w") as out:
        for line in sys.stdin:
            recipe, command, *settings = json.loads(line)
            print(json.dumps(commands[command](recipe, settings)), file=out, flush=True)
    own.shutdown()


if __name__ == "__main__":
    main()
