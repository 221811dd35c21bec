"""In a notebook: how far a run is, and what it found.

Elsewhere both do nothing. This room does not know how a run goes.
"""

import sys
from collections.abc import Callable, Sequence
from html import escape

from .collect import Experiment
from .tables import tables


def bar(name: str) -> Callable[[int, int], None]:
    """What hears how many rounds of how many are done, and shows it as a bar."""
    if "ipykernel" not in sys.modules:
        return lambda done, total: None
    from IPython.display import HTML, display

    shown = display(HTML(""), display_id=True)
    assert shown is not None

    def tell(done: int, total: int) -> None:
        text = f"{escape(name)}: round {done} of {total}"
        shown.update(HTML(f'<progress value="{done}" max="{total}"></progress> {text}'))

    return tell


def html(experiments: Sequence[Experiment]) -> str:
    """Tables, and accuracy over rounds, as a notebook sets them."""
    from .figures import accuracies  # brings matplotlib
    from .page import figure, set_table

    pictures = [figure(picture) for picture in accuracies(experiments)[:1]]
    return "\n".join([*(set_table(table) for table in tables(experiments)), *pictures])
