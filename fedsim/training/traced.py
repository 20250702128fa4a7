"""A torch module as a graph of core ATen operators, and that graph as a function of JAX arrays.

Torch defines the network; what runs it may be XLA. Tracing follows the module once, for one shape
of batch: what it does must not depend on the values of its input, nor be random, nor change a
buffer. Whatever does not translate raises :class:`Untranslatable`, and torch trains it instead.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import Module

from fedsim.errors import FedsimError
from fedsim.training.precision import PRECISIONS, class_scores, floating_type

# In the spelling of the operators' keys, and of the types that they give.
DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


MIXED = "the examples of a batch influence each other's scores"


class Untranslatable(FedsimError):
    """This module cannot be translated for XLA; the message says what stands in the way."""


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A module's class scores as a graph.

    Attributes:
        graph: its placeholders are the parameters and buffers in the order of ``names``, then x.
        names: of parameters and buffers.
        constants: what the graph refers to by ``get_attr``.
        held: by parameter, the order of axes in which training should hold it. The graph uses it
            in that order alone: dense weights transposed, kernels with their channels last.
        convolves: whether a convolution is in it.
    """

    graph: fx.Graph
    names: tuple[str, ...]
    constants: Mapping[str, np.ndarray]
    held: Mapping[str, tuple[int, ...]]
    convolves: bool

    def __call__(self, arrays: Mapping[str, Any], x: Any) -> Any:
        """Return the class scores, (batch, classes), of JAX arrays.

        Args:
            arrays: parameters and buffers by name, their axes in the module's order.
            x: features, (batch, \\*input shape), of the traced shape.
        """
        from fedsim.training.operators import OPERATORS

        given = iter([*(arrays[name] for name in self.names), x])
        values: dict[fx.Node, Any] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(given)
            elif node.op == "get_attr":
                values[node] = self.constants[str(node.target)]
            elif node.op == "output":
                return fx.node.map_arg(node.args[0], values.__getitem__)
            elif node.users:
                arguments = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = _apply(OPERATORS, node, *arguments)
        raise AssertionError("a graph without an output")


def _apply(operators: Mapping[str, Any], node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Apply one operator, and give the result the type that it has in torch."""
    if node.target is operator.getitem:
        return args[0][args[1]]
    kwargs = {k: v for k, v in kwargs.items() if k not in ("dtype", "layout", "device", "out")}
    result = operators[name_of(node)](*args, **kwargs)
    expected = node.meta.get("val")
    if isinstance(expected, Tensor):
        return result.astype(DTYPES[expected.dtype])
    return result


def trace(model: Module, input_shape: Sequence[int], *, batch: int, precision: str) -> Traced:
    """Trace a module for batches of one size.

    Args:
        model: maps (batch, \\*input_shape) to (batch, classes).
        batch: examples.
        precision: a key of ``PRECISIONS``.

    Raises:
        Untranslatable: it cannot be traced, or not be trained by XLA as torch would train it.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    if list(model.state_dict()) != [n for n in model.state_dict() if n in tensors]:
        raise Untranslatable("modules share parameters")
    names = tuple(tensors)
    detached = [tensor.detach() for tensor in tensors.values()]
    x = torch.zeros((batch, *input_shape), dtype=floating_type(model), device=detached[0].device)

    def scores(*given: Tensor) -> Tensor:
        *values, features = given
        named = dict(zip(names, values, strict=True))
        return class_scores(model, named, features, PRECISIONS[precision])

    graph_module = _graph(scores, [*detached, x])
    graph = graph_module.graph
    _check_shape(graph, batch)
    if not examples_apart(model, input_shape):
        raise Untranslatable(MIXED)
    parameters = {name for name, _ in model.named_parameters()}
    return Traced(
        graph=graph,
        names=names,
        constants={
            str(node.target): getattr(graph_module, str(node.target)).detach().cpu().numpy()
            for node in graph.nodes
            if node.op == "get_attr"
        },
        held=_held(graph, names, parameters),
        convolves=any(
            node.op == "call_function" and name_of(node) == "convolution" for node in graph.nodes
        ),
    )


def _graph(scores: Any, arguments: Sequence[Tensor]) -> fx.GraphModule:
    """Return the graph in operators that are known, decomposed where that is necessary."""
    from fedsim.training.operators import OPERATORS

    unknown: set[str] = set()
    for decomposed in (False, True):
        table: Any = torch._decomp.core_aten_decompositions() if decomposed else {}
        try:
            with torch.no_grad():
                made = make_fx(functionalize(scores), table)(*arguments)
        except Exception as error:  # whatever a module's forward does that cannot be followed
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise Untranslatable(f"the module cannot be traced: {reason[0]}") from error
        made.graph.eliminate_dead_code(impure)
        calls = [node for node in made.graph.nodes if node.op == "call_function"]
        named = {name_of(node) for node in calls if node.target is not operator.getitem}
        unknown = named - set(OPERATORS)
        if not unknown:
            return made
    listed = ", ".join(f"aten.{name}" for name in sorted(unknown))
    raise Untranslatable(f"no translation of the operator {listed}")


def impure(node: fx.Node) -> bool:
    """Say whether a node must stay though nobody uses it: it writes somewhere, or draws."""
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or (schema is not None and schema.is_mutable)


def name_of(node: fx.Node) -> str:
    """Return an operator's name, without namespace and overload."""
    packet = getattr(node.target, "overloadpacket", None)
    return str(getattr(packet, "__name__", node.target))


def _check_shape(graph: fx.Graph, batch: int) -> None:
    """Refuse what is no score per class."""
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    value = output.meta.get("val") if isinstance(output, fx.Node) else None
    if not isinstance(value, Tensor) or value.ndim != 2 or value.shape[0] != batch:
        raise Untranslatable("the module does not give (batch, classes)")


def examples_apart(model: Module, input_shape: Sequence[int]) -> bool:
    """Say whether an example's scores depend on no other example of its batch.

    Batches are filled up with examples that must not count; such a module would see them.
    """
    like = next(model.parameters())
    blank = torch.zeros((1, *input_shape), dtype=floating_type(model), device=like.device)
    with torch.no_grad():
        alike, apart = (_scores_once(model, torch.cat([blank, blank + d])) for d in (0, 1))
    return torch.equal(alike[0].nan_to_num(), apart[0].nan_to_num())


def _scores_once(model: Module, x: Tensor) -> Tensor:
    """Return scores and leave the module's buffers as they were."""
    tensors = {n: t.clone() for n, t in model.state_dict(keep_vars=False).items()}
    return class_scores(model, tensors, x, None)


def _held(
    graph: fx.Graph, names: Sequence[str], parameters: set[str]
) -> dict[str, tuple[int, ...]]:
    """Return the parameters that the graph uses in one other order of axes alone."""
    held = {}
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for name, node in zip(names, places[:-1], strict=True):
        orders = {_order_used(user, node) for user in node.users}
        order = orders.pop() if len(orders) == 1 else None
        if name in parameters and order is not None:
            held[name] = order
    return held


def _order_used(user: fx.Node, node: fx.Node) -> tuple[int, ...] | None:
    """Return the order of axes in which ``user`` takes the value of ``node``; None for its own."""
    name = name_of(user)
    rank = node.meta["val"].ndim
    if name == "t" and rank == 2:
        return (1, 0)
    if name == "permute":
        return tuple(user.args[1])  # type: ignore[arg-type]
    if name == "_to_copy" and len(user.users) == 1:
        return _order_used(next(iter(user.users)), user)
    if name == "convolution" and user.args[1] is node:
        return (*range(2, rank), 1, 0)
    return None
