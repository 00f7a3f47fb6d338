"""Base class of reward models and critics; probes causality and the scoring method at start."""

from __future__ import annotations

from functools import cached_property

import torch

from rlhf.errors import UserError, first_line
from rlhf.models.classifier_probe import choose_reader, is_causal
from rlhf.models.examination import Examination
from rlhf.models.packed_row import UNFIT
from rlhf.models.scalar import ScalarNet
from rlhf.roles.role import Role


class ScalarRole(Role[ScalarNet]):
    """A role whose network is a sequence classifier."""

    def _examine(self, is_saved: bool) -> Examination:
        """Probe how the network's sequences can be packed.

        A frozen network that cannot be packed runs padded with its own forward pass, as encoder-decoders always do.
        """
        note = "an encoder-decoder, read by its own forward pass"
        if not self.network.model.config.is_encoder_decoder:
            try:
                return super()._examine(is_saved)
            except (UserError, *UNFIT) as error:
                if is_saved or self.network.sequence_group is not None or isinstance(error, torch.OutOfMemoryError):
                    raise
                note = f"its states cannot be read from a row of tokens: {first_line(error)}"
        self.network.form = "padded"
        return Examination(form="padded", tokens=0, notes=(note,))

    @property
    def row_tokens(self) -> int:
        """Largest number of tokens of a micro-batch; 1 if each sequence needs a separate forward pass."""
        return 1 if self.network.reader == "own_alone" else super().row_tokens

    @cached_property
    def is_causal(self) -> bool:
        """Whether a token's state is independent of later tokens (collective on first use)."""
        return is_causal(self.network, self.engine.forward, self._is_true_on_all_ranks, self.device)

    def choose_reader(self) -> str:
        """Probe and set the classifier's scoring method; returns its description (collective)."""
        return choose_reader(self.network, self.is_causal, self.engine.forward, self._is_true_on_all_ranks, self.device)

    def _is_true_on_all_ranks(self, value: bool) -> bool:
        return not self.engine.all_reduce(torch.tensor([not value])).any()
