"""Whether a stop fits in the time that it has, by the measured duration of checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

CHECKPOINTS = 2
"""Checkpoints that a stop may have to wait for: the one that is being written, and then its own."""
GROWTH = 1.25
"""Factor by which a checkpoint must take longer than when it was last reported, to be reported again."""
BYTES_PER_SECOND = 500e6
"""Assumed speed of writing, before a checkpoint was measured: that of a shared file system under several writers."""


@dataclass(kw_only=True)
class GracePeriod:
    """The time that a stop has, and what was last reported about it."""

    grace_seconds: float
    """``checkpoint.grace_seconds``: from a signal to the end of the process."""
    before_deadline: float | None = None
    """``checkpoint.before_deadline``, if the command has a time limit: from the stop to the limit."""
    reported: float | None = None
    """Duration of a checkpoint that was last reported as too long; None if it fitted since."""

    @property
    def limits(self) -> dict[str, float]:
        """Times within which a stop must end, by the recipe's key."""
        before = {} if self.before_deadline is None else {"checkpoint.before_deadline": self.before_deadline}
        return {"checkpoint.grace_seconds": self.grace_seconds, **before}

    def shortfall(self, seconds: float, source: str) -> str | None:
        """What to report about checkpoints that take so long; None if a stop fits, or if it was reported before.

        Args:
            source: where the duration comes from, for the message.
        """
        needed = CHECKPOINTS * seconds
        short = [f"{key} = {limit:g}" for key, limit in self.limits.items() if limit < needed]
        if not short:
            self.reported = None
            return None
        if self.reported is not None and seconds <= GROWTH * self.reported:
            return None
        self.reported = seconds
        keys = " and ".join(key.partition(" = ")[0] for key in short)
        return (
            f"a stop may lose its checkpoint: one takes {seconds:.0f} s ({source}), and a stop may have to wait for "
            f"one that is being written and then write its own, {needed:.0f} s, longer than {' and '.join(short)}. "
            f"Raise {keys}, and what the scheduler grants after its signal"
        )
