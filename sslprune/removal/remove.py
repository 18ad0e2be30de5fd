"""`repack`: the model without its zero groups, as a rewrite of its graphs, proven equal."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.analysis.atoms import Dim
from sslprune.analysis.columns import gathered
from sslprune.analysis.folding import evaluate
from sslprune.analysis.inference import Inference
from sslprune.analysis.rewriter import Change, Kept, Rewriter
from sslprune.capture.program import Program, copy_graph, module_of, operator_name
from sslprune.errors import RepackError
from sslprune.kinds.branches import operands_of
from sslprune.kinds.closed import closed
from sslprune.kinds.find import analysis_of
from sslprune.kinds.table import kind_of
from sslprune.removal.fold import folded_, folding, given_back
from sslprune.removal.packed import LEFT, Packed
from sslprune.removal.verify import answers, as_traced, relative_difference
from sslprune.values.axes import Axis, Cut, tensors_of
from sslprune.values.compare import difference
from sslprune.values.selection import Selection

TOLERANCE = 1e-4  # largest relative difference between the masked and the repacked model
ROUNDING = 1e-7  # the same in float64, where a larger difference in float32 was rounding


def removable(
    program: Program, wanted: Selection, *, allow_inexact: bool = False, before: Selection | None = None
) -> Selection:
    """What of ``wanted`` repack can take away, with all of ``before``, which an earlier removal took.

    Frozen axes stay, and inexact ones unless they are allowed; of the others goes what their kinds let go. Two factors
    that cost as much as their product keep their rank: they become one matrix again.
    """
    axes, g = wanted.axes, analysis_of(program).inference
    usable = [not axis.frozen and (axis.exact or allow_inexact) for axis in axes]
    masks = [mask if may_go else np.zeros_like(mask) for mask, may_go in zip(wanted, usable, strict=True)]
    sizes = {i: size.dim for i, axis in enumerate(axes) if (size := kind_of(axis).sizes(g, axis)) is not None}

    def left_by(masks: Sequence[np.ndarray]) -> Callable[[int], np.ndarray]:
        kept = kept_atoms(program, Selection.of(axes, masks))
        return lambda i: kept.mask(sizes[i])

    before = before if before is not None else Selection.none(axes)
    found = Selection.of(axes, closed(axes, masks, sizes, left_by, before.masks))
    return given_back(program, found, kept_atoms(program, found)) | before


def repack(
    model: nn.Module,
    program: Program,
    axes: Sequence[Axis],
    *,
    allow_inexact: bool = False,
    verify: bool = True,
    release: bool = False,
) -> Packed:
    """``model`` without the groups of ``axes`` that are exactly zero: smaller dense tensors, the same function.

    The result runs in ``train()`` and ``eval()`` mode, each with the outputs that ``model`` has there, and keeps the
    names of parameters and buffers; two factors that do not pay are one matrix, by the name that it had. It is compared
    with ``model`` on the program's example inputs in both modes:
    RepackError above a relative difference of 1e-4 (not checked where ``allow_inexact`` takes inexact axes away).
    With ``release`` each tensor of ``model`` is given up once it is sliced, so that there never are two whole models:
    ``model`` and ``program`` are of no use afterwards.
    """
    selection = removable(program, Selection.zeros(model, axes), allow_inexact=allow_inexact)
    return remove(model, program, selection, verify=verify and not allow_inexact, release=release)


def remove(
    model: nn.Module,
    program: Program,
    selection: Selection,
    *,
    verify: bool = True,
    fold: bool = True,
    release: bool = False,
) -> Packed:
    """``model`` without the groups that ``selection`` names, which `removable` allows; ``release`` as for `repack`.

    ``fold``: of two factors that cost as much as their product, or more, one matrix is made.
    """
    g = analysis_of(program).inference
    kept = kept_atoms(program, selection)
    state, own = tensors_of(model), set(program.aliases)
    constants: dict[str, torch.Tensor] = {}
    graphs = []
    for i, graph in enumerate(program.graphs):
        weights = _computed_weights(g, graph, kept, {**program.tensors, **state}, constants)
        dropped = [axis.cuts[i] for axis in dropped_branches(selection)]
        graphs.append(_rewritten(g, graph, kept, dropped, constants, [], weights))
    used = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "get_attr"}
    inputs, cuts, modes = (program.args, program.kwargs), _cuts(program, kept), (False, True)[: len(graphs)]
    first = [answers(model, *inputs, [] if cuts else None, training=mode) for mode in modes if verify and release]
    carried = _without(model.initial_state(2), cuts) if cuts else None  # type: ignore[operator]
    was_training = model.training
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in {**program.tensors, **constants}.items():
        if name not in used:
            continue
        source = state[name] if name in own else tensor
        small = _selected(g, kept, name, source)
        if isinstance(source, nn.Parameter):
            small = nn.Parameter(small, requires_grad=source.requires_grad)
        for alias in program.aliases.get(name, (name,)):
            tensors[alias] = small
        if release:
            source.data = source.new_empty(0)
    if fold:
        folded_(graphs, tensors, [pair.name for pair in folding(program, kept) if set(pair.weights) <= set(tensors)])
    small_model = Packed(tuple(graphs), tensors, tuple(program.kwargs), program.out_specs, carried)
    small_model.train(was_training and len(graphs) > 1)
    for training, expected in zip(modes, first, strict=False):
        apart = difference(expected, answers(small_model, *inputs, cuts or None, training=training))[1]
        if not apart <= TOLERANCE:
            raise RepackError(
                f"the repacked model differs from the masked one by {apart:.3g} (relative; {TOLERANCE:g} is allowed) "
                f"in {'training' if training else 'evaluation'} mode, and that was released; repack without release"
            )
    if verify and not release:
        for training in modes:
            apart = relative_difference(model, small_model, *inputs, cuts, training=training)
            if apart <= TOLERANCE or _only_rounding(model, program, selection, cuts, training):
                continue
            if (
                training
                and not relative_difference(model, as_traced(model, program), *inputs, training=True) <= TOLERANCE
            ):
                return small_model.without_training()  # its training does not repeat itself: no graph can say it
            raise RepackError(
                f"the repacked model differs from the masked one by {apart:.3g} (relative; {TOLERANCE:g} is "
                f"allowed) in {'training' if training else 'evaluation'} mode; nothing was written; please report the "
                "model"
            )
    return small_model


def origins(program: Program, selection: Selection) -> dict[str, torch.Tensor]:
    """Where the numbers of the smaller parameters and buffers stand in the whole model's, as `remove` takes them over.

    By name, flat indices into the whole tensor: int64, in the shape of the smaller one. What stays whole is left out.
    """
    g, kept = analysis_of(program).inference, kept_atoms(program, selection)
    found: dict[str, torch.Tensor] = {}
    for name, aliases in program.aliases.items():
        if name in g.state and any(kept.changed(dim) for dim in _dims(g, name)):
            whole = program.tensors[name]
            indices = torch.arange(whole.numel(), device=whole.device).view(whole.shape)
            found |= dict.fromkeys(aliases, _selected(g, kept, name, indices))
    return found


def computed_weight(program: Program, axis: Axis) -> str | None:
    """The name of a parameter, along ``axis``, that the model computes a weight of: repack puts in the result."""
    g = analysis_of(program).inference
    kept = kept_atoms(program, Selection.of([axis], [np.ones(axis.size, bool)]))
    names = {str(node.target) for behind in g.folded.values() for node in behind if node.op == "get_attr"}
    return min((name for name in names if any(kept.changed(dim) for dim in g.state[name])), default=None)


def kept_atoms(program: Program, selection: Selection) -> Kept:
    """What stays of each dimension when the groups of ``selection`` go."""
    gone = [axis.atoms[mask].reshape(-1) for axis, mask in zip(selection.axes, selection, strict=True)]
    return Kept(analysis_of(program).inference.atoms, np.concatenate([np.empty(0, np.int64), *gone]))


def dropped_branches(selection: Selection) -> list[Axis]:
    """The branches that go."""
    return [axis for axis, mask in zip(selection.axes, selection, strict=True) if axis.cuts and mask.all()]


def changed_operators(program: Program, selection: Selection) -> list[Change]:
    """The operators of the evaluation graph whose arguments change when the groups of ``selection`` go.

    Dropped branches are still there: a person's own class goes on computing them.
    """
    changes: list[Change] = []
    g, kept = analysis_of(program).inference, kept_atoms(program, selection)
    weights = _computed_weights(g, program.evaluation, kept, program.tensors, {})
    _rewritten(g, program.evaluation, kept, [], {}, changes, weights)
    return changes


def _computed_weights(
    g: Inference, graph: fx.Graph, kept: Kept, state: dict[str, torch.Tensor], constants: dict[str, torch.Tensor]
) -> dict[fx.Node, str]:
    """Evaluate and slice each computed weight of which something goes; the names under which ``constants`` has them."""
    names: dict[fx.Node, str] = {}
    for node, behind in g.folded.items():
        if node.graph is not graph:
            continue
        sources = [str(n.target) for n in graph.nodes if n in behind and n.op == "get_attr"]
        if not any(kept.changed(dim) for name in sources for dim in g.state[name]):
            continue
        name = (
            max((s for s in sources if g.program.is_trained(s)), key=lambda s: g.program.tensors[s].dim()) + "_folded"
        )
        while name in names.values():
            name += "_"
        names[node] = name
        if name not in constants:
            whole = evaluate(node, behind, state)
            constants[name] = nn.Parameter(_sliced(whole, [kept.mask(dim) for dim in g.facts[node].outputs[0]]))
    return names


def _dims(g: Inference, name: str) -> Sequence[Dim]:
    """All dimensions of a tensor of the model, columns included."""
    return [*g.state[name], g.columns[name].own] if name in g.columns else g.state[name]


def _selected(g: Inference, kept: Kept, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What stays of ``tensor``, which has the shape of the graphs' tensor ``name``."""
    if name in g.columns and kept.changed(g.columns[name].own):
        order = g.columns[name].order(kept.mask(g.columns[name].dim))
        return gathered(tensor, kept.mask(g.state[name][0]), order)
    return _sliced(tensor, [kept.mask(d) for d in g.state[name]]) if name in g.state else tensor


@torch.no_grad()
def _sliced(tensor: torch.Tensor, masks: Sequence[np.ndarray]) -> torch.Tensor:
    small = tensor.detach()
    for d, mask in enumerate(masks):
        if not mask.all():
            small = small.index_select(d, torch.from_numpy(np.flatnonzero(mask)).to(small.device))
    return small.clone() if small.data_ptr() == tensor.data_ptr() else small.contiguous()


def _rewritten(
    g: Inference,
    graph: fx.Graph,
    kept: Kept,
    cuts: Sequence[Cut],
    constants: dict[str, torch.Tensor],
    changes: list[Change],
    weights: dict[fx.Node, str],
) -> fx.Graph:
    new, mapping = copy_graph(graph)
    for old, node in mapping.items():
        dims = enumerate(g.facts[old].outputs[0] if g.is_tensor(old) else ())
        node.meta[LEFT] = {d: kept.mask(dim) for d, dim in dims if kept.changed(dim)}
    for node, name in weights.items():
        with new.inserting_before(mapping[node]):
            weight = new.get_attr(name)
        mapping[node].replace_all_uses_with(weight)
        changes.append(Change(module_of(node), operator_name(node), "", None))
    named = {node.name: node for node in graph.nodes}
    for cut in cuts:
        total, operand = mapping[named[cut.total]], mapping[named[cut.operand]]
        rest = [node for node in operands_of(total) if node is not operand] if total.op == "call_function" else []
        if not rest or len(rest) == len(operands_of(total)):
            continue
        if len(rest) > 1:
            total.update_arg(0, rest)
            continue
        total.replace_all_uses_with(rest[0])
        new.erase_node(total)
        for old, node in mapping.items():  # later branches may name this sum as what stays
            if node is total:
                mapping[old] = rest[0]
    _erase_dead(new)
    alive = set(new.nodes)
    for old, node in mapping.items():
        if node in alive and node.op == "call_function":
            for rewrite in g.facts[old].rewrites:
                if old.target is node.target:
                    rewrite(Rewriter(kept, node, mapping, constants, changes))
    _erase_dead(new)
    new.lint()
    return new


def _erase_dead(graph: fx.Graph) -> None:
    """Erase what the output does not need; a buffer's update is needed while something live reads the buffer."""
    live: set[fx.Node] = set()
    updates = [n for n in graph.nodes if _mutates(n)]
    stack = [n for n in graph.nodes if n.op in ("output", "placeholder")]
    while stack:
        while stack:
            node = stack.pop()
            if node not in live:
                live.add(node)
                stack.extend(node.all_input_nodes)
        for update in updates:
            if update in live:
                continue
            state = update.all_input_nodes[0]
            owner = str(state.target).rpartition(".")[0]
            readers = any(user in live for user in state.users)
            siblings = any(n.op == "get_attr" and str(n.target).rpartition(".")[0] == owner for n in live)
            if readers or siblings:
                stack.append(update)
    for node in reversed(list(graph.nodes)):
        if node not in live:
            graph.erase_node(node)


def _mutates(node: fx.Node) -> bool:
    return (
        node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
    )


def _only_rounding(
    model: nn.Module, program: Program, selection: Selection, cuts: list[list[np.ndarray]], training: bool
) -> bool:
    """Whether a difference is float32's rounding, amplified by a deep network: repacked in float64 it is then gone."""
    wide = lambda leaf: leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf  # noqa: E731
    try:
        masked = copy.deepcopy(model).double()
        small = remove(masked, program, selection, verify=False)
        args, kwargs = pytree.tree_map(wide, program.args), pytree.tree_map(wide, program.kwargs)
        return relative_difference(masked, small, args, kwargs, cuts, training=training) <= ROUNDING
    except RuntimeError:  # a model that fixes float32 in its own code has no float64 to compare in
        return False


def _cuts(program: Program, kept: Kept) -> list[list[np.ndarray]]:
    """What stays of each tensor of the carried state: one mask a dimension, without the batch."""
    g = analysis_of(program).inference
    return [[kept.mask(dim) for dim in g.dims(node)[1:]] for node in program.carried_inputs(program.evaluation)]


def _without(state: Any, cuts: list[list[np.ndarray]]) -> Any:
    """The carried ``state`` without the units that are gone."""
    leaves, spec = pytree.tree_flatten(state)
    leaves = [_sliced(leaf, [np.ones(len(leaf), bool), *cut]) for leaf, cut in zip(leaves, cuts, strict=True)]
    return pytree.tree_unflatten(leaves, spec)
