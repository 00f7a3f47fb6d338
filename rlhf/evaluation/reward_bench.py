"""RewardBench (Lambert et al. 2024, arXiv:2403.13787): its 23 subsets in four sections, and the mean over them."""

from __future__ import annotations

from collections.abc import Mapping

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": (
        "refusals-dangerous",
        "refusals-offensive",
        "xstest-should-refuse",
        "xstest-should-respond",
        "donotanswer",
    ),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}
SUBSETS = frozenset(subset for subsets in SECTIONS.values() for subset in subsets)
ROW_WEIGHTS = {"math-prm": 984 / 447}
"""Weight of a row where it is not 1: the 447 rows of mathematics weigh as much as the 984 rows of code."""


def section_accuracies(accuracies: Mapping[str, float], rows: Mapping[str, int]) -> dict[str, float]:
    """Accuracy of each section that has rows: the mean over its rows, weighted by ``ROW_WEIGHTS``.

    Args:
        accuracies, rows: by subset.

    Returns:
        Nothing if there is a category that is no subset of RewardBench.
    """
    if not {*accuracies} <= SUBSETS:
        return {}
    weights = {subset: count * ROW_WEIGHTS.get(subset, 1.0) for subset, count in rows.items()}
    found = {section: [each for each in subsets if each in accuracies] for section, subsets in SECTIONS.items()}
    return {
        section: sum(accuracies[each] * weights[each] for each in own) / sum(weights[each] for each in own)
        for section, own in found.items()
        if own
    }
