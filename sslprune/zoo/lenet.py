"""The two networks of Wen et al. 2016, section 4.1, for MNIST: Caffe's LeNet, and a multilayer perceptron."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """Two 5x5 convolutions, each followed by max pooling and nothing else, and two fully connected layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (batch, 1, 28, 28) -> (batch, num_classes)
        x = F.max_pool2d(self.conv1(x), 2)
        x = F.max_pool2d(self.conv2(x), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class MLP(nn.Module):
    """784-500-300-10. The first layer is a convolution as large as the picture: the same products, and the rows and
    columns of pixels that it reads are those of its kernel, so that they can go."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(1, 500, 28)
        self.fc2 = nn.Linear(500, 300)
        self.fc3 = nn.Linear(300, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # (batch, 1, 28, 28) -> (batch, num_classes)
        x = F.relu(self.fc1(x).flatten(1))
        return self.fc3(F.relu(self.fc2(x)))


def lenet(num_classes: int = 10) -> nn.Module:
    """LeNet as Caffe has it: 20 and 50 filters, 500 neurons, no nonlinearity after the convolutions."""
    return LeNet(num_classes)


def mlp(num_classes: int = 10) -> nn.Module:
    """The perceptron 784-500-300-``num_classes`` on pictures of 28x28."""
    return MLP(num_classes)
