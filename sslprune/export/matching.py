"""Rewrite rules of several outputs (two slices that are one split) without a search of the whole graph for each node.

onnxscript tries such a rule at every node, with every node of the graph as the other output: quadratic in a graph of
many slices, as a repacked one is. Where the outputs of a rule read one value in common, only what reads a value of the
first node can be another output, and only a node of the first's operator can be the first.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import onnx_ir as ir


@dataclass(frozen=True)
class _Near:
    """The nodes of ``graph`` that are looked at, in place of all."""

    graph: ir.Graph
    nodes: tuple[ir.Node, ...]

    def __iter__(self) -> Iterator[ir.Node]:
        return iter(self.nodes)


@contextlib.contextmanager
def near_matches() -> Iterator[None]:
    """Inside the block a rule of several outputs is tried where it can match, and nowhere else.

    Of several matches at one node it may find another first: the nodes come in the order in which they were connected.
    """
    try:  # private names: another version may do without, and takes its time
        basics, matching = (importlib.import_module(f"onnxscript.rewriter.{name}") for name in ("_basics", "_matcher"))
        matcher, failed = matching.SimplePatternMatcher, basics.MatchResult
        whole = matcher.match
    except (ImportError, AttributeError):
        yield
        return

    def match(self: Any, model: Any, graph: Any, node: ir.Node, **options: Any) -> Any:
        if self.pattern.has_single_output_node:
            return whole(self, model, graph, node, **options)
        first, *others = self.pattern.output_nodes
        operator = first.op_identifier()
        if operator is not None and operator != node.op_identifier():
            return failed().fail("Another operator.")
        if all(_share(first, other) for other in others):
            graph = _Near(graph if isinstance(graph, ir.Graph) else graph.graph, _readers(node))
        return whole(self, model, graph, node, **options)

    with mock.patch.object(matcher, "match", match):
        yield


def _share(one: Any, other: Any) -> bool:
    """Whether two nodes of a pattern read one value in common."""
    return any(value is not None and any(value is again for again in other.inputs) for value in one.inputs)


def _readers(node: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes in the graph of ``node`` that read one of its inputs, each once."""
    uses = (use.node for value in node.inputs if value is not None for use in value.uses())
    return tuple(dict.fromkeys(reader for reader in uses if reader.graph is node.graph))
