"""A small residual CNN for the 8x8 digits of ``sslprune.data:digits``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class DigitsCNN(nn.Module):
    """A stem at 8x8, a residual block, a convolution down to 4x4, another residual block, and a linear classifier."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.block1 = Block(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.down_bn = nn.BatchNorm2d(2 * width)
        self.block2 = Block(2 * width)
        self.linear: nn.Module = nn.Linear(2 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (batch, 1, 8, 8) -> (batch, num_classes)
        x = self.block1(F.relu(self.stem_bn(self.stem(x))))
        x = self.block2(F.relu(self.down_bn(self.down(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def digits_cnn(width: int = 32, num_classes: int = 10) -> nn.Module:
    """The CNN with ``width`` channels at 8x8 pixels and twice as many at 4x4."""
    return DigitsCNN(width, num_classes)
