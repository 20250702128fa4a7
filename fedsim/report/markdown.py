"""A report as Markdown with its figures beside it: for documentation that lies in a repository."""

from __future__ import annotations

from pathlib import Path

from fedsim.ledger.files import write_atomically
from fedsim.report.drawing import Picture, Table, write_file
from fedsim.report.page import Page


def write_markdown(page: Page, path: Path, *, command: str) -> list[Path]:
    """Write the page, and its figures into a folder of the same name.

    Args:
        page: what to write.
        path: of the Markdown file.
        command: what made it, so that somebody can make it again.

    Returns:
        Every file that was written.

    Raises:
        LedgerError: one cannot be written.
    """
    folder = path.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{picture.name}.svg" for picture in page.pictures]
    for picture, file in zip(page.pictures, files, strict=True):
        write_file(picture, file)
    write_atomically(path, markdown_of(page, folder.name, command).encode())
    return [path, *files]


def markdown_of(page: Page, folder: str, command: str) -> str:
    """Return the page."""
    parts = [f"# {page.question}", f"<!-- made by: {command} -->"]
    if page.notice:
        parts.append(f"**{page.notice}**")
    parts.append(page.more)
    if page.answers:
        parts.append("\n".join(f"- **{word}**: {sentence}" for word, sentence in page.answers))
    parts += [image(page.picture, folder) if page.picture else ""]
    for section in page.sections:
        parts += [f"## {section.title}", *section.text, section.missing]
        if section.picture is not None:
            parts += [image(section.picture, folder), numbers(section.picture.table)]
        parts.append(numbers(section.table))
    return "\n\n".join(part for part in parts if part) + "\n"


def image(picture: Picture, folder: str) -> str:
    """Return a figure with its caption."""
    kinds = ", ".join(picture.kinds)
    return f"![{picture.title}]({folder}/{picture.name}.svg)\n\n*{kinds}.* {picture.caption}"


def numbers(table: Table) -> str:
    """Return a table; nothing for an empty one."""
    head, rows = table
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in r) + " |" for r in lines)
