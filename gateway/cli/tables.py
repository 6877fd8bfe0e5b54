"""Tables for other programs: what people are shown in the terminal, as lines of cells with tabs between them."""

from __future__ import annotations

from collections.abc import Iterable

import typer


def tabbed(*rows: Iterable[str]) -> None:
    """One line per row, never folded; a cell holds no tab and no line break."""
    for row in rows:
        typer.echo("\t".join(" ".join(cell.split()) for cell in row))
