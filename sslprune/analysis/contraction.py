"""`Contraction`: a node multiplies by a weight, or by another activation, and sums over what the two share.

A rule states it once. Costs, the layers that a runtime is asked for, exactness, the names of axes, and the roles of
their members are read off it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from sslprune.analysis.atoms import Dim


@dataclass(frozen=True)
class Window:
    """How a kernel moves over the last dimensions of its input: a number for each of them.

    ``padding`` is "same" or "valid" where the operator finds it by itself.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    conv_groups: int = 1
    transposed: bool = False

    @property
    def has_columns(self) -> bool:
        """Whether single input channels at single positions of the kernel can go."""
        return self.conv_groups == 1 and not (self.transposed or isinstance(self.padding, str))


@dataclass(frozen=True, eq=False)
class Contraction:
    """``node`` multiplies ``input`` by ``weight``: one product for each index of ``batched``, ``made`` and ``summed``.

    ``input`` is None where it is inside the operator, as a recurrent state is. ``weight`` is a parameter, or computed
    of some, or the second of two activations.
    """

    node: fx.Node
    input: fx.Node | None
    weight: fx.Node
    batched: tuple[Dim, ...]  # along which it is repeated: rows, places
    made: tuple[Dim, ...]  # the result's own, which the weight gives it
    summed: Mapping[Dim, tuple[fx.Node, ...]]  # summed over, each with the operands that run along it
    makes: tuple[int, ...] = ()  # which of the weight's dimensions are those made ...
    reads: tuple[int, ...] = ()  # ... and those summed over
    times: int = 1  # how often: the gates of a recurrent unit
    window: Window | None = None  # a convolution's
    runs_as: str = "MatMul"  # what a runtime makes of it: a key of `sslprune.bench.table.BUILDERS`
    part: int = 0  # contractions of one node that have it in common run as one

    @property
    def dims(self) -> tuple[Dim, ...]:
        """Whose sizes' product, ``times`` as often, are its multiply-accumulates."""
        return (*self.batched, *self.made, *self.summed)
