"""Serves the labelling page of a project until it is stopped."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvicorn

from launch.bounded_http import BoundedHttp
from launch.feedback.app import LOCAL_HOSTS, create_app
from launch.feedback.quality_tables import quality_tables
from launch.feedback.site import make_site
from launch.listening import bound, signals_stop, warn_of_exposure
from rlhf.errors import UserError
from rlhf.feedback.store import Store

POLL_SECONDS = 1.0
MOST_CONNECTIONS = 500
"""Requests at the same time; further ones get 503, and the page tries again."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where and behind what the page is served."""

    host: str = "127.0.0.1"
    port: int = 8450
    allowed_hosts: Sequence[str] = ()
    """Names that the header ``Host`` may give, beside those of this machine and ``host``."""
    root_path: str = ""
    """Path under which a proxy serves the page, and that it strips."""
    trusted_proxies: Sequence[str] = ()
    """Addresses of proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed."""

    def __post_init__(self) -> None:
        if self.root_path and (not self.root_path.startswith("/") or self.root_path.endswith("/")):
            raise UserError(
                f"--root-path is {self.root_path!r}", "it is a path without the host", "write it as in /labelling"
            )
        for proxy in self.trusted_proxies:
            _require_network(proxy)


def serve(store: Store, address: Address) -> None:
    """Serve a project until SIGINT or SIGTERM; requests in progress are finished.

    Raises:
        UserError: the address cannot be used.
    """
    run_server(store, address, str(store.path))


def run_server(store: Store, address: Address, name: str, is_done: Callable[[], bool] | None = None) -> None:
    """Run the server until SIGINT or SIGTERM, or until ``is_done``, which is called every second, is true.

    Args:
        name: of what is served, for the line with the address.

    Raises:
        UserError: the address cannot be used.
    """
    warn_of_exposure(address.host, "links and votes", "docs/feedback.md")
    server = make_server(store, address)
    failed: list[Exception] = []
    with bound(address.host, address.port, MOST_CONNECTIONS, "--host or --port") as listener, signals_stop(server):
        print(f"{name} is served at {local_url(address)} – links: rlhf feedback token {store.path} ALIAS", flush=True)
        if is_done is not None:
            threading.Thread(target=_stop_when, args=(server, is_done, failed), daemon=True).start()
        server.run(sockets=[listener])
    if failed:
        raise failed[0]


def _stop_when(server: uvicorn.Server, is_done: Callable[[], bool], failed: list[Exception]) -> None:
    """Stop the server when ``is_done`` is true, or fails: the error goes to ``failed``."""
    try:
        while not (server.should_exit or is_done()):
            time.sleep(POLL_SECONDS)
    except Exception as error:
        failed.append(error)
    server.should_exit = True


def make_server(store: Store, address: Address) -> uvicorn.Server:
    """A server that has not begun. It writes no access log: a link's token would be in it."""
    hosts = (*LOCAL_HOSTS, address.host, *address.allowed_hosts)
    config = uvicorn.Config(
        create_app(make_site(store, [quality_tables]), [host.lower() for host in hosts]),
        host=address.host,
        port=address.port,
        root_path=address.root_path,
        proxy_headers=bool(address.trusted_proxies),
        forwarded_allow_ips=list(address.trusted_proxies),
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        http=BoundedHttp,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


def local_url(address: Address) -> str:
    """The page's address without a proxy."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http://{host}:{address.port}{address.root_path}"


def _require_network(text: str) -> None:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise UserError(
            f"--trusted-proxy is {text!r}", str(error), "give an address or a network, such as 10.0.0.0/8"
        ) from error
