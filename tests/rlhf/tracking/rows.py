"""A sample as a run records it."""

from __future__ import annotations

from rlhf.tracking.samples import SampleRow


def sample(prompt: str, response: str) -> SampleRow:
    """One with these texts."""
    return SampleRow(
        prompt=prompt,
        response=response,
        score=0.5,
        kl=1.25,
        advantage=-0.5,
        finish_reason="stop",
        weight_version=3,
        pick="random",
    )
