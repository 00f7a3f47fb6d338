"""``make gpu-check``: runs PPO with all roles on one GPU; prints the canaries, throughput and memory.

It makes its own small model and data, so it needs no download. It tests the GPU path (CUDA IPC, sleep mode, bfloat16)
and its cost, not that a model learns.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import torch

from actors.cluster import cluster
from actors.pipeline import run_stage
from actors.session import Session
from rlhf.config.schema import (
    AlgorithmConfig,
    DataConfig,
    ModelConfig,
    PlacementConfig,
    PPOConfig,
    Recipe,
    RewardSourceConfig,
    RoleConfig,
    RolloutConfig,
    ScratchConfig,
    SFTConfig,
    TrackingConfig,
)
from rlhf.errors import RLHFError
from rlhf.storage.jsonl import append_line, read_lines
from rlhf.tracking.console import Console
from rlhf.tracking.quiet import quiet_framework_logs

FOLDER = Path("runs/gpu-check")
SHOWN = (
    "rollout/logprob_gap_mean",
    "rollout/logprob_gap_max",
    "first_pass/ratio",
    "first_pass/approxkl",
    "objective/logratio_abs_mean",
    "perf/rollout_tokens_per_second",
    "perf/train_tokens_per_second",
    "weights/sync_seconds",
    "memory/policy_gib",
    "memory/critic_gib",
    "time/step",
)
WORDS = (
    "the",
    "river",
    "runs",
    "under",
    "an",
    "old",
    "stone",
    "bridge",
    "and",
    "people",
    "cross",
    "it",
    "every",
    "day",
)


def recipe() -> Recipe:
    """All roles on one GPU, bfloat16, a model of about 85M parameters."""
    role = RoleConfig(ranks=1, zero_stage=1, micro_batch_tokens=8192)
    return Recipe(
        name=FOLDER.name,
        runs_dir=str(FOLDER.parent),
        model=ModelConfig(
            scratch=ScratchConfig(
                hidden_size=768, layers=12, heads=12, intermediate_size=2048, vocab_size=1024, max_length=512
            ),
            dtype="bfloat16",
        ),
        data=DataConfig(path=str(FOLDER / "data.jsonl"), max_prompt_length=64, max_response_length=128),
        sft=SFTConfig(batch_size=32),
        rewards={"words": RewardSourceConfig(function=f"{Path(__file__).resolve()}:count_words")},
        ppo=PPOConfig(steps=5, batch_size=256),
        algorithm=AlgorithmConfig(epochs=1),
        rollout=RolloutConfig(max_response_length=128, gpu_memory_fraction=0.3),
        placement=PlacementConfig(
            strategy="colocated", device="cuda", policy=role, critic=role, reference=role, reward=role
        ),
        tracking=TrackingConfig(wandb="offline"),
    )


def count_words(prompts: list[str], responses: list[str]) -> list[float]:
    """The reward of the check: known words in the response, of ten."""
    return [min(10, sum(word in WORDS for word in response.split())) / 10 for response in responses]


def main() -> int:
    """Run the check; exit code 0 if every canary held, 3 if one did not or something failed, 2 without a GPU."""
    if not torch.cuda.is_available():
        print(
            "gpu-check: no CUDA device is visible here; on CPUs `make quickstart` runs the same code", file=sys.stderr
        )
        return 2
    shutil.rmtree(FOLDER, ignore_errors=True)  # finished stages would be skipped and old numbers shown
    _write_data(FOLDER / "data.jsonl")
    try:
        with quiet_framework_logs(FOLDER / "logs" / "driver.log") as stdout, cluster(None):
            console = Console(stdout)
            session = Session(recipe=recipe(), console=console, device="cuda", gpus=torch.cuda.device_count())
            run_stage(session, "sft")
            run_stage(session, "ppo")
            last = read_lines(session.root / "ppo" / "metrics.jsonl")[-1]
            rows = {"device": torch.cuda.get_device_name(0), **{name: last[name] for name in SHOWN if name in last}}
            console.summary("GPU check, last step", rows)
    except RLHFError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _write_data(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for _ in range(2000):
        prompt, completion = (" ".join(draw.choices(WORDS, k=draw.randint(4, 24))) for _ in range(2))
        append_line(file, {"prompt": prompt, "completion": " " + completion})


if __name__ == "__main__":
    sys.exit(main())
