"""Plain text tables for people."""

from __future__ import annotations

from tabulate import tabulate


def format_table(headers: list[str], rows: list[list[object]]) -> str:
    """Return a table in plain text, with columns of numbers aligned to the right."""
    cells = [[format_cell(value) for value in row] for row in rows]
    alignment = [column_alignment(list(column)) for column in zip(*cells, strict=True)]
    # tabulate would read '007' and '1e5' as numbers and print 7 and 100000.
    return tabulate(cells, headers=headers, colalign=alignment, disable_numparse=True)


def format_cell(value: object) -> str:
    """Return the value as text: a float with six significant digits, None as nothing."""
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def column_alignment(cells: list[str]) -> str:
    """Return 'right' for numbers, percentages and blanks, else 'left'."""
    return "right" if all(is_number(cell) for cell in cells if cell) else "left"


def is_number(cell: str) -> bool:
    """Return whether the text is a number such as 12, -0.5, 1,200 or 31.2 %."""
    try:
        float(cell.rstrip(" %").replace(",", ""))
    except ValueError:
        return False
    return True
