"""The group lasso over axes: a proximal step after the optimizer's step, or a subgradient before it.

Penalty: Σ_g λ_g ‖w_g‖, where w_g is everything that disappears with group g (Yuan and Lin 2006; SSL: Wen et al. 2016,
eq. 1 and 3). Its proximal step w_g ← w_g · max(0, 1 − η λ_g / ‖w_g‖) gives exact zeros (Parikh and Boyd 2014, §6.5.1).
A weight that lies on two axes, as those of a convolution do, is scaled by the factors of both of its groups.

The classical way, that of SSL (eq. 5) and of ISS (Wen et al. 2018), adds the subgradient λ_g w_g / ‖w_g‖ to the
gradient. It brings groups near zero and never to it, so small ones are set to zero in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sslprune.kinds.table import kind_of
from sslprune.train.bundles import Bundle, Sheet, bundles_of, local, origin_of, relaid, sheets_of
from sslprune.values.axes import Axis, tensors_of
from sslprune.values.team import Alone, Team

STATE = ("strength", "alive", "least", "remaining")  # the tensors that a resumed run needs


class GroupLasso:
    """Group lasso over the groups of ``axes`` in the parameters of ``model``: call ``step(lr)`` after the optimizer's.

    λ_g = strength x weight_g; ``weights`` has one array (size,) per axis, by default √(numbers in the group). A group
    that has reached zero is held there, whatever gradients and momentum do. Frozen axes are left out:
    ``self.axes`` are those that it acts on, and what it returns per axis follows them.

    With method "subgradient" call ``add_gradient()`` after ``backward`` too, and ``zero_below(threshold)`` when the
    sparse phase is over. What is in the gradient runs through the optimizer: under a momentum of 0.9 the same λ pulls
    ten times as hard as by the proximal step, which follows it. ``floors``: how many groups of each axis stay however
    strong λ is; by default one, and none of a whole branch.
    """

    def __init__(
        self,
        model: nn.Module,
        axes: Sequence[Axis],
        strength: float = 1.0,
        weights: Sequence[np.ndarray] | None = None,
        method: Literal["proximal", "subgradient"] = "proximal",
        floors: Sequence[int] | None = None,
    ) -> None:
        if method not in ("proximal", "subgradient"):
            raise ValueError(f'GroupLasso: method is "proximal" or "subgradient"; got "{method}"')
        usable = [i for i, axis in enumerate(axes) if not axis.frozen]
        if not usable:
            raise ValueError("GroupLasso needs at least one axis that is not frozen")
        axes = [axes[i] for i in usable]
        weights = None if weights is None else [weights[i] for i in usable]
        self.axes = tuple(axes)
        self.method = method
        self.floors = [kind_of(axis).floor(axis) for axis in axes] if floors is None else [floors[i] for i in usable]
        self.starts = np.cumsum([0, *(axis.size for axis in axes)])
        self.num_groups = int(self.starts[-1])
        self._sheets = sheets_of(model, self.axes, self.starts)
        self.team: Team = Alone()  # over which the parameters are sharded, where they are
        self.follow(model)
        device = self.bundles[0].tensors[0].device
        sizes = self._reduce(lambda bundle: torch.ones(len(bundle.tensors), *bundle.tensors[0].shape, device=device))
        self.sizes = sizes[:-1].cpu().numpy()  # numbers in each group
        if weights is None:
            weights = self.split(np.sqrt(self.sizes))
        self.strength = torch.zeros(self.num_groups + 1, device=device)  # λ; the last entry stands for "no group"
        self.set_strength([strength * np.asarray(weight) for weight in weights])
        self.alive = torch.ones(self.num_groups + 1, device=device)  # 0: at zero, and held there
        self.least = torch.zeros(self.num_groups + 1, device=device)  # the least factor that one step may apply
        self.remaining = torch.zeros(self.num_groups + 1, device=device)  # steps to zero of groups that decay

    def follow(self, model: nn.Module, origins: Mapping[str, Tensor] | None = None) -> None:
        """Act from now on on ``model``: the first one, or what is left of it when groups were taken out.

        ``origins[name]``: where each number of a smaller tensor stood in the first one, a flat index; its shape. Groups
        keep their numbers and state; those that are gone have no weights. A sharded parameter is followed in its rows
        that lie here; set ``team`` to those that hold the others.
        """
        tensors, origins = tensors_of(model), dict(origins or {})
        origins |= {name: origin_of(tensor) for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
        left = [
            (tensors[name], relaid(sheets, origins[name].cpu().numpy()) if name in origins else sheets.maps)
            for name, sheets in self._sheets.items()
            if name in tensors and local(tensors[name]).numel()
        ]
        self.bundles = bundles_of(left)
        device = local(next(iter(tensors.values()))).device
        self._present = torch.zeros(self.num_groups + 1, dtype=torch.bool, device=device)
        for bundle in self.bundles:
            for sheet in bundle.sheets:
                self._present[sheet.groups.view(-1)] = True

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """An array over all groups as one array (size,) per axis."""
        return np.split(values, self.starts[1:-1])

    def set_strength(self, strength: Sequence[np.ndarray]) -> None:
        """Set λ: one array (size,) per axis; zeros and above."""
        values = np.concatenate([np.asarray(value, np.float64).reshape(-1) for value in strength])
        if values.shape != (self.num_groups,) or not (values >= 0).all():
            raise ValueError(f"strength: expected {self.num_groups} values of 0 and above, one per group")
        self.strength[:-1] = torch.from_numpy(values)

    def norms(self) -> list[np.ndarray]:
        """‖w_g‖ per axis, each of shape (size,)."""
        return self.split(self._norms()[:-1].double().cpu().numpy())

    @torch.no_grad()
    def sensitivities(self) -> Tensor:
        """(Σ w · ∂loss/∂w)² per group over this batch's gradients, shape (groups,): what the loss owes to the group.

        The first-order Taylor criterion of Molchanov et al. 2019, eq. 8, over everything that goes with the group. It
        is blind to scales that a norm would undo, and compares filters of any layer, and whole branches.
        """

        return self._reduce(lambda bundle: torch.stack(bundle.tensors) * torch.stack(bundle.gradients))[:-1].square_()

    def penalty(self) -> Tensor:
        """Σ_g λ_g ‖w_g‖, a scalar without a gradient."""
        return (self.strength * self._norms()).sum()

    def decay(self, groups: np.ndarray, steps: int) -> None:
        """Take ``groups`` (indices over all axes in turn) to exact zero in ``steps`` calls of ``step``, steadily."""
        self.remaining[torch.from_numpy(np.asarray(groups, np.int64))] = float(steps)

    @torch.no_grad()
    def add_gradient(self) -> None:
        """Add the subgradient λ_g w_g / ‖w_g‖, 0 at zero, to the gradients: between ``backward`` and the optimizer."""
        if self.method != "subgradient":
            raise ValueError('add_gradient is for method = "subgradient"; the proximal step does its part in step(lr)')
        if not bool((self.strength > 0).any()):
            return
        norms = self._norms()
        pull = torch.where(norms > 0, self.strength / norms, 0)
        for bundle in self.bundles:
            pulls = [self._along(pull, bundle, sheet) for sheet in bundle.sheets]
            for tensor, by in zip(bundle.parameters, sum(pulls[1:], pulls[0]).unbind(), strict=True):
                if tensor.grad is None:
                    tensor.grad = torch.zeros_like(tensor)
                local(tensor.grad).addcmul_(local(tensor), by.to(tensor.grad.dtype))

    @torch.no_grad()
    def zero_below(self, threshold: float) -> None:
        """Set groups of a root mean square ‖w_g‖ / √size below ``threshold`` to zero, for good; the floors stay.

        The code of SSL and of ISS sets every single weight below 1e-4 to zero, after each step, and a group is gone
        when all of its weights are; here the group counts as one, and once. A group that the penalty holds near zero
        swings about it by up to lr x strength / (1 - momentum) a weight: ``threshold`` has to lie above that.
        """
        small = torch.cat([torch.from_numpy(gone) for gone in self.below(threshold)]).to(self.alive.device)
        factor = self.alive.clone()
        factor[:-1].masked_fill_(small, 0)
        self._hold(factor)

    def below(self, threshold: float) -> list[np.ndarray]:
        """Which groups of each axis are zero after ``zero_below``: bool, shape (size,)."""
        factor = self.alive.clone()
        norms = self._norms()
        factor[:-1] *= norms[:-1] >= threshold * torch.from_numpy(np.sqrt(self.sizes)).to(norms)
        self._spare(factor, norms)
        return self.split((factor[:-1] == 0).cpu().numpy())

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """The proximal step of length ``lr``, in place, with the groups that decay and those that are held."""
        factor = self.alive.clone()
        decays = bool((self.remaining > 0).any())
        if self.method == "proximal" and bool((self.strength > 0).any()):
            norms = self._norms()
            shrunk = 1 - lr * self.strength / norms.clamp_min(torch.finfo(torch.float32).tiny)
            factor *= torch.maximum(shrunk, self.least).clamp_(0, 1)
            if bool((factor < self.alive).logical_and_(factor == 0).any()):
                self._spare(factor, norms)
        if decays:
            # λ_g = ‖w_g‖ / (η · steps left): a factor of 1 − 1 / (steps left), whose last one is 0
            falling = self.remaining > 0
            factor = torch.where(falling, factor * (1 - 1 / self.remaining.clamp_min(1)), factor)
            self.remaining -= falling.float()
        self._hold(factor)

    def _hold(self, factor: Tensor) -> None:
        """Scale every group by its factor; what is zero then stays so."""
        factor[-1] = 1
        self.alive = (factor > 0).float()
        if bool(((factor < 1) & self._present).any()):
            self._scale(factor)

    def _spare(self, factor: Tensor, norms: Tensor) -> None:
        """Leave the largest groups of an axis as they are where fewer than its floor would be left alive."""
        left = np.add.reduceat((factor[:-1] > 0).cpu().numpy().astype(np.int64), self.starts[:-1])
        for i in np.flatnonzero(left < self.floors):
            part = slice(int(self.starts[i]), int(self.starts[i + 1]))
            alive = norms[part] * self.alive[part]
            largest = alive.topk(min(self.floors[i], len(alive))).indices
            factor[part][largest] = self.alive[part][largest]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as tensors."""
        return {name: getattr(self, name).clone() for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state_dict`` was taken; raises ValueError for a state of other axes."""
        for name, value in state.items():
            if value.shape != (self.num_groups + 1,):
                raise ValueError(f"lasso state '{name}' has {len(value) - 1} groups; the axes have {self.num_groups}")
            getattr(self, name).copy_(value)

    @torch.no_grad()
    def _norms(self) -> Tensor:
        return self._reduce(lambda bundle: torch.stack(bundle.tensors).square_()).sqrt_()

    def _reduce(self, squares: Callable[[Bundle], Tensor]) -> Tensor:
        """Sum ``squares(bundle)``, shape (tensors, *shape), into the groups: shape (groups + 1,), float32.

        Of sharded parameters each process sums its own rows, and the sums are added up.
        """
        total = self._sums(squares, [bundle for bundle in self.bundles if not bundle.sharded])
        if self.team.world > 1:
            total += self.team.mean(self._sums(squares, [b for b in self.bundles if b.sharded])) * self.team.world
        return total

    def _sums(self, squares: Callable[[Bundle], Tensor], bundles: Sequence[Bundle]) -> Tensor:
        total = torch.zeros(self.num_groups + 1, device=self._present.device)
        for bundle in bundles:  # none where all groups are gone
            values = squares(bundle).float()
            if values.dim() > 3 and all(sheet.end <= 2 for sheet in bundle.sheets):
                values = values.flatten(3).sum(3)  # a kernel's positions are never apart: sum them once for both sides
            for sheet in bundle.sheets:
                others = [dim for dim in range(1, values.dim()) if not sheet.dim < dim <= sheet.end]
                sums = values.sum(others) if others else values
                total.index_add_(0, sheet.groups.view(-1), sums.reshape(-1))
        return total

    @staticmethod
    def _along(values: Tensor, bundle: Bundle, sheet: Sheet) -> Tensor:
        """``values`` (groups + 1,) at each index of a sheet, in a shape that broadcasts over (tensors, *shape)."""
        shape = [1] * (bundle.parameters[0].dim() + 1)
        shape[0], shape[sheet.dim + 1 : sheet.end + 1] = sheet.groups.shape[0], sheet.groups.shape[1:]
        return values[sheet.groups].view(shape)

    def _scale(self, factor: Tensor) -> None:
        """Multiply each group's weights by its factor, in place."""
        for bundle in self.bundles:
            scaled: Tensor | None = None
            for sheet in bundle.sheets:
                factors = self._along(factor, bundle, sheet).to(bundle.parameters[0].dtype)
                scaled = factors if scaled is None else scaled * factors
            assert scaled is not None
            for tensor, by in zip(bundle.tensors, scaled.unbind(), strict=True):
                tensor.mul_(by)
