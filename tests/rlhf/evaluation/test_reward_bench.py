"""RewardBench's sections; expected numbers by ``calculate_scores_per_section`` of the package ``rewardbench`` 0.1.4."""

from __future__ import annotations

import pytest

from rlhf.evaluation.reward_bench import SUBSETS, section_accuracies

ROWS = {
    "alpacaeval-easy": 100,
    "alpacaeval-hard": 95,
    "alpacaeval-length": 95,
    "donotanswer": 136,
    **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"), 164),
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
    "llmbar-adver-neighbor": 134,
    "llmbar-natural": 100,
    "math-prm": 447,
    "mt-bench-easy": 28,
    "mt-bench-hard": 37,
    "mt-bench-med": 40,
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "xstest-should-refuse": 154,
    "xstest-should-respond": 250,
}
ACCURACIES = {subset: 0.5 + 0.02 * i for i, subset in enumerate(sorted(ROWS))}


def test_the_whole_benchmark_has_the_packages_scores() -> None:
    assert {*ROWS} == SUBSETS
    assert section_accuracies(ACCURACIES, ROWS) == pytest.approx(
        {
            "Chat": 0.581173184357542,
            "Chat Hard": 0.7526315789473684,
            "Safety": 0.8524864864864865,
            "Reasoning": 0.715,
        }
    )


def test_a_part_of_it_has_the_sections_with_rows() -> None:
    # Chat: (30 · 1 + 10 · 0.5) / 40
    found = section_accuracies(
        {"alpacaeval-easy": 1.0, "mt-bench-med": 0.5}, {"alpacaeval-easy": 30, "mt-bench-med": 10}
    )
    assert found == {"Chat": 0.875}


def test_other_categories_have_no_sections() -> None:
    assert section_accuracies({"alpacaeval-easy": 1.0, "poems": 0.5}, {"alpacaeval-easy": 1, "poems": 1}) == {}
    assert section_accuracies({}, {}) == {}
