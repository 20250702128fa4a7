"""A torch module as a list of ATen operations, and that list as a function of JAX arrays.

Torch defines the network; what runs it may be XLA. Tracing follows the module once, for one shape
of batch: what it does must not depend on the values of its input, nor be random, nor change a
buffer. Whatever does not translate raises :class:`Untranslatable`, and torch trains it instead.

Torch's own tracer (``make_fx``) would do, but its import takes half a second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functionalize
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fedsim.errors import FedsimError
from fedsim.training.precision import PRECISIONS, class_scores, floating_type
from fedsim.training.xla import load_jax

# What operators of JAX are not told: results get their types afterwards, and lie where they lie.
UNTOLD = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
MIXED = "the examples of a batch influence each other's scores"


class Untranslatable(FedsimError):
    """This module cannot be translated for XLA; the message says what stands in the way."""


@dataclass(frozen=True)
class Ref:
    """Stands for a value among an operation's arguments, by its number."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One ATen operation: its name without namespace and overload, and its arguments.

    ``results`` are numbers and element types of the values that it gives.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[tuple[int, str], ...]

    def uses(self) -> Iterator[int]:
        """Yield the numbers of the values that it takes."""
        leaves = tree_leaves((self.args, dict(self.kwargs)))
        return (leaf.number for leaf in leaves if isinstance(leaf, Ref))


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A module's class scores as operations.

    Attributes:
        names: of parameters and buffers; their values have the numbers from 0, then comes x.
        operations: that matter for the scores, in order.
        constants: other tensors that they take, by number.
        scores: the number of the scores.
        held: by parameter, the order of axes in which training should hold it: that in which
            alone it is used. Dense weights are transposed, kernels have their channels last.
    """

    names: tuple[str, ...]
    operations: tuple[Operation, ...]
    constants: Mapping[int, np.ndarray]
    scores: int
    held: Mapping[str, tuple[int, ...]]

    @property
    def convolves(self) -> bool:
        """Whether a convolution is among the operations."""
        return any(operation.name == "convolution" for operation in self.operations)

    def __call__(self, arrays: Mapping[str, Any], x: Any) -> Any:
        """Return the class scores, (batch, classes), of JAX arrays.

        Args:
            arrays: parameters and buffers by name, their axes in the module's order.
            x: features, (batch, \\*input shape), of the traced shape.
        """
        from fedsim.training.operators import OPERATORS

        values = dict(enumerate([*(arrays[name] for name in self.names), x]))
        values |= self.constants
        for operation in self.operations:
            args, kwargs = tree_map_only(
                Ref, lambda ref: values[ref.number], (operation.args, dict(operation.kwargs))
            )
            made = OPERATORS[operation.name](*args, **kwargs)
            made = made if isinstance(made, tuple) else (made,)
            # An operator may leave out what networks do not use, such as the places of maxima.
            for (number, dtype), value in zip(operation.results, made, strict=False):
                values[number] = value.astype(dtype)
        return values[self.scores]


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
    if set(model.state_dict()) != set(tensors):
        raise Untranslatable("modules share parameters, or keep buffers out of the state dict")
    if not all(p.requires_grad for p in model.parameters()):
        raise Untranslatable("a parameter is not to be trained")
    names = tuple(tensors)
    given = [tensor.detach() for tensor in tensors.values()]
    given.append(_blank(model, batch, input_shape))

    def scores(*given: Tensor) -> Tensor:
        *values, x = given
        named = dict(zip(names, values, strict=True))
        return class_scores(model, named, x, PRECISIONS[precision])

    recorder = Recorder(given)
    result = recorder.follow(scores)
    if result.ndim != 2 or len(result) != batch:
        raise Untranslatable("the module does not give (batch, classes)")
    if not examples_apart(model, input_shape):
        raise Untranslatable(MIXED)
    number = recorder.number_of(result)
    operations = _needed(recorder.operations, number)
    used = {n for operation in operations for n in operation.uses()}
    parameters = [name for name, _ in model.named_parameters()]
    if idle := [name for name in parameters if names.index(name) not in used]:
        raise Untranslatable(f"the parameter {idle[0]} is not used")
    traced = Traced(
        names=names,
        operations=operations,
        constants={n: c for n, c in recorder.constants.items() if n in used},
        scores=number,
        held={
            name: order
            for name in parameters
            if (order := _order_used(operations, names.index(name))) is not None
        },
    )
    _check_in_jax(traced, given, result)
    return traced


def _check_in_jax(traced: Traced, given: Sequence[Tensor], result: Tensor) -> None:
    """Refuse what an operator's translation refuses, or gets wrong; computes nothing."""
    jax = load_jax()
    with jax.enable_x64(True):
        *arrays, x = [jax.ShapeDtypeStruct(tuple(t.shape), type_of(t)) for t in given]
        try:
            named = dict(zip(traced.names, arrays, strict=True))
            scores = jax.eval_shape(traced, named, x)
            trained = {n: a for n, a in named.items() if a.dtype.kind == "f"}
            jax.eval_shape(jax.grad(lambda t, n, x: traced({**n, **t}, x).sum()), trained, named, x)
        except Exception as error:  # whatever JAX makes of arguments that nobody thought of
            raise Untranslatable(f"no translation of {error}") from error
    if (scores.shape, str(scores.dtype)) != (tuple(result.shape), type_of(result)):
        raise Untranslatable(f"the translation gives {scores.dtype}{list(scores.shape)}")


def type_of(tensor: Tensor) -> str:
    """Return an element type as NumPy and JAX spell it."""
    return str(tensor.dtype).removeprefix("torch.")


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the ATen operations that happen, decomposed into those that are known."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare the import of torch's compiler, half a second, which nothing here uses."""
        return False

    def __init__(self, given: Sequence[Tensor]) -> None:
        """Number the tensors that are given from 0."""
        super().__init__()  # type: ignore[no-untyped-call]
        load_jax()
        from fedsim.training.operators import OPERATORS

        self._known = OPERATORS
        self._given = given
        self._numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []  # an id is unique as long as its tensor lives
        for tensor in given:
            self._add(tensor)
        self.operations: list[Operation] = []
        self.constants: dict[int, np.ndarray] = {}

    def follow(self, function: Callable[..., Tensor]) -> Tensor:
        """Call a function with the given tensors and return its result.

        Raises:
            Untranslatable: something in it has no translation.
        """
        try:
            with torch.no_grad(), self:
                return functionalize(function)(*self._given)  # type: ignore[no-any-return]
        except Untranslatable:
            raise
        except Exception as error:  # whatever a module does that cannot be followed
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise Untranslatable(f"the module cannot be traced: {reason}") from error

    def _add(self, tensor: Tensor) -> int:
        self._numbers[id(tensor)] = len(self._kept)
        self._kept.append(tensor)
        return len(self._kept) - 1

    def number_of(self, tensor: Tensor) -> int:
        """Return a tensor's number; one that no operation gave is a constant."""
        if id(tensor) not in self._numbers:
            self.constants[self._add(tensor)] = tensor.detach().cpu().numpy()
        return self._numbers[id(tensor)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Carry out one operation and write it down."""
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name not in self._known or func._schema.is_mutable:
            table: Any = torch._decomp.core_aten_decompositions()
            if func not in table:
                raise Untranslatable(f"no translation of the operator aten.{name}")
            with self:
                return table[func](*args, **kwargs)
        refs = tree_map_only(Tensor, lambda t: Ref(self.number_of(t)), (args, kwargs))
        result = func(*args, **kwargs)
        made = result if isinstance(result, tuple | list) else (result,)
        self.operations.append(
            Operation(
                name=name,
                args=refs[0],
                kwargs={key: value for key, value in refs[1].items() if key not in UNTOLD},
                results=tuple((self._add(t), type_of(t)) for t in made),
            )
        )
        return result


def _needed(operations: Sequence[Operation], number: int) -> tuple[Operation, ...]:
    """Return the operations that a value depends on."""
    wanted, kept = {number}, []
    for operation in reversed(operations):
        if wanted & {n for n, _ in operation.results}:
            kept.append(operation)
            wanted.update(operation.uses())
    return tuple(reversed(kept))


def _order_used(operations: Sequence[Operation], number: int) -> tuple[int, ...] | None:
    """Return the one order of axes in which a value is used; None if it has its own, or many."""
    orders = set()
    for operation in operations:
        if number not in operation.uses():
            continue
        if operation.name == "t":
            order: tuple[int, ...] | None = (1, 0)
        elif operation.name == "permute":
            order = tuple(operation.args[1])
        elif operation.name == "_to_copy":
            order = _order_used(operations, operation.results[0][0])
        elif operation.name == "convolution" and operation.args[1] == Ref(number):
            order = (*range(2, 2 + len(operation.args[3])), 1, 0)
        else:
            order = None
        orders.add(order)
    return orders.pop() if len(orders) == 1 else None


def examples_apart(model: Module, input_shape: Sequence[int]) -> bool:
    """Say whether an example's scores depend on no other example of its batch.

    Batches are filled up with examples that must not count; such a module would see them.
    """
    blank = _blank(model, 1, input_shape)
    with torch.no_grad():
        alike, apart = (_scores_once(model, torch.cat([blank, blank + d])) for d in (0, 1))
    return torch.equal(alike[0].nan_to_num(), apart[0].nan_to_num())


def _scores_once(model: Module, x: Tensor) -> Tensor:
    """Return scores, and leave the module's buffers and torch's generator as they were."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        return class_scores(model, tensors, x, None)


def _blank(model: Module, batch: int, input_shape: Sequence[int]) -> Tensor:
    """Return a batch of zeros where the model is, of its type."""
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    return torch.zeros((batch, *input_shape), dtype=floating_type(model), device=place)
