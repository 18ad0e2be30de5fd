"""Recurrent and attention models written with ``torch.nn`` alone, for the coverage list; vocabulary 50, small."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 50


class LanguageModel(nn.Module):
    """Embedding, recurrent layers, and a decoder that may share the embedding's matrix."""

    def __init__(
        self, recurrent: Callable[..., nn.Module], num_layers: int = 1, proj_size: int = 0, tied: bool = False
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 24)
        projection = {"proj_size": proj_size} if proj_size else {}  # only nn.LSTM knows it
        self.recurrent = recurrent(24, 24, num_layers=num_layers, batch_first=True, **projection)
        self.decoder = nn.Linear(proj_size or 24, VOCABULARY)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:  # (batch, time) -> (batch, time, vocabulary)
        return self.decoder(self.recurrent(self.embedding(tokens))[0])


class Tagger(nn.Module):
    """Two bidirectional layers, then a tag for each token."""

    def __init__(self, recurrent: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.recurrent = recurrent(16, 20, num_layers=2, bidirectional=True, batch_first=True)
        self.tag = nn.Linear(40, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.tag(F.relu(self.recurrent(self.embedding(tokens))[0]))


class Translator(nn.Module):
    """An encoder LSTM whose final state starts a decoder LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, 16), nn.Embedding(VOCABULARY, 12)
        self.encoder = nn.LSTM(16, 20, batch_first=True)
        self.decoder = nn.LSTM(12, 20, batch_first=True)
        self.output = nn.Linear(20, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        _, state = self.encoder(self.source(source))
        return self.output(self.decoder(self.target(target), state)[0])


class UnrolledCells(nn.Module):
    """Stacked LSTM cells, unrolled in Python over six steps."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.cells = nn.ModuleList([nn.LSTMCell(12, 16), nn.LSTMCell(16, 14)])
        self.output = nn.Linear(14, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens)
        states = [(embedded.new_zeros(tokens.shape[0], n), embedded.new_zeros(tokens.shape[0], n)) for n in (16, 14)]
        for t in range(6):
            x = embedded[:, t]
            for i, cell in enumerate(self.cells):
                states[i] = cell(x, states[i])
                x = states[i][0]
        return self.output(x)


class RecurrentHighway(nn.Module):
    """A recurrent highway network of depth three with coupled gates (Zilly et al. 2017, eq. 6 to 9), six steps."""

    def __init__(self, width: int = 20, depth: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.inputs = nn.Linear(16, 2 * width)
        self.steps = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.output = nn.Linear(width, VOCABULARY)
        self.width = width

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.embedding(tokens)
        s = embedded.new_zeros(tokens.shape[0], self.width)
        for t in range(6):
            for depth, step in enumerate(self.steps):
                pre = step(s) + self.inputs(embedded[:, t]) if depth == 0 else step(s)
                h, gate = pre.chunk(2, dim=1)
                gate = torch.sigmoid(gate)
                s = torch.tanh(h) * gate + s * (1 - gate)
        return self.output(s)


class Encoder(nn.Module):
    """``nn.TransformerEncoder``, post-norm or pre-norm, over tokens with learned positions."""

    def __init__(self, norm_first: bool = False) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(VOCABULARY, 24), nn.Parameter(torch.randn(1, 9, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 40, activation="gelu", batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.output = nn.Linear(24, 7)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.encoder(self.embedding(tokens) + self.position).mean(1))


class Seq2Seq(nn.Module):
    """``nn.Transformer``: encoder, decoder, cross attention, a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 24)
        self.transformer = nn.Transformer(24, 4, 2, 2, 40, batch_first=True)
        self.output = nn.Linear(24, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        decoded = self.transformer(self.embedding(source), self.embedding(target), tgt_mask=mask, tgt_is_causal=True)
        return self.output(decoded)


class CrossAttention(nn.Module):
    """``nn.MultiheadAttention`` with keys and values of other widths than the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.memory = nn.Linear(10, 24), nn.Linear(10, 18)
        self.attention = nn.MultiheadAttention(24, 4, kdim=18, vdim=18, batch_first=True)
        self.output = nn.Linear(24, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory = self.memory(y)
        return self.output(self.attention(self.query(x), memory, memory, need_weights=False)[0])


class Reader(nn.Module):
    """A BiDAF-like reader: character convolution, highway layers, attention flow, LSTMs (Seo et al. 2017)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words, self.characters = nn.Embedding(VOCABULARY, 12), nn.Embedding(30, 8)
        self.convolution = nn.Conv1d(8, 12, 3, padding=1)
        self.highways = nn.ModuleList(nn.Linear(24, 48) for _ in range(2))
        self.context = nn.LSTM(24, width, bidirectional=True, batch_first=True)
        self.similarity = nn.Linear(6 * width, 1)
        self.model = nn.LSTM(8 * width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.end = nn.LSTM(2 * width, width, bidirectional=True, batch_first=True)
        self.start_at, self.end_at = nn.Linear(10 * width, 1), nn.Linear(10 * width, 1)

    def embed(self, words: Tensor, characters: Tensor) -> Tensor:
        n, t, c = characters.shape
        letters = self.convolution(self.characters(characters).view(n * t, c, 8).transpose(1, 2)).amax(2).view(n, t, 12)
        x = torch.cat([self.words(words), letters], dim=2)
        for highway in self.highways:
            h, gate = highway(x).chunk(2, dim=2)
            gate = torch.sigmoid(gate)
            x = gate * F.relu(h) + (1 - gate) * x
        return self.context(x)[0]

    def forward(self, passage: Tensor, letters: Tensor, question: Tensor, its_letters: Tensor) -> tuple[Tensor, Tensor]:
        c, q = self.embed(passage, letters), self.embed(question, its_letters)  # (batch, T, 2d), (batch, J, 2d)
        wide = c.unsqueeze(2).expand(-1, -1, q.shape[1], -1)
        also = q.unsqueeze(1).expand(-1, c.shape[1], -1, -1)
        similarity = self.similarity(torch.cat([wide, also, wide * also], dim=3)).squeeze(3)
        attended = torch.softmax(similarity, dim=2) @ q
        summary = (torch.softmax(similarity.amax(2), dim=1).unsqueeze(1) @ c).expand(-1, c.shape[1], -1)
        g = torch.cat([c, attended, c * attended, c * summary], dim=2)
        m = self.model(g)[0]
        start = self.start_at(torch.cat([g, m], dim=2)).squeeze(2)
        return start, self.end_at(torch.cat([g, self.end(m)[0]], dim=2)).squeeze(2)
