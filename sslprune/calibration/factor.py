"""`factor`: weights rewritten as two factors, exact at full rank, before anything is learned of their rank."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslprune.calibration.matrices import chosen, forms, layer_of
from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program
from sslprune.capture.trace import trace
from sslprune.errors import CalibrationError, RepackError, few, first_line
from sslprune.kinds.rank import NAME
from sslprune.recipe import PruneSection
from sslprune.removal.factors import Factored, Factors, Form, factor_, matrix, split
from sslprune.removal.verify import relative_difference
from sslprune.values.axes import tensors_of
from sslprune.values.carry import carrying
from sslprune.values.inputs import call, num_rows

SAMPLES = 256  # whose activations weigh the errors
TOLERANCE = 1e-4  # relative difference that two factors may make
DAMPING = 1e-2  # of the activations' mean square, in every direction: one that no sample has still counts
ERROR = 0.05  # the share of a weight's energy that decides between two forms: the cheaper that leaves so much out
AT_ONCE = 1 << 24  # numbers of patches at a time
TOGETHER = 1 << 27  # numbers of all second moments that are held at a time

Ask = Callable[[nn.Module], None]  # runs a model on all samples


def factor(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    samples: Iterable[Any] | None = None,
    max_samples: int = SAMPLES,
    sequence: int | None = None,
) -> nn.Module:
    """A copy of ``model`` in which matrices are products of two factors; it computes the same, and trains.

    The rank of each is then an axis of kind "rank" for `find_axes`, and what is left of it after a repack is one matrix
    again where that costs no more. ``args`` and ``kwargs`` are example inputs. ``include`` and ``exclude`` are globs
    over names of layers. Components are those of the singular value decomposition; with ``samples``, batches of inputs
    without labels of which ``max_samples`` are read, of the weight times a square root of its inputs' second moments,
    so that the first components are those that its outputs need most (SVD-LLM: Wang et al. 2024, section 3.1).
    Raises RecipeError for layers that have no rank to learn, TraceError, and CalibrationError for other samples.
    """
    if samples is not None and not isinstance(samples, Iterable):
        raise CalibrationError(f"samples: {type(samples).__name__}; expected batches of inputs, as a DataLoader gives")
    section = PruneSection(kind=NAME, include=list(include), exclude=list(exclude))
    batches = None if samples is None else list(first_of(map(as_inputs, samples), max_samples))
    return factored_copy(model, args, dict(kwargs or {}), [section], batches, sequence)


def factored_copy(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    prune: Sequence[PruneSection],
    samples: Sequence[Any] | None,
    sequence: int | None,
) -> nn.Module:
    """A copy of ``model`` with two factors for each matrix that the sections name."""
    made = copied(model)
    program = trace(made, args, kwargs, sequence=sequence)
    names, _ = chosen(made, program, prune)
    factored_(made, program, names, samples)
    return made


def copied(model: nn.Module) -> nn.Module:
    """A copy; raises CalibrationError for a model that cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:  # whatever a person's own class, or a tensor of another graph, has against it
        raise CalibrationError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}; take what keeps no computed tensors, such "
            "as torch.nn.utils.parametrizations.weight_norm"
        ) from error


def as_inputs(batch: Any) -> Any:
    """A batch as ``call`` takes it: a tuple or a mapping."""
    return batch if isinstance(batch, Mapping) else tuple(batch) if isinstance(batch, tuple | list) else (batch,)


def first_of(batches: Iterable[Any], most: int) -> Iterator[Any]:
    """Batches until ``most`` samples have been seen."""
    seen = 0
    for inputs in batches:
        yield inputs
        seen += num_rows(inputs)
        if seen >= most:
            return


@torch.no_grad()
def factored_(
    model: nn.Module,
    program: Program,
    names: Sequence[str],
    samples: Sequence[Any] | None,
    form: Form | None = None,
) -> dict[str, Form]:
    """Put two factors for each weight that is named, in place; how each is made: as ``form``, where it is given.

    Raises RepackError where the model then computes something else.
    """
    before = copy.deepcopy(model)
    found: dict[str, Form] = {}
    for several in _together(model, names):
        moments = _moments(model, several, samples) if samples is not None else {}
        for name in several:
            weight = tensors_of(model)[name]
            owner: Any = model.get_submodule(layer_of(name)) if "." in name else model
            made = _factors(weight.detach(), owner, moments.get(name), (form,) if form else forms(weight))
            factor_(model, {name: made})
            found[name] = made.form
    with evaluating(model), evaluating(before):
        apart = relative_difference(before, model, program.args, program.kwargs)
    if not apart <= TOLERANCE:
        raise RepackError(f"the factors of {few(list(names), 3)} change the model by {apart:.1e} (relative)")
    return found


@torch.no_grad()
def anew_(model: nn.Module) -> nn.Module:
    """Give every factored weight the factors that it would get by itself, in place: its product stays what it is."""
    for owner in model.modules():
        if isinstance(owner, Factored):
            made = _factors(owner.weight, owner, None, (owner.form,))
            owner.weight_down.copy_(made.down)
            owner.weight_up.copy_(made.up)
    return model


def _together(model: nn.Module, names: Sequence[str]) -> Iterator[list[str]]:
    """The names in runs whose second moments fit into memory together."""
    tensors, held, several = tensors_of(model), 0, list[str]()
    for name in names:
        size = tensors[name][0].numel() ** 2
        if several and held + size > TOGETHER:
            yield several
            held, several = 0, []
        several.append(name)
        held += size
    if several:
        yield several


def _moments(model: nn.Module, names: Sequence[str], samples: Sequence[Any]) -> dict[str, Tensor]:
    """Of the inputs of each weight (out, in, *kernel) the mean of x xᵀ over rows: (in x kernel, the same), float64."""
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(names, 0)

    def watch(name: str) -> Callable[..., None]:
        def before(module: Any, given: tuple[Any, ...]) -> None:
            for rows in _rows(module, given[0].detach()):
                sums[name] = sums.get(name, 0.0) + (rows.T @ rows).double()
                counts[name] += len(rows)

        return before

    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(layer_of(name)) if "." in name else model
            stack.callback(module.register_forward_pre_hook(watch(name)).remove)
        stack.enter_context(evaluating(model))
        for inputs in samples:
            try:
                call(carrying(model), inputs)
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise CalibrationError(f"samples: the model cannot take a batch: {first_line(error)}") from error
    for name, total in sums.items():
        if not bool(total.isfinite().all()):
            raise CalibrationError(f"samples: what {layer_of(name)} reads of them is not finite; look at the inputs")
    return {name: total / max(1, counts[name]) for name, total in sums.items()}


def _rows(module: Any, x: Tensor) -> Iterator[Tensor]:
    """What the module multiplies by its weight, row by row: (n, in x kernel)."""
    if not hasattr(module, "kernel_size"):
        yield x.reshape(-1, x.shape[-1])
        return
    sides = len(module.kernel_size)
    x = x if x.dim() == sides + 2 else x[None]
    wide = [1] * (2 - sides)  # a line is a picture of one row
    kernel, stride, dilation = ((*wide, *value) for value in (module.kernel_size, module.stride, module.dilation))
    x = F.pad(x, module._reversed_padding_repeated_twice)
    x = x if sides == 2 else x.unsqueeze(2)
    per_sample = max(1, x[0].numel() * kernel[0] * kernel[1] // (stride[0] * stride[1]))
    for part in x.split(max(1, AT_ONCE // per_sample)):
        patches = F.unfold(part, kernel, dilation, 0, stride)  # (n, in x kernel, places)
        yield patches.transpose(1, 2).flatten(0, 1)


def _factors(weight: Tensor, owner: Any, moments: Tensor | None, among: Sequence[Form]) -> Factors:
    """The form that is the cheapest at the same error, and its two factors at full rank."""
    found = []
    for form in among:
        whole = matrix(weight.double(), form)
        root = _root(_of_form(moments, weight, form)) if moments is not None else None
        left, values, right = torch.linalg.svd(whole if root is None else whole @ root, full_matrices=False)
        energy = values.square().flip(0).cumsum(0).flip(0)  # of what is left out, by the first that is
        needed = int((energy > ERROR * energy[0]).sum())
        found.append((needed * _price(weight, owner, form), form, left, values, right, root))
    _, form, left, values, right, root = min(found, key=lambda one: one[0])
    down = right if root is None else torch.linalg.solve_triangular(root, right, upper=False, left=False)
    up = left * values
    sizes = up.norm(dim=0), down.norm(dim=1)
    share = torch.where((sizes[0] > 0) & (sizes[1] > 0), sizes[1] / sizes[0], torch.zeros(())).sqrt()
    down = torch.where(share > 0, 1 / share, torch.zeros(()))[:, None] * down  # both of a component as large
    return Factors(form, *split(down, up * share, weight.shape, form))


def _price(weight: Tensor, owner: Any, form: Form) -> float:
    """Multiply-accumulates of one component, at each place of the result."""
    if form != "separable":
        return weight[0].numel() + weight.shape[0]
    out, inner, height, width = weight.shape
    return inner * height * owner.stride[1] + out * width


def _of_form(moments: Tensor, weight: Tensor, form: Form) -> Tensor:
    """The second moments of what the first factor reads: of the columns of a kernel, the mean over its width."""
    if form != "separable":
        return moments
    _, inner, height, width = weight.shape
    split_up = moments.view(inner, height, width, inner, height, width)
    return torch.einsum("iawjbw->iajb", split_up).reshape(inner * height, inner * height) / width


def _root(moments: Tensor) -> Tensor:
    """A lower triangular square root of the damped second moments."""
    mean = moments.diagonal().mean().clamp(min=1e-12)
    return torch.linalg.cholesky(moments + DAMPING * mean * torch.eye(len(moments), dtype=moments.dtype))
