"""Small models whose code reads sizes from its input: what the graph holds in place of a number, commands have to say.

``SIZED[name]()`` gives ``(model, args)``, ``args`` of batch size 2; ``model(name)`` is the factory of a recipe.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.architectures import ARCHITECTURES, conv_bn

Case = tuple[nn.Module, tuple[Tensor, ...]]


class FixedView(nn.Module):
    """The classic ``x.view(x.size(0), 256)`` between convolutions and linear layers."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.features = nn.Sequential(conv_bn(channels, 8), nn.ReLU(), nn.MaxPool2d(2), conv_bn(8, 16), nn.ReLU())
        self.hidden, self.head = nn.Linear(256, 12), nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(F.relu(self.hidden(x.view(x.size(0), 256))))


class Heads(nn.Module):
    """Attention whose heads are split by sizes read from the input, written as most people do."""

    def __init__(self, width: int = 16, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, width = x.shape
        qkv = self.qkv(x).reshape(batch, steps, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (width // self.num_heads) ** -0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, steps, width))


class Patches(nn.Module):
    """A small vision transformer: patches by sizes, a class token and positions that are expanded to the batch."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, 16, 2, stride=2)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 17, 16))
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(3))
        self.heads, self.up, self.down = Heads(), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.patch(x).reshape(batch, 16, -1).transpose(1, 2)
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1) + self.places
        x = x + self.heads(self.norms[0](x))
        x = x + self.down(F.gelu(self.up(self.norms[1](x))))
        return self.head(self.norms[2](x)[:, 0])


class GroupedQuery(nn.Module):
    """Tokens; a key for every two queries, expanded by the input's sizes; a causal mask of them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(20, 16), nn.Embedding(16, 16)
        self.q, self.kv, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 20)

    def forward(self, ids: Tensor) -> Tensor:
        batch, steps = ids.shape
        x = self.embed(ids) + self.places(torch.arange(steps, device=ids.device).expand(batch, steps))
        q = self.q(x).view(batch, steps, 4, 4).transpose(1, 2)
        k, v = self.kv(x).view(batch, steps, 2, 2, 4).unbind(3)
        k, v = (
            part.transpose(1, 2)[:, :, None].expand(batch, 2, 2, steps, 4).reshape(batch, 4, steps, 4)
            for part in (k, v)
        )
        mask = torch.full((steps, steps), float("-inf"), device=ids.device).triu(1)
        weights = (q @ k.transpose(2, 3) / 2 + mask).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).contiguous().view(batch, steps, 16))
        return self.head(self.norm(x))


class MergedHeads(nn.Module):
    """Heads folded into the batch, ``bmm`` over both, and back again: sizes that are products of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, 7)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        batch, steps, _ = x.size()
        q, k, v = (
            part(x).view(batch, steps, 4, 4).transpose(1, 2).reshape(batch * 4, steps, 4)
            for part in (self.q, self.k, self.v)
        )
        mixed = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), -1), v)
        mixed = mixed.view(batch, 4, steps, 4).transpose(1, 2).reshape(batch, steps, -1)
        return self.head(x + self.out(mixed))


class Windows(nn.Module):
    """Attention within windows of a picture: the windows go into the batch and come out again (Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.heads, self.head = nn.Conv2d(3, 16, 1), nn.LayerNorm(16), Heads(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        batch, height, width, channels = x.shape
        windows = self.norm(x).view(batch, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        mixed = self.heads(windows.reshape(-1, 16, channels))
        mixed = mixed.view(batch, height // 4, width // 4, 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        return self.head((x + mixed.reshape(batch, height, width, channels)).mean((1, 2)))


class Shuffle(nn.Module):
    """Grouped convolutions with channels shuffled between them by sizes, and halves that pass by (ShuffleNet)."""

    def __init__(self, channels: int = 3, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.one, self.deep = conv_bn(channels, 12), conv_bn(12, 12, 1, 1, 3), conv_bn(12, 12, 3, 1, 12)
        self.two = conv_bn(12, 12, 1)
        self.beside, self.head = conv_bn(6, 6), nn.Linear(12, classes)

    @staticmethod
    def shuffled(x: Tensor, groups: int) -> Tensor:
        batch, channels, height, width = x.size()
        x = x.view(batch, groups, channels // groups, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.two(self.deep(self.shuffled(F.relu(self.one(x)), 3))))
        kept, worked = x.chunk(2, 1)
        x = self.shuffled(torch.cat([kept, F.relu(self.beside(worked))], 1), 2)
        return self.head(x.mean((2, 3)))


class Excited(nn.Module):
    """Squeeze and excitation with views and ``expand_as`` by sizes, and statistics of groups taken by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = conv_bn(3, 12), nn.Conv2d(12, 12, 3, padding=1)
        self.squeeze, self.excite, self.head = nn.Linear(12, 6), nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        b, c, h, w = x.size()
        y = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1).view(b, c)))))
        x = self.conv(x * y.view(b, c, 1, 1).expand_as(x))
        groups = x.view(b, 3, -1)
        x = (groups / (groups.var(2, keepdim=True) + 1e-3).sqrt()).view(b, c, h, w)
        return self.head(F.relu(x).flatten(2).mean(2))


class Pixels(nn.Module):
    """Depth to space and back by hand; a picture comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(n, 4 * c, h // 2, w // 2)
        x = F.relu(self.a(x))
        n, c, h, w = x.shape
        x = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        return self.out(F.relu(self.b(x)))


class Frames(nn.Module):
    """A film: frames go through convolutions in the batch, a GRU with a first state of the batch's size reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squash = conv_bn(3, 6), nn.Linear(6, 10)
        self.rnn, self.head = nn.GRU(10, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        y = F.relu(self.conv(x.reshape(batch * frames, *x.shape[2:]))).mean((2, 3))
        y = F.relu(self.squash(y)).view(batch, frames, -1)
        return self.head(self.rnn(y, x.new_zeros(1, batch, 8))[0])


class TwoInputs(nn.Module):
    """Queries of one input attend to another; each says its own sizes; two outputs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.q, self.kv = nn.Embedding(20, 12), nn.Linear(12, 12), nn.Linear(6, 24)
        self.out, self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 5), nn.Linear(12, 2)

    def forward(self, ids: Tensor, features: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids)
        q = self.q(x).view(ids.size(0), ids.size(1), 3, 4).transpose(1, 2)
        k, v = self.kv(features).view(features.size(0), features.size(1), 2, 3, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*ids.shape, 12))
        return {"logits": self.first(x), "whole": self.second(x.mean(1))}


class Tiled(nn.Module):
    """``repeat``, ``new_zeros`` and ``cat`` by sizes: a vector laid over a picture, rows of zeros before a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.conv = nn.Linear(5, 6), conv_bn(3 + 6, 8)
        self.mix, self.head = nn.Conv1d(8, 10, 3), nn.Linear(10, 4)

    def forward(self, picture: Tensor, vector: Tensor) -> Tensor:
        b, _, h, w = picture.shape
        laid = F.relu(self.vector(vector))[:, :, None, None].repeat(1, 1, h, w)
        x = F.relu(self.conv(torch.cat([picture, laid], 1))).view(b, 8, h * w)
        x = self.mix(torch.cat([x.new_zeros(b, 8, 2), x], 2))
        return self.head(F.relu(x).amax(2))


def _case(build: Callable[[], nn.Module], *args: Callable[[], Tensor]) -> Callable[[], Case]:
    def case() -> Case:
        torch.manual_seed(0)
        return build(), tuple(arg() for arg in args)

    return case


def _image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


def _ids() -> Tensor:
    return torch.randint(20, (2, 6))


SIZED: dict[str, Callable[[], Case]] = {
    "fixed_view": _case(FixedView, _image),
    "patches": _case(Patches, _image),
    "grouped_query": _case(GroupedQuery, _ids),
    "merged_heads": _case(MergedHeads, _ids),
    "windows": _case(Windows, _image),
    "shuffle": _case(Shuffle, _image),
    "excited": _case(Excited, _image),
    "pixels": _case(Pixels, _image),
    "frames": _case(Frames, lambda: torch.randn(2, 5, 3, 6, 6)),
    "two_inputs": _case(TwoInputs, _ids, lambda: torch.randn(2, 7, 6)),
    "tiled": _case(Tiled, _image, lambda: torch.randn(2, 5)),
    **{name: ARCHITECTURES[name] for name in ("views", "split")},
}


def model(name: str) -> nn.Module:
    return SIZED[name]()[0]
