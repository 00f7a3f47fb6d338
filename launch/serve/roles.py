"""Which version answers whom at this moment, and the canary's return."""

from __future__ import annotations

from collections.abc import Callable

from launch.serve.metrics import GatewayMetrics
from launch.serve.upstream import Arm
from rlhf.serving.conversation import is_in_share
from rlhf.serving.gateway_config import GatewayConfig
from rlhf.serving.live_counts import LiveCounts
from rlhf.serving.live_kpi import Breach, CanaryWatch, Kpi

STAGES = ("production", "canary", "shadow")


class Roles:
    """The arms in service, by stage, and their KPIs."""

    def __init__(self, config: GatewayConfig, metrics: GatewayMetrics, clock: Callable[[], float]) -> None:
        self._config, self._metrics, self._clock = config, metrics, clock
        self.production: Arm | None = None
        self.canary: Arm | None = None
        self.shadow: Arm | None = None
        self.counts = LiveCounts()
        self.returned: dict[str, Breach] = {}
        """Canaries that broke a KPI, by digest, until the registry knows it: they get no request whatever it says."""
        self.on_return: Callable[[Arm, Breach], None] = lambda arm, breach: None
        """Called once when a canary breaks a KPI."""
        self._watch = CanaryWatch((), clock)

    def set(self, stage: str, arm: Arm | None) -> None:
        """Put an arm into service; a new canary begins with new windows."""
        before: Arm | None = getattr(self, stage)
        if before is arm:
            return
        if before is not None:
            self._metrics.serving.remove(stage, before.version)
        if arm is not None:
            self._metrics.serving.labels(stage, arm.version).set(1)
        if stage == "canary":
            self._watch = CanaryWatch(self._config.kpis, self._clock)
        setattr(self, stage, arm)

    def in_service(self) -> list[Arm]:
        """All arms with a stage."""
        return [arm for stage in STAGES if (arm := getattr(self, stage)) is not None]

    def canary_for(self, conversation: str) -> Arm | None:
        """The canary, if it answers this conversation."""
        arm, config = self.canary, self._config.canary
        if arm is None or not is_in_share(config.salt or arm.digest, conversation, config.share):
            return None
        return arm

    def record(self, digest: str, kpi: Kpi, is_bad: bool) -> None:
        """Count an event of the version with this digest; a breach by the canary ends its service at once."""
        self.counts.record(digest, kpi, is_bad)
        if self.canary is not None and self.canary.digest == digest:
            self._watch.record(kpi, is_bad)
            self._return_if_broken(self.canary)

    def record_first_byte(self, digest: str, seconds: float | None) -> None:
        """Count how long a request waited for its first byte; None: in vain."""
        limit = min((rule.slow_seconds for rule in self._config.kpis if rule.kpi is Kpi.SLOW), default=None)
        if limit is not None:
            self.counts.record(digest, Kpi.SLOW, seconds is None or seconds > limit)
        if self.canary is not None and self.canary.digest == digest:
            self._watch.record_first_byte(seconds)
            self._return_if_broken(self.canary)

    def _return_if_broken(self, arm: Arm) -> None:
        breach = self._watch.breach()
        if breach is None:
            return
        self.returned[arm.digest] = breach
        self.set("canary", None)
        self._metrics.returns.labels(str(breach.rule.kpi)).inc()
        self.on_return(arm, breach)
