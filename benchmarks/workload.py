"""The work that is timed: steps of PPO and GRPO with small models, as data and as this project's recipe.

Policy, reference, reward model and, in PPO, critic have the same shape. A step draws ``samples`` responses to prompts
of 16 tokens, scores them, and takes ``epochs`` passes over ``minibatches`` minibatches.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf.device import Device

PROMPT = 16
"""Tokens of every prompt."""
GROUP = 8
"""Responses to one prompt in GRPO."""
LEARNING_RATE = 1e-5
BETA, GAMMA, LAMBDA = 0.05, 1.0, 0.95
CLIP = 0.2
SEED = 0
GPU_FRACTION = 0.35
"""Of a GPU's memory, for an engine that shares it with all roles."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of a model whose input embedding is its output head."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 512
    architecture: str = "llama"
    """transformers' ``model_type``."""


SIZES = {
    "tiny": Size(hidden=64, intermediate=128, layers=2, heads=2, kv_heads=1, architecture="qwen2"),
    "3M": Size(hidden=256, intermediate=688, layers=4, heads=4, kv_heads=4),
    "25M": Size(hidden=512, intermediate=1376, layers=8, heads=8, kv_heads=8),
    "0.5B": Size(
        hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2, vocabulary=151_936, architecture="qwen2"
    ),
    "1.5B": Size(
        hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2, vocabulary=151_936, architecture="qwen2"
    ),
}
"""The last two are those of Qwen2.5."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One kind of step."""

    name: str
    algorithm: Literal["ppo", "grpo"] = "ppo"
    size: str = "3M"
    """Key in ``SIZES``."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    samples: int = 128
    new: int = 64
    """Tokens of the longest response."""
    mean: int | None = None
    """Mean number of tokens of a response; None: every response has the longest length."""
    epochs: int = 4
    minibatches: int = 2
    micro: int | None = None
    """Samples that the floor has in one pass; None: those of a minibatch."""
    staleness: int = 0

    @property
    def group(self) -> int:
        """Responses to one prompt."""
        return GROUP if self.algorithm == "grpo" else 1

    @property
    def minibatch(self) -> int:
        """Samples of an update."""
        return self.samples // self.minibatches

    @property
    def models(self) -> str:
        """Name of the folder with its models, which workloads of equal size and lengths share."""
        return f"{self.size}-{self.dtype}-{'fixed' if self.mean is None else f'mean{self.mean}-of-{self.new}'}"

    def to_argument(self) -> str:
        """This workload as an argument of a process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_argument(cls, text: str) -> Workload:
        """The inverse of ``to_argument``."""
        return cls(**json.loads(text))


WORKLOADS = {
    work.name: work
    for work in (
        Workload(name="fixed-ppo"),
        Workload(name="fixed-grpo", algorithm="grpo"),
        Workload(name="real-ppo", new=256, mean=64, epochs=2),
        Workload(name="real-grpo", algorithm="grpo", new=256, mean=64, epochs=2),
        Workload(name="25m-ppo", size="25M", samples=64, epochs=1),
        Workload(name="bf16-ppo", dtype="bfloat16"),
        Workload(name="stale-ppo", staleness=1),
        Workload(name="long-ppo", samples=64, new=192, epochs=1),
    )
}
"""``long-ppo`` has another length, so that fixed and proportional seconds of generation can be told apart."""


def recipe(work: Workload, folder: Path, name: str, budget: int | None, steps: int) -> dict[str, Any]:
    """The workload as a recipe of this project, for two cores.

    In PPO policy and critic train at the same time, on a core each; in GRPO the policy has both cores, as two ranks.

    Args:
        folder: where ``models.make`` wrote the models and the prompts.
        name: of the run.
        budget: ``micro_batch_tokens`` of every role; None for the default.
        steps: number of steps.
    """
    models, has_critic = folder / work.models, work.algorithm == "ppo"
    role = {} if budget is None else {"micro_batch_tokens": budget}
    optimizer = {"lr": LEARNING_RATE, "schedule": "constant", "max_grad_norm": 0.0}
    return {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "seed": SEED,
        "model": {"path": str(models / "policy"), "dtype": work.dtype},
        "data": {
            "prompts": str(folder / "prompts.jsonl"),
            "held_out_fraction": 0.0,
            "max_prompt_length": PROMPT,
            "max_response_length": work.new,
        },
        "rewards": {"model": {"model": str(models / "reward")}},
        "ppo": {
            "steps": steps,
            "batch_size": work.samples,
            "samples_per_prompt": work.group,
            "staleness": work.staleness,
            "policy_init": str(models / "policy"),
            "optimizer": optimizer,
            **({"critic_init": str(models / "reward"), "critic_optimizer": optimizer} if has_critic else {}),
        },
        "algorithm": _algorithm(work),
        "rollout": rollout(work, "cpu"),
        "placement": {
            "device": "cpu",
            **{each: dict(role) for each in ("critic", "reference", "reward")},
            "policy": {**role, "ranks": 1 if has_critic else 2},
        },
        "tracking": {"progress": False, "samples_per_step": 1},
    }


def rollout(work: Workload, device: Device) -> dict[str, Any]:
    """The section ``rollout``, from which the floor's engine too is configured."""
    on_device = {"enforce_eager": True} if device == "cpu" else {"gpu_memory_fraction": GPU_FRACTION}
    return {"max_response_length": work.new, **on_device}


def _algorithm(work: Workload) -> dict[str, Any]:
    """The section ``algorithm``; scores are the reward model's alone."""
    critic = {"gamma": GAMMA, "lam": LAMBDA} if work.algorithm == "ppo" else {}
    return {
        "name": work.algorithm,
        "epochs": work.epochs,
        "minibatches": work.minibatches,
        "kl_coef": BETA,
        "clip_range": CLIP,
        "missing_eos_penalty": None,
        **critic,
    }
