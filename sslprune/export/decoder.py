"""A decoder as ONNX with past keys and values, in the layout of optimum: one file for the prompt and for each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sslprune.capture.mode import evaluating
from sslprune.capture.program import Program, copy_graph, operator_name, quiet
from sslprune.capture.trace import trace_evaluation
from sslprune.errors import ExportError, first_line
from sslprune.export.onnx import ONNX_TOLERANCE, convert, save_onnx
from sslprune.export.portable import is_portable, make_portable_
from sslprune.export.session import open_session
from sslprune.files import write_beside
from sslprune.kinds.branches import is_zero
from sslprune.kinds.find import analysis_of, find_axes
from sslprune.models.decoder import Decoder
from sslprune.models.huggingface import max_positions
from sslprune.removal.packed import Packed
from sslprune.removal.plan import Plan
from sslprune.removal.remove import removable, remove
from sslprune.values.axes import Axis, tensors_of
from sslprune.values.compare import difference
from sslprune.values.selection import Selection

# what the open sizes are called: as in optimum, whose pipelines read these names
BATCH, SEQUENCE, PAST = "batch_size", "sequence_length", "past_sequence_length"
TOTAL = f"{PAST} + {SEQUENCE}"
NOTHING = Plan(axes=(), tensors={}, zeroed=(), operators=())
PROMPT, LATER = 6, (1, 1, 1, 3, 1)  # what a file is tried with: a prompt, then so many tokens at a time
Example = tuple[Any, ...]  # input_ids, attention_mask, position_ids where there are any, a list of keys and values


def export_decoder(model: nn.Module, path: str | Path, plan: Plan = NOTHING, *, opset: int | None = None) -> float:
    """Write a causal language model of transformers as ONNX that takes and gives a cache of keys and values.

    Inputs: ``input_ids``, ``attention_mask``, ``position_ids`` where the class has them, and
    ``past_key_values.N.key`` and ``.value`` (batch, key heads, past, width), whose past may be of no tokens. Outputs:
    ``logits``, ``present.N.key`` and ``.value``. Batch, new tokens and past are open.

    ``plan`` says what goes, as `make_plan` gives it of ``model``, which is at zero there; widths may differ from layer
    to layer. A layer whose attention went has no cache, and the numbers N close up.

    The file is run in ONNX Runtime from a prompt with padding on its left through later tokens, one and several at a
    time, and compared with ``model`` on the whole texts, without a cache. Returns the largest relative difference.
    Raises ExportError, and writes nothing, above 1e-3 and for a class that keeps no such cache.
    """
    path, worst = Path(path), 0.0
    with quiet(), evaluating(model), torch.no_grad():
        decoder = Decoder(model).eval()
        small, example = smaller(decoder, plan)
        inputs, outputs = names(example)
        program = _exported(small, example)
        converted = convert(path, program, opset, inputs, outputs, _sizes(example, lambda dims: dims))

        def write(temporary: Path) -> None:
            nonlocal worst
            save_onnx(converted, temporary, path)
            worst = _verify(decoder, temporary, path)

        write_beside(path, write)
    return worst


def smaller(decoder: Decoder, plan: Plan = NOTHING) -> tuple[Packed, Example]:
    """``decoder`` without what ``plan`` says that goes of its model, and without a cache that nobody reads; its inputs.

    Raises ExportError where the graph that keeps a cache does not let that go.
    """
    example = decoder.example()
    program = trace_evaluation(decoder, example, _open(example))
    axes = find_axes(program)
    wanted = Selection.of(axes, [_gone(program, axis, plan) for axis in axes])
    removed = removable(program, wanted)
    for axis, one, two in zip(axes, wanted, removed, strict=True):
        if (one != two).any():
            raise ExportError(
                f"export.decoder: {axis.name.removeprefix('model.')}: {int(one.sum())} of its {axis.kind} went, and "
                f"cannot where a cache is kept{f' ({axis.reason})' if axis.reason else ''}; leave export.decoder out"
            )
    whole = remove(decoder, program, removed, verify=False)
    graph, kept = _without_idle(whole.graph, len(example) - 1, len(decoder.sizes))
    if not kept:
        raise ExportError("export.decoder: no attention is left, and so no cache; deploy export/model.onnx")
    own = tensors_of(whole)
    used = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr")
    spec = pytree.tree_structure((0, [0] * len(kept)))
    module = Packed((graph,), {name: own[name] for name in used}, (), (spec,)).eval()
    begun = pytree.tree_leaves(whole.initial_state(len(example[0])))
    steps = example[-1][0].shape[2]
    past = [torch.zeros(*begun[i].shape[:2], steps, begun[i].shape[3]) for i in kept]
    return module, (*example[:-1], past)


def names(example: Example) -> tuple[list[str], list[str]]:
    """What the inputs and the outputs of a file are called."""
    first = ["input_ids", "attention_mask", "position_ids"][: len(example) - 1]
    tensors = [f"{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(example[-1]))]
    return [*first, *(f"past_key_values.{t}" for t in tensors)], ["logits", *(f"present.{t}" for t in tensors)]


def _gone(program: Program, axis: Axis, plan: Plan) -> np.ndarray:
    """Which groups of an axis of the graph with a cache go, by what ``plan`` says of their tensors."""
    if axis.cuts and not axis.atoms.size:
        operand = next(node for node in program.evaluation.nodes if node.name == axis.cuts[0].operand)
        return np.array([is_zero(analysis_of(program).inference, operand, {f"model.{name}" for name in plan.zeroed})])
    gone = np.ones(axis.size, bool)
    for member in axis.members:
        change = None if member.flat else plan.tensors.get(member.name.removeprefix("model."))
        kept = () if change is None else change.kept.get(member.dim, ())
        gone &= ~np.isin(member.positions, kept).any(axis=1) if kept else False
    return gone & bool(axis.members)


def _without_idle(whole: fx.Graph, first: int, count: int) -> tuple[fx.Graph, list[int]]:
    """The graph without each of its ``count`` pasts that nothing but its own present reads; the numbers of the others.

    Pasts are the inputs from place ``first`` on, presents the outputs after the logits. How many tokens there are is
    asked of one that stays.
    """
    graph, _ = copy_graph(whole)
    pasts = [node for node in graph.nodes if node.op == "placeholder"][first:]
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    logits, *presents = output.args[0]
    read = set(_behind(logits, stop=_is_length))
    kept = [i for i, past in enumerate(pasts[:count]) if past in read]
    if not kept:
        return graph, kept
    for past in (pasts[i] for i in range(count) if i not in kept):
        for user in [user for user in past.users if _is_length(user)]:
            user.replace_input_with(past, pasts[kept[0]])
    output.update_arg(0, (logits, *(presents[i] for i in kept)))
    graph.eliminate_dead_code()
    for i in sorted(set(range(count)) - set(kept)):
        graph.erase_node(pasts[i])
    _move_up(graph)
    graph.lint()
    return graph, kept


def _is_length(node: fx.Node) -> bool:
    return operator_name(node) == "sym_size"


def _behind(node: Any, stop: Callable[[fx.Node], bool]) -> Iterator[fx.Node]:
    """What ``node`` is computed from, not looking behind what ``stop`` holds of."""
    seen, stack = {node}, [node]
    while stack:
        here = stack.pop()
        yield here
        if not stop(here):
            fresh = [source for source in here.all_input_nodes if source not in seen]
            seen.update(fresh)
            stack += fresh


def _move_up(graph: fx.Graph) -> None:
    """Inputs first: what asks an input for its size may stand before another one."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    first = next(iter(graph.nodes))
    for node in inputs:
        if node is not first:
            first.prepend(node)
        else:
            first = node.next


def _sizes(example: Example, made: Callable[[dict[int, str]], Any]) -> dict[str, tuple[Any, ...]]:
    """The open dimensions of each input, by their names, through ``made``; as torch.export takes them."""
    *first, past = example
    ids, rest = {0: BATCH, 1: SEQUENCE}, {0: BATCH, 2: PAST}
    tokens = [made({0: BATCH, 1: TOTAL} if i == 1 else ids) for i in range(len(first))]
    return {"args": (*tokens, [made(rest) for _ in past])}


def _open(example: Example) -> dict[str, tuple[Any, ...]]:
    return _sizes(example, lambda dims: dict.fromkeys(dims, torch.export.Dim.AUTO))


def _exported(module: nn.Module, example: Example) -> torch.export.ExportedProgram:
    """``module`` by torch.export, of operators that ONNX has."""
    shapes = _open(example)
    try:
        found = torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
        if is_portable(found.graph, onnx=True):
            return found
        plain = found.module(check_guards=False)
        make_portable_(plain, onnx=True)
        return torch.export.export(plain, example, dynamic_shapes=shapes["args"], strict=False)  # it names them
    except Exception as error:
        raise ExportError(f"torch.export cannot capture the decoder with its cache: {first_line(error)}") from error


class Cache:
    """A decoder's file in ONNX Runtime, and what it keeps of the tokens so far.

    ``tokens(ids, mask, positions)`` (batch, steps) gives the logits of these tokens, whose mask is of all so far.
    """

    def __init__(self, session: onnxruntime.InferenceSession, rows: int = 1) -> None:
        self.session = session
        inputs = session.get_inputs()
        self.has_positions = any(node.name == "position_ids" for node in inputs)
        self.outputs = [node.name for node in session.get_outputs()]
        self.past = {
            node.name: np.zeros((rows, node.shape[1], 0, node.shape[3]), np.float32)
            for node in inputs
            if node.name.startswith("past_key_values.")
        }

    @property
    def length(self) -> int:
        """How many tokens it has read."""
        return next(iter(self.past.values())).shape[2]

    def feeds(
        self, ids: np.ndarray, mask: np.ndarray | None = None, positions: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """What the file is fed for ``ids`` (batch, steps) after what it has read."""
        rows, steps = ids.shape
        mask = np.ones((rows, self.length + steps), np.int64) if mask is None else mask
        if positions is None:
            positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -steps:]
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            **({"position_ids": positions} if self.has_positions else {}),
        }
        return {**given, **self.past}

    def tokens(
        self, ids: np.ndarray, mask: np.ndarray | None = None, positions: np.ndarray | None = None
    ) -> np.ndarray:
        """The logits (batch, steps, vocabulary) of the next ``ids``, which it remembers."""
        found = dict(zip(self.outputs, self.session.run(None, self.feeds(ids, mask, positions)), strict=True))
        self.past = {name: found[name.replace("past_key_values", "present")] for name in self.past}
        return found["logits"]


def _verify(decoder: Decoder, file: Path, path: Path) -> float:
    """Texts of two lengths through the file, a prompt and then token by token, against the model on each whole text."""
    random, known = np.random.default_rng(0), decoder.model.get_input_embeddings().num_embeddings
    longest = max_positions(decoder.model.config) or PROMPT + sum(LATER)
    prompt = max(1, min(PROMPT, longest - sum(LATER)))
    later = LATER if longest >= prompt + sum(LATER) else (1,) * (longest - prompt)
    ids = random.integers(0, known, (2, prompt + sum(later)))
    mask = np.ones_like(ids)
    mask[1, : prompt // 2] = 0  # a shorter text, with padding before it
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    given = [torch.from_numpy(a) for a in (ids, mask, *([positions] if decoder.has_positions else []))]
    expected = decoder.whole(*given).numpy()
    cache, at, worst = Cache(open_session(file), 2), 0, 0.0
    for steps in (prompt, *later):
        new = slice(at, at + steps)
        try:
            found = cache.tokens(ids[:, new], mask[:, : new.stop], positions[:, new])
        except Exception as error:
            raise ExportError(
                f"{path.name}: ONNX Runtime cannot run it on {steps} tokens after {at}: {first_line(error)}"
            ) from error
        read = mask[:, new].astype(bool)
        relative = difference(_tensor(expected[:, new][read]), _tensor(found[read]))[1]
        if not relative <= ONNX_TOLERANCE:
            raise ExportError(
                f"{path.name}: with its cache ONNX Runtime differs by {relative:.1e} (relative; {ONNX_TOLERANCE} is "
                f"allowed) from the model without one, on {steps} tokens after {at}; leave export.decoder out"
            )
        at, worst = new.stop, max(worst, relative)
    return worst


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
