from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np

from rlhf.evaluation.win_rate import compare
from rlhf.storage.jsonl import append_line
from rlhf.tracking.plots import Marks, plot_overoptimisation, plot_pipeline, read_series


def write(root: Path, stage: str, rows: list[dict[str, float]]) -> None:
    (root / stage).mkdir(parents=True)
    for row in rows:
        append_line(root / stage / "metrics.jsonl", row)


def panels(png: Path) -> np.ndarray:
    """(2, 3): how many pixels of each panel are coloured, that is, neither white nor grey."""
    image = matplotlib.image.imread(png)[..., :3]
    coloured = np.ptp(image, axis=-1) > 0.2
    return np.array(
        [[part.sum() for part in np.array_split(row, 3, axis=1)] for row in np.array_split(coloured, 2, axis=0)]
    )


def test_a_series_skips_lines_without_a_number(tmp_path: Path) -> None:
    write(
        tmp_path,
        "sft",
        [{"step": 1, "a": 0.5}, {"step": 2, "b": 1}, {"step": 3, "a": float("nan")}, {"step": 4, "a": 2}],
    )
    steps, values = read_series(tmp_path / "sft" / "metrics.jsonl", "a")
    assert (steps.tolist(), values.tolist()) == ([1, 4], [0.5, 2])
    assert [len(side) for side in read_series(tmp_path / "none.jsonl", "a")] == [0, 0]


def test_each_stage_fills_its_panels(tmp_path: Path) -> None:
    out = tmp_path / "curves.png"
    plot_pipeline(tmp_path, out)
    assert not panels(out).any()
    write(tmp_path, "sft", [{"step": i, "train/loss": 3 / i, "eval/loss": 4 / i} for i in range(1, 50)])
    plot_pipeline(tmp_path, out)
    assert (panels(out) > 500).tolist() == [[True, False, False], [False, False, False]]
    accuracy = {"eval/accuracy": 0.7, "eval/accuracy_ci_low": 0.6, "eval/accuracy_ci_high": 0.8}
    write(tmp_path, "reward", [{"step": i, **accuracy} for i in (10, 20)])
    ppo = {"objective/scores": 0.5, "objective/kl": 2.0}
    write(tmp_path, "ppo", [{"step": i, **ppo, "rollout/logprob_gap_mean": i * 1e-7} for i in range(3)])
    plot_pipeline(tmp_path, out, Marks(win_rate=compare([0, 1, 1], [1, 1, 2])))
    assert (panels(out) > 500).all()


def test_known_levels_are_drawn(tmp_path: Path) -> None:
    write(tmp_path, "ppo", [{"step": i, "objective/scores": 0.5, "objective/kl": 2.0} for i in range(3)])
    plot_pipeline(tmp_path, tmp_path / "without.png")
    plot_pipeline(tmp_path, tmp_path / "with.png", Marks(max_kl=10.0))
    more = panels(tmp_path / "with.png").astype(int) - panels(tmp_path / "without.png")
    assert more[1, 0] > 200


def judged(name: str, score: float) -> dict[str, float]:
    return {f"holdout/{name}": score, f"holdout/{name}_ci_low": score - 0.1, f"holdout/{name}_ci_high": score + 0.1}


def test_reward_held_out_score_and_the_best_step_are_drawn(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = [{"step": s, "objective/scores": 0.1 * s} for s in range(10)]
    rows[0] |= judged("start_score", 0.2)
    for step, score in ((4, 0.8), (9, 0.3)):
        rows[step] |= judged("score", score)
    write(tmp_path, "ppo", rows)
    out = tmp_path / "overoptimisation.png"
    plot_overoptimisation(tmp_path / "ppo" / "metrics.jsonl", out)
    assert colours(out)[2] < 20
    rows[4]["holdout/best_step"] = rows[9]["holdout/best_step"] = 5
    write(tmp_path, "again", rows)
    plot_overoptimisation(tmp_path / "again" / "metrics.jsonl", out)
    blue, orange, green = colours(out)
    assert blue > 500 and orange > 500 and green > 500


def colours(png: Path) -> list[int]:
    """How many pixels of the picture are the blue of the reward, the orange of the judge, the green of the best."""
    image = matplotlib.image.imread(png)[..., :3]
    palette = [(0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x00, 0x9E, 0x73)]
    return [int((np.abs(image - np.array(colour) / 255).max(axis=-1) < 0.1).sum()) for colour in palette]
