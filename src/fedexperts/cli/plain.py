"""A console on which text from strangers can do nothing but be read.

Names of files, classes, clients and experts may be made by strangers. Rich's markup in them is
escaped where they are printed; what would move a terminal's cursor, name its window or turn the
direction of a line is shown as its number here, for all that is printed. This room does not know
what is printed.
"""

import unicodedata
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_KEPT = "\n\t"
# marks of direction
_TURNS = {*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


class Plain(Console):
    """Rich's console; its own colours and movements are no text, and stay."""

    def render_str(self, text: str, **how: Any) -> Text:
        """Strings come by here before their width in a table is measured."""
        return super().render_str(plain(text), **how)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """All else, too, comes by here, and is text no longer when it leaves."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(plain(segment.text), segment.style)


def plain(text: str) -> str:
    """A text with every character that a terminal would act on written as its number."""
    if text.isprintable():  # almost all are, and none of these characters is
        return text
    return "".join(map(_visible, text))


def _visible(mark: str) -> str:
    if not _acts(mark):
        return mark
    return mark.encode("unicode_escape", "surrogatepass").decode()


def _acts(mark: str) -> bool:
    return mark in _TURNS or (mark not in _KEPT and unicodedata.category(mark) in ("Cc", "Cs"))
