"""The repacked model: a plain ``nn.Module`` that runs rewritten graphs on smaller tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from sslprune.capture.batch import check_rows, fixed_rows
from sslprune.capture.program import copy_graph, modules_of, on_device
from sslprune.values.axes import tensors_of

LEFT = "left"  # of a node's meta: a mask for each dimension of what it makes that lost some


class Packed(nn.Module):
    """Runs the evaluation graph in ``eval()`` mode and the training graph in ``train()`` mode, on shared parameters.

    Parameters and buffers keep the names that they had in the original model.
    """

    def __init__(
        self,
        graphs: tuple[fx.Graph, ...],  # evaluation, and training where there is one
        tensors: dict[str, torch.Tensor],
        keyword_names: tuple[str, ...],
        out_specs: tuple[pytree.TreeSpec, ...],  # how the results of each graph are nested
        state: Any = None,
    ) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            path, _, leaf = name.rpartition(".")
            holder = self._holder(path)
            if isinstance(tensor, nn.Parameter):
                holder.register_parameter(leaf, tensor)
            else:
                holder.register_buffer(leaf, tensor)
        for node in (node for graph in graphs for node in graph.nodes if node.op == "call_module"):
            self._holder(str(node.target))
        self._keyword_names, self._out_specs = keyword_names, out_specs
        self._graphs = graphs
        self._fixed = fixed_rows(graphs[0])
        self._runs: tuple[Callable[..., Any], ...] = tuple(map(_compile, graphs))
        self._state = state  # of the model that was packed, if it carries one, without the units that are gone

    def _holder(self, path: str) -> nn.Module:
        """The module at a path of the original model, of which its tensors and its output are left."""
        holder: nn.Module = self
        for part in filter(None, path.split(".")):
            if part not in holder._modules:
                holder.add_module(part, Holder())
            holder = holder.get_submodule(part)
        return holder

    def announce(self, names: Iterable[str]) -> dict[str, Mapping[int, np.ndarray]]:
        """Let the training graph call the modules ``names`` with what they made, so that forward hooks hear of it.

        A module's output is what the last of its nodes made that others read; one that has none left stays silent.
        Returns which indices of the outputs are left, by the module's name: a mask of the whole size for each dimension
        that lost some.
        """
        graph, _ = copy_graph(self._graphs[1])
        left: dict[str, Mapping[int, np.ndarray]] = {}
        for name in names:
            own = dict.fromkeys(node for node in graph.nodes if name in modules_of(node))
            read = [node for node in own if any(user not in own for user in node.users)]
            if read:
                self._holder(name)
                with graph.inserting_after(read[-1]):
                    called = graph.call_module(name, (read[-1],))
                called.meta = {**read[-1].meta, "nn_module_stack": {}}
                read[-1].replace_all_uses_with(called, delete_user_cb=lambda user, called=called: user is not called)
                left[name] = called.meta.get(LEFT, {})
        self._graphs = (self._graphs[0], graph)
        self._runs = (self._runs[0], _compile(graph))
        return left

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Packed:
        """``to``, ``cuda`` and the like: what the graphs make themselves goes where the parameters go."""
        super()._apply(fn, recurse)
        device = next((tensor.device for tensor in tensors_of(self).values()), None)
        if device is not None:
            graphs = tuple(on_device(graph, device) for graph in self._graphs)
            if any(new is not old for new, old in zip(graphs, self._graphs, strict=True)):
                self._graphs, self._runs = graphs, tuple(map(_compile, graphs))
        return self

    @property
    def graph(self) -> fx.Graph:
        """The evaluation graph."""
        return self._graphs[0]

    def deployed(self) -> Packed:
        """The evaluation graph alone, with the tensors that it reads: no heads that only training uses; shared.

        What it returns is built of tuples, lists and dicts alone, so that a file of it needs no library's class.
        """
        graph = self._graphs[0]
        own = tensors_of(self)
        names = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr")
        tensors = {name: own[name] for name in names}
        return Packed((graph,), tensors, self._keyword_names, (_plain(self._out_specs[0]),), self._state).eval()

    def without_training(self) -> Packed:
        """The evaluation graph alone, with every tensor; shared."""
        tensors = dict(tensors_of(self))
        return Packed(self._graphs[:1], tensors, self._keyword_names, self._out_specs[:1], self._state).eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        """Tensors of its own; the graphs, which nobody changes, are shared: copying them takes seconds."""
        tensors = copy.deepcopy(dict(tensors_of(self)), memo)
        other = Packed(self._graphs, tensors, self._keyword_names, self._out_specs, self._state)
        return other.train(self.training)

    @property
    def initial_state(self) -> Callable[[int], Any]:
        """A model that carries state has this method, as ``sslprune.values.carry`` says; others do not."""
        if self._state is None:
            raise AttributeError("this model carries no state")
        return lambda rows: pytree.tree_map(lambda leaf: leaf.new_zeros(rows, *leaf.shape[1:]), self._state)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        ordered = {name: kwargs.pop(name) for name in self._keyword_names if name in kwargs} | kwargs
        if self.training and len(self._runs) == 1:
            raise RuntimeError(
                "this model has no training graph: it was traced without one, or never trains twice alike; call eval()"
            )
        leaves = pytree.tree_leaves((args, ordered))
        check_rows(leaves, self._fixed)
        mode = int(self.training)
        return pytree.tree_unflatten(list(self._runs[mode](self, *leaves)), self._out_specs[mode])


class Holder(nn.Module):
    """A module of the original model: it holds tensors, and gives back what it is called with."""

    def forward(self, made: Any) -> Any:
        return made


def _plain(spec: pytree.TreeSpec) -> pytree.TreeSpec:
    """The same output with a plain dict or tuple for every mapping or sequence of a library's own."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(part) for key, part in value.items()}
        if isinstance(value, tuple | list):
            parts = [plain(part) for part in value]
            return parts if isinstance(value, list) else tuple(parts)
        return value

    return pytree.tree_flatten(plain(pytree.tree_unflatten(list(range(spec.num_leaves)), spec)))[1]


def _compile(graph: fx.Graph) -> Callable[..., Any]:
    """The graph as a Python function of (module, *inputs)."""
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(compile(code.src, "<sslprune graph>", "exec"), scope)  # the same way in which fx.GraphModule runs its graph
    return scope["forward"]
