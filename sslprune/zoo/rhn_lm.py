"""The language model of Zilly et al. 2017 ("Recurrent Highway Networks"): one recurrent layer, many steps deep."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RHNLanguageModel(nn.Module):
    """Embedding, a recurrent highway layer with coupled gates (eq. 6 to 9), and a decoder.

    A dropout mask is drawn once a sequence, for the input, the state and the output each (Gal and Ghahramani 2016).
    The steps in time are unrolled in the graph, so that a traced model has one length.
    """

    def __init__(self, vocabulary: int, hidden: int, depth: int, dropout: float, tied: bool, init: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.inputs = nn.Linear(hidden, 2 * hidden, bias=False)
        self.highways = nn.ModuleList(nn.Linear(hidden, 2 * hidden) for _ in range(depth))
        self.decoder = nn.Linear(hidden, vocabulary)
        self.dropout = dropout
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init, init)
        for highway in self.highways:
            nn.init.constant_(
                cast(nn.Linear, highway).bias[hidden:], -2.0
            )  # the gates begin nearly closed, and the state is carried
        if tied:
            self.decoder.weight = self.embedding.weight

    def initial_state(self, batch_size: int) -> Tensor:
        """Zeros, (batch, hidden): what the first batch of a text is read with."""
        return self.decoder.bias.new_zeros(batch_size, self.decoder.in_features)

    def _mask(self, x: Tensor) -> Tensor:
        return F.dropout(torch.ones_like(x), self.dropout, self.training)

    def forward(self, tokens: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, steps) int64 -> scores of the next token (batch, steps, vocabulary), and the new state."""
        embedded = self.embedding(tokens)
        drops = self.training and self.dropout > 0
        if drops:
            embedded = embedded * self._mask(embedded[:, :1])
            recurrent, output = self._mask(state), self._mask(state)
        pre = self.inputs(embedded)  # (batch, steps, 2 hidden)
        after = []
        for t in range(tokens.shape[1]):
            for depth, highway in enumerate(self.highways):
                both = highway(state * recurrent if drops else state)
                both = both + pre[:, t] if depth == 0 else both
                candidate, gate = both.chunk(2, dim=1)
                gate = torch.sigmoid(gate)
                state = torch.tanh(candidate) * gate + state * (1 - gate)
            after.append(state * output if drops else state)
        return self.decoder(torch.stack(after, 1)), state


def rhn_lm(
    vocabulary: int = 10_000,
    hidden: int = 830,
    depth: int = 10,
    dropout: float = 0.65,
    tied: bool = True,
    init: float = 0.04,
) -> nn.Module:
    """A recurrent highway language model; the paper's on Penn Treebank (section 5, 23 M weights) by default."""
    if min(hidden, depth, vocabulary) < 1:
        raise ValueError("hidden, depth and vocabulary are at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is at least 0 and below 1; got {dropout}")
    return RHNLanguageModel(vocabulary, hidden, depth, dropout, tied, init)
