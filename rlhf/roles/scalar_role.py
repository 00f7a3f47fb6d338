"""What reward models and critics have in common: a classifier that is tried before it is used."""

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
        """As of any network; one with an encoder and a decoder has no states of one row of tokens to compare."""
        note = "an encoder and a decoder, read by their own forward pass"
        if not self.network.model.config.is_encoder_decoder:
            try:
                return super()._examine(is_saved)
            except (UserError, *UNFIT) as error:  # a frozen one may be read by its own forward pass all the same
                if is_saved or self.network.peers is not None or isinstance(error, torch.OutOfMemoryError):
                    raise
                note = f"its states are not those of one sequence alone: {first_line(error)}"
        self.network.form = "padded"
        return Examination(form="padded", tokens=0, notes=(note,))

    @property
    def row_tokens(self) -> int:
        """Tokens of a micro-batch at most. Where each sequence is a pass of its own, every rank does as many."""
        return 1 if self.network.reader == "own_alone" else super().row_tokens

    @cached_property
    def is_causal(self) -> bool:
        """Whether a token's state does not depend on the tokens after it (collective the first time)."""
        return is_causal(self.network, self.engine.forward, self._agreed, self.place)

    def choose_reader(self) -> str:
        """Find by trying how the classifier can be read; returns that in words (collective)."""
        return choose_reader(self.network, self.is_causal, self.engine.forward, self._agreed, self.place)

    def _agreed(self, holds: bool) -> bool:
        """Whether all ranks say so (collective)."""
        return not self.engine.all_reduce(torch.tensor([not holds])).any()
