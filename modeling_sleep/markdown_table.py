"""A table in Markdown."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence, rows: Iterable[Sequence], align: str = "") -> str:
    """Cells in Markdown; `align` has an `l` or `r` per column, by default `l` for the first and `r` for the others."""
    sides = align or "l" + "r" * (len(head) - 1)
    rule = "".join("---|" if side == "l" else "---:|" for side in sides)
    head, *rows = (f"| {' | '.join(map(str, cells))} |" for cells in (head, *rows))
    return "\n".join([head, f"|{rule}", *rows])
