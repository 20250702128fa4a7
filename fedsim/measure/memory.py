"""Memory of local training: counted, what autograd saves; measured, the peak of the process."""

from __future__ import annotations

import ctypes
import gc
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module
from torch.nn.functional import cross_entropy

from fedsim.measure.compute import copy_of, leaves

LOSS = "loss"  # what is saved outside every layer
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")

# Bytes held at the start of this process's first block, by the block's name and device.
BASELINES: dict[tuple[Hashable, str], int] = {}


@dataclass(frozen=True, kw_only=True)
class SavedBytes:
    """What autograd saves in a training step, by layer; it is linear in the examples.

    Attributes:
        fixed: bytes that any batch takes.
        per_example: bytes that each example adds.
    """

    fixed: Mapping[str, int]
    per_example: Mapping[str, int]

    def by_layer(self, batch: int) -> dict[str, int]:
        """Return the bytes of a step with so many examples, by layer."""
        return {name: self.fixed[name] + batch * each for name, each in self.per_example.items()}

    def of(self, batch: int) -> int:
        """Return the bytes of a step with so many examples."""
        return sum(self.by_layer(batch).values())


def saved_bytes(model: Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """Count the bytes that autograd saves for backward in one training step, by layer.

    The step is ``cross_entropy(model(x), y)``, of a copy of the model and on the processor. The
    batch itself is saved too, x by the first layer and y by the loss; parameters and buffers do
    not count. Tensors that share memory count once, for the layer that saved it first. What only
    lives inside an operation is not captured.

    Args:
        x: features, (examples, \\*input shape).
        y: labels, (examples,).
    """
    twin = copy_of(model)
    state = map(Tensor.untyped_storage, chain(twin.parameters(), twin.buffers()))
    # Storages are held, so that none takes the place of another, and with it its identity.
    known = {id(storage): storage for storage in state}
    saved: Counter[str] = Counter()
    under_way = [LOSS]

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in known:
            known[id(storage)] = storage
            saved[under_way[-1]] += storage.nbytes()
        return tensor

    def leave(*_: object) -> None:
        under_way.pop()

    for name, layer in leaves(twin).items():
        layer.register_forward_pre_hook(lambda _, __, name=name: under_way.append(name))
        layer.register_forward_hook(leave)
    # A batch is memory of its own, not part of the examples that it was taken from.
    features, labels = (part.detach().clone().cpu() for part in (x, y))
    with torch.random.fork_rng(devices=[]), saved_tensors_hooks(pack, lambda tensor: tensor):
        cross_entropy(twin(features), labels)
    return dict(saved)


def saved_model(model: Module, input_shape: tuple[int, ...]) -> SavedBytes:
    """Return what autograd saves for any number of examples, from two small batches.

    Args:
        model: takes (batch, \\*input_shape), gives (batch, classes).
    """

    def saved_by(examples: int) -> dict[str, int]:
        x, y = torch.zeros(examples, *input_shape), torch.zeros(examples, dtype=torch.int64)
        return saved_bytes(model, x, y)

    two, three = saved_by(2), saved_by(3)
    per_example = {name: three[name] - two[name] for name in two}
    fixed = {name: two[name] - 2 * per_example[name] for name in two}
    return SavedBytes(fixed=fixed, per_example=per_example)


def largest_batch(
    cap_bytes: int, *, fixed_bytes: int, saved: SavedBytes, examples: int | None
) -> int:
    """Return the most examples a step may take within a cap; 0 if not even one fits.

    Args:
        cap_bytes: for what is fixed and what is saved, together.
        fixed_bytes: what any step takes: model, gradients, optimiser.
        saved: what autograd saves; something for each example.
        examples: how many there are; None for any number.
    """
    room = cap_bytes - fixed_bytes - saved.of(0)
    fits = max(room, 0) // (saved.of(1) - saved.of(0))
    return fits if examples is None else min(fits, examples)


def resident_bytes() -> int | None:
    """Return what the process holds of the machine's memory now; None where nobody says."""
    try:
        return status_bytes("VmRSS")
    except OSError:
        return None


@dataclass
class Peak:
    """The most memory that was held during a block; nothing until the block has ended.

    Attributes:
        peak_bytes: all that was held at the peak.
        above_bytes: the peak above its baseline, at least 0.
        reason: why there is no figure; empty where there is one.
    """

    peak_bytes: int | None = None
    above_bytes: int | None = None
    reason: str = ""


@contextmanager
def peak_memory(
    baseline: Hashable = None,
    *,
    device: str = "cpu",
    warm_up: Callable[[], None] | None = None,
) -> Iterator[Peak]:
    """Measure the peak of this process during a block; costs some 30 microseconds.

    On the processor it is the resident set as Linux counts it, to some hundred kB: pages that were
    touched, of all threads, and of freed memory that the allocator keeps. The process's own mark
    begins anew with the block, for others who read it too, so such blocks do not nest. On ``cuda``
    it is what torch's allocator gave to tensors.

    Args:
        baseline: names what the peak is above: the memory at the start of this process's first
            block of that name, as what that block frees may stay resident. What earlier blocks of
            other names left is given back first, which takes some milliseconds, so that the
            names' order matters little. None: the memory at the start of this block.
        device: ``cpu`` or ``cuda``.
        warm_up: is run before a baseline is read, once for each, so that what a process loads
            with its first such block is in every baseline.
    """
    peak, meter = Peak(), METERS[device]
    with explained(peak):
        before = meter.held() if baseline is None else first_held(baseline, device, warm_up=warm_up)
        meter.reset()
    try:
        yield peak
    finally:
        if not peak.reason:
            with explained(peak):
                peak.peak_bytes = meter.peak()
                peak.above_bytes = max(peak.peak_bytes - before, 0)


@contextmanager
def explained(peak: Peak) -> Iterator[None]:
    """Write down why a reading failed, and go on without it."""
    try:
        yield
    except OSError as error:
        peak.reason = f"no peak memory, which only Linux gives: {error}"


def first_held(
    baseline: Hashable, device: str, *, warm_up: Callable[[], None] | None = None
) -> int:
    """Return the bytes that were held when this was first asked for a baseline, all else freed.

    Raises:
        OSError: nobody says how many; then nothing is warmed up or freed.
    """
    held, key = METERS[device].held, (baseline, device)
    if key not in BASELINES:
        held()
        if warm_up is not None:
            warm_up()
        give_back()
        BASELINES[key] = held()
    return BASELINES[key]


def give_back() -> None:
    """Free what nothing refers to, and return free memory to the system where glibc can."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # no glibc; on Windows None is no library
        return


def reset_resident_peak() -> None:
    """Begin Linux's high-water mark of the resident set anew (``man 5 proc_pid_clear_refs``)."""
    with open(CLEAR, "wb", buffering=0) as file:
        file.write(b"5")


def status_bytes(key: str) -> int:
    """Read an amount of memory from Linux's status of this process.

    Raises:
        OSError: there is no such file, or no such line in it.
    """
    with open(STATUS, "rb", buffering=0) as file:
        _, found, after = file.readall().partition(f"\n{key}:".encode())
    if not found:
        raise OSError(f"{STATUS} has no {key}")
    return int(after.split(maxsplit=1)[0]) * 1024  # "kB", which are KiB


@dataclass(frozen=True, kw_only=True)
class Meter:
    """How a device's memory is read: bytes held now, and at most since the last reset."""

    held: Callable[[], int]
    peak: Callable[[], int]
    reset: Callable[[], None]


METERS: dict[str, Meter] = {
    "cpu": Meter(
        held=lambda: status_bytes("VmRSS"),
        peak=lambda: status_bytes("VmHWM"),
        reset=reset_resident_peak,
    ),
    "cuda": Meter(
        held=torch.cuda.memory_allocated,
        peak=torch.cuda.max_memory_allocated,
        reset=torch.cuda.reset_peak_memory_stats,
    ),
}
