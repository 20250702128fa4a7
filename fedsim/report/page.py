"""A report as one HTML file: no script, no network, its figures in it as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedsim.report.drawing import THEMES, Picture, Table, page_svg


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a report; whatever is empty does not show.

    Attributes:
        name: its place on the page.
        title: its heading.
        text: paragraphs.
        picture: with its caption and its numbers.
        table: shown openly.
        code: shown as it is.
        missing: why there is nothing to see.
    """

    name: str
    title: str
    text: tuple[str, ...] = ()
    picture: Picture | None = None
    table: Table = ((), [])
    code: str = ""
    missing: str = ""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A report.

    Attributes:
        title: of the window.
        question: what was asked; the heading.
        notice: what whoever reads must know first, such as that runs are missing.
        answers: the verdicts, each with a word that it is summed up in.
        picture: the one to look at.
        sections: the rest.
    """

    title: str
    question: str
    notice: str = ""
    answers: tuple[tuple[str, str], ...] = ()
    more: str = ""
    picture: Picture | None = None
    sections: Sequence[Section] = field(default=())

    @property
    def pictures(self) -> list[Picture]:
        """Every figure of the report, each once."""
        found = [self.picture, *(section.picture for section in self.sections)]
        return list({p.name: p for p in found if p is not None}.values())


def html_of(page: Page) -> str:
    """Return the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("fedsim.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = lambda picture, narrow: Markup(page_svg(picture, narrow=narrow))
    return environment.get_template("page.html").render(page=page, themes=THEMES)
