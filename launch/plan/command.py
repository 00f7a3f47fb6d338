"""``rlhf plan``: estimates a recipe's needs on a given cluster. It starts nothing and writes nothing."""

from __future__ import annotations

import argparse
import json

from launch.options import add_recipe, add_stage

PURPOSE = "estimate what a recipe needs on a cluster, without the cluster"
EXAMPLE = "rlhf plan recipes/llama_70b_cluster.yaml --cluster nodes=8,gpus=8,gpu=h100-80"


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the recipe and the cluster."""
    add_recipe(command)
    command.add_argument(
        "--cluster",
        required=True,
        metavar="TEXT",
        help="nodes=2,gpus=8,gpu=h100-80; network=50 sets GB/s between nodes",
    )
    add_stage(command, "the command that is planned")
    command.add_argument("--json", action="store_true", help="print the plan as JSON, in bytes and seconds")


def run(options: argparse.Namespace) -> None:
    """Print the plan. A recipe that does not fit is a result, not an error.

    Raises:
        UserError: the recipe, the cluster's text or a model's config is wrong.
    """
    from launch.plan.cluster import parse_cluster
    from launch.plan.report import as_values, make_plan
    from launch.plan.show import show
    from rlhf.config.load import load_recipe

    cluster = parse_cluster(options.cluster)
    made = make_plan(load_recipe(options.recipe, options.overrides), options.stage, cluster)
    print(json.dumps(as_values(made), indent=2) if options.json else show(made))
