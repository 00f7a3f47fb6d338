"""The file of a gateway: registry, engines, limits, canary, shadow, KPIs and feedback."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictBool, StrictStr, TypeAdapter, ValidationError, model_validator

from rlhf.config.fields import (
    HERE,
    CollectorUrl,
    Count,
    CountOrZero,
    Fraction,
    Number,
    RuleError,
    ScorerUrl,
    Seconds,
    ServerUrl,
    Texts,
    Whole,
    refuse,
    section,
)
from rlhf.config.source import read_source
from rlhf.data.columns import is_within
from rlhf.errors import UserError, raise_all
from rlhf.serving.live_kpi import Kpi, KpiRule

FILES = ("registry", "keys", "state", "log", "engines.logs", "thumbs.project")
"""Keys with names of files, relative to the gateway's file."""
KIBI, MEBI = 2**10, 2**20


@section
class ListenConfig:
    """Where the gateway listens."""

    host: StrictStr = "127.0.0.1"
    """Address; another one than 127.0.0.1 can be reached from other machines, unencrypted."""
    port: Count = 8460
    """Port."""


@section
class ServedEnginesConfig:
    """The vLLM servers behind the gateway: given ones by version, all others are started from the registry's folder."""

    urls: dict[StrictStr, tuple[ServerUrl, ...]] = field(default_factory=dict)
    """Version → addresses of its running servers, without ``/v1``. They must serve under the name ``model``."""
    arguments: Texts = ()
    """Further arguments of ``vllm serve`` for servers that the gateway starts."""
    gpus: tuple[tuple[CountOrZero, ...], ...] = ()
    """GPUs of each server that the gateway starts, for example ``[[0], [1], [2]]``; empty: no server's are limited."""
    start_seconds: Seconds = 900.0
    """Longest start of a server, in seconds, until it is healthy."""
    stop_seconds: Seconds = 15.0
    """Seconds in which a stopped server may end by itself before it is killed."""
    logs: StrictStr = "engine-logs"
    """Folder for the servers' output."""


@section
class AdmissionConfig:
    """Limits on requests."""

    concurrent: Count = 256
    """Requests that are answered at the same time."""
    waiting: CountOrZero = 256
    """Requests that may wait for their turn; further ones get 429 with ``Retry-After``."""
    wait_seconds: Seconds = 10.0
    """Longest wait for a turn, in seconds; then 429."""
    body_bytes: Count = MEBI
    """Largest request; a larger one gets 413."""
    body_seconds: Seconds = 30.0
    """Seconds in which a request's body must arrive."""
    answer_bytes: Count = 16 * MEBI
    """Largest answer that is not a stream."""


@section
class UpstreamTimeouts:
    """Timeouts of requests to the servers, and of changes."""

    connect_seconds: Seconds = 2.0
    """Longest wait for a connection to a server."""
    first_token_seconds: Seconds = 60.0
    """Longest wait for the first byte of an answer, or of the whole answer if it is not a stream."""
    total_seconds: Seconds = 600.0
    """Longest request."""
    drain_seconds: Seconds = 60.0
    """Seconds in which a replaced server may finish its answers before it is stopped."""
    grace_seconds: Seconds = 30.0
    """Seconds in which answers may finish after SIGTERM."""


@section
class CanaryShareConfig:
    """How the canary gets conversations, and how its failures are kept from users."""

    share: Fraction = 0.05
    """Fraction of conversations that the canary answers."""
    salt: StrictStr | None = None
    """Draws the conversations; by default the canary's digest, so that each canary gets other ones."""
    check: Literal["before", "after", "off"] = "after"
    """When the scorer sees the canary's answers: ``before`` they are sent (a low score: production answers instead),
    ``after`` (for the KPI ``low_scores``), or ``off``."""
    hold_bytes: CountOrZero = 256 * KIBI
    """Bytes of a stream of the canary that are held back until the stream is complete: up to there its failure is
    invisible, and its first token is late. 0 sends each piece at once."""
    first_token_seconds: Seconds = 10.0
    """Longest wait for the first byte of the canary's stream; then production answers."""
    hold_seconds: Seconds = 60.0
    """Longest wait for the canary's whole answer, or for the part of a stream that is held back; then production
    answers."""


@section
class ShadowTrafficConfig:
    """Copies of requests for the shadow, whose answers nobody sees."""

    share: Fraction = 1.0
    """Fraction of requests that are copied."""
    waiting: Count = 64
    """Copies that may wait; further ones are dropped and counted."""
    concurrent: Count = 4
    """Copies that are answered at the same time."""
    seconds: Seconds = 120.0
    """Longest copy."""


@section
class AnswerScorerConfig:
    """Scores answers: exactly one of ``function`` and ``url``."""

    function: StrictStr | None = None
    """``module:function`` or ``file.py:function``, as in ``rewards.<name>.function``."""
    url: ScorerUrl | None = None
    """Service that scores, as in ``rewards.<name>.endpoint``."""
    minimum: Number = 0.0
    """Lowest score of a good answer."""
    share: Fraction = 1.0
    """Fraction of answers that are scored after they were sent, of every stage."""
    waiting: Count = 256
    """Answers that may wait for their score; further ones are dropped and counted."""
    timeout_seconds: Seconds = 5.0
    """Longest scoring before an answer is sent; then production answers instead."""

    @model_validator(mode="after")
    def _validate(self) -> AnswerScorerConfig:
        if (self.function is None) == (self.url is None):
            why, fix = "one of them scores the answers", "set one of function and url"
            refuse([UserError(f"{HERE} has {'both' if self.url else 'neither'} function and url", why, fix)])
        return self


@section
class ThumbsConfig:
    """Where users' thumbs go."""

    project: StrictStr
    """A feedback project, made by ``rlhf feedback init``."""
    remember_bytes: Count = 64 * MEBI
    """Memory for answers that may still be judged."""
    remember_seconds: Seconds = 24 * 3600.0
    """Seconds for which an answer may be judged."""


DEFAULT_KPIS = (KpiRule(kpi=Kpi.ERRORS, limit=0.05, window_seconds=300.0, minimum=20),)


@section
class GatewayConfig:
    """A gateway."""

    registry: StrictStr
    """File of the registry, which names the models in service."""
    model: StrictStr
    """Name of the model, as clients write it; all versions serve under it."""
    keys: StrictStr = "gateway-keys.jsonl"
    """File of hashed API keys."""
    listen: ListenConfig = field(default_factory=ListenConfig)
    engines: ServedEnginesConfig = field(default_factory=ServedEnginesConfig)
    limits: AdmissionConfig = field(default_factory=AdmissionConfig)
    timeouts: UpstreamTimeouts = field(default_factory=UpstreamTimeouts)
    canary: CanaryShareConfig = field(default_factory=CanaryShareConfig)
    kpis: tuple[KpiRule, ...] = DEFAULT_KPIS
    """Limits whose breach withdraws the canary."""
    shadow: ShadowTrafficConfig = field(default_factory=ShadowTrafficConfig)
    scorer: AnswerScorerConfig | None = None
    """What scores answers; without it none is scored."""
    thumbs: ThumbsConfig | None = None
    """Where users' thumbs go; without it `/feedback` answers 404."""
    state: StrictStr | None = None
    """SQLite file that keeps the counts of ``/kpis``, and the answers that may still be judged, over a restart. It
    holds users' texts, and only its owner can read it. By default both are in memory alone."""
    log: StrictStr | None = None
    """File of one JSON line for each request; none by default."""
    log_content: StrictBool = False
    """Whether the log holds requests and answers."""
    version_header: StrictBool = False
    """Whether answers have the header ``X-Model-Version``, which tells users whether the canary answered."""
    poll_seconds: Seconds = 1.0
    """Seconds between two looks at the registry."""
    opentelemetry: CollectorUrl | None = None
    """Collector of spans (OTLP over HTTP), one trace for each request."""
    seed: Whole = 0
    """Draws the shares of ``shadow`` and ``scorer``."""

    @model_validator(mode="after")
    def _validate(self) -> GatewayConfig:
        refuse(_problems(self))
        return self


def _problems(config: GatewayConfig) -> Iterable[UserError]:
    """Rules between keys."""
    asked = {rule.kpi for rule in config.kpis}
    if config.scorer is None and config.canary.check == "before":
        yield UserError("canary.check = before needs a scorer", fix="set scorer.function or scorer.url")
    if config.scorer is None and Kpi.LOW_SCORES in asked:
        yield UserError("the KPI low_scores needs a scorer", fix="set scorer.function or scorer.url")
    if config.thumbs is None and Kpi.THUMBS_DOWN in asked:
        yield UserError("the KPI thumbs_down needs a feedback project", fix="set thumbs.project")
    if config.listen.port > 65535:
        yield UserError(f"listen.port = {config.listen.port} is no port", fix="listen.port=8460")


def load_gateway(path: str | Path, overrides: Sequence[str] = ()) -> GatewayConfig:
    """Read a gateway's file; file names in it are relative to its folder.

    Args:
        overrides: ``key.path=value``, relative to the current folder as in any command.

    Raises:
        UserError: lists what is wrong with the file or the overrides.
    """
    source = read_source(path, overrides, "gateway")
    settings = _beside(source.settings, Path(path).expanduser().parent, overrides)
    try:
        return TypeAdapter(GatewayConfig).validate_python(settings)
    except ValidationError as refusal:
        raise_all([each for error in refusal.errors(include_url=False) for each in _translate(error)], str(path))
        raise AssertionError("a refusal has an error") from refusal


def _beside(settings: Mapping[str, Any], folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Settings, defaults of file names included, with the file names made relative to the file's folder."""
    given = [override.partition("=")[0] for override in overrides]

    def place(key: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: place(f"{key}.{name}", inner) for name, inner in value.items()}
        if not isinstance(value, str) or is_within(key, given):
            return value
        is_file = key in FILES or (key == "scorer.function" and (folder / value.rpartition(":")[0]).is_file())
        return str(folder / Path(value).expanduser()) if is_file else value

    engines = settings.get("engines", {})
    filled: dict[str, Any] = {"keys": GatewayConfig.__dataclass_fields__["keys"].default, **settings}
    if isinstance(engines, dict):
        filled["engines"] = {"logs": ServedEnginesConfig.__dataclass_fields__["logs"].default, **engines}
    return {key: place(key, value) for key, value in filled.items()}


def _translate(error: Any) -> Iterator[UserError]:
    """One of pydantic's errors with its key; several if the rules between keys find several."""
    key = ".".join(map(str, error["loc"])) or "the gateway"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        yield UserError(f"{key} is no key of a gateway", fix="docs/serving.md lists the keys")
    elif isinstance(rule := error.get("ctx", {}).get("error"), RuleError):
        yield from (UserError(*(part.replace(HERE, key) for part in problem.args)) for problem in rule.problems)
    else:
        yield UserError(f"{key}: {error['msg']}", fix="docs/serving.md lists the keys and their values")
