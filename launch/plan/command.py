"""``rlhf plan``: estimates a recipe's needs on a given cluster. It starts nothing and writes nothing."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from launch.options import Overrides, RecipePath, Run
from rlhf.errors import UserError

PURPOSE = "estimate what a recipe needs on a cluster, without the cluster"
EXAMPLE = "rlhf plan recipes/llama_70b_cluster.yaml --cluster nodes=8,gpus=8,gpu=h100-80"


def run(
    recipe: RecipePath,
    overrides: Overrides,
    cluster: Annotated[
        str, typer.Option(metavar="TEXT", help="nodes=2,gpus=8,gpu=h100-80; network=50 sets GB/s between nodes")
    ],
    stage: Annotated[Run, typer.Option(help="the command that is planned")] = "pipeline",
    as_json: Annotated[bool, typer.Option("--json", help="print the plan as JSON, in bytes and seconds")] = False,
    object_store: Annotated[
        bool,
        typer.Option("--object-store", help="print only the bytes of Ray's object store that each node should have"),
    ] = False,
) -> None:
    """Print the plan. A recipe that does not fit is a result, not an error.

    Raises:
        UserError: the recipe, the cluster's text or a model's config is wrong, or ``object_store`` is not known.
    """
    from launch.plan.cluster import parse_cluster
    from launch.plan.report import as_values, make_plan
    from launch.plan.show import show
    from rlhf.config.load import load_recipe

    hardware = parse_cluster(cluster)
    made = make_plan(load_recipe(recipe, overrides), stage, hardware)
    if not object_store:
        print(json.dumps(as_values(made), indent=2) if as_json else show(made))
    elif made.object_store is not None:
        print(made.object_store)
    else:
        why = "what lies on a node is not known"
        raise UserError(f"--object-store, and the recipe does not fit on {cluster}", why, "see the plan without it")
