"""The graphs in a model: its own, and those of If, where some exporters keep a network for each case."""

from collections.abc import Iterator
from typing import NamedTuple

import onnx

from ._operators import KINDS
from ._protos import name_of, operator_of


class Found(NamedTuple):
    """A recurrent node, and the graphs that it lies in."""

    node: onnx.NodeProto
    where: str  # what of which If, empty in the model's own graph
    scopes: tuple[tuple[onnx.GraphProto, int], ...]  # from the outermost in; and how many of its nodes come before

    @property
    def path(self) -> tuple[int | str, ...]:
        """What tells the graph of the node from others."""
        return self.where, *(count for _, count in self.scopes[:-1])

    def graph(self) -> onnx.GraphProto:
        """Return the graph of the node, into which those around it are copied as far as they come before."""
        if len(self.scopes) == 1:
            return self.scopes[0][0]
        merged = onnx.GraphProto()
        for graph, count in self.scopes:
            merged.node.extend(graph.node[:count])
            merged.initializer.extend(graph.initializer)
            merged.input.extend(graph.input)
        return merged


def recurrent_nodes(
    graph: onnx.GraphProto, where: str = "", around: tuple[tuple[onnx.GraphProto, int], ...] = ()
) -> Iterator[Found]:
    """Yield the recurrent nodes of a graph and of the branches in it."""
    scopes = (*around, (graph, len(graph.node)))
    for k, node in enumerate(graph.node):
        kind = operator_of(node)
        if kind in KINDS:
            yield Found(node, where, scopes)
        branches = {a.name: a.g for a in node.attribute} if kind == "If" else {}
        for name in ("then_branch", "else_branch"):
            if name in branches:
                inside = f"{name} of {name_of(node)}" + (f" in {where}" if where else "")
                yield from recurrent_nodes(branches[name], inside, (*around, (graph, k)))
