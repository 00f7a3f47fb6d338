"""What a step's work costs without a trainer: vLLM generates, and PyTorch alone does the rest, in one process.

``python -m benchmarks.floor FOLDER STEPS`` prints the seconds of each step's parts as one line of JSON.

Shapes: B samples, P prompt tokens, R response tokens of each, T = P + R.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import workload as work
from rlhf.config.schema import RolloutConfig
from rlhf.device import engine_environment

MICRO = work.SAMPLES // work.MINIBATCHES
"""Samples of a forward pass."""
PARTS = ("generate", "score", "update", "publish")


class Engine:
    """vLLM in this process."""

    def __init__(self, folder: Path) -> None:
        os.environ.update(engine_environment("cpu", RolloutConfig(enforce_eager=True), None))
        from vllm import LLM, SamplingParams  # it reads the environment when it is imported

        self.llm = LLM(
            str(folder / "policy"),
            dtype="float32",
            enforce_eager=True,
            max_model_len=work.PROMPT + work.NEW,
            enable_chunked_prefill=False,
            kv_cache_memory_bytes=2**30,
            logprobs_mode="processed_logprobs",
        )
        self.sampling = SamplingParams(temperature=1.0, max_tokens=work.NEW, logprobs=0, detokenize=False)

    def generate(self, prompts: list[list[int]]) -> Tensor:
        """(B, T) prompts with their responses."""
        answers = self.llm.generate([{"prompt_token_ids": each} for each in prompts], self.sampling, use_tqdm=False)
        return torch.tensor([p + list(a.outputs[0].token_ids) for p, a in zip(prompts, answers, strict=True)])

    def publish(self, policy: nn.Module) -> None:
        """Load the policy's weights; the tied head under its own name too."""
        weights = list(policy.state_dict().items())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.reset_prefix_cache()


class Floor:
    """Four models, and PPO over samples of equal lengths."""

    def __init__(self, folder: Path) -> None:
        def load(auto: Any, name: str) -> Any:
            return auto.from_pretrained(folder / name, dtype=torch.float32)

        self.policy, self.reference = (load(AutoModelForCausalLM, "policy") for _ in range(2))
        self.reward, self.critic = (load(AutoModelForSequenceClassification, name) for name in ("reward", "critic"))
        trained = (self.policy, self.critic)
        self.adams = [torch.optim.AdamW(m.parameters(), lr=work.LEARNING_RATE, fused=True) for m in trained]

    @torch.no_grad()
    def experience(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Of (B, T) tokens (B, R) each: log π_old, values, advantages, returns."""
        parts = []
        for rows in tokens.split(MICRO):
            score = self.reward.score(states(self.reward, rows)[:, -1])
            parts.append(
                (logprobs(self.policy, rows), logprobs(self.reference, rows), values(self.critic, rows), score)
            )
        old, reference, value, score = (torch.cat(part) for part in zip(*parts, strict=True))
        rewards = -work.BETA * (old - reference)
        rewards[:, -1:] += score
        advantages, last = torch.zeros_like(value), torch.zeros(len(value))
        for t in reversed(range(work.NEW)):
            following = value[:, t + 1] if t + 1 < work.NEW else 0.0
            last = rewards[:, t] + work.GAMMA * following - value[:, t] + work.GAMMA * work.LAMBDA * last
            advantages[:, t] = last
        return old, value, (advantages - advantages.mean()) / advantages.std(), advantages + value

    def update(self, tokens: Tensor, old: Tensor, value: Tensor, advantages: Tensor, returns: Tensor) -> None:
        """The epochs of both models."""
        for chosen in minibatches():
            rows, advantage = tokens[chosen], advantages[chosen]
            ratio = (logprobs(self.policy, rows) - old[chosen]).exp()
            clipped = ratio.clamp(1 - work.CLIP, 1 + work.CLIP)
            torch.maximum(-advantage * ratio, -advantage * clipped).mean().backward()
            new, before, target = values(self.critic, rows), value[chosen], returns[chosen]
            near = before + (new - before).clamp(-work.CLIP, work.CLIP)
            (0.5 * torch.maximum((new - target).square(), (near - target).square()).mean()).backward()
            for adam in self.adams:
                adam.step()
                adam.zero_grad()


def states(model: nn.Module, rows: Tensor) -> Tensor:
    """(b, T, d) last hidden states."""
    found: Tensor = model.model(input_ids=rows, use_cache=False).last_hidden_state
    return found


def logprobs(model: nn.Module, rows: Tensor) -> Tensor:
    """(b, R) log-probabilities of the response tokens."""
    logits = model(input_ids=rows, use_cache=False, logits_to_keep=work.NEW + 1).logits[:, :-1]
    targets = rows[:, work.PROMPT :]
    found = -functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return found.view_as(targets)


def values(model: nn.Module, rows: Tensor) -> Tensor:
    """(b, R) values before each response token."""
    found: Tensor = model.score(states(model, rows)[:, work.PROMPT - 1 : -1])[..., 0]
    return found


def minibatches() -> Iterator[Tensor]:
    """Each epoch's, in a new order."""
    for _ in range(work.EPOCHS):
        yield from torch.randperm(work.SAMPLES).chunk(work.MINIBATCHES)


def measure(folder: Path, steps: int) -> list[dict[str, float]]:
    """Seconds of each step's parts."""
    engine, tokenizer = Engine(folder), AutoTokenizer.from_pretrained(folder / "policy")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    prompts, floor, found = [tokenizer(text)["input_ids"] for text in work.prompts()], Floor(folder), []
    for _ in range(steps):
        times = [time.perf_counter()]
        tokens = engine.generate(prompts)
        assert tokens.shape == (work.SAMPLES, work.PROMPT + work.NEW)
        times.append(time.perf_counter())
        experience = floor.experience(tokens)
        times.append(time.perf_counter())
        floor.update(tokens, *experience)
        times.append(time.perf_counter())
        engine.publish(floor.policy)
        times.append(time.perf_counter())
        seconds = dict(zip(PARTS, (end - begin for begin, end in zip(times, times[1:])), strict=True))
        found.append({**seconds, "step": times[-1] - times[0]})
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
