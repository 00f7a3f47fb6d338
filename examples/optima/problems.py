"""The problems as recipes: a reference model, prompts, a reward, and settings that solve them.

λ = 1 wherever there is a critic: then no error of the critic biases the optimum. The rates fall to 0 at the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any

import numpy as np
import torch
import yaml

from examples.optima import closed_form
from examples.optima.closed_form import ANSWERS, CLASS, HAZARD, LONGEST, PROMPTS, TOKENS, VOCABULARY, Optimum
from examples.optima.models import (
    END,
    Family,
    end_at,
    give_constant_logits,
    give_logits,
    make_model,
    make_tokenizer,
    save,
)
from rlhf.config.schema import LoRAConfig
from rlhf.models.lora import add_adapters

CLASS_LETTERS, OTHER_LETTERS = ascii_uppercase[:CLASS], ascii_lowercase[: VOCABULARY - CLASS]
START = "0"
GAIN = 1.0
"""Problem D: logit of a preference per token of difference."""
PROMPT_DIGITS, COMPARISONS, PROMPTS_OF_CHAIN = 5, 20000, 2000
REWARDS = Path(__file__).with_name("rewards.py")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem at one β, for one family of transformers and one algorithm."""

    name: str
    letter: str
    family: Family
    beta: float
    best: Optimum
    make: Callable[[Family, int, Path], None]
    """Writes the reference model and the prompts to a folder, from family and seed."""
    rewards: Mapping[str, Any]
    """The parts of the reward."""
    settings: Mapping[str, Any]
    """What the recipe has beyond what all problems share, by dotted key."""

    @property
    def algorithm(self) -> str:
        """``algorithm.name``."""
        return str(self.settings.get("algorithm.name", "ppo"))


def recipe(problem: Problem, folder: Path, seed: int) -> Path:
    """Make what the problem needs in ``folder``; returns the recipe's file."""
    folder.mkdir(parents=True, exist_ok=True)
    problem.make(problem.family, seed, folder)
    values: dict[str, Any] = {
        "name": problem.name,
        "seed": seed,
        "runs_dir": str(folder / "runs"),
        "model.path": str(folder / "reference"),
        "ppo.policy_init": str(folder / "reference"),
        "data.prompts": str(folder / "prompts.jsonl"),
        "rewards": dict(problem.rewards),
        "algorithm.kl_coef": problem.beta,
        **SHARED,
        **{
            key: value.format(folder=folder) if isinstance(value, str) else value
            for key, value in problem.settings.items()
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(_nested(values)), encoding="utf-8")
    return path


def known(function: str, weight: float = 1.0) -> dict[str, Any]:
    """A part of the reward that is a function of ``rewards.py``."""
    return {"function": f"{REWARDS}:{function}", "weight": weight}


SHARED: Mapping[str, Any] = {
    "data.held_out_fraction": 0.0,
    "rollout.enforce_eager": True,
    "tracking.progress": False,
    "tracking.samples_per_step": 1,
    "data.max_prompt_length": 1,
    "ppo.batch_size": 256,
    "ppo.optimizer.schedule": "linear",
    "ppo.critic_optimizer.schedule": "linear",
    "rollout.block_size": 256,
    "placement.policy.micro_batch_tokens": 512,
    "placement.critic.micro_batch_tokens": 512,
    "placement.reference.micro_batch_tokens": 512,
    "placement.reward.micro_batch_tokens": 512,
}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
    return tree


def _write_prompts(folder: Path, prompts: Sequence[str]) -> None:
    lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def make_bandit(family: Family, seed: int, folder: Path, lora: LoRAConfig | None = None) -> None:
    """Problem A: eight answers and four prompts, of one token each. Nothing but answers is ever sampled.

    With ``lora``, the reference is the model as this quantises it, and its head can express every policy.
    """
    prompts = digits[:PROMPTS]
    tokenizer = make_tokenizer(ascii_uppercase[:ANSWERS] + prompts + END)
    model = make_model(family, tokenizer, spoken=ANSWERS, seed=seed)
    tokens, logits = torch.arange(PROMPTS) + ANSWERS, torch.from_numpy(closed_form.bandit_logits())
    if lora is None:
        give_logits(model, tokens, logits)
    else:
        body = deepcopy(model).train()  # in evaluation mode bitsandbytes repacks the matrices
        add_adapters(body, lora, seed)
        give_logits(model, tokens, logits, body, noise=1.0)
    save(model, tokenizer, folder / "reference")
    _write_prompts(folder, prompts)


def make_token_class(family: Family, seed: int, folder: Path) -> None:
    """Problem B: 32 tokens, all equally likely; no response has an end."""
    tokenizer = make_tokenizer(CLASS_LETTERS + OTHER_LETTERS + START + END)
    save(make_model(family, tokenizer, spoken=VOCABULARY, seed=seed), tokenizer, folder / "reference")
    _write_prompts(folder, START)


def make_length(family: Family, seed: int, folder: Path) -> None:
    """Problem C: at every step an end with probability .1, else one of six words."""
    fillers = 6
    tokenizer = make_tokenizer(ascii_lowercase[:fillers] + END + START)
    model = make_model(family, tokenizer, spoken=fillers + 1, seed=seed)
    give_constant_logits(model, torch.tensor([*[np.log((1 - HAZARD) / fillers)] * fillers, np.log(HAZARD)]))
    save(model, tokenizer, folder / "reference")
    _write_prompts(folder, START)


def make_chain(family: Family, seed: int, folder: Path) -> None:
    """Problem D: sequences of problem B with an end after sixteen tokens, and comparisons by count with noise."""
    tokenizer = make_tokenizer(CLASS_LETTERS + OTHER_LETTERS + digits + END)
    model = make_model(family, tokenizer, spoken=VOCABULARY, seed=seed)
    end_at(model, PROMPT_DIGITS + TOKENS - 1, end=tokenizer.eos_token_id)
    save(model, tokenizer, folder / "reference")
    random = np.random.default_rng(seed)
    numbers = random.permutation(10**PROMPT_DIGITS)[:COMPARISONS]
    prompts = [f"{number:0{PROMPT_DIGITS}d}" for number in numbers]
    rows = [{"prompt": prompt, **_comparison(random)} for prompt in prompts]
    (folder / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ceiling = {"accuracy_ceiling": closed_form.accuracy_ceiling(GAIN)}
    (folder / "ceiling.json").write_text(json.dumps(ceiling), encoding="utf-8")
    _write_prompts(folder, prompts[:PROMPTS_OF_CHAIN])


def _comparison(random: np.random.Generator) -> dict[str, str]:
    """Two random sequences; the first is preferred with probability σ(gain · difference of their counts)."""
    letters = np.array(list(CLASS_LETTERS + OTHER_LETTERS))
    one, other = (random.integers(VOCABULARY, size=TOKENS) for _ in range(2))
    difference = int((one < CLASS).sum() - (other < CLASS).sum())
    first = random.random() < 1 / (1 + np.exp(-GAIN * difference))
    chosen, rejected = (one, other) if first else (other, one)
    return {"chosen": "".join(letters[chosen]), "rejected": "".join(letters[rejected])}


def bandit(name: str, family: Family, algorithm: str = "ppo", **options: Any) -> Problem:
    """Problem A under one algorithm; ``options`` are of its section in the recipe.

    Answers have one token, so that GSPO's ratio of a whole answer is that of a token, and needs a token's clip range.
    """
    grouped = {} if algorithm in ("ppo", "reinforce++") else {"ppo.samples_per_prompt": 16}
    advantages = {"algorithm.lam": 1.0} if algorithm == "ppo" else {}
    return Problem(
        name=name,
        letter="A",
        family=family,
        beta=0.2,
        best=closed_form.bandit(0.2),
        make=make_bandit,
        rewards={"known": known("bandit")},
        settings={
            "rollout.max_response_length": 1,
            "algorithm.name": algorithm,
            "algorithm.missing_eos_penalty": None,
            "ppo.steps": 40,
            "ppo.optimizer.lr": 1e-3,
            "ppo.critic_optimizer.lr": 3e-3,
            **advantages,
            **grouped,
            **{f"algorithm.{key}": value for key, value in options.items()},
        },
    )


def quantised_bandit(name: str, family: Family) -> Problem:
    """Problem A for adapters of a quantised model, whose head is frozen."""
    lora = LoRAConfig(rank=8, alpha=16.0, quantization="nf4")
    plain = bandit(name, family)
    settings = {
        **plain.settings,
        "model.lora": asdict(lora) | {"targets": list(lora.targets)},
        "ppo.optimizer.lr": 3e-3,
    }
    return replace(plain, make=partial(make_bandit, lora=lora), settings=settings)


def token_class(name: str, family: Family, beta: float, temperature: float, steps: int) -> Problem:
    """Problem B. The smaller β is, the farther the optimum, and the more steps it takes."""
    return Problem(
        name=name,
        letter="B",
        family=family,
        beta=beta,
        best=closed_form.token_class(beta),
        make=make_token_class,
        rewards={"known": known("token_class")},
        settings={
            "rollout.max_response_length": TOKENS,
            "rollout.temperature": temperature,
            "algorithm.lam": 1.0,
            "algorithm.missing_eos_penalty": None,
            "ppo.steps": steps,
            "ppo.optimizer.lr": 1e-3,
            "ppo.critic_optimizer.lr": 1e-3,
        },
    )


def length(name: str, family: Family) -> Problem:
    """Problem C."""
    return Problem(
        name=name,
        letter="C",
        family=family,
        beta=0.2,
        best=closed_form.length(0.2),
        make=make_length,
        rewards={"known": known("length")},
        settings={
            "rollout.max_response_length": LONGEST,
            "algorithm.lam": 1.0,
            "algorithm.missing_eos_penalty": 1.0,
            "ppo.steps": 80,
            "ppo.optimizer.lr": 1e-3,
            "ppo.critic_optimizer.lr": 1e-3,
        },
    )


def chain(name: str, family: Family) -> Problem:
    """Problem D: β is chosen so that a perfect reward model leads to problem B's policy at β = .05."""
    beta = 0.05 * TOKENS * GAIN
    return Problem(
        name=name,
        letter="D",
        family=family,
        beta=beta,
        best=closed_form.token_class(beta, reward_per_token=GAIN),
        make=make_chain,
        rewards={"model": {"model": "trained"}, "gold": known("token_class", weight=0.0)},
        settings={
            "data.preferences": "{folder}/comparisons.jsonl",
            "data.max_prompt_length": PROMPT_DIGITS,
            "data.max_response_length": TOKENS + 1,
            "data.held_out_fraction": 0.3,
            "reward.init": "{folder}/reference",
            "reward.ceiling": "{folder}/ceiling.json",
            "reward.epochs": 1,
            "reward.batch_size": 64,
            "reward.optimizer": {"lr": 2e-3, "warmup_steps": 10},
            "rollout.max_response_length": TOKENS + 1,
            "algorithm.lam": 1.0,
            "ppo.steps": 60,
            "ppo.optimizer.lr": 1e-3,
            "ppo.critic_optimizer.lr": 1e-3,
        },
    )


PROBLEMS: Mapping[str, Problem] = {
    problem.name: problem
    for problem in (
        bandit("a-ppo", "llama"),
        quantised_bandit("a-qlora", "llama"),
        bandit("a-grpo", "gpt_neox", "grpo", kl_in="reward"),
        bandit("a-dr-grpo", "gpt_neox", "dr_grpo"),
        bandit("a-rloo", "gpt_neox", "rloo"),
        bandit("a-reinforce", "gpt_neox", "reinforce++"),
        bandit("a-reinforce-baseline", "gpt_neox", "reinforce++_baseline", kl_in="reward"),
        bandit("a-dapo", "gpt_neox", "dapo", kl_in="reward"),
        bandit("a-gspo", "gpt_neox", "gspo", kl_in="reward", clip_range=0.2, clip_range_high=0.2),
        bandit("a-cispo", "gpt_neox", "cispo", kl_in="reward"),
        token_class("b-05", "qwen2", beta=0.05, temperature=0.7, steps=60),
        token_class("b-10", "qwen2", beta=0.1, temperature=1.0, steps=30),
        length("c", "gpt2"),
        chain("d", "gpt2"),
    )
}
"""All of them, by name."""
