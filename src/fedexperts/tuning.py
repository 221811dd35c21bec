"""Which values to try: a grid first, then one step beyond an end that won, then between neighbours.

A point is a value for each dotted key that is tuned, and each has a score on validation data. Every
experiment of a comparison spends the same number of points. This room does not know what a run is,
or what a key means.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .options import Values

BEYOND = 2  # points after the largest grid of a comparison
Grid = Mapping[str, Sequence[object]]  # dotted key -> the values to try at first


@dataclass(frozen=True)
class Tried:
    """A point and its score; None: it came to no end, as a rate that is too high."""

    point: Values
    score: float | None


def grid(tune: Grid) -> list[Values]:
    """Every combination of the values to try; none where there is nothing to choose."""
    if not tune:
        return []
    return [dict(zip(tune, choice, strict=True)) for choice in itertools.product(*tune.values())]


def best(tried: Sequence[Tried]) -> Tried | None:
    """The point with the highest score, the first of equals; None if all came to no end."""
    scored = [(each.score, each) for each in tried if each.score is not None]
    if not scored:
        return None
    return max(scored, key=lambda pair: pair[0])[1]


def following(
    tune: Grid, tried: Sequence[Tried], allowed: Callable[[Values], bool]
) -> Values | None:
    """The next point, if there is one that is `allowed`."""
    top = best(tried)
    if top is None:
        return None
    candidates = [*_beyond(tune, tried, top.point), *_between(tune, tried, top.point)]
    return next((top.point | change for change in candidates if allowed(top.point | change)), None)


def edges(tune: Grid, tried: Sequence[Tried], allowed: Callable[[Values], bool]) -> dict[str, str]:
    """Keys whose best value is the "lowest" or "highest" that was tried, though others may be."""
    top = best(tried)
    if top is None:
        return {}
    marked = {}
    for change in _beyond(tune, tried, top.point):
        for key, value in change.items():
            if allowed(top.point | change):
                marked[key] = "highest" if value > top.point[key] else "lowest"
    return marked


def _numeric(tune: Grid) -> Iterator[tuple[str, list[float]]]:
    """The keys that have a scale, each with the values of its grid in order."""
    for key, values in tune.items():
        numbers = [
            value
            for value in values
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if len({*numbers}) == len({*map(str, values)}) > 1:
            yield key, sorted({*numbers})


def _beyond(tune: Grid, tried: Sequence[Tried], point: Values) -> Iterator[Values]:
    """For each key at an end of what was tried, the value one step further."""
    for key, values in _numeric(tune):
        known = sorted({each.point[key] for each in tried})
        if point[key] == known[-1]:
            yield {key: _step(values, known[-1], values[-2], values[-1])}
        if point[key] == known[0]:
            yield {key: _step(values, known[0], values[1], values[0])}


def _step(values: Sequence[float], end: float, inner: float, outer: float) -> float:
    """As far from `end` as `outer` is from `inner`: in ratio or, where a grid has 0, in
    difference.
    """
    if values[0] <= 0:
        return end + (outer - inner)
    return _rounded(end * outer / inner, values)


def _between(tune: Grid, tried: Sequence[Tried], point: Values) -> list[Values]:
    """Values half way to the neighbours of the point's, the widest gap of its key's range first."""
    points = []
    for key, values in _numeric(tune):
        known = sorted({each.point[key] for each in tried})
        at = known.index(point[key])
        for low, high in itertools.pairwise(known[max(at - 1, 0) : at + 2]):
            gap = (high - low) / (known[-1] - known[0])
            middle = (low + high) / 2
            if known[0] > 0:
                gap = math.log(high / low) / math.log(known[-1] / known[0])
                middle = math.sqrt(low * high)
            if (value := _fine(middle, values)) not in known:
                points.append((gap, {key: value}))
    return [change for _, change in sorted(points, key=lambda pair: -pair[0])]


def _rounded(value: float, values: Sequence[float]) -> float:
    """A value that reads like those of its grid: of the series 1, 3, 10 if they all are."""
    if all(isinstance(each, int) for each in values) or not all(map(_of_series, values)):
        return _fine(value, values)
    halves = round(2 * math.log10(value))
    return float(f"{'13'[halves % 2]}e{halves // 2}")


def _of_series(value: float) -> bool:
    said = f"{value:.0e}"
    return said[0] in "13" and float(said) == value


def _fine(value: float, values: Sequence[float]) -> float:
    """In two digits; whole where the grid's are."""
    if all(isinstance(each, int) for each in values):
        return round(value)
    return float(f"{value:.2g}")
