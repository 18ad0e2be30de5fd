"""Tasks other than one class a picture, made of the handwritten digits that ship with sslprune: data and small models.

The digits of a canvas are drawn at random, training canvases from the training digits and test canvases from the test
digits, so that no test digit was seen before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sslprune.data import digits

Pair = tuple[TensorDataset, TensorDataset]  # train, test


def several(train: int = 1200, test: int = 360) -> Pair:
    """Three digits in a row, (1, 8, 24), and which of the ten occur: 1 or 0 for each."""
    return _made(train, test, lambda picked, labels: F.one_hot(labels, 10).amax(1))


def total(train: int = 1200, test: int = 360) -> Pair:
    """Three digits in a row, (1, 8, 24), and their sum."""
    return _made(train, test, lambda picked, labels: labels.sum(1).float())


def canvases(train: int = 1000, test: int = 240) -> Pair:
    """A digit somewhere in (1, 16, 16), and the class of each pixel: 0 is paper, a digit d is d + 1.

    Faint pixels at the edge of a stroke are void, 255, as those between objects are in photographs.
    """
    return tuple(
        _canvases(part, count, seed) for seed, (part, count) in enumerate(zip(digits(), (train, test), strict=True))
    )


def rows() -> Pair:
    """The digits as sequences of eight rows, (8, 8), without labels."""
    return tuple(TensorDataset(part.pixels[:, 0].float() / 255) for part in digits())


def labelled_rows() -> Pair:
    """The same with the digits' classes: for the training of the encoder that is made smaller later."""
    return tuple(TensorDataset(part.pixels[:, 0].float() / 255, part.labels) for part in digits())


class Segmenter(nn.Module):
    """Down to a quarter of the size and back, with what was seen at each size: logits of 11 classes for each pixel."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.fine = _convolution(1, width)
        self.middle = _convolution(width, 2 * width, stride=2)
        self.coarse = nn.Sequential(_convolution(2 * width, 4 * width, stride=2), _convolution(4 * width, 4 * width))
        self.join_middle = _convolution(6 * width, 2 * width)
        self.join_fine = _convolution(3 * width, width)
        self.head = nn.Conv2d(width, 11, 1)

    def forward(self, canvas: Tensor) -> Tensor:  # (batch, 1, height, width) -> (batch, 11, height, width)
        fine = self.fine(canvas)
        half = self.middle(fine)
        quarter = F.interpolate(self.coarse(half), scale_factor=2.0)
        half = F.interpolate(self.join_middle(torch.cat([half, quarter], dim=1)), scale_factor=2.0)
        return self.head(self.join_fine(torch.cat([fine, half], dim=1)))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Encoder(nn.Module):
    """An LSTM over the rows of a digit; what it remembers at the end becomes a vector of length 1."""

    def __init__(self, hidden: int = 96, size: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, hidden, num_layers=2, batch_first=True)
        self.project = nn.Linear(hidden, size)

    def forward(self, rows: Tensor) -> Tensor:  # (batch, 8, 8) -> (batch, size)
        steps, _ = self.lstm(rows)
        return F.normalize(self.project(steps[:, -1]), dim=1)


def trained_encoder(epochs: int = 12) -> Encoder:
    """An encoder that tells the digits apart: trained with a linear layer on top, which is thrown away. Ten seconds."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    encoder, head = Encoder(), nn.Linear(32, 10)
    pixels, labels = labelled_rows()[0].tensors
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=5e-3)
    for _ in range(epochs):
        for picked in torch.randperm(len(pixels), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(10 * head(encoder(pixels[picked])), labels[picked]).backward()
            optimizer.step()
    return encoder


def _made(train, test, target) -> Pair:
    """Rows of three digits, with what ``target`` makes of their pixels and labels."""
    made = []
    for seed, (part, count) in enumerate(zip(digits(), (train, test), strict=True)):
        picked = torch.randint(len(part), (count, 3), generator=torch.Generator().manual_seed(seed))
        pixels = part.pixels[picked, 0].float() / 255  # (count, 3, 8, 8)
        canvas = pixels.permute(0, 2, 1, 3).reshape(count, 1, 8, 24)
        made.append(TensorDataset((canvas - 0.305) / 0.376, target(pixels, part.labels[picked])))
    return tuple(made)


def _canvases(part, count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    canvas, classes = torch.zeros(count, 1, 16, 16), torch.zeros(count, 16, 16, dtype=torch.int64)
    for n in range(count):
        i = int(torch.randint(len(part), (), generator=generator))
        top, left = torch.randint(9, (2,), generator=generator).tolist()
        ink = part.pixels[i, 0].float() / 255
        canvas[n, 0, top : top + 8, left : left + 8] = ink
        drawn = torch.where(ink > 0.4, int(part.labels[i]) + 1, torch.where(ink > 0.1, 255, 0))
        classes[n, top : top + 8, left : left + 8] = drawn
    return TensorDataset((canvas - 0.08) / 0.22, classes)
