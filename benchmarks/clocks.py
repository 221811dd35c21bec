"""How long an act takes; other benchmarks use it. No benchmark itself."""

import time
from collections.abc import Callable

REPEATS = 5


def seconds(act: Callable[[], object], repeats: int = REPEATS) -> float:
    """Processor seconds, the fastest of several after one that is not counted."""
    act()
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        act()
        spent.append(time.process_time() - began)
    return min(spent)
