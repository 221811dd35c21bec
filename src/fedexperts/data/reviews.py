"""Reviews of one to five stars that are made, not collected: a small grammar writes them from a
seed.

They stand in for the review data sets that cannot be shipped, and say nothing about real ones. What
they share with them: shops of a few kinds with words of their own; words that praise one kind and
damn another ("a quiet room", "a quiet speaker"); and many reviews whose words hardly tell the
stars. This room does not know models or methods.
"""

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from ..options import option
from ..tensors import rng
from . import split
from .drawn import Drawn
from .federation import Federation, Parts

CLASSES = ("one star", "two stars", "three stars", "four stars", "five stars")
STARS = len(CLASSES)

THINGS = {
    "restaurant": "soup fish bread sauce dessert terrace waiter wine",
    "hotel": "room bed lobby breakfast corridor pool bathroom terrace",
    "gadget": "battery screen case keyboard speaker camera charger menu",
    "film": "plot ending score cast humour opening dialogue camera",
}

# what is said of the things of each kind, from one star to five
WORDS: dict[str, tuple[str, ...]] = {
    "restaurant": (
        "cold raw sharp dry inedible strange",
        "small slow loud heavy thin quiet",
        "plain filling long standard usual",
        "fresh light simple soft predictable",
        "hot dark tender rich exquisite",
    ),
    "hotel": (
        "hot cold loud thin dirty mouldy",
        "dark small dated heavy simple strange",
        "clean long standard usual plain",
        "spacious predictable slow fresh warm",
        "quiet light soft spotless elegant",
    ),
    "gadget": (
        "hot slow quiet soft broken unpredictable",
        "heavy flimsy dark strange warm dated",
        "plain standard usual dry solid",
        "predictable sharp simple loud fresh",
        "light thin small long cold durable",
    ),
    "film": (
        "long predictable light thin dull wooden",
        "simple soft cold muddled dated",
        "usual standard solid plain loud",
        "small heavy sharp warm quiet",
        "strange slow dark dry raw haunting",
    ),
}

VERDICTS = (  # on anything, from one star to five
    "never again. a waste of money. i want my money back. awful from start to end",
    "not worth the price. i had hoped for more. others do this better. i was disappointed",
    "it is all right. neither good nor bad. about what one expects. it does what it should",
    "better than i expected. i can recommend it. worth the price. i was pleased",
    "the best in years. i could not be happier. simply perfect. wonderful from start to end",
)
FORMS = (
    "the {thing} was {word}",
    "i found the {thing} {word}",
    "really {word}, the {thing}",
    "the {thing}: {word}",
)
ASIDES = (  # these tell nothing
    "it was a tuesday. my sister came along. we paid by card. i read about it online. this is my"
    " second review. it rained all day. a friend had told me about it. i am writing this on the"
    " train. my uncle asked how it went. there were four of us. that was in march. i took some"
    " pictures"
)


@dataclass(frozen=True)
class Reviews(Drawn):
    """Shops of four kinds with reviews of one to five stars, made by a grammar, not by customers.

    As in the text experiments of Fed-MoE (IJCAI 2025), a client has one dominant class.
    """

    clients: int = option(
        10, says="number of clients, each a shop; kinds and dominant stars go round", ge=1
    )
    reviews: int = option(2000, says="number of reviews of all clients, beside the reserve", ge=1)
    dominant: float = option(
        0.7,
        says="share of a client's reviews that have its dominant number of stars",
        ge=1 / STARS,
        le=1,
    )
    unclear: float = option(
        0.3, says="share of reviews whose words hardly tell the stars", ge=0, le=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reviews < 3 * self.clients:
            least = (
                f"it must be at least {3 * self.clients}, so that each has one to train, validate"
                " and test on"
            )
            raise ValueError(f"{self.reviews} reviews of {self.clients} clients: {least}")

    def load(self, seed: int) -> Federation:
        """No text is there twice, and a reserve changes nothing of what the clients have."""
        kinds = list(WORDS)[: self.clients]
        sizes = split.apportion(self.reviews, [1] * self.clients)
        shops = {
            f"{kinds[i % len(kinds)]}-{i}": self._stars(i % STARS, size)
            for i, size in enumerate(sizes)
        }
        server = {
            f"{kind}-reserve": stars
            for kind, stars in zip(kinds, self._reserved(len(kinds), seed), strict=True)
        }
        texts, labels = self._written(shops | server, seed)
        parts = {}
        for shop, own in zip(shops, torch.arange(self.reviews).split(sizes), strict=True):
            cut = split.cut(labels[own], self.valid, self.test, rng(seed, "parts", client=shop))
            parts[shop] = Parts(*(own[index] for index in cut.named().values()))
        domains = {shop: _kind(shop) for shop in shops}
        return Federation(
            texts, labels, CLASSES, parts, domains, torch.arange(self.reviews, len(texts))
        )

    def _stars(self, most: int, size: int) -> Tensor:
        """`size` labels: the class `most` has the share `dominant`, the others equal shares."""
        shares = [
            self.dominant if stars == most else (1 - self.dominant) / (STARS - 1)
            for stars in range(STARS)
        ]
        return torch.arange(STARS).repeat_interleave(torch.tensor(split.apportion(size, shares)))

    def _reserved(self, kinds: int, seed: int) -> list[Tensor]:
        """Labels of the server's reviews of each kind, as `split.reserve` draws them."""
        # all of it could be of one class
        supply = torch.arange(STARS).repeat_interleave(STARS * self.reserve)
        drawn = supply[
            split.reserve(supply, self.reserve, self.reserve_alpha, rng(seed, "reserve"))
        ]
        pieces = split.deal(
            drawn, split.apportion(len(drawn), [1] * kinds), rng(seed, "reserve-kinds")
        )
        return [drawn[piece] for piece in pieces]

    def _written(self, stars: dict[str, Tensor], seed: int) -> tuple[tuple[str, ...], Tensor]:
        """A text for every label, one shop after another, and the labels in the texts' order."""
        texts: dict[str, None] = {}  # a set that keeps its order
        labels = []
        for shop, own in stars.items():
            draw = rng(seed, "reviews", client=shop)
            labels.append(own[torch.randperm(len(own), generator=draw)])
            luck = Random(draw.initial_seed())
            for degree in labels[-1].tolist():
                while (text := _review(_kind(shop), degree, self.unclear, luck)) in texts:
                    pass
                texts[text] = None
        return tuple(texts), torch.cat(labels)


def _kind(shop: str) -> str:
    return shop.rpartition("-")[0]


def _review(kind: str, stars: int, unclear: float, luck: Random) -> str:
    """Two to five judgements and an aside or two; if unclear, only one judgement fits the stars."""
    mixed = luck.random() < unclear
    others = [
        luck.randrange(STARS) if mixed else _near(stars, luck) for _ in range(luck.randint(1, 4))
    ]
    sentences = [_judgement(kind, degree, luck) for degree in (stars, *others)]
    sentences += luck.sample(ASIDES.split(". "), luck.randint(1, 2))
    luck.shuffle(sentences)
    return ". ".join(sentences)


def _near(stars: int, luck: Random) -> int:
    """Mostly the stars themselves, else one fewer or more."""
    shifted = stars + luck.choice((-1, 0, 0, 0, 0, 0, 0, 0, 0, 1))
    return min(max(shifted, 0), STARS - 1)


def _judgement(kind: str, degree: int, luck: Random) -> str:
    if luck.random() < 0.25:
        return luck.choice(VERDICTS[degree].split(". "))
    thing, word = luck.choice(THINGS[kind].split()), luck.choice(WORDS[kind][degree].split())
    return luck.choice(FORMS).format(thing=thing, word=word)
