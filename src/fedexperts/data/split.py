"""Who gets which example: seeded cuts of a list of labels.

Every function takes labels and a generator and returns positions into those labels, sorted. Nothing
here reads global random state or iterates over a set, and sizes are computed in whole numbers, so
equal seeds give equal splits on every machine. This room does not know what the examples are, or
where they came from.
"""

from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate
from math import inf

import numpy as np
import torch
from torch import Generator, Tensor

from .federation import Parts

FITS = 100  # passes of the proportional fitting; what it leaves unfitted, the draw evens out


def apportion(total: int, weights: Sequence[float], least: int = 0) -> list[int]:
    """Whole numbers in proportion to `weights`, of sum `total`, by largest remainders.

    Each is less than one from exact, unless lifted to `least` at the cost of the largest; weight 0
    gets 0. ValueError if `total` is less than `least` for each.
    """
    exact = [Fraction(weight) * total / sum(map(Fraction, weights)) for weight in weights]
    sizes = [int(share) for share in exact]
    for position in sorted(range(len(sizes)), key=lambda i: sizes[i] - exact[i])[
        : total - sum(sizes)
    ]:
        sizes[position] += 1
    if total < least * sum(weight > 0 for weight in weights):
        raise ValueError(
            f"{total} examples cannot give at least {least} to each share of {list(weights)}"
        )
    for position, weight in enumerate(weights):
        while weight > 0 and sizes[position] < least:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[position] += 1
    return sizes


def deal(labels: Tensor, sizes: Sequence[int], generator: Generator) -> list[Tensor]:
    """Cut labels [n] into pieces of exactly these sizes, each with the whole's class distribution.

    The examples lie class by class, shuffled, and each goes in turn to the piece that is furthest
    behind its share; so a piece's count of any class is less than two from exact (measured, for up
    to four pieces). ValueError if the sizes do not sum to n.
    """
    count = len(labels)
    if sum(sizes) != count:
        raise ValueError(
            f"sizes {list(sizes)} sum to {sum(sizes)}: it must be {count}, the number of examples"
        )
    pieces: list[list[int]] = [[] for _ in sizes]
    for turn, example in enumerate(_class_by_class(labels, generator), start=1):
        behind = [
            size * turn - count * len(piece) for size, piece in zip(sizes, pieces, strict=True)
        ]
        pieces[behind.index(max(behind))].append(example)
    return [_positions(piece) for piece in pieces]


def dirichlet(labels: Tensor, clients: int, alpha: float, generator: Generator) -> list[Tensor]:
    """Share labels [n] out to `clients`: equal totals, class proportions by Dirichlet(alpha).

    Each client draws its class proportions from Dirichlet(alpha) (Hsu et al., arXiv:1909.06335). In
    turns of one example each, clients draw a class from their proportions and take an example of
    it, among the classes that are not used up (Acar et al., arXiv:2111.04263); with turns no client
    is left with what the others did not want. First the table of proportions is fitted to the
    supply (iterative proportional fitting), so that classes run out together and the drawn skew
    survives: without it, clients of Dirichlet(0.3) come out nearer to uniform. Below alpha 0.05 or
    so, equal totals leave no more skew to give. ValueError if there are fewer examples than
    clients, or alpha is not above 0 and finite.
    """
    if not 1 <= clients <= len(labels) or not 0 < alpha < inf:
        raise ValueError(
            f"{len(labels)} examples to {clients} clients by Dirichlet({alpha}): it must be 1 to"
            f" {len(labels)} clients, and alpha above 0 and finite"
        )
    sizes, stock = apportion(len(labels), [1] * clients), _stock(labels, generator)
    wishes = _fit(
        _proportions(clients, len(stock), alpha, generator), sizes, [len(pile) for pile in stock]
    )
    return [_positions(hand) for hand in _take_turns(wishes.tolist(), sizes, stock, generator)]


def pathological(labels: Tensor, clients: int, generator: Generator) -> list[Tensor]:
    """Whole classes to clients, disjoint, equally many (arXiv:2410.10114, "pathological").

    ValueError if a client would get fewer than two classes: with one, it is right whatever it
    answers.
    """
    classes = torch.tensor(_classes(labels))
    if clients < 1 or len(classes) < 2 * clients:
        raise ValueError(
            f"{len(classes)} classes to {clients} clients: it must be 1 to {len(classes) // 2}"
            " clients, so that each has two"
        )
    shuffled = classes[torch.randperm(len(classes), generator=generator)]
    hands = torch.tensor_split(shuffled, clients)  # sizes differ by at most one
    return [torch.isin(labels, own).nonzero().flatten() for own in hands]


def dominant(labels: Tensor, clients: int, share: float, generator: Generator) -> list[Tensor]:
    """Share labels [n] out to `clients`: equal totals, and one class has `share` of each client's.

    The classes, in a random order, take turns at being a client's own, and all other classes have
    the rest alike. That is so to within two examples where classes are equally frequent and
    `clients` a multiple of them; else a share comes out a little other. It goes from 1 / classes,
    where nobody is skewed, to 1, where a client has one class. ValueError if there are fewer
    examples than clients, a share is out of reach, or a class too rare for its clients.
    """
    stock, count = _stock(labels, generator), len(labels)
    if not 1 <= clients <= count or not 1 <= share * len(stock) <= len(stock):
        raise ValueError(
            f"{count} examples of {len(stock)} classes to {clients} clients, {share} of one class:"
            f" it must be 1 to {count} clients, and a share of {1 / max(len(stock), 1):.3g} to 1"
        )
    # the rest is dealt alike, and has its own class, too
    ahead = (share * len(stock) - 1) / max(len(stock) - 1, 1)
    order, sizes = (
        torch.randperm(len(stock), generator=generator).tolist(),
        apportion(count, [1] * clients),
    )
    hands = []
    for client, size in enumerate(sizes):
        pile, own = stock[order[client % len(stock)]], round(ahead * size)
        if own > len(pile):
            raise ValueError(
                f"a class has too few examples to be {share} of those of each of its clients: it"
                f" must be a smaller share, or clients that are a multiple of the {len(stock)}"
                " classes"
            )
        hands.append([pile.pop() for _ in range(own)])
    rest = _positions([example for pile in stock for example in pile])
    left = [size - len(hand) for size, hand in zip(sizes, hands, strict=True)]
    pieces = deal(labels[rest], left, generator)
    return [
        _positions(hand + rest[piece].tolist()) for hand, piece in zip(hands, pieces, strict=True)
    ]


def alike(labels: Tensor, owned: Sequence[Tensor], generator: Generator) -> list[Tensor]:
    """Share labels [n] out so that each client gets as much of a class as it has of it in `owned`.

    `owned` are the labels that each client has already; a class that nobody has goes to nobody.
    """
    hands: list[list[int]] = [[] for _ in owned]
    for name, pile in zip(_classes(labels), _stock(labels, generator), strict=True):
        shares = [int((own == name).sum()) for own in owned]
        if not any(shares):
            continue
        for hand, size in zip(hands, apportion(len(pile), shares), strict=True):
            hand += pile[:size]
            del pile[:size]
    return [_positions(hand) for hand in hands]


def natural(groups: Sequence[str]) -> dict[str, Tensor]:
    """Every group whole, by name: positions of each domain, writer or user; groups in order."""
    own: dict[str, list[int]] = {name: [] for name in sorted(set(groups))}
    for position, name in enumerate(groups):
        own[name].append(position)
    return {name: _positions(examples) for name, examples in own.items()}


def reserve(labels: Tensor, size: int, alpha: float, generator: Generator) -> Tensor:
    """Positions of the server's examples, `size` of each class; with alpha above 0, on average.

    Class proportions are then drawn once from Dirichlet(alpha), and examples one by one in these
    proportions, among the classes that are not used up. ValueError if there are too few examples,
    of a class or in all, or alpha is below 0 or not finite.
    """
    if size < 0 or not 0 <= alpha < inf:
        raise ValueError(
            f"a reserve of size {size}, alpha {alpha}: both must be at least 0, and alpha finite"
        )
    stock = _stock(labels, generator)
    for name, pile in zip(_classes(labels), stock, strict=True):
        if not alpha and len(pile) < size:
            raise ValueError(
                f"class {name} has {len(pile)} examples, and the reserve takes {size}: it must be"
                " at most that"
            )
    total = size * len(stock)
    if total > len(labels):
        raise ValueError(
            f"the reserve takes {total} of {len(labels)} examples: it must be at most all of them"
        )
    if not alpha:
        return _positions([example for pile in stock for example in pile[:size]])
    return _positions(
        _take_turns(
            _proportions(1, len(stock), alpha, generator).tolist(), [total], stock, generator
        )[0]
    )


def shares(valid: float, test: float) -> tuple[float, float, float]:
    """Shares of train, valid and test; ValueError if one is negative or nothing is left over."""
    train = 1 - valid - test
    if valid < 0 or test <= 0 or train <= 0:
        raise ValueError(
            f"valid={valid} and test={test} leave {train:.3g} to train on: valid must be at least"
            " 0, test above 0, and their sum below 1"
        )
    return train, valid, test


def cut(labels: Tensor, valid: float, test: float, generator: Generator) -> Parts:
    """One client's labels [n] into train, valid and test, each with the client's proportions.

    Each part whose share is not 0 has at least one example; ValueError if n is too small for that.
    """
    sizes = apportion(len(labels), shares(valid, test), least=1)
    trained, validated, tested = deal(labels, sizes, generator)
    return Parts(train=trained, valid=validated, test=tested)


def few(labels: Tensor, shots: int, generator: Generator) -> Tensor:
    """Positions of at most `shots` random examples of each class in labels [n]; 0 means all.

    With the same generator, fewer shots are a subset of more.
    """
    if shots < 0:
        raise ValueError(f"shots is {shots}: it must be at least 0, where 0 means all")
    return _positions(
        [example for pile in _stock(labels, generator) for example in pile[: shots or None]]
    )


def _positions(examples: list[int]) -> Tensor:
    return torch.tensor(sorted(examples), dtype=torch.int64)


def _classes(labels: Tensor) -> list[int]:
    return sorted(set(labels.tolist()))


def _stock(labels: Tensor, generator: Generator) -> list[list[int]]:
    """The positions of each class, shuffled; classes in order."""
    piles = [(labels == name).nonzero().flatten() for name in _classes(labels)]
    return [pile[torch.randperm(len(pile), generator=generator)].tolist() for pile in piles]


def _class_by_class(labels: Tensor, generator: Generator) -> list[int]:
    """All positions, class by class: classes and the examples of each in a random order."""
    piles = _stock(labels, generator)
    order = torch.randperm(len(piles), generator=generator).tolist()
    return [example for pile in order for example in piles[pile]]


def _proportions(clients: int, classes: int, alpha: float, generator: Generator) -> Tensor:
    """[clients, classes] float64, rows from Dirichlet(alpha); NumPy's, which takes a generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    rows = np.random.Generator(np.random.PCG64(seed)).dirichlet(
        np.full(classes, alpha), size=clients
    )
    return torch.from_numpy(rows)


def _fit(table: Tensor, sizes: Sequence[int], supply: Sequence[int]) -> Tensor:
    """Scale rows and columns of a table [K, C] in turn, until they sum to sizes and supply."""
    rows, columns = torch.tensor(sizes)[:, None], torch.tensor(supply)
    table = table.clamp(min=1e-12)  # a zero cannot be scaled
    for _ in range(FITS):
        table = table * (columns / table.sum(0))
        table = table * (rows / table.sum(1, keepdim=True))
    return table


def _take_turns(
    wishes: list[list[float]], sizes: Sequence[int], stock: list[list[int]], generator: Generator
) -> list[list[int]]:
    """Each client's examples out of `stock`: in a turn, every client with room takes one."""
    hands: list[list[int]] = [[] for _ in sizes]
    for turn in range(max(sizes)):
        luck = torch.rand(len(sizes), dtype=torch.float64, generator=generator).tolist()
        for client in torch.randperm(len(sizes), generator=generator).tolist():
            if turn < sizes[client]:
                hands[client].append(stock[_choose(wishes[client], stock, luck[client])].pop())
    return hands


def _choose(wishes: Sequence[float], stock: Sequence[Sequence[int]], luck: float) -> int:
    """The class, among those in stock, at `luck` (0 to 1) of the way through a client's wishes."""
    there = [position for position, pile in enumerate(stock) if pile]
    heights = list(accumulate(wishes[position] for position in there))
    return there[min(bisect_right(heights, luck * heights[-1]), len(there) - 1)]
