"""Runs the gateway until it is stopped."""

from __future__ import annotations

import uvicorn

from launch.bounded_http import BoundedHttp
from launch.listening import bound, signals_stop, warn_of_exposure
from launch.serve.app import Gateway
from launch.serve.services import Services
from rlhf.errors import MachineryError
from rlhf.serving.gateway_config import GatewayConfig

BACKLOG = 2048
IDLE_SECONDS = 30
"""Idle connections of clients are closed after it."""


def serve(config: GatewayConfig) -> None:
    """Serve until SIGINT or SIGTERM: answers in progress are finished within the grace period.

    Raises:
        UserError: the registry, the keys, another file or the address cannot be used.
        MachineryError: the gateway could not start.
    """
    warn_of_exposure(config.listen.host, "keys and texts", "docs/serving.md")
    server = make_server(config, Gateway(Services(config)))
    host, port = config.listen.host, config.listen.port
    with bound(host, port, BACKLOG, "listen.host or listen.port") as listener, signals_stop(server):
        print(f"{config.model} is served at http://{host}:{port}/v1", flush=True)
        server.run(sockets=[listener])
    if not server.started:
        raise MachineryError("the gateway could not start; the reason is above")


def make_server(config: GatewayConfig, app: Gateway) -> uvicorn.Server:
    """A server that has not begun. It writes no access log; ``log`` in the gateway's file does."""
    settings = uvicorn.Config(
        app,
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        http=BoundedHttp,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(config.timeouts.grace_seconds),
    )
    return uvicorn.Server(settings)
