"""Recurrent layers: a hidden unit is one group with all its gates (Intrinsic Sparse Structures, Wen et al. 2018).

Unit h of a layer owns row h of every gate in both weight matrices and biases, column h of the recurrent matrix, and the
columns that read it. With its weights at zero the cell stays where it started: at zero. Each layer has its own width,
so a repacked stack is one operator a layer; both directions of one layer share theirs.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from sslprune.analysis.atoms import Dim, concatenate, fixed, merge
from sslprune.analysis.contraction import Contraction
from sslprune.analysis.facts import Part
from sslprune.analysis.inference import Inference, Rule
from sslprune.analysis.zeros import AllOf, Keeps, Zero
from sslprune.capture.program import operator_name


@dataclass(frozen=True)
class _Layer:
    """One layer of a stack: its weights by direction, its hidden dimension and what it gives out."""

    weights: list[list[fx.Node]]  # by direction: weight_ih, weight_hh, then biases and the projection where there are
    hidden: Dim
    out: Dim  # the projection's dimension where there is one, else the hidden one

    def looks_plain(self, r: Any) -> bool:
        """Whether what is left of a projection is square: torch knows one by sizes that differ, and by no name."""
        return self.out is not self.hidden and bool(r.size(self.out) == r.size(self.hidden))


def _recurrent(gates: int, states: int, runs_as: str) -> Rule:
    def rule(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
        if not hasattr(a, "has_biases") or not hasattr(a, "batch_first"):
            g.opaque(node, "packed sequences")
            return
        initial = list(a.hx) if isinstance(a.hx, Sequence) else [a.hx]
        x = g.dims(a.input)
        g.freeze([x[1 if a.batch_first and len(x) == 3 else 0]], node, "one step after another")
        directions = 2 if a.bidirectional else 1
        layers = _layers(g, node, a, x[-1], directions, gates, runs_as)
        started = [s for s in initial if operator_name(s) not in ("zeros", "new_zeros", "zeros_like")]
        if started:  # one tensor holds the state of all layers: they keep one width
            for layer in layers[1:]:
                g.unify(layers[0].hidden, layer.hidden, node)
                g.unify(layers[0].out, layer.out, node)
        for i, state in enumerate(initial):
            if state in started:
                g.freeze(g.dims(state)[:-1], node, "one state a layer")
                g.unify(g.dims(state)[-1], layers[0].out if i == 0 else layers[0].hidden, node)
        last = layers[-1]
        cells = [s for s in started if s is not initial[0] or last.out is last.hidden]  # what starts the hidden units
        g.out(node, [*x[:-1], concatenate([last.out] * directions)], _zero(last, last.out, cells))
        lead = x[:-1][(0 if a.batch_first else 1) : (1 if a.batch_first else 2)] if len(x) == 3 else []
        alone: dict[tuple[int, int], fx.Node] = {}  # in the graph that a repack makes: (state, layer), where unstacked
        for i in range(states):
            parts = []
            for index in range(len(layers) * directions):
                layer = layers[index // directions]
                width = layer.out if i == 0 else layer.hidden
                take = partial(_entry, alone=alone, state=i + 1, layer=index // directions, at=index % directions)
                parts.append(Part((*lead, width), _zero(layer, width, cells), take))
            g.out_parts(node, 0, parts)
        g.on_repack(node, lambda r: _unstack(r, node, a, layers, directions, initial, started, alone, gates))

    return rule


def _layers(
    g: Inference, node: fx.Node, a: SimpleNamespace, inner: Dim, directions: int, gates: int, runs_as: str
) -> list[_Layer]:
    """Tie each layer's weights together, and to the layer below."""
    x = g.dims(a.input)
    per = len(a.params) // (a.num_layers * directions)
    layers: list[_Layer] = []
    for index in range(a.num_layers):
        weights = [
            list(a.params[(index * directions + d) * per : (index * directions + d + 1) * per])
            for d in range(directions)
        ]
        projected = per in (3, 5)
        hidden = g.atoms.fresh(g.shape(weights[0][1])[0] // gates)
        out = g.atoms.fresh(g.shape(weights[0][1])[1]) if projected else hidden

        def contracts(
            weight: fx.Node, made: Dim, read: Dim, source: fx.Node | None = None, times: int = 1, part: int = index
        ) -> None:
            along = {read: (weight,) if source is None else (source, weight)}
            g.contracts(
                Contraction(
                    node,
                    source,
                    weight,
                    batched=tuple(x[:-1]),
                    made=(made,),
                    summed=along,
                    makes=(0,),
                    reads=(1,),
                    times=times,
                    runs_as=runs_as,
                    part=part,
                )
            )

        for own in weights:
            w_ih, w_hh = own[:2]
            for tensor in own[: 4 if a.has_biases else 2]:
                g.unify(g.dims(tensor)[0], merge([fixed(gates), hidden]), node)
            g.unify(g.dims(w_hh)[1], out, node)
            g.unify(g.dims(w_ih)[1], inner, node)
            if projected:
                g.unify(g.dims(own[-1])[0], out, node)
                g.unify(g.dims(own[-1])[1], hidden, node)
                g.label(out, "neurons")
                contracts(own[-1], out, hidden)
            g.label(hidden, "hidden")
            contracts(w_ih, hidden, g.dims(w_ih)[1], a.input if index == 0 else None, times=gates)
            contracts(w_hh, hidden, out, times=gates)
        layers.append(_Layer(weights, hidden, out))
        inner = concatenate([out] * directions)
    return layers


def _zero(layer: _Layer, width: Dim, started: Sequence[fx.Node]) -> Zero | None:
    """A unit stays at zero when all that writes to it is zero and it started at zero."""
    if width is not layer.hidden:
        return AllOf(tuple(Keeps(own[-1], (width,)) for own in layer.weights))
    every = [Keeps(tensor, (width,)) for own in layer.weights for tensor in own[:4]]
    return AllOf((*every, *(Keeps(state, (width,)) for state in started)))


def _unstack(
    r: Any,
    node: fx.Node,
    a: SimpleNamespace,
    layers: list[_Layer],
    directions: int,
    initial: list[fx.Node],
    started: list[fx.Node],
    alone: dict[tuple[int, int], fx.Node],
    gates: int,
) -> None:
    """One operator a layer, each with its own width and its own slice of the initial state."""
    alone.clear()
    if not any(r.changed(layer.hidden) or r.changed(layer.out) for layer in layers):
        return
    if len(layers) == 1 and len(started) == len(initial) and not layers[0].looks_plain(r):
        return  # its weights and its state are smaller, and it takes both as they come
    aten, graph, new = torch.ops.aten, r.node.graph, r.mapped
    results: list[tuple[fx.Node, int]] = []  # each layer's operator, and how many units it has too many
    with graph.inserting_before(r.node):
        value = new(a.input)
        for index, layer in enumerate(layers):
            begin = []
            more = int(layer.looks_plain(r))  # a hidden unit whose weights are zero: it stays at zero, and adds nothing
            for i, state in enumerate(initial):
                width = layer.out if i == 0 else layer.hidden
                if state in started:
                    begin.append(
                        graph.call_function(
                            aten.slice.Tensor, (new(state), 0, index * directions, (index + 1) * directions)
                        )
                    )
                    if more and i > 0:
                        begin[-1] = graph.call_function(aten.constant_pad_nd.default, (begin[-1], [0, more]))
                else:
                    begin.append(_zeros(new(state), directions, r.size(width) + (more if i > 0 else 0)))
            params = [new(tensor) for own in layer.weights for tensor in own]
            if more:
                params = [
                    _widened(new(tensor), more, None if tensor is own[-1] else gates)
                    for own in layer.weights
                    for tensor in own
                ]
            rest = (a.has_biases, 1, 0.0, a.train, a.bidirectional, a.batch_first)
            hx = begin if isinstance(a.hx, Sequence) else begin[0]
            made = graph.call_function(node.target, (value, hx, params, *rest))
            made.meta = dict(node.meta)
            results.append((made, more))
            value = graph.call_function(operator.getitem, (made, 0))
            if a.dropout and index + 1 < len(layers):
                value = graph.call_function(aten.dropout.default, (value, a.dropout, a.train))
        for user in list(r.node.users):
            which = user.args[1]
            replacement = value
            if which > 0:
                parts = [graph.call_function(operator.getitem, (made, which)) for made, _ in results]
                for index, (part, (_, more)) in enumerate(zip(parts, results, strict=True)):
                    if more and which > 1:
                        parts[index] = graph.call_function(aten.slice.Tensor, (part, -1, 0, -more))
                alone |= {(which, layer): part for layer, part in enumerate(parts)}
                replacement = graph.call_function(aten.cat.default, (parts, 0)) if len(parts) > 1 else parts[0]
            r.replace(user, replacement)


def _widened(weight: fx.Node, more: int, gates: int | None) -> fx.Node:
    """``weight`` with ``more`` hidden units of zeros: in the rows of each gate, or in its columns without ``gates``."""
    aten, graph = torch.ops.aten, weight.graph
    if gates is None:
        return graph.call_function(aten.constant_pad_nd.default, (weight, [0, more]))
    rest = weight.meta["val"].dim() - 1
    by_gate = graph.call_function(aten.unflatten.int, (weight, 0, [gates, -1]))
    padded = graph.call_function(aten.constant_pad_nd.default, (by_gate, [0, 0] * rest + [0, more]))
    return graph.call_function(aten.flatten.using_ints, (padded, 0, 1))


def _zeros(state: fx.Node, first: int, last: int) -> fx.Node:
    """Zeros like those that ``state`` makes (``zeros``, ``new_zeros``, ``zeros_like``), of another first and last size.

    What stands between them is the batch, which may be a number or a size of the input.
    """
    aten, graph = torch.ops.aten, state.graph
    kwargs = {key: value for key, value in state.kwargs.items() if key not in ("size", "memory_format")}
    if operator_name(state) == "zeros_like":
        between = [graph.call_function(aten.sym_size.int, (state.args[0], 1))] if state.meta["val"].dim() > 2 else []
        return graph.call_function(aten.new_zeros.default, (state.args[0], [first, *between, last]), kwargs)
    given: list[Any] = [*state.args, *([state.kwargs["size"]] if "size" in state.kwargs else [])]
    return graph.call_function(state.target, (*given[:-1], [first, *given[-1][1:-1], last]), kwargs)  # type: ignore[arg-type]


def _entry(r: Any, alone: dict[tuple[int, int], fx.Node], state: int, layer: int, at: int) -> fx.Node | None:
    """The state of one layer in one direction, from its own operator; None where the stack is still whole."""
    made = alone.get((state, layer))
    return r.insert(torch.ops.aten.select.int, made, 0, at) if made is not None else None


def cell(gates: int) -> Rule:
    """One step: input (N, in), state (N, H) -> the new state, or states."""

    def rule(g: Inference, node: fx.Node, a: SimpleNamespace) -> None:
        states = list(a.hx) if isinstance(a.hx, Sequence) else [a.hx]
        hidden = g.dims(states[0])[-1]
        biases = [b for b in (a.b_ih, a.b_hh) if isinstance(b, fx.Node)]
        for tensor in (a.w_ih, a.w_hh, *biases):
            g.unify(g.dims(tensor)[0], merge([fixed(gates), hidden]), node)
        g.unify(g.dims(a.w_hh)[1], hidden, node)
        g.unify(g.dims(a.w_ih)[1], g.dims(a.input)[-1], node)
        for state in states[1:]:
            g.unify(g.dims(state)[-1], hidden, node)
        g.label(hidden, "hidden")
        lead, read = tuple(g.dims(a.input)[:-1]), g.dims(a.w_ih)[1]
        given, kept = {read: (a.input, a.w_ih)}, {g.dims(a.w_hh)[1]: (states[0], a.w_hh)}
        g.contracts(Contraction(node, a.input, a.w_ih, lead, (hidden,), given, (0,), (1,), gates))
        g.contracts(Contraction(node, states[0], a.w_hh, lead, (hidden,), kept, (0,), (1,), gates, part=1))
        zero = AllOf(tuple(Keeps(tensor, (hidden,)) for tensor in (a.w_ih, a.w_hh, *biases, *states)))
        for _ in range(g.num_outputs(node)):
            g.out(node, [*lead, hidden], zero)

    return rule


RULES: dict[str, Rule] = {
    "lstm_cell": cell(gates=4),
    "gru_cell": cell(gates=3),
    "rnn_tanh_cell": cell(gates=1),
    "rnn_relu_cell": cell(gates=1),
    "lstm": _recurrent(gates=4, states=2, runs_as="LSTM"),
    "gru": _recurrent(gates=3, states=1, runs_as="GRU"),
    "rnn_tanh": _recurrent(gates=1, states=1, runs_as="RNN"),
    "rnn_relu": _recurrent(gates=1, states=1, runs_as="RNN"),
}
