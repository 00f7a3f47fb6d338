"""One rank of the policy: computes log-probabilities of rollouts, runs the PPO update, and publishes weights.

Also defines the reference model, which only computes log-probabilities: a frozen copy of the initial policy. With LoRA
no copy is needed: the reference is the policy with its adapters disabled.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rlhf.algorithms.importance import token_importance
from rlhf.algorithms.losses import PolicyLoss, cispo_loss, kl_loss, policy_loss
from rlhf.algorithms.normaliser import normaliser, token_weights
from rlhf.algorithms.rewards import sample_of_token
from rlhf.config.schema import LoRAConfig, Recipe
from rlhf.config.stages import policy_updates
from rlhf.device import copy_to_device, peak_memory_gib
from rlhf.models.load import DTYPES, load_causal, load_policy
from rlhf.models.logprobs import Entropy
from rlhf.models.lora import adapters, adapters_off
from rlhf.models.packed_row import PackedRow, pack_row
from rlhf.models.policy import PolicyNet
from rlhf.roles.block_result import BlockResult, token_index
from rlhf.roles.role import Role, plan_updates
from rlhf.types import Bool, Experience, Int32, RolloutBlock
from rlhf.weights.fingerprint import Fingerprint
from rlhf.zero.process_group import Rank

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine

    from rlhf.weights.timed_client import TimedClient
    from rlhf.zero.source import ZeroSource

SUMS = (
    *("loss", "kl", "ratio", "ratio²", "approxkl", "clipped", "entropy"),
    *("importance", "engine", "reference", "tokens"),
)
"""Sums over tokens that a forward pass accumulates; the first two are weighted like the loss. ``engine`` and
``reference`` are the distances of log π to their log-probabilities; 0 unless the update computes log π_old."""


@dataclass(frozen=True, kw_only=True)
class PolicyBatch:
    """Inputs of one micro-batch of the update.

    Shapes: ``row`` predicts the T response tokens that are trained on; old_logprobs, ref_logprobs, advantages,
    importance, weights (T,); samples (T,) index of each token's sample among those that have tokens, for GSPO only.
    Where the update computes log π_old, ``old_logprobs`` are the engine's and ``importance`` is 1.
    """

    row: PackedRow
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    importance: Tensor
    weights: Tensor
    samples: Tensor | None = None


class LanguageRole(Role[PolicyNet]):
    """A role that computes log-probabilities of rollouts: the policy or the reference model."""

    def logprobs(self, block: RolloutBlock) -> BlockResult:
        """This rank's part of a unit's log-probabilities of response tokens, at the sampling temperature, in nats."""
        temperature = self.recipe.rollout.temperature
        return self.compute_unit(block.sequences, lambda row: self.engine.forward(row, temperature)[0])


class ReferenceRole(LanguageRole):
    """The reference model on one rank: computes log π_ref."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        super().__init__(recipe, recipe.placement.reference, rank, lambda: PolicyNet(load_causal(folder, recipe.model)))


class PolicyRole(LanguageRole):
    """The policy on one rank."""

    def __init__(self, recipe: Recipe, folder: str, rank: Rank) -> None:
        super().__init__(
            recipe,
            recipe.placement.policy,
            rank,
            lambda: PolicyNet(load_policy(folder, recipe.model, recipe.seed)),
            recipe.ppo.optimizer,
            policy_updates(recipe),
        )
        self.lm = self.network.lm
        self.source = self.make_source()
        self.sender: TrainerWeightTransferEngine[Any] | None = None
        """Sends weights to the connected engines."""
        self.base: Fingerprint | None = None
        """Fingerprint of the base model that the connected engines hold; None if they have to receive all weights."""

    def make_source(self) -> ZeroSource:
        """The source of the weights that ``publish`` sends."""
        from rlhf.zero.source import ZeroSource  # imports vLLM, which takes seconds; the controller imports this file

        merges = self.recipe.model.engine_lora is None
        return ZeroSource(self.engine, self.lm, DTYPES[self.recipe.model.dtype], merges)

    def reference_logprobs(self, block: RolloutBlock) -> BlockResult:
        """This rank's part of a unit's reference log-probabilities: those of the base model with adapters disabled."""
        with adapters_off(self.lm):
            return self.logprobs(block)

    def update(self, experience: Experience, step: int) -> dict[str, float]:
        """Run the epochs over the batch, fewer if ``target_kl`` stops them; returns metrics over all ranks."""
        target_kl, totals, norms, begun = self.recipe.algorithm.target_kl, [], [], time.perf_counter()
        plan, skipped = plan_updates(self.recipe, experience, step)
        for indices in plan:
            total, norm = self._update_minibatch(experience, indices)
            totals.append(total)
            norms.append(norm)
            if target_kl is not None and _mean_of(total, "approxkl") > target_kl:
                break
        self.engine.skip_updates(skipped + len(plan) - len(totals))
        if not totals:
            return {"policy/updates": 0.0, "policy/tokens": 0.0}
        sequences, seen = experience.rollouts.sequences, np.concatenate(plan[: len(totals)])
        tokens = int(torch.stack(totals)[:, -1].sum())
        rates = self.utilisation(sequences.lengths[seen], tokens, time.perf_counter() - begun)
        return (
            update_metrics(torch.stack(totals))
            | (_old_metrics(totals[0]) if self.recipe.algorithm.old_logprobs == "update" else {})
            | rates
            | {
                "policy/updates": float(len(totals)),
                "policy/tokens": float(tokens),
                "policy/grad_norm": float(np.mean(norms)),
                "lr": self.engine.learning_rate,
                "memory/policy_gib": peak_memory_gib(self.rank.device),
            }
        )

    def _update_minibatch(self, experience: Experience, indices: Sequence[int]) -> tuple[Tensor, float]:
        """Take one optimizer step.

        Returns the sums over all ranks in the order of ``SUMS``, the first two divided by the normaliser, and the
        gradient norm.
        """
        algorithm, sequences = self.recipe.algorithm, experience.rollouts.sequences
        index = token_index(sequences, indices)
        lengths, mask = sequences.response_lengths[np.asarray(indices)], experience.response_mask[index]
        count = normaliser(algorithm.averaging, lengths, mask, self.recipe.rollout.max_response_length)
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)

        def loss(batch: PolicyBatch) -> Tensor:
            value, statistics = self._compute_loss(batch, experience.kl_coef)
            sums.add_(statistics)
            return value

        micro_batches = [self._make_batch(experience, part) for part in self.micro_batches(indices, sequences.lengths)]
        norm = self.engine.update(micro_batches, loss, count)
        total = self.engine.all_reduce(sums)
        total[:2] /= max(1, count)
        return total, norm

    def _compute_loss(self, batch: PolicyBatch, kl_coef: float) -> tuple[Tensor, Tensor]:
        """The weighted sum of a micro-batch's losses, and its statistics in the order of ``SUMS``."""
        algorithm = self.recipe.algorithm
        wanted: Entropy = "trained" if algorithm.entropy_coef else "value"
        logprobs, entropy = self.engine.engine(batch.row, self.recipe.rollout.temperature, wanted)
        self.engine.finite.watch("logprobs", logprobs)
        distances = logprobs.new_zeros(2)
        if algorithm.old_logprobs == "update":
            old, engine = logprobs.detach(), batch.old_logprobs
            distances = torch.stack([(old - engine).abs().sum(), (old - batch.ref_logprobs).abs().sum()])
            batch = replace(batch, old_logprobs=old, importance=token_importance(old, engine, algorithm))
        terms = self._policy_loss(logprobs, batch)
        corrected = batch.weights * batch.importance
        with torch.set_grad_enabled(algorithm.kl_in == "loss"):
            kl = (corrected * kl_loss(logprobs, batch.old_logprobs, batch.ref_logprobs)).sum()
        value = (corrected * terms.loss).sum()
        statistics = [value.detach(), kl.detach(), terms.ratio.sum(), terms.ratio.square().sum(), terms.approxkl.sum()]
        statistics += [terms.clipped.sum(), entropy.detach().sum(), batch.importance.sum(), *distances]
        statistics.append(torch.full_like(value, len(logprobs)))
        if algorithm.kl_in == "loss":
            value = value + kl_coef * kl
        if algorithm.entropy_coef:
            value = value - algorithm.entropy_coef * (batch.weights * entropy).sum()
        return value, torch.stack([each.double() for each in statistics])

    def _policy_loss(self, logprobs: Tensor, batch: PolicyBatch) -> PolicyLoss:
        algorithm, given = self.recipe.algorithm, (logprobs, batch.old_logprobs, batch.advantages)
        if algorithm.name == "cispo":
            return cispo_loss(*given, algorithm.clip_high)
        return policy_loss(*given, algorithm.clip_low, algorithm.clip_high, algorithm.dual_clip, batch.samples)

    def _make_batch(self, experience: Experience, samples: Sequence[int]) -> PolicyBatch:
        sequences = experience.rollouts.sequences
        index = token_index(sequences, samples)
        kept = experience.response_mask[index]
        lengths = sequences.response_lengths[np.asarray(samples, dtype=np.int64)]
        weights = token_weights(self.recipe.algorithm.averaging, lengths, kept)

        arrays = (
            experience.old_logprobs[index],
            experience.ref_logprobs[index],
            experience.advantages[index],
            experience.importance_weights[index],
            weights,
        )
        old, ref, advantages, importance, weight = copy_to_device([array[kept] for array in arrays], self.device)
        return PolicyBatch(
            row=pack_row(sequences, samples, self.device, kept),
            old_logprobs=old,
            ref_logprobs=ref,
            advantages=advantages,
            importance=importance,
            weights=weight,
            samples=self._samples_of_tokens(lengths, kept) if self.recipe.algorithm.name == "gspo" else None,
        )

    def _samples_of_tokens(self, lengths: Int32, kept: Bool) -> Tensor:
        """(T,) index of each kept token's sample, among the samples that have one."""
        owners = np.unique(sample_of_token(lengths)[kept], return_inverse=True)[1]
        return copy_to_device([owners], self.device)[0]

    def connect(self, client: TimedClient, backend: str, engine_workers: int, address: str, port: int) -> None:
        """Set up the weight transfer to the engines; called again after engines are replaced.

        Args:
            client: calls the engines.
            backend: vLLM's weight-transfer backend.
            engine_workers: number of processes of all engines together.
            address, port: rendezvous of an NCCL group.
        """
        from rlhf.weights.sender import make_sender  # imports vLLM

        if self.sender is not None:
            self.sender.shutdown()  # leaves the group of the engines before, of which one may be lost
        self.client, self.base = client, None
        self.sender = make_sender(backend, self.rank.rank, engine_workers, client, self.source, address, port)

    def publish(self, seconds: float) -> tuple[Fingerprint, dict[int, str]]:
        """Send the weights to every engine, with a timeout of ``seconds`` per engine and chunk.

        Returns the fingerprint of the trainer's weights, empty except on rank 0, and the kind of failure of each failed
        engine, by index.
        """
        assert self.sender is not None, "connect comes first"
        self.client.seconds = seconds
        if self.base is None:
            self.sender.send_weights()
        if (lora := self.recipe.model.engine_lora) is None:
            return self.source.fingerprint, self.client.left_out
        self.base = self.source.fingerprint
        return self.base | self._publish_adapter(lora), self.client.left_out

    def _publish_adapter(self, lora: LoRAConfig) -> Fingerprint:
        """Send A and B to the engines, which hold the base model; returns their fingerprint, empty except on rank 0."""
        from rlhf.weights.adapter import AdapterWeights

        own = {name.removesuffix(".weight"): adapter for name, adapter in adapters(self.lm).items()}
        with self.engine.full([tensor for adapter in own.values() for tensor in (adapter.a, adapter.b)]):
            if self.rank.rank:
                return {}
            a, b = ({name: getattr(each, part).detach().cpu() for name, each in own.items()} for part in "ab")
            sent = AdapterWeights(a=a, b=b, rank=lora.rank, alpha=lora.alpha)
            self.client.load_adapter(sent)
            return sent.fingerprint


def _mean_of(total: Tensor, name: str) -> float:
    return float(total[SUMS.index(name)] / total[SUMS.index("tokens")].clamp(min=1))


def _old_metrics(total: Tensor) -> dict[str, float]:
    """Metrics of log π_old, which ``experience_metrics`` computes where it is known before the update."""
    return {
        "rollout/logprob_gap_mean": _mean_of(total, "engine"),
        "rollout/importance_weight_mean": _mean_of(total, "importance"),
        "objective/logratio_abs_mean": _mean_of(total, "reference"),
    }


def update_metrics(totals: Tensor) -> dict[str, float]:
    """Metrics of a step, averaged over its updates; the keys ``first_pass/*`` cover the first update only.

    Statistics of an update come from its forward pass, before the optimizer step.

    Args:
        totals: (updates, 11) sums over ranks in the order of ``SUMS``; the losses are divided by the normaliser.
    """
    loss, kl = totals[:, :2].T
    ratio, square, approxkl, clipfrac, entropy, *_ = (totals[:, 2:-1] / totals[:, -1:].clamp(min=1)).T
    return {
        "loss/policy_avg": float(loss.mean()),
        "loss/kl_avg": float(kl.mean()),
        "val/ratio": float(ratio.mean()),
        "val/ratio_var": float((square - ratio.square()).clamp(min=0).mean()),
        "policy/approxkl_avg": float(approxkl.mean()),
        "policy/clipfrac_avg": float(clipfrac.mean()),
        "policy/entropy_avg": float(entropy.mean()),
        **{f"first_pass/{name}": _mean_of(totals[0], name) for name in ("ratio", "approxkl")},
        "first_pass/clipfrac": _mean_of(totals[0], "clipped"),
    }
