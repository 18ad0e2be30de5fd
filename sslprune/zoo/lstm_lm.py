"""The LSTM language models of Zaremba et al. 2014 ("Recurrent Neural Network Regularization"), section 4.1."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from torch import Tensor, nn

State = tuple[tuple[Tensor, Tensor], ...]  # of each layer: (hidden, cell), each (batch, units), zeros at the start


@dataclass(frozen=True)
class Setting:
    """One of the paper's three: units a layer, dropout, and the half-width of the uniform initial weights."""

    hidden: int
    dropout: float
    init: float


SETTINGS = {"small": Setting(200, 0.0, 0.1), "medium": Setting(650, 0.5, 0.05), "large": Setting(1500, 0.65, 0.04)}


class LSTMLanguageModel(nn.Module):
    """Embedding, LSTM layers of one module each (so that each can have its own width), and a decoder.

    Dropout stands between them and never on the recurrence (Zaremba et al. 2014, eq. 7).
    """

    def __init__(
        self, vocabulary: int, hidden: int, layers: int, dropout: float, embedding: int, tied: bool, init: float
    ) -> None:
        super().__init__()
        widths = [embedding, *[hidden] * layers]
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList(nn.LSTM(a, b, batch_first=True) for a, b in pairwise(widths))
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(hidden, vocabulary)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -init, init)
        if tied:
            self.decoder.weight = self.embedding.weight

    def initial_state(self, batch_size: int) -> State:
        """Zeros for every layer: what the first batch of a text is read with."""
        widths = [cast(nn.LSTM, lstm).hidden_size for lstm in self.layers]
        zeros = [self.decoder.bias.new_zeros(batch_size, width) for width in widths]
        return tuple((zero, zero.clone()) for zero in zeros)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Tokens (batch, steps) int64 -> scores of the next token (batch, steps, vocabulary), and the new state."""
        x = self.dropout(self.embedding(tokens))
        after = []
        for lstm, (hidden, cell) in zip(self.layers, state, strict=True):
            x, (hidden, cell) = lstm(x, (hidden.unsqueeze(0), cell.unsqueeze(0)))
            after.append((hidden.squeeze(0), cell.squeeze(0)))
            x = self.dropout(x)
        return self.decoder(x), tuple(after)


def lstm_lm(
    size: str = "small",
    vocabulary: int = 10_000,
    tied: bool = False,
    hidden: int | None = None,
    layers: int = 2,
    dropout: float | None = None,
    embedding: int | None = None,
    init: float | None = None,
) -> nn.Module:
    """An LSTM language model of a ``size`` of the paper, "small", "medium" or "large"; what is given overrides it.

    ``embedding`` is as wide as ``hidden`` unless given. Raises ValueError for an unknown size, and for a ``tied``
    embedding (Press and Wolf 2017) of another width than the last layer's.
    """
    if size not in SETTINGS:
        raise ValueError(f'size is "small", "medium" or "large"; got {size!r}')
    setting = SETTINGS[size]
    hidden = setting.hidden if hidden is None else hidden
    embedding = hidden if embedding is None else embedding
    dropout = setting.dropout if dropout is None else dropout
    if min(hidden, embedding, layers, vocabulary) < 1:
        raise ValueError("hidden, embedding, layers and vocabulary are at least 1")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is at least 0 and below 1; got {dropout}")
    if tied and embedding != hidden:
        raise ValueError(f"a tied embedding is as wide as the last layer ({hidden}); got {embedding}")
    init = setting.init if init is None else init
    return LSTMLanguageModel(vocabulary, hidden, layers, dropout, embedding, tied, init)
