"""docs/privacy.md names every setting of privacy as it is, and its commands and links are real."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fedsim.cli.main import app
from fedsim.settings import AdversaryTable, PrivacyTable, ServerTable

DOCS = Path(__file__).parents[1] / "docs"
PATH = DOCS / "privacy.md"
TEXT = PATH.read_text(encoding="utf-8")
DECISIONS = sorted((DOCS / "decisions").glob("002[1-4]-*.md"))


def rows() -> dict[str, tuple[str, str]]:
    """Return default and meaning of each key, from the text."""
    (section,) = re.findall(r"^## Settings$\n(.*?)(?=^## )", TEXT, re.DOTALL | re.MULTILINE)
    cells = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| (.+?) \| (.+) \|$", section, re.MULTILINE)
    return {key: (default, meaning) for key, default, meaning in cells}


def declared() -> dict[str, tuple[str, str]]:
    """Return the same from the code."""
    tables = {"privacy": PrivacyTable, "adversary": AdversaryTable}
    keys = {f"{name}.{f.name}": f for name, t in tables.items() for f in dataclasses.fields(t)}
    server = {f.name: f for f in dataclasses.fields(ServerTable)}
    keys |= {f"server.{name}": server[name] for name in ("weighting", "norm_bound")}
    return {key: (shown(f.default), meaning(**f.metadata)) for key, f in keys.items()}


def meaning(about: str, choices: tuple[str, ...], **_: object) -> str:
    """Return a key's help, and its choices where that does not tell them."""
    told = [choice for choice in choices if choice in about]
    return about if told or not choices else f"{about}: {', '.join(choices)}"


def shown(default: object) -> str:
    """Return a default as TOML has it."""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def test_every_setting_has_its_line_and_no_other_has() -> None:
    assert rows() == declared()


def commands() -> Iterator[list[str]]:
    for block in re.findall(r"^```\w*\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("fedsim "):
                yield shlex.split(line)[1:]


def test_every_command_is_one() -> None:
    called = list(commands())
    assert len(called) > 5
    for words in called:
        command = typer.main.get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context(command.name, words)


@pytest.mark.parametrize("path", [PATH, *DECISIONS], ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (path.parent / target).exists(), target
