"""Random numbers that two models draw alike, also where one of them is narrower than the other.

Under one seed two models of other widths draw other numbers from the first tensor on whose size differs. Inside
`alike` every random tensor is one number repeated, which the seed and the place in the order of draws decide, and
nothing is dropped: what is left of the difference between two models is their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def alike(seed: int = 0) -> Iterator[None]:
    """Inside the block draws are alike for models of one structure; torch's own generators are left as they were.

    Kernels that drop inside of themselves (attention and recurrent layers of CUDA) are not used in it.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    cudnn = torch.backends.cudnn.flags(enabled=not devices, allow_tf32=torch.backends.cudnn.allow_tf32)
    with torch.random.fork_rng(devices=devices), cudnn, sdpa_kernel(SDPBackend.MATH), _Alike(seed):
        yield


OFF = {"train": False, "training": False, "dropout": 0.0, "dropout_p": 0.0, "p": 0.0}  # arguments that draw nothing


def draws_by(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator, called with these arguments, draws random numbers: its tags and the arguments say."""
    if torch.Tag.nondeterministic_seeded not in getattr(operator, "tags", ()):
        return False
    arguments = operator._schema.arguments
    given: dict[str, Any] = {argument.name: argument.default_value for argument in arguments if argument.name in OFF}
    given |= {argument.name: value for argument, value in zip(arguments, args, strict=False)} | dict(kwargs)
    return not any(isinstance(given.get(name), bool | int | float) and given[name] == OFF[name] for name in OFF)


class _Alike(TorchDispatchMode):
    supports_higher_order_operators = True  # they pass as they are

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.count = seed, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not draws_by(func, args, kwargs):
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func.decompose(*args, **kwargs)
        self.count += 1
        torch.manual_seed(self.seed + self.count)
        name = func.name().removeprefix("aten::").partition(".")[0]
        if name == "native_dropout":  # (input, p, train)
            kept = 1.0 if args[1] == 1 else 1 / (1 - args[1])
            return args[0] * (kept if args[1] < 1 else 0.0), torch.ones_like(args[0], dtype=torch.bool)
        if name.startswith("rrelu_with_noise"):  # (input, noise, lower, upper, train): a slope for each negative number
            given = list(args[2:4])
            lower, upper = given + [1 / 8, 1 / 3][len(given) :]  # their defaults
            return torch.where(args[0] > 0, args[0], args[0] * (lower + upper) / 2)
        if name.startswith("bernoulli"):  # of its own probabilities, or of one that is given, 0.5 where it is left out
            own = args[0] if func is torch.ops.aten.bernoulli.default else 0.5
            likely = (args[1] if len(args) > 1 else kwargs.get("p", own)) > 0
            found = func(*args, **kwargs)
            return found.copy_(likely) if isinstance(likely, Tensor) else found.fill_(likely)
        number = DRAWN[name](*args[1:]) if name in DRAWN else None
        return pytree.tree_map(lambda leaf: _repeated(leaf, number), func(*args, **kwargs))


def _repeated(leaf: Any, number: float | None) -> Any:
    """A floating tensor of one ``number``, or of its own first one; anything else as it was drawn."""
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.numel():
        return leaf
    return leaf.fill_(number if number is not None else float(leaf.reshape(-1)[0]))


# The first number of a tensor depends on how many there are: these are drawn alone, from the arguments without self.
DRAWN: dict[str, Callable[..., float]] = {
    **dict.fromkeys(("randn", "randn_like"), lambda *_: float(torch.randn(()))),
    **dict.fromkeys(("rand", "rand_like"), lambda *_: float(torch.rand(()))),
    "normal_": lambda mean=0.0, std=1.0, *_: mean + std * float(torch.randn(())),
    "uniform_": lambda low=0.0, high=1.0, *_: low + (high - low) * float(torch.rand(())),
}
