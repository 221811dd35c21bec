"""A data set of the papers as a federation, dealt out to simulated clients.

This room does not know how a set is kept or read, or how clients are made.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from ..fetch import all_here
from ..options import REQUIRED, Outside, option
from .examples import Example, Listing, words
from .federation import Federation
from .images import several
from .sets import SETS, Rows, folder, reader
from .simulated import IN_GROUPS, Simulated


@dataclass(frozen=True, kw_only=True)
class Hub(Simulated, Outside):
    """A data set of the papers, from a local copy or the hub's download, split as papers do."""

    dataset: str = option(REQUIRED, says=f"one of {', '.join(SETS)}")
    path: str = option(
        "", says="a copy of the set: a folder of parquet files, or of save_to_disk; empty: hub's"
    )
    classes: tuple[str, ...] = option(
        (), says="classes to keep, in their order; [] takes those of the papers, mostly all"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dataset not in SETS:
            near = difflib.get_close_matches(self.dataset, SETS, 1) or [", ".join(SETS)]
            raise ValueError(f"dataset = {self.dataset!r}: no such set; use {near[0]}")
        if self.partition in IN_GROUPS and not SETS[self.dataset].group:
            groups = ", ".join(name for name, known in SETS.items() if known.group)
            raise ValueError(
                f"partition = {self.partition!r}: {self.dataset} does not say whose an example is;"
                " expected "
                f'"pathological", "dirichlet" or "dominant", or one of {groups}'
            )

    def at_hand(self) -> None:
        """ValueError, with what to type, if the set or what reads it is not on this machine."""
        all_here(reader, lambda: folder(self.dataset, self.path))

    def load(self, seed: int) -> Federation:
        """ValueError, with what to type, if the set is not there or not what its page says."""
        known = SETS[self.dataset]
        rows = Rows.opened(folder(self.dataset, self.path), known)
        said = self._words(rows.names())
        named = list(said.values())
        parts = known.parts
        examples = []
        for what, label, group in zip(*rows.listed(list(said)), strict=True):
            part = parts[what.partition("/")[0]]
            examples.append(Example(what, named[label], group, part))
        notes: tuple[str, ...] = ()
        if left := rows.count - len(examples):
            notes = (f"Left out, as of other classes: {left} of {rows.count} examples.",)
        store = None if rows.texts else rows
        listing = Listing(examples, store=store, notes=notes)
        return self.simulate(listing, tuple(named), seed, rows.shown)

    def _words(self, names: Sequence[str]) -> dict[str, str]:
        """The classes to keep, as the set names them, with the words for each."""
        known = SETS[self.dataset]
        says = {name: known.words.get(name, words(name)) for name in names}
        left = tuple(name for name, word in says.items() if word)
        wanted = self.classes or tuple(known.classes.split()) or left
        spelled = {name: name for name in says} | {says[name]: name for name in left}
        for name in wanted:
            if name not in spelled:
                near = difflib.get_close_matches(name, spelled, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"they are {several(says)}"
                raise ValueError(f"{name!r} is no class of {self.dataset}; {hint}")
        return {spelled[name]: says[spelled[name]] or words(spelled[name]) for name in wanted}
