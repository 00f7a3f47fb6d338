"""``rlhf serve``: the gateway, and its API keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.options import Overrides

PURPOSE = "serve the registry's models over the OpenAI API, with shadow, canary and automatic return"
EXAMPLE = "rlhf serve examples/travel/gateway.yaml"

GatewayPath = Annotated[str, typer.Argument(metavar="GATEWAY.yaml", help="YAML file, see docs/serving.md")]


def run(
    gateway: GatewayPath,
    overrides: Overrides,
    new_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="make an API key, print it once, and store its hash")
    ] = None,
    revoke_key: Annotated[
        str | None, typer.Option(metavar="NAME", help="remove an API key; a running gateway follows in seconds")
    ] = None,
) -> None:
    """Serve until it is stopped; or change the keys.

    Raises:
        UserError: the file, or what it names, cannot be used.
    """
    from rlhf.serving.api_keys import add_key
    from rlhf.serving.api_keys import revoke_key as revoke
    from rlhf.serving.gateway_config import load_gateway

    config = load_gateway(gateway, overrides)
    if new_key is None and revoke_key is None:
        from launch.serve.server import serve

        return serve(config)
    if revoke_key is not None:
        revoke(Path(config.keys), revoke_key)
        print(f"{revoke_key} is revoked")
    if new_key is not None:
        print(add_key(Path(config.keys), new_key))
    return None
