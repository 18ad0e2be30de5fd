"""The CIFAR ResNets of He et al. 2016, section 4.2, with the parameter-free shortcut (option A)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: where width doubles, every other pixel, with zeros for new channels."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:  # (batch, in_channels, height, width)
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.new_channels:
            side = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, self.new_channels - side))
        return F.relu(y + x)


class ResNetCifar(nn.Module):
    """6n + 2 layers: a stem, three stages of n blocks with 16, 32 and 64 channels, and a linear classifier."""

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        num_blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, num_blocks, 1)
        self.layer2 = self._stage(16, 32, num_blocks, 2)
        self.layer3 = self._stage(32, 64, num_blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, num_blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(first, *(BasicBlock(channels, channels, 1) for _ in range(num_blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:  # (batch, 3, 32, 32) -> (batch, num_classes)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet_cifar(depth: int = 56, num_classes: int = 10) -> nn.Module:
    """A CIFAR ResNet of ``depth`` layers; raises ValueError unless depth is 6n + 2."""
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, 110); got {depth}")
    return ResNetCifar(depth, num_classes)
