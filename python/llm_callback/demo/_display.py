"""What the demo needs of a terminal: a block that is redrawn in place, a bar, a table."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal, TextIO, TypeAlias

    _Colour: TypeAlias = Literal["green", "yellow", "red", "dim"]

_CODES: dict[_Colour, str] = {"green": "32", "yellow": "33", "red": "31", "dim": "2"}


class Screen:
    """Writes to ``out``: with colours and in place on a terminal, as plain lines elsewhere.

    Used by one thread. Nothing blocks except ``out`` itself.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.live = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._colours = self.live and not os.environ.get("NO_COLOR")
        self._full, self._empty = ("█", "░") if _can_encode(out, "█░") else ("#", ".")
        self._drawn = 0

    @property
    def columns(self) -> int:
        """How many characters a line of a block can have."""
        return shutil.get_terminal_size().columns - 1

    def paint(self, text: str, colour: _Colour | None) -> str:
        """Return ``text`` in a colour, where the output has colours."""
        if colour is None or not self._colours:
            return text
        return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"

    def bar(self, done: int, total: int, width: int) -> str:
        """Return a bar of ``width`` characters."""
        full = min(width, width * done // max(1, total))
        return self._full * full + self._empty * (width - full)

    def line(self, text: str = "", colour: _Colour | None = None) -> None:
        """Write a line that stays."""
        self._write(self.paint(text, colour) + "\n")

    def block(self, lines: Sequence[tuple[str, _Colour | None]]) -> None:
        """Draw the block of lines, over the one before; only for a ``live`` screen.

        Lines are cut at the terminal's width, and the block at its height, because a terminal
        cannot move the cursor back into what has scrolled away.
        """
        columns, height = self.columns, shutil.get_terminal_size().lines
        shown = list(lines)
        if len(shown) > height - 2:
            kept = max(1, height - 3)
            shown = [*shown[:kept], (f"... and {len(shown) - kept} more", "dim")]
        hide = "" if self._drawn else "\x1b[?25l"
        back = f"\x1b[{self._drawn}F" if self._drawn else ""
        rows = [self.paint(text[:columns], colour) + "\x1b[K\n" for text, colour in shown]
        # \x1b[J: what is left of a longer block, after the terminal became smaller.
        self._write(hide + back + "".join(rows) + "\x1b[J")
        self._drawn = len(shown)

    def end_block(self) -> None:
        """Leave the block as it stands and give the cursor back."""
        if self._drawn:
            self._write("\x1b[?25h")
            self._drawn = 0

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def ending(text: str, room: int) -> str:
    """Return the last whole words of a text for which ``room`` characters are enough; part of one that is longer."""
    text = text.strip()
    if len(text) <= room:
        return text
    # With the character before them, which says whether the first word is whole.
    cut = text[-room - 1 :]
    return cut.partition(" ")[2].strip() or cut[1:]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lay out a table: the first ``left`` columns to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]


def _can_encode(out: TextIO, text: str) -> bool:
    try:
        text.encode(out.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
