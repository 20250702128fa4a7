"""How a command prints its help."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import click
from typer.core import TyperCommand


class Command(TyperCommand):
    """A command with plain help, in which examples stand as they are written, ready to be copied.

    The sections are laid out here because typer below 0.21, to which Flower keeps us, and click
    from 8.5 on each want to print the arguments, and between them lose what was said about them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Click rewraps a paragraph unless it opens with a backspace: every indented one gets it.
        self.help = re.sub(r"\n\n(?= )", "\n\n\b\n", self.help or "")

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write usage, description, arguments and options."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        parameters = self.get_params(ctx)
        arguments = [self.explained(p, ctx) for p in parameters if isinstance(p, click.Argument)]
        options = [
            click.Option.get_help_record(p, ctx) for p in parameters if isinstance(p, click.Option)
        ]
        for title, rows in (("Arguments", arguments), ("Options", options)):
            if shown := [row for row in rows if row]:
                with formatter.section(title):
                    formatter.write_dl(shown)

    def explained(self, argument: click.Argument, ctx: click.Context) -> tuple[str, str]:
        """Return how an argument is written and what it means, as its annotation says."""
        function = inspect.unwrap(typing.cast("typing.Callable[..., Any]", self.callback))
        hints = typing.get_type_hints(function, include_extras=True)
        return argument.make_metavar(ctx), hints[str(argument.name)].__metadata__[0].help
