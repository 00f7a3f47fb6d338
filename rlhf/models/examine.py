"""Examines a loaded model: whether it computes the same here as transformers does for single sequences.

Nothing depends on the model's name. Random sequences go through the network as in training, in one packed row and in
padded rows, and are compared with the model's own forward pass, attention and logits. In a packed row a sequence must
not depend on its neighbours: with other neighbours of the same lengths its states must be equal up to rounding.

Distances are between last hidden states, relative to their norm: unlike outputs, they reveal a leak even with a head of
zeros, such as a new critic's.

Shapes: N tokens of a row, d hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf.errors import UserError, first_line
from rlhf.models.complete import unused_tensors
from rlhf.models.examination import Examination
from rlhf.models.folder import CONTEXTS
from rlhf.models.lora import adapter_layers
from rlhf.models.packed_row import UNFIT, Form, PackedRow, pack_row
from rlhf.models.policy import PolicyNet
from rlhf.models.sequence_parallel import RowNet
from rlhf.types import Int32, Sequences

TOKENS = 336
"""Most tokens of the row: more than the chunks of recurrent models (256)."""
FEWEST = 48
"""Fewest tokens of the row, if the model is large for the device."""
OPERATIONS = {"cpu": 1e11, "cuda": 1e15}
"""Floating-point operations of an examination, by device type: a few seconds."""
PASSES = 8
"""Forward passes over the row."""
SEED = 20170706
ROUNDING = 3.0
"""Allowed ratio of a packed row's distance to that of padded rows."""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Largest distances of a correct model, by dtype."""

    states: float
    """Root mean square over tokens of the distance from the model's own states."""
    neighbours: float
    """Distance of any token between two rows with different neighbours."""
    logprobs: float
    """Root mean square over tokens, relative to the standard deviation of the model's own log-probabilities."""
    nats: float
    """Absolute addition to ``logprobs``, for log-probabilities that are all equal."""


TOLERANCES = {
    torch.float32: Tolerance(states=1e-4, neighbours=1e-5, logprobs=1e-3, nats=1e-5),
    torch.bfloat16: Tolerance(states=0.3, neighbours=3e-3, logprobs=0.3, nats=1e-2),
}


Run = Callable[..., Any]
"""Calls a function of the network on all ranks in the way of its forward pass: ``ZeroEngine.run``."""
Largest = Callable[[Sequence[float]], list[float]]
"""Maximum of each number over all ranks: ``ZeroEngine.largest``."""


@dataclass(frozen=True, kw_only=True)
class Examiner:
    """Examines one network (collective: every rank runs the same passes over the same tokens and decides the same)."""

    network: RowNet
    run: Run
    largest: Largest
    device: torch.device
    parameters: int
    """Parameters of the whole model."""
    may_pack: bool
    """Whether several sequences may share a row: ``model.packing``."""
    temperature: float
    """Temperature at which log-probabilities are compared."""

    def examine(self) -> Examination:
        """Find the form of rows in which the model computes correctly.

        Raises:
            UserError: no form is correct, or sequence parallelism needs packed rows and they are not correct.
        """
        sequence_group, self.network.sequence_group = self.network.sequence_group, None
        try:
            found = self._compare_forms()
        finally:
            self.network.sequence_group = sequence_group
        if sequence_group is not None and found.form == "padded":
            raise self._sharing_error(found)
        self.network.form = found.form
        if isinstance(self.network, PolicyNet):
            self._require_causal()
            found = replace(found, logprob_gap=self._logprob_gap(self.network, found.tokens))
        return self._note_unused(found)

    @property
    def tolerance(self) -> Tolerance:
        """Tolerance for the model's dtype."""
        return TOLERANCES[self.network.model.dtype]

    def _compare_forms(self) -> Examination:
        """Compare both forms with the model's own forward pass."""
        lengths = self._lengths()
        sequences, others = (random_sequences(self.network.model.config, lengths, seed) for seed in (SEED, SEED + 1))
        row, inner = self._row(sequences), slice(lengths[0], lengths[0] + lengths[1])
        own = torch.cat([self.run(self.network.own_states, each) for each in row.tokens[0].split(list(lengths))])
        with _check_adapters_run(self.network.model):
            padded = self._states(row, "padded")
        joined = self._states(self._row([np.concatenate(sequences)]), "padded")
        values = [root_mean_square(padded, own), root_mean_square(joined, own)]
        failure = ""
        if self.may_pack and self.network.form == "packed":
            try:
                packed = self._states(row, "packed")
                among_others = self._states(self._row([others[0], sequences[1], others[2]]), "packed")
                values += [root_mean_square(packed, own), float(distances(among_others[inner], packed[inner]).max())]
            except UNFIT as error:  # the model rejects such rows, on every rank in the same pass
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                failure = first_line(error)
        return self._decide(failure, sum(lengths), *self.largest(values))

    def _decide(
        self,
        failure: str,
        tokens: int,
        padded: float,
        joined: float,
        packed: float | None = None,
        neighbours: float | None = None,
    ) -> Examination:
        limit = self.tolerance
        is_sound = (
            packed is not None
            and neighbours is not None
            and neighbours <= limit.neighbours
            and packed <= min(limit.states, max(TOLERANCES[torch.float32].states, ROUNDING * padded))
        )
        form: Form = "packed" if is_sound else "padded"
        if form == "padded" and padded > limit.states:
            raise self._mismatch_error("hidden states", f"{padded:.1e} of their size, more than {limit.states:.0e}")
        notes = [] if is_sound or not self.may_pack else [self._why_padded(failure, packed, neighbours)]
        return Examination(
            form=form,
            tokens=tokens,
            padded=padded,
            joined=joined,
            packed=packed,
            neighbours=neighbours,
            notes=tuple(notes),
        )

    def _require_causal(self) -> None:
        """Check that a token's state does not depend on the tokens after it.

        Raises:
            UserError: it does, so that the network would see each token before it predicts it.
        """
        [tokens] = self._row(random_sequences(self.network.model.config, self._lengths()[:1], SEED)).tokens
        beginning = tokens[: len(tokens) // 2]
        whole, alone = (self.run(self.network.own_states, each) for each in (tokens, beginning))
        [change] = self.largest([float(distances(whole[: len(beginning)], alone).max())])
        if not change <= self.tolerance.neighbours:
            raise UserError(
                f"the model of type {self.network.model.config.model_type!r} is not causal",
                f"a token's hidden state changes by {change:.1e} of its size with the tokens after it: the model would "
                "see every token before it predicts it",
                "choose a model that generates text, such as those in docs/models.md",
            )

    def _why_padded(self, failure: str, packed: float | None, neighbours: float | None) -> str:
        kind = self.network.model.config.model_type
        if failure:
            return f"{kind}: its code cannot compute a packed row ({failure}), so every sequence has its own row"
        if packed is None or neighbours is None:
            return f"{kind}: its attention cannot be replaced, so every sequence has its own row"
        return (
            f"{kind}: sequences in one row change each other (by {max(packed, neighbours):.1e} of their hidden "
            "states), so every sequence has its own row"
        )

    def _sharing_error(self, found: Examination) -> UserError:
        return UserError(
            f"placement.<role>.sequence_parallel and a model of type {self.network.model.config.model_type!r}",
            (found.notes or ("model.packing = off",))[0] + "; sequence parallelism needs packed rows",
            "placement.<role>.sequence_parallel=1",
        )

    def _mismatch_error(self, what: str, by: str) -> UserError:
        named = self.network.model.named_parameters()
        if broken := next((name for name, tensor in named if not tensor.isfinite().all()), None):
            return UserError(
                f"the model has numbers in {broken} that are not finite",
                "every result would be NaN",
                "give a checkpoint from before its training diverged, or download it again",
            )
        return UserError(
            f"the model of type {self.network.model.config.model_type!r} does not compute here what transformers does",
            f"its {what} differ from its own forward pass over one sequence by {by}; training would use wrong numbers",
            "choose a model that docs/models.md lists, or another dtype (model.dtype=float32)",
        )

    def _logprob_gap(self, network: PolicyNet, tokens: int) -> float:
        """Compare log-probabilities, in the chosen form and across ranks, with the model's own logits."""
        short = random_sequences(network.model.config, (min(40, tokens // 3), 9), SEED)
        row = self._row(short)
        ours = self.run(network.forward, row, self.temperature)[0]
        alone = row.tokens[0].split([len(each) for each in short])
        own = torch.cat([self.run(network.own_logprobs, each, self.temperature) for each in alone])
        mean, square = self.largest([float((ours - own).abs().mean()), float((ours - own).square().mean())])
        limit = self.tolerance.logprobs * float(own.std()) + self.tolerance.nats
        if not square**0.5 <= limit:
            raise self._mismatch_error("log-probabilities", f"{square**0.5:.1e} nats, more than {limit:.0e}")
        return mean

    def _note_unused(self, found: Examination) -> Examination:
        unused = unused_tensors(self.network.model)
        if not unused:
            return found
        more = ", ..." if len(unused) > 3 else ""
        note = f"tensors of the model's folder that are not used: {len(unused)} ({', '.join(unused[:3])}{more})"
        return replace(found, unused=unused, notes=(*found.notes, note))

    def _lengths(self) -> tuple[int, int, int]:
        """Lengths of the three sequences: together within the model's context, and affordable on the device."""
        affordable = OPERATIONS[self.device.type] / (2 * self.parameters * PASSES)
        settings = self.network.model.config.get_text_config()
        known = [length for name in CONTEXTS if isinstance(length := getattr(settings, name, None), int) and length > 0]
        context = min(known, default=2 * TOKENS)
        context -= context // 16  # RoBERTa-like models reserve positions before the first token
        total = max(12, min(TOKENS, context, max(FEWEST, int(affordable))))
        first, last = total // 12, total // 8
        return first, total - first - last, last

    def _row(self, sequences: Sequence[Int32]) -> PackedRow:
        """Pack the sequences; all tokens but the first of each count as its response."""
        packed = Sequences.pack((each[:1], each[1:]) for each in sequences)
        return pack_row(packed, range(len(sequences)), self.device)

    def _states(self, row: PackedRow, form: Form) -> Tensor:
        states: Tensor = self.run(self.network.states, row, form)
        return states


@contextmanager
def _check_adapters_run(model: PreTrainedModel) -> Iterator[None]:
    """Check that every adapted layer that runs also runs its adapters, which a fused kernel may bypass.

    Raises:
        UserError: at the end of the block, names the bypassed adapters.
    """
    layers = dict(model.named_modules())
    adapted = {name: layers[name.rpartition(".")[0]] for name in adapter_layers(model)}
    called: set[int] = set()
    watched = {id(module): module for name, parent in adapted.items() for module in (parent, layers[name])}
    hooks = [module.register_forward_hook(lambda module, *_: called.add(id(module))) for module in watched.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
    idle = [name for name, parent in adapted.items() if id(parent) in called and id(layers[name]) not in called]
    if idle:
        names, others = ({name.rpartition(".")[2] for name in some} for some in (idle, adapted))
        raise UserError(
            f"model.lora: adapters of {', '.join(sorted(names))} are never computed, in {len(idle)} layers",
            "this model's code reads the weights of these layers directly and bypasses their adapters",
            f"model.lora.targets=[{','.join(sorted(others - names))}]",
        )


def random_sequences(config: PreTrainedConfig, lengths: Sequence[int], seed: int) -> list[Int32]:
    """Random sequences of these lengths, without tokens that have a meaning in the configuration."""
    named = (value for key, value in config.get_text_config().to_dict().items() if key.endswith("token_id"))
    special = {token for each in named for token in (each if isinstance(each, list) else [each])}
    ordinary = np.setdiff1d(np.arange(config.get_text_config().vocab_size), [t for t in special if t is not None])
    random = np.random.default_rng(seed)
    return [random.choice(ordinary, length).astype(np.int32) for length in lengths]


def distances(found: Tensor, expected: Tensor) -> Tensor:
    """(N,) distance of each token's state (N, d) from the expected one, relative to the norm of the latter."""
    expected = expected.float()
    return (found.float() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-12)


def root_mean_square(found: Tensor, expected: Tensor) -> float:
    """Root mean square of ``distances`` over tokens; infinite if a distance is not finite."""
    value = float(distances(found, expected).square().mean().sqrt())
    return value if math.isfinite(value) else math.inf
