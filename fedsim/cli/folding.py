"""Long sentences on a terminal: folded between words, which a terminal does not do."""

from __future__ import annotations

import shutil
import sys
import textwrap

# Without a terminal a sentence is one line: files and pipes are searched by line.
LEAST_WIDTH = 20  # of what is left beside the indent; on a narrower terminal the terminal folds


def folded(line: str, *, indent: int = 0, err: bool = False) -> str:
    """Return a line, folded where it goes to a terminal that is narrower.

    Args:
        line: what to print.
        indent: columns by which all but its first line stand to the right.
        err: it goes to standard error.
    """
    stream = sys.stderr if err else sys.stdout
    width = shutil.get_terminal_size().columns
    if not stream.isatty() or len(line) <= width or width - indent < LEAST_WIDTH:
        return line
    return textwrap.fill(
        line,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,  # paths, and settings, stay whole
        break_on_hyphens=False,
    )
