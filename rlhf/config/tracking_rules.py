"""What a recipe says about who gets its record."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from rlhf.config.schema import Recipe
from rlhf.errors import UserError
from rlhf.secrets import without_secrets


def check_tracking(recipe: Recipe) -> Iterator[UserError]:
    """Problems of the address to which the timeline goes."""
    endpoint = recipe.tracking.opentelemetry
    if endpoint is None:
        return
    shown = without_secrets(endpoint)
    if not _is_collector(endpoint):
        yield UserError(
            f"tracking.opentelemetry = {shown!r} is no address of a collector",
            "spans are sent by OTLP over HTTP, to /v1/traces below that address",
            "tracking.opentelemetry=http://127.0.0.1:4318, or https://...",
        )
    if shown != endpoint:
        yield UserError(
            f"tracking.opentelemetry = {shown!r} holds a password or token (shown as ***)",
            "the whole recipe is written into the run's folder",
            "set OTEL_EXPORTER_OTLP_HEADERS in the environment, as 'authorization=Bearer%20...'",
        )


def _is_collector(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        port = parts.port  # raises where it is no number up to 65535
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https")
        and bool(parts.hostname)
        and port != 0
        and not (parts.query or " " in endpoint)
    )
