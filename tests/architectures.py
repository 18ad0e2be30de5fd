"""Small architectures of our own, one for each way in which dimensions get tied together.

``ARCHITECTURES[name]()`` gives ``(model, args)``: the model in eval mode with lively weights, ``args`` of batch size 2.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.laws import lively_, settle_

Case = tuple[nn.Module, tuple[Tensor, ...]]


def conv_bn(cin: int, cout: int, kernel: int = 3, stride: int = 1, conv_groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=conv_groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(cout))


class Plain(nn.Module):
    """Convolutions with bias, pooling, a flatten that multiplies channels by pixels, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ELU()
        )
        self.classifier = nn.Sequential(nn.Linear(8 * 2 * 2, 10), nn.Tanh(), nn.Dropout(0.5), nn.Linear(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class Block(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.a, self.b = conv_bn(cin, cout, 3, stride), conv_bn(cout, cout)
        self.shortcut = conv_bn(cin, cout, 1, stride) if stride > 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.relu(self.a(x))) + self.shortcut(x))


class Residual(nn.Module):
    """Identity and projected shortcuts: one width through a whole stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.blocks = nn.Sequential(Block(6, 6, 1), Block(6, 6, 1), Block(6, 8, 2), Block(8, 8, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class OptionABlock(Block):
    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__(cin, cout, stride)
        self.shortcut = nn.Identity()
        self.widen = (cout - cin) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu(self.a(x)))
        if self.widen:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.widen, self.widen))
        return F.relu(y + x)


class OptionA(nn.Module):
    """Parameter-free shortcuts of the CIFAR ResNets: a strided slice, zero-padded channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 4)
        self.blocks = nn.Sequential(OptionABlock(4, 4, 1), OptionABlock(4, 8, 2), OptionABlock(8, 8, 1))
        self.blocks.append(OptionABlock(8, 16, 2))
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(F.avg_pool2d(x, x.shape[3]).view(x.shape[0], -1))


class DenseConcat(nn.Module):
    """Each layer reads everything before it; batch norm runs over a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + 3 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + 3 * i, 3, 3, padding=1) for i in range(3))
        self.transition = conv_bn(13, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(self.transition(x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze-excitation, projection, residual (MobileNetV3)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.expand, self.depthwise, self.project = conv_bn(6, 12, 1), conv_bn(12, 12, 3, 1, 12), conv_bn(12, 6, 1)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.depthwise(F.hardswish(self.expand(x))))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.project(y)).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution inside a residual branch (ResNeXt), and a depthwise one with a multiplier of two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.reduce, self.grouped, self.restore = conv_bn(8, 12, 1), conv_bn(12, 12, 3, 1, 3), conv_bn(12, 8, 1)
        self.multiplied = nn.Conv2d(8, 16, 3, groups=8)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.restore(F.relu(self.grouped(F.relu(self.reduce(x))))))
        return self.head(F.relu(self.multiplied(x)).amax((2, 3)))


class UNet(nn.Module):
    """Encoder and decoder: skip concatenations, a transposed convolution, an interpolation; an image comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = conv_bn(3, 4), conv_bn(4, 6), conv_bn(6, 8)
        self.up2 = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.merge2, self.merge1 = conv_bn(12, 6), conv_bn(10, 5)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.down1(x))
        b = F.silu(self.down2(F.max_pool2d(a, 2)))
        c = F.silu(self.bottom(F.avg_pool2d(b, 2)))
        b = F.silu(self.merge2(torch.cat([self.up2(c), b], 1)))
        up = F.interpolate(b, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(F.silu(self.merge1(torch.cat([a, up], 1))))


class SharedWeights(nn.Module):
    """One convolution applied three times, and one matrix under two names, once as a layer and once transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.step = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.encode, self.decode = nn.Linear(6, 9), nn.Linear(6, 9)
        self.decode.weight = self.encode.weight
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = F.gelu(self.step(x))
        h = torch.sigmoid(self.encode(x.mean((2, 3)))) * self.decode(x.amax((2, 3)))
        return self.head(F.linear(h, self.encode.weight.t()))


class MultiInput(nn.Module):
    """An image and a vector; the vector scales and shifts the image's channels; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.vector, self.film = conv_bn(3, 6), nn.Linear(5, 7), nn.Linear(7, 12)
        self.mix = conv_bn(6, 8)
        self.first, self.second = nn.Linear(8, 3), nn.Linear(8 + 7, 2)

    def forward(self, image: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        v = F.relu(self.vector(vector))
        scale, shift = self.film(v).chunk(2, dim=1)
        x = self.image(image) * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        x = F.relu(self.mix(F.relu(x))).mean((2, 3))
        return self.first(x), self.second(torch.cat([x, v], dim=1))


class Temporal(nn.Module):
    """1d: causal padding, dilation, strides, a residual branch, weights that end in a scalar per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.dilated = nn.Conv1d(4, 6, 3, stride=2), nn.Conv1d(6, 6, 3, dilation=2)
        self.norm, self.slope = nn.BatchNorm1d(6), nn.PReLU(6)
        self.up, self.head = nn.ConvTranspose1d(6, 5, 4, stride=2, padding=1), nn.Conv1d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.stem(x))
        x = x + self.norm(self.dilated(F.pad(x, (4, 0))))
        return self.head(F.leaky_relu(self.up(F.max_pool1d(x, 2)), 0.1))


class Volumetric(nn.Module):
    """3d convolutions, batch norms and pools."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv3d(2, 5, 3, padding=1), nn.Conv3d(5, 6, (1, 3, 3))
        self.norm = nn.BatchNorm3d(5)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(F.relu(self.norm(self.a(x))), (1, 2, 2))
        return self.head(F.adaptive_max_pool3d(F.softplus(self.b(x)), 1).flatten(1))


class ChannelShuffle(nn.Module):
    """Half of the channels pass by, the other half is worked on; then the halves are interleaved (ShuffleNetV2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.units = nn.ModuleList(
            nn.Sequential(conv_bn(4, 4, 1), nn.ReLU(), conv_bn(4, 4, 3, 1, 4), conv_bn(4, 4, 1)) for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            kept, worked = x.chunk(2, dim=1)
            x = torch.cat([kept, F.relu(unit(worked))], 1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(x.mean((2, 3)))


class Split(nn.Module):
    """One convolution that makes three things of unequal width, used apart; a gate over halves."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.gated = conv_bn(3, 6 + 6 + 4), nn.Conv2d(6, 10, 3, padding=1)
        self.left, self.right = nn.Linear(6, 3), nn.Linear(4 + 5, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b, c = self.trunk(x).split([6, 6, 4], dim=1)
        y = F.glu(self.gated(torch.sigmoid(a) * b), dim=1)
        pooled = torch.cat([F.relu(c), y], 1).mean((2, 3))
        return {"left": self.left((a - b).mean((2, 3))), "right": self.right(pooled)}


class FrozenParameters(nn.Module):
    """A perceptron whose first and third layers do not train."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [6, 8, 10, 8, 4]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for i in (0, 2):
            self.layers[i].requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x), approximate="tanh")
        return self.layers[-1](x)


class Buffers(nn.Module):
    """Buffers and bare parameters along a width, in several shapes; one buffer that has nothing to do with it."""

    offset: Tensor
    scale: Tensor
    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.register_buffer("offset", torch.randn(6))
        self.register_buffer("scale", torch.rand(1, 6, 1, 1) + 0.5)
        self.register_buffer("kernel", torch.ones(6, 1, 2, 2) / 4)
        self.gain, self.bias = nn.Parameter(torch.ones(6, 1, 1)), nn.Parameter(torch.zeros(1, 6, 1, 1))
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.a(x) - self.offset[None, :, None, None]) * self.scale
        x = x + self.gain * torch.tanh(self.b(x) + self.bias)
        return self.head(F.conv2d(x, self.kernel, stride=2, groups=6).mean((2, 3)))


class Branches(nn.Module):
    """Parallel branches: some concatenated (Inception), some summed (a one-shot supernet's candidates)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three, self.pool = conv_bn(3, 4, 1), conv_bn(3, 5), conv_bn(3, 3, 1)
        self.candidates = nn.ModuleList([conv_bn(12, 6, 1), conv_bn(12, 6), conv_bn(12, 6, 5)])
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.avg_pool2d(x, 3, 1, 1))
        x = F.relu(torch.cat([self.one(x), self.three(x), pooled], dim=1))
        x = torch.stack([candidate(x) for candidate in self.candidates[:2]]).sum(0) + self.candidates[2](x)
        return self.head(F.relu(x).mean((2, 3)))


class Views(nn.Module):
    """Permutes, reshapes and slices between convolution and linear layers (a patch network, channels last)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 12)
        self.back, self.low, self.high = nn.Linear(12, 8), nn.Linear(5, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        n, c, h, w = x.shape
        tokens = x.permute(0, 2, 3, 1).reshape(n, h * w, c)
        tokens = tokens + self.back(F.relu(self.mix(tokens)))
        y = tokens.transpose(1, 2).unflatten(2, (h, w)).mean(dim=3).amax(dim=2)
        return self.low(y[:, :5]) * self.high(y[:, 5:])


class Unknown(nn.Module):
    """Operators across a width that no removal survives: they must freeze it, and only it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(torch.cumsum(F.relu(self.a(x)), dim=1))).mean((2, 3))
        x = x.sort(dim=1).values
        return self.head(F.softmax(self.norm(self.c(x)), dim=1))


class UpScaler(nn.Module):
    """Group norm, pixel shuffle and unshuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(12, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 16, 3, padding=1)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(F.pixel_unshuffle(x, 2))))
        return self.out(F.relu(F.pixel_shuffle(self.b(x), 2)))


def _case(build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Callable[[], Case]:
    def case() -> Case:
        torch.manual_seed(0)
        args = tuple(torch.randn(2, *shape) for shape in shapes)
        return settle_(lively_(build()), args), args

    return case


IMAGE = (3, 8, 8)
ARCHITECTURES: dict[str, Callable[[], Case]] = {
    "plain": _case(Plain, IMAGE),
    "residual": _case(Residual, IMAGE),
    "option_a": _case(OptionA, IMAGE),
    "dense_concat": _case(DenseConcat, IMAGE),
    "inverted_residual": _case(InvertedResidual, IMAGE),
    "grouped": _case(Grouped, IMAGE),
    "unet": _case(UNet, IMAGE),
    "shared_weights": _case(SharedWeights, IMAGE),
    "multi_input": _case(MultiInput, IMAGE, (5,)),
    "temporal": _case(Temporal, (4, 17)),
    "volumetric": _case(Volumetric, (2, 3, 6, 6)),
    "channel_shuffle": _case(ChannelShuffle, IMAGE),
    "split": _case(Split, IMAGE),
    "frozen_parameters": _case(FrozenParameters, (6,)),
    "buffers": _case(Buffers, IMAGE),
    "branches": _case(Branches, IMAGE),
    "views": _case(Views, IMAGE),
    "unknown": _case(Unknown, IMAGE),
    "up_scaler": _case(UpScaler, IMAGE),
}
