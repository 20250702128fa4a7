"""Draws sampled stacks as one small SVG, and says how many of them end in a compute kernel."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from html import escape

Stacks = dict[tuple[str, ...], int]

WIDTH, ROW, SMALLEST = 1200.0, 17, 0.004  # frames below this share of the samples are left out

# Where a stack ends when a processor computes: products, torch's inner loops, code that XLA
# compiled and that therefore belongs to no file.
KERNELS = re.compile(
    r"mkl_|sgemm|gemm|dnnl|mkldnn|[Vv]ectorize|at::vec|cpu_index_kernel|scalar_fill|_kernel\b|"
    r"Eigen::internal|\bynn::|\bxnn_|\bxla::cpu::.*Kernel"
)
COMPILED = re.compile(r"/perf-\d+\.map|\[JIT\]|//anon")  # where code lies that XLA compiled
WAITING = re.compile(r"tsl::BlockUntilReady|FutureBase::Await")  # for such code, in a thread of XLA


@dataclass
class Node:
    """A frame at one place of the graph, with what was called from there."""

    samples: int = 0
    children: dict[str, Node] = field(default_factory=dict)


def parse(raw: str) -> Stacks:
    """Read py-spy's raw format, a line a stack: frames from the outermost, then the count."""
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in raw.splitlines():
        frames, _, count = line.rpartition(" ")
        if frames:
            stacks[tuple(shorten(frame) for frame in frames.split(";"))] += int(count)
    return dict(stacks)


def shorten(frame: str) -> str:
    """Cut C++ template arguments and directories, which would fill the picture."""
    while ".py:" not in frame and (cut := re.sub(r"<[^<>]*>", "", frame)) != frame:
        frame = cut
    frame = re.sub(r"\((?:[^()]*/)?([^()/]+)\)$", r"(\1)", frame)
    return frame if len(frame) <= 90 else frame[:87] + "..."


def in_kernel(stack: tuple[str, ...]) -> bool:
    """Say whether a thread of Python was in a compute kernel, or waited for XLA's threads."""
    return bool(KERNELS.search(stack[-1])) or any(WAITING.search(frame) for frame in stack)


def kernel_share(stacks: Stacks) -> float:
    """Return the share of the samples that lie in compute kernels."""
    total = sum(stacks.values())
    return sum(n for stack, n in stacks.items() if in_kernel(stack)) / total if total else 0.0


def perf_kernel_share(script: str) -> float:
    """Return the share of samples in compute kernels, from ``perf script -F ip,sym,dso``.

    These are samples of all threads, those too that Python does not know, on the processor.
    """
    lines = [line for line in script.splitlines() if line.strip()]
    inside = sum(bool(KERNELS.search(line) or COMPILED.search(line)) for line in lines)
    return inside / len(lines) if lines else 0.0


def draw(stacks: Stacks, title: str) -> str:
    """Return an SVG: width is share of samples, callers are above what they call."""
    root = Node()
    for stack, count in stacks.items():
        node = root
        node.samples += count
        for frame in stack:
            node = node.children.setdefault(frame, Node())
            node.samples += count
    boxes: list[str] = []
    depth = place(root, 0.0, 0, root.samples or 1, boxes)
    height = (depth + 2) * ROW
    style = "text{font:11px sans-serif;pointer-events:none}rect{stroke:#fff;stroke-width:.5}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height}">'
        f"<style>{style}</style>"
        f'<text x="4" y="13">{escape(title)}; {root.samples} samples</text>'
        + "".join(boxes)
        + "</svg>\n"
    )


def place(node: Node, x: float, depth: int, total: int, boxes: list[str]) -> int:
    """Draw what a node called, from ``x`` on; return the depth of the deepest box."""
    deepest = depth
    for name, child in sorted(node.children.items()):
        width = WIDTH * child.samples / total
        if child.samples / total >= SMALLEST:
            boxes.append(box(name, child.samples, total, x, depth + 1, width))
            deepest = max(deepest, place(child, x, depth + 1, total, boxes))
        x += width
    return deepest


def box(name: str, samples: int, total: int, x: float, depth: int, width: float) -> str:
    """Return one frame: Python in blue, native code in orange, kernels in red."""
    letters = int(width / 6)
    label = name if len(name) <= letters else name[: max(letters - 1, 0)]
    text = f'<text x="{x + 2:.1f}" y="{depth * ROW + 12}">{escape(label)}</text>'
    return (
        f'<g><title>{escape(name)}: {samples / total:.1%}</title><rect x="{x:.1f}" '
        f'y="{depth * ROW}" width="{width:.1f}" height="{ROW - 1}" fill="{colour(name)}"/>'
        f"{text if letters >= 4 else ''}</g>"
    )


def colour(name: str) -> str:
    """Return a frame's colour by what kind of code it is."""
    if ".py:" in name:
        return "#9ecae1"
    return "#fc8d59" if KERNELS.search(name) else "#fee0a8"
