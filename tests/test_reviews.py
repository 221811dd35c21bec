"""Reviews: made from a seed, each shop with its kind and its dominant stars, neither too easy nor
too hard to read.
"""

import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from conftest import TinyProbe
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fedexperts.config import build, resolve
from fedexperts.config.checking import checked
from fedexperts.data.federation import Federation
from fedexperts.data.reviews import CLASSES, THINGS, WORDS, Reviews
from fedexperts.models.built import Built


@pytest.fixture(scope="module")
def made() -> Federation:
    return Reviews(reserve=40).load(0)


def of(federation: Federation, client: str) -> Tensor:
    return torch.cat(list(federation.parts[client].named().values()))


def kinds_of(federation: Federation, index: Tensor) -> list[str]:
    """Which kind each review speaks of: the only one all of whose things are its own; "" if it
    names none.
    """
    found = []
    for text in (federation.inputs[i] for i in index.tolist()):
        named = set(re.findall(r"the (\w+) was|found the (\w+)|, the (\w+)|the (\w+):", text))
        words = {word for group in named for word in group if word}
        things = [kind for kind, own in THINGS.items() if words and words <= set(own.split())]
        found.append(things[0] if len(things) == 1 else "")
    return found


def test_every_text_is_there_once_and_has_5_to_40_words(made: Federation) -> None:
    assert len(made.inputs) == len(set(made.inputs)) == len(made.labels) == 2200
    assert all(5 <= len(text.split()) <= 40 for text in made.inputs)
    assert made.classes == CLASSES


def test_even_short_texts_of_one_shop_are_not_repeated() -> None:
    texts = Reviews(clients=1, reviews=6000, dominant=1, unclear=0).load(0).inputs
    assert len(set(texts)) == 6000


def test_every_client_has_equally_many_and_its_dominant_stars_in_the_share_asked_for(
    made: Federation,
) -> None:
    for client in made.parts:
        counts = made.labels[of(made, client)].bincount(minlength=5)
        place = int(client.rpartition("-")[2])
        assert counts.tolist() == [140 if stars == place % 5 else 15 for stars in range(5)]
    purer = Reviews(dominant=0.9, clients=3, reviews=301).load(0)
    assert [sum(part) for part in zip(*purer.counts()["hotel-1"].values(), strict=True)] == [
        3,
        90,
        3,
        2,
        2,
    ]


def test_kinds_go_round_and_every_review_speaks_of_its_shops_kind(made: Federation) -> None:
    assert [made.domains[f"{kind}-{i}"] for i, kind in enumerate([*WORDS, *WORDS])] == [
        *WORDS,
        *WORDS,
    ]
    for client, kind in made.domains.items():
        found = kinds_of(made, of(made, client))
        assert {*found} == {kind, ""}
        assert found.count("") < 60  # verdicts alone, or a thing that two kinds have


def test_some_words_praise_one_kind_and_damn_another() -> None:
    stars = {
        kind: {word: place for place, row in enumerate(rows) for word in row.split()}
        for kind, rows in WORDS.items()
    }
    assert stars["hotel"]["quiet"] == stars["gadget"]["light"] == stars["film"]["strange"] == 4
    assert stars["gadget"]["quiet"] == stars["film"]["light"] == stars["restaurant"]["strange"] == 0
    for one, other in [("hotel", "gadget"), ("film", "restaurant"), ("gadget", "film")]:
        shared = stars[one].keys() & stars[other].keys()
        assert sum(abs(stars[one][word] - stars[other][word]) >= 3 for word in shared) >= 4
    # one meaning in a kind
    assert all(len(stars[kind]) == len(" ".join(rows).split()) for kind, rows in WORDS.items())


def test_the_reserve_has_all_stars_alike_and_speaks_of_all_kinds(made: Federation) -> None:
    assert made.reserve_counts() == [40] * 5
    found = kinds_of(made, made.reserve)
    assert all(found.count(kind) > 35 for kind in WORDS)
    assert Reviews().load(0).reserve_counts() == [0] * 5
    skewed = Reviews(reserve=40, reserve_alpha=0.3).load(0).reserve_counts()
    assert sum(skewed) == 200
    assert max(skewed) > 60


def test_a_reserve_changes_nothing_of_the_clients(made: Federation) -> None:
    bare = Reviews().load(0)
    assert bare.inputs == made.inputs[:2000]
    assert bare.counts() == made.counts()
    assert bare.manifest()["clients"] == made.manifest()["clients"]


def test_reviews_are_the_same_on_every_machine(made: Federation) -> None:
    # If this number changes, everybody's reviews change: say so in the changelog.
    text = json.dumps(made.manifest(counts=True))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "54daf8e157385864"


def test_seeds_and_shops_have_other_texts(made: Federation) -> None:
    other = Reviews().load(1)
    assert len({*made.inputs} & {*other.inputs}) < 20
    assert not torch.equal(other.labels, made.labels[:2000])


@pytest.mark.parametrize(
    ("field", "value"),
    {
        "clients": 7,
        "reviews": 1999,
        "dominant": 0.5,
        "unclear": 0.4,
        "valid": 0.1,
        "test": 0.2,
        "reserve": 3,
    }.items(),
)
def test_every_option_matters(made: Federation, field: str, value: float) -> None:
    assert replace(Reviews(), **{field: value}).load(0).manifest() != Reviews().load(0).manifest()


def read(unclear: float) -> float:
    """Accuracy of logistic regression on counts of words, trained on 1000 reviews of all shops and
    stars alike.
    """
    made = Reviews(dominant=0.2, reviews=3000, unclear=unclear).load(0)
    order = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    counts, stars = (
        CountVectorizer().fit_transform([made.inputs[i] for i in order]),
        made.labels[order].numpy(),
    )
    return float(
        LogisticRegression(max_iter=1000)
        .fit(counts[:1000], stars[:1000])
        .score(counts[1000:], stars[1000:])
    )


def test_words_tell_the_stars_but_not_all_and_less_where_reviews_are_unclear() -> None:
    clear, usual, unclear = read(0), read(0.3), read(1)
    assert 0.6 < usual < 0.8
    assert clear > usual + 0.1
    assert usual > unclear + 0.2


@pytest.mark.parametrize(
    "wrong",
    [{"reviews": 0}, {"dominant": 0.1}, {"dominant": 1.1}, {"unclear": -0.1}, {"unclear": 1.1}],
)
def test_wrong_review_options_are_refused_at_the_door(wrong: dict[str, object]) -> None:
    assert checked(Reviews, "data", wrong)[1]


def test_too_few_reviews_for_all_clients_are_refused() -> None:
    assert len(Reviews(clients=4, reviews=12).load(0).parts) == 4
    with pytest.raises(ValueError, match="11 reviews of 4 clients: it must be at least 12"):
        Reviews(clients=4, reviews=11)


# Texts come through the door


@dataclass(frozen=True)
class WordsModel:
    """A linear model of eight numbers that are cheap to take from a text, so that it needs no
    key.
    """

    def build(self, classes: tuple[str, ...], seed: int) -> Built:
        def encode(texts: tuple[str, ...]) -> Tensor:
            return torch.tensor(
                [[float(text.count(mark)) for mark in "abcdefgh"] for text in texts]
            )

        return Built(TinyProbe(classes), encode, "")


def experiment(views: int) -> dict[str, object]:
    return {
        "name": "texts",
        "data": {"name": "reviews", "clients": 4, "reviews": 40},
        "model": {"name": "test_reviews:WordsModel"},
        "method": {"name": "fedavg"},
        "learning": {"views": views},
    }


def test_texts_reach_a_model_whose_encoder_has_no_key(tmp_path: Path) -> None:
    _, sites = build(resolve([(experiment(1), "test")]), tmp_path)
    made = Reviews(clients=4, reviews=40).load(0)
    assert sites.keys() == made.parts.keys()
    first = made.inputs[int(made.parts["film-3"].train[0])]
    assert sites["film-3"].train.x[0].tolist() == [
        [float(first.count(mark)) for mark in "abcdefgh"]
    ]


def test_texts_have_no_augmented_views(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="learning.views = 2: this model does not augment"):
        build(resolve([(experiment(2), "test")]), tmp_path)
