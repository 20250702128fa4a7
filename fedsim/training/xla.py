"""Loads JAX for this process as local training wants it; the one place where that is decided."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from types import ModuleType

from fedsim.errors import ConfigError

# A worker keeps to its core, as torch.set_num_threads(1) does for torch.
# (XLA reads no further than the first word that is no flag, so that nothing else may be in here.)
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"
INSTALL = "pip install 'fedsim[xla]'"


def load_jax() -> ModuleType:
    """Import JAX, on its first call with the settings that it reads at its import.

    XLA then runs on one thread and does not seize a GPU's memory in advance, unless the user has
    decided otherwise in ``XLA_FLAGS`` or ``XLA_PYTHON_CLIENT_PREALLOCATE``; what it compiles is
    kept on disk for the processes that come after, see :func:`cache_directory`.

    Raises:
        ConfigError: JAX is not installed.
    """
    first = "jax" not in sys.modules
    if first:
        given = os.environ.get("XLA_FLAGS", "")
        if "xla_cpu_multi_thread_eigen" not in given:
            os.environ["XLA_FLAGS"] = f"{ONE_THREAD} {given}".strip()
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        jax = importlib.import_module("jax")
    except ImportError as error:
        raise ConfigError(
            [
                f"train.compiler = 'xla': JAX cannot be imported ({error}); "
                f"install it with {INSTALL}, or use train.compiler = 'torch'"
            ]
        ) from error
    if not jax.config.jax_compilation_cache_dir:
        keep_compiled(jax, cache_directory())
    return jax


def start_xla(jax: ModuleType) -> None:
    """Start XLA in this process, if it has not been, with one thread to compute in.

    From then on JAX warns of every process that is started from this one.

    The flag of ``ONE_THREAD`` bounds the threads of one operation. XLA also has as many threads for
    operations as there are cores, between which a program wanders from cache to cache: a client of
    the 2NN takes 1.5 times as long then. XLA asks ``NPROC`` for their number, once, at its start.
    """
    given = os.environ.get("NPROC")
    os.environ["NPROC"] = given or "1"
    try:
        jax.devices("cpu")
    finally:
        if given is None:
            del os.environ["NPROC"]


def installed() -> bool:
    """Say whether JAX can be found, without importing it."""
    if "jax" in sys.modules:
        return sys.modules["jax"] is not None
    return importlib.util.find_spec("jax") is not None


def cache_directory() -> Path:
    """Return where compiled programs are kept: ``compiled/<processor>`` in fedsim's cache.

    That is ``FEDSIM_CACHE_DIR``, or ``fedsim`` in the user's cache directory. Programs use what
    their processor can do, and a home directory may be shared by many.
    """
    given = os.environ.get("FEDSIM_CACHE_DIR")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"
    return (Path(given) if given else base) / "compiled" / processor()


def processor() -> str:
    """Return a short name for this processor's instruction sets."""
    text = f"{platform.machine()} {platform.processor()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        text += next(line for line in lines if line.lower().startswith(("flags", "features")))
    except (OSError, StopIteration):  # not Linux: one kind of processor a machine
        pass
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def keep_compiled(jax: ModuleType, directory: Path) -> None:
    """Let JAX keep what it compiles in a directory, small programs too, if it can be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
