"""Whether runs were timed under the same conditions: pooling unlike machines compares machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedsim.records import Manifest

# What decides how long work takes, and is written down with every run.
CONDITIONS = ("processor", "cores", "platform", "threads")
LIBRARIES = ("torch", "jax", "jaxlib", "numpy")


def unlike_machines(manifests: Sequence[Manifest]) -> list[str]:
    """Say in what the machines of some runs differ, ``what: one, another``; nothing: in nothing.

    A run that was gone on with elsewhere is of both machines.
    """
    found: dict[str, dict[str, None]] = {}
    for manifest in manifests:
        for name, value in conditions(manifest):
            found.setdefault(name, {})[value] = None
    return [f"{name}: {', '.join(values)}" for name, values in found.items() if len(values) > 1]


def conditions(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what a run's timings depend on, whatever changed in a resumption too."""
    for name in CONDITIONS:
        yield name, str(getattr(manifest, name))
        for changed in manifest.changed.values():
            if name in changed:
                yield name, str(changed[name])
    for library in LIBRARIES:
        yield library, str(manifest.versions.get(library))
    for name in ("name", "device"):
        yield f"engine.{name}", str(manifest.engine.get(name))
