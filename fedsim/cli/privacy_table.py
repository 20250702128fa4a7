"""``fedsim privacy table``: accuracy under promises, leakage and cost, by activation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedsim.privacy.attacks.gallery import Reconstructions
    from fedsim.privacy.attacks.rows import LeakageRow


def table(
    studies: Annotated[
        list[Path], typer.Argument(metavar="STUDY...", help="Directories of studies.")
    ],
    attacks: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="What `privacy attack --out` left; may be repeated."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Markdown, or a page where it ends in .html.")
    ] = Path("privacy.md"),
) -> None:
    """Make the one table of privacy, from studies and attacks that are there; nothing is trained.

    Each study is over `privacy.level`, an epsilon and `model.activation`. A part that is not
    complete is shown as far as it is, and said to be.

    Examples:

        fedsim privacy table runs/user-mnist runs/example-mnist --attacks runs/leakage
        fedsim privacy table runs/user-mnist --out privacy.html
    """
    from fedsim.cli.report import study_data
    from fedsim.ledger.files import write_atomically
    from fedsim.report.markdown import write_markdown
    from fedsim.report.onetable import table_page
    from fedsim.report.page import html_of

    rows, shown = found_in(attacks or [])
    data = [study_data(directory, dealt=False) for directory in studies]
    page = table_page(data, rows, shown)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".html":
        write_atomically(out, html_of(page).encode())
        typer.echo(str(out))
        return
    for file in write_markdown(page, out, command=made_by(studies, attacks or [])):
        typer.echo(str(file))


def found_in(directories: Sequence[Path]) -> tuple[list[LeakageRow], list[Reconstructions]]:
    """Return the rows and images of all directories.

    Raises:
        LedgerError: one is missing, or holds neither.
    """
    from fedsim.errors import LedgerError
    from fedsim.report.leaks import read_attacks

    rows: list[LeakageRow] = []
    shown: list[Reconstructions] = []
    for directory in directories:
        found = read_attacks(directory) if directory.is_dir() else ([], [])
        if not found[0]:
            raise LedgerError(
                f"{directory} holds no rows of attacks; make some: "
                "fedsim privacy attack NAME --out DIR"
            )
        rows += found[0]
        shown += found[1]
    return rows, shown


def made_by(studies: Sequence[Path], attacks: Sequence[Path]) -> str:
    """Say how the file can be made again, whoever does it wherever."""
    where = " ".join(f"runs/{path.name}" for path in studies)
    leaked = "".join(f" --attacks runs/{path.name}" for path in attacks)
    return f"fedsim privacy table {where}{leaked} --out FILE"
