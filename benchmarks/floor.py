"""The cost of a step's work without a trainer: vLLM generates and PyTorch does the rest, in one process.

``python -m benchmarks.floor FOLDER WORKLOAD STEPS`` prints the seconds of each step's parts as one line of JSON.
Responses of different lengths are padded to the longest of the batch, as bare PyTorch code does it. The padding is on
the right and attention is causal, so no mask is needed.

Shapes: B samples, P prompt tokens, R tokens of the longest response, T = P + R.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import models, workload
from benchmarks.workload import PROMPT, Workload
from rlhf.config.schema import RolloutConfig
from rlhf.device import Device, engine_arguments, engine_environment, wait_for_device

PARTS = ("generate", "score", "update", "publish")
PAD = 0


class Engine:
    """vLLM in this process."""

    def __init__(self, folder: Path, work: Workload, device: Device = "cpu") -> None:
        config = RolloutConfig(**workload.rollout(work, device))
        os.environ.update(engine_environment(device, config, None))
        from vllm import LLM, SamplingParams  # it reads the environment when it is imported

        self.llm = LLM(
            str(folder / "policy"),
            dtype=work.dtype,
            enforce_eager=config.enforce_eager,
            max_model_len=PROMPT + work.new,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            **engine_arguments(device, config, sleeps=False),
        )
        self.sampling = SamplingParams(temperature=1.0, max_tokens=work.new, logprobs=0, detokenize=False)

    def generate(self, prompts: Sequence[list[int]]) -> list[list[int]]:
        """One response to each prompt."""
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(answer.outputs[0].token_ids) for answer in self.llm.generate(asked, self.sampling, use_tqdm=False)]

    def publish(self, policy: nn.Module) -> None:
        """Load the policy's weights; the tied head under its own name too."""
        weights = list(policy.state_dict().items())
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self.llm.reset_prefix_cache()


@dataclass(frozen=True, kw_only=True)
class Experience:
    """What updates read. Tensors are (B, R), 0 behind the end of a response."""

    tokens: Tensor
    """(B, T) prompts and responses."""
    mask: Tensor
    """1 for each token of a response."""
    old: Tensor
    """log π_old."""
    reference: Tensor
    advantages: Tensor
    values: Tensor | None = None
    returns: Tensor | None = None


class Trained:
    """A model with AdamW on float32 weights, of which the model's own may be a bfloat16 copy."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.weights = model, list(model.parameters())
        self.masters = [weight if weight.dtype == torch.float32 else weight.detach().float() for weight in self.weights]
        self.adam = torch.optim.AdamW(self.masters, lr=workload.LEARNING_RATE, fused=True)

    @torch.no_grad()
    def step(self) -> None:
        """One step of the optimizer; gradients are cleared."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight is not master and weight.grad is not None:
                master.grad, weight.grad = weight.grad.float(), None
        self.adam.step()
        self.adam.zero_grad()
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight is not master:
                weight.copy_(master)


class Floor:
    """The models of a workload, and a step's work on them."""

    def __init__(self, folder: Path, work: Workload, device: Device = "cpu") -> None:
        def load(auto: Any, name: str) -> Any:
            return auto.from_pretrained(folder / name, dtype=getattr(torch, work.dtype)).to(device)

        self.work, self.micro, self.device = work, work.micro or work.minibatch, torch.device(device)
        self.policy, self.reference = (load(AutoModelForCausalLM, "policy") for _ in range(2))
        self.reward = load(AutoModelForSequenceClassification, "reward")
        self.critic = load(AutoModelForSequenceClassification, "reward") if work.algorithm == "ppo" else None
        self.trained = [Trained(model) for model in (self.policy, self.critic) if model is not None]

    def pad(self, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """(B, T) tokens and (B, R) mask, padded on the right."""
        longest = max(map(len, responses))
        rows = [p + r + [PAD] * (longest - len(r)) for p, r in zip(prompts, responses, strict=True)]
        lengths = torch.tensor([len(r) for r in responses])
        mask = (torch.arange(longest) < lengths[:, None]).float()
        return torch.tensor(rows).to(self.device), mask.to(self.device)

    @torch.no_grad()
    def experience(self, tokens: Tensor, mask: Tensor) -> Experience:
        """Score (B, T) tokens with all models, and compute advantages."""
        parts = [self._score(*rows) for rows in zip(*(x.split(self.micro) for x in (tokens, mask)))]
        old, reference, scores, value = (torch.cat(part) for part in zip(*parts, strict=True))
        shared = {"tokens": tokens, "mask": mask, "old": old, "reference": reference}
        if self.critic is None:
            return Experience(advantages=group_advantages(scores, self.work.group)[:, None] * mask, **shared)
        rewards = -workload.BETA * (old - reference) * mask
        rewards[torch.arange(len(tokens)), last_tokens(mask)] += scores
        advantages = gae(rewards, value * mask)
        white = whiten(advantages, mask)
        return Experience(advantages=white, values=value, returns=advantages + value, **shared)

    def _score(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """(b, R) log π_old, (b, R) log π_ref, (b,) scores, (b, R) values or, without a critic, zeros."""
        rows = torch.arange(len(tokens))
        at_end = states(self.reward, tokens)[rows, PROMPT + last_tokens(mask)]
        value = torch.zeros_like(mask) if self.critic is None else values(self.critic, tokens)
        scores = self.reward.score(at_end)[:, 0].float()
        return logprobs(self.policy, tokens), logprobs(self.reference, tokens), scores, value

    def update(self, experience: Experience) -> None:
        """All epochs and minibatches."""
        for chosen in self._minibatches():
            tokens = experience.mask[chosen].sum()
            for rows in chosen.split(self.micro):
                self._policy_loss(experience, rows, tokens).backward()
                if self.critic is not None:
                    self._value_loss(experience, rows, tokens).backward()
            for each in self.trained:
                each.step()

    def _minibatches(self) -> Iterator[Tensor]:
        """Each epoch's, in a new order."""
        for _ in range(self.work.epochs):
            yield from torch.randperm(self.work.samples, device=self.device).chunk(self.work.minibatches)

    def _policy_loss(self, e: Experience, chosen: Tensor, tokens: Tensor) -> Tensor:
        """The clipped surrogate: in PPO its mean over the minibatch's tokens; in GRPO, with the KL's k3, over its
        responses."""
        advantage, mask = e.advantages[chosen], e.mask[chosen]
        new = logprobs(self.policy, e.tokens[chosen])
        ratio = (new - e.old[chosen]).exp()
        clipped = ratio.clamp(1 - workload.CLIP, 1 + workload.CLIP)
        losses = torch.maximum(-advantage * ratio, -advantage * clipped)
        if self.work.algorithm == "ppo":
            return (losses * mask).sum() / tokens
        distance = e.reference[chosen] - new
        losses = losses + workload.BETA * (distance.exp() - distance - 1)
        return ((losses * mask).sum(dim=1) / mask.sum(dim=1)).sum() / self.work.minibatch

    def _value_loss(self, e: Experience, chosen: Tensor, tokens: Tensor) -> Tensor:
        assert self.critic is not None and e.values is not None and e.returns is not None
        new, before = values(self.critic, e.tokens[chosen]), e.values[chosen]
        target, mask = e.returns[chosen], e.mask[chosen]
        near = before + (new - before).clamp(-workload.CLIP, workload.CLIP)
        losses = 0.5 * torch.maximum((new - target).square(), (near - target).square())
        return (losses * mask).sum() / tokens


def states(model: nn.Module, rows: Tensor) -> Tensor:
    """(b, T, d) last hidden states."""
    found: Tensor = model.model(input_ids=rows, use_cache=False).last_hidden_state
    return found


def logprobs(model: nn.Module, rows: Tensor) -> Tensor:
    """(b, R) log-probabilities of the response tokens, in float32."""
    targets = rows[:, PROMPT:]
    logits = model(input_ids=rows, use_cache=False, logits_to_keep=targets.shape[1] + 1).logits[:, :-1]
    found = -functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return found.view_as(targets)


def values(model: nn.Module, rows: Tensor) -> Tensor:
    """(b, R) values before each response token, in float32."""
    found: Tensor = model.score(states(model, rows)[:, PROMPT - 1 : -1])[..., 0]
    return found.float()


def last_tokens(mask: Tensor) -> Tensor:
    """(B,) position of each response's last token."""
    return mask.sum(dim=1).long() - 1


def gae(rewards: Tensor, value: Tensor) -> Tensor:
    """(B, R) advantages. Rewards and values are 0 behind a response's end."""
    advantages, last = torch.zeros_like(value), torch.zeros_like(value[:, 0])
    for t in reversed(range(value.shape[1])):
        following = value[:, t + 1] if t + 1 < value.shape[1] else 0.0
        last = rewards[:, t] + workload.GAMMA * following - value[:, t] + workload.GAMMA * workload.LAMBDA * last
        advantages[:, t] = last
    return advantages


def whiten(advantages: Tensor, mask: Tensor) -> Tensor:
    """Shift and scale to mean 0 and variance 1 over the tokens inside the mask."""
    chosen = advantages[mask.bool()]
    return (advantages - chosen.mean()) / (chosen.std() + 1e-8) * mask


def group_advantages(scores: Tensor, group: int) -> Tensor:
    """(B,) scores, shifted and scaled within each prompt's group."""
    groups = scores.view(-1, group)
    return ((groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)).flatten()


def prompt_tokens(folder: Path, work: Workload) -> list[list[int]]:
    """The prompt of each sample of a step."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    texts = models.prompts(work.samples // work.group)
    return [tokenizer(text)["input_ids"] for text in texts for _ in range(work.group)]


def measure(folder: Path, work: Workload, steps: int) -> list[dict[str, float]]:
    """Seconds of each step's parts, and its samples and response tokens."""
    engine, prompts = Engine(folder, work), prompt_tokens(folder, work)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    floor, found = Floor(folder, work), []
    for _ in range(steps):
        clock = PartsClock(floor.device)
        responses = engine.generate(prompts)
        clock.mark("generate")
        experience = floor.experience(*floor.pad(prompts, responses))
        clock.mark("score")
        floor.update(experience)
        clock.mark("update")
        engine.publish(floor.policy)
        clock.mark("publish")
        found.append({**clock.step(), "samples": work.samples, "tokens": sum(map(len, responses))})
    return found


class PartsClock:
    """Seconds of a step's parts, each until its work on the device is complete."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.parts = device, dict[str, float]()
        self.last = time.perf_counter()

    def mark(self, part: str) -> None:
        """End a part; the next one begins."""
        wait_for_device(self.device)
        now = time.perf_counter()
        self.parts[part], self.last = now - self.last, now

    def step(self) -> dict[str, float]:
        """The parts, and their sum as ``step``."""
        return {**self.parts, "step": sum(self.parts.values())}


if __name__ == "__main__":
    _work = Workload.from_argument(sys.argv[2])
    print(json.dumps(measure(Path(sys.argv[1]) / _work.models, _work, int(sys.argv[3]))))
