"""The floor plan: what may import what, also inside functions and for types alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for part in ("fedsim", "clients", "server") for path in ROOT.glob(f"{part}/**/*.py")
)
LIBRARY = [path for path in FILES if path.is_relative_to(ROOT / "fedsim")]

FOUNDATIONS = {
    *(
        "config",
        "conflicts",
        "errors",
        "npy",
        "promises",
        "units",
        "randomness",
        "records",
        "settings",
        "table",
        "telling",
        "values",
    ),
}

# What each part of fedsim may import of fedsim, besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(FOUNDATIONS, FOUNDATIONS),
    "models": FOUNDATIONS,
    "data": FOUNDATIONS,
    "measure": {*FOUNDATIONS, "models"},  # whose registry says what an activation costs
    "codecs": FOUNDATIONS,
    "privacy": {*FOUNDATIONS, "models", "data", "measure"},
    # From an experiment to the privacy that its rounds spend.
    "spending": {*FOUNDATIONS, "privacy", "training"},
    "affordable": {*FOUNDATIONS, "federation", "parts", "privacy", "spending"},
    "engine": {"errors"},
    "ledger": FOUNDATIONS,
    "flower": FOUNDATIONS,
    # The client's side and the server's side do not see each other.
    "training": {*FOUNDATIONS, "models", "data", "measure"},
    "algorithms": {*FOUNDATIONS, "models", "data", "measure"},
    "federation": {
        *FOUNDATIONS,
        *("models", "data", "measure", "algorithms", "codecs", "flower", "privacy"),
    },
    # Compositions: from an experiment to parts, to a directory, to a finished run.
    "vocabulary": {*FOUNDATIONS, "codecs", "data", "models", "federation"},
    "parts": {*FOUNDATIONS, "data", "models", "privacy", "training"},
    "adversary": {*FOUNDATIONS, "algorithms", "data", "parts"},
    # An audit runs the very mechanisms that a federation and its clients do.
    "auditing": {
        *FOUNDATIONS,
        *("affordable", "algorithms", "federation", "parts", "privacy", "spending", "training"),
    },
    "runs": {*FOUNDATIONS, "ledger"},
    "simulation": {
        *FOUNDATIONS,
        *("affordable", "choices", "engine", "measure", "parts", "runs"),
    },
    "choices": {*FOUNDATIONS, "costs", "measure", "parts", "runs", "training"},
    # What an experiment costs: counted, timed on this machine, and the price of measuring.
    "costs": {*FOUNDATIONS, "measure", "parts"},
    "calibration": {*FOUNDATIONS, "measure", "parts"},
    "overhead": {*FOUNDATIONS, "choices", "engine", "ledger", "measure", "simulation"},
    # The same apps in containers: keys, nodes, and whoever operates them.
    "deployment": {*FOUNDATIONS, "ledger", "measure"},
    "study": {*FOUNDATIONS, "ledger", "measure", "runs"},
    # What it shows of a study is computed there; both read directories and train nothing.
    # Of privacy, the rows and pictures that an attack left, which need no torch.
    "report": {"errors", "records", "units", "ledger", "measure", "privacy", "study"},
    "cli": {
        *FOUNDATIONS,
        *("data", "deployment", "engine", "ledger", "measure", "privacy", "report", "study"),
        *("auditing", "calibration", "choices", "costs", "overhead", "parts", "runs", "simulation"),
        "vocabulary",
    },
    # "import fedsim" gives these two at first use.
    "__init__": {"engine", "ledger"},
    "__main__": {"cli"},
}

# The apps compose functions of their own side, and do not see each other.
COMMON = {
    *("config", "flower", "parts", "measure", "randomness", "records", "settings", "training"),
}
APPS = {
    "clients": {
        *COMMON,
        *("adversary", "algorithms", "codecs", "costs", "data", "errors", "privacy"),
    },
    "server": {
        *COMMON,
        *("adversary", "affordable", "errors", "federation", "ledger", "privacy", "runs"),
        *("spending", "telling", "vocabulary"),
    },
}

# Who may import a library; nobody else does.
HOMES = {
    "ray": {"engine"},
    "jax": {"training"},
    "flwr": {"deployment", "engine", "federation", "flower", "clients", "server"},
    "yaml": {"deployment"},
    "cryptography": {"deployment", "privacy"},
    "dp_accounting": {"privacy"},
    "Crypto": {"privacy"},
    "httpx": {"deployment"},
    "typer": {"cli"},
    "click": {"cli"},
    "rich": {"cli", "report"},
    # Between processes of one program, never from a file.
    "cloudpickle": {"engine"},
    "pickle": {"engine"},
}
WITHOUT_TORCH = {"report", "ledger", "study", "cli", "runs", *FOUNDATIONS}

# What runs code that is hidden in data.
DANGEROUS_MODULES = {"marshal", "shelve", "dill", "joblib"}
DANGEROUS = {"torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"}
DANGEROUS_NAMES = {name.rpartition(".")[2] for name in DANGEROUS}
# What a driver and its own workers send each other over Ray, which unpickles it anyhow.
BETWEEN_WORKERS = {"fedsim/engine/actor.py": {"pickle.loads"}}
DANGEROUS_BUILTINS = {"eval", "exec", "compile", "__import__"}


def part_of(path: Path) -> str:
    """Return the part that a file belongs to: ``engine`` of fedsim/engine/grid.py."""
    inside = path.relative_to(ROOT)
    return inside.parts[1].removesuffix(".py") if inside.parts[0] == "fedsim" else inside.parts[0]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported(path: Path) -> frozenset[str]:
    """Return the dotted names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def libraries(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def parts_imported(path: Path) -> set[str]:
    """Return the parts of fedsim that a file imports; of fedsim itself, only its version."""
    names = {name for name in imported(path) if name.startswith("fedsim.")}
    return {name.split(".")[1] for name in names} - {"__version__"}


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", LIBRARY, ids=named)
def test_a_file_imports_what_its_floor_may(path: Path) -> None:
    part = part_of(path)
    assert parts_imported(path) - MAY_IMPORT[part] - {part} == set()


@pytest.mark.parametrize("app", APPS)
def test_an_app_composes_its_own_side(app: str) -> None:
    found = {part for path in FILES if part_of(path) == app for part in parts_imported(path)}
    assert found - APPS[app] == set()


def test_the_plan_is_of_parts_that_exist_and_allows_nothing_that_nobody_uses() -> None:
    parts = {part_of(path) for path in LIBRARY}
    assert parts == set(MAY_IMPORT)
    compositions = (
        *("vocabulary", "parts", "runs", "simulation", "costs", "calibration", "overhead"),
        *("study", "report", "cli"),
    )
    for part in (*compositions, "federation", "__init__", "__main__"):
        used = {p for path in LIBRARY if part_of(path) == part for p in parts_imported(path)}
        assert MAY_IMPORT[part] - FOUNDATIONS - used - {"models", "data"} == set(), part


def test_nobody_imports_the_command_line_or_the_apps() -> None:
    for path in LIBRARY:
        assert not libraries(path) & {"clients", "server", "tests", "benchmarks"}, path
        if part_of(path) not in ("cli", "__main__"):
            assert "cli" not in parts_imported(path), path


@pytest.mark.parametrize("library", HOMES)
def test_a_library_stays_where_it_is_at_home(library: str) -> None:
    users = {part_of(path) for path in FILES if library in libraries(path)}
    assert users <= HOMES[library]


def test_what_reads_and_prints_needs_no_torch() -> None:
    users = {part_of(path) for path in FILES if "torch" in libraries(path)}
    assert users & WITHOUT_TORCH == set()
    assert {"training", "models"} <= users


@pytest.mark.parametrize("path", FILES, ids=named)
def test_nothing_that_is_read_can_run_code(path: Path) -> None:
    assert not libraries(path) & DANGEROUS_MODULES
    assert not DANGEROUS & imported(path)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Name):
            assert node.id not in DANGEROUS_BUILTINS, node.lineno
        elif isinstance(node, ast.Attribute) and node.attr in DANGEROUS_NAMES:
            refused = DANGEROUS - BETWEEN_WORKERS.get(named(path), set())
            assert ast.unparse(node) not in refused, node.lineno
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert ast.unparse(node.value) == "False", node.lineno


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=named)
def test_everything_public_says_what_it_is(path: Path) -> None:
    assert list(undocumented(tree(path), path.stem)) == []


def undocumented(node: ast.Module | ast.ClassDef | ast.FunctionDef, name: str) -> Iterator[str]:
    """Yield what is public in a module or class and has no docstring; functions hold no public."""
    if ast.get_docstring(node) is None:
        yield name
    if isinstance(node, ast.FunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield from undocumented(child, f"{name}.{child.name}")


def test_importing_a_module_does_nothing() -> None:
    """At the top of a file: no draws, no clocks, no environment, no logging set up."""
    doing = {"random", "time", "environ", "basicConfig", "manual_seed", "set_num_threads"}
    for path in FILES:
        for statement in tree(path).body:
            if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom):
                continue
            calls = (node.func for node in ast.walk(statement) if isinstance(node, ast.Call))
            names = {
                part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "")
                for call in calls
                for part in ast.walk(call)
            }
            assert not names & doing, f"{path}:{statement.lineno}"
