"""A run's predictor held against labelled inputs: class/image.jpg in a folder, or a table.

    FOLDER/evaluation.html    all of it, in one page
    FOLDER/evaluation.json    its figures
    FOLDER/confusion.csv      examples of each class, by the class that was said
    FOLDER/answers.csv        every input with its truth, what was said, how sure
    FOLDER/confusion.svg      and reliability.svg: the pictures

Inputs that cannot be read are named and not counted. This room does not know how an input is read,
nor how a figure is shown.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .data.images import readable, several
from .data.images import said as named
from .data.pixels import thumbnail
from .disk import making
from .predict import Learned, Prediction, predictions, truths
from .report.evaluation import Answer, Evaluation, page, pictures
from .tensors import write as write_whole

SHOWN = 24  # of the surest mistakes, in the page
TILE = 144  # pixels of a thumbnail's side, at most

Tell = Callable[[int, int], None]  # hears how many inputs of how many are done


def evaluate(predictor: Learned, path: Path, tell: Tell = lambda done, of: None) -> Evaluation:
    """Its answers to what lies at `path`; ValueError, with what to do, for whatever does not
    fit.
    """
    labelled = truths(predictor, path)
    said: list[Prediction] = []
    unread: dict[str, str] = {}
    for batch, broken in predictions(predictor, [what for what, _ in labelled]):
        said += batch
        unread |= broken
        tell(len(said) + len(unread), len(labelled))
    if not said:
        raise ValueError(f"no image in {path} can be read: {several(named(unread))}")
    counted = [(what, truth) for what, truth in labelled if what not in unread]
    answers = [
        Answer(what, truth, each.label, each.probability)
        for (what, truth), each in zip(counted, said, strict=True)
    ]
    return Evaluation(predictor.who, predictor.model.classes, answers, unread)


def write(evaluation: Evaluation, folder: Path, side: int | None, bits: int = 0) -> None:
    """All that there is to say, as files of a new folder; ValueError if it exists. Images are read
    again with this `side` and `bits`; None: inputs are texts.
    """
    classes = evaluation.classes
    answers = [(a.input, a.truth, a.said, a.probability) for a in evaluation.answers]
    matrix = [(name, *row) for name, row in zip(classes, evaluation.matrix, strict=True)]
    files = {
        "evaluation.html": page(evaluation, SHOWN, _thumbnails(evaluation, side, bits)).encode(),
        "evaluation.json": json.dumps(evaluation.plain(), indent=1).encode(),
        "confusion.csv": _csv(["truth", *classes], matrix),
        "answers.csv": _csv(["input", "truth", "said", "probability"], answers),
    }
    files |= {f"{name}.svg": picture.svg for name, picture in pictures(evaluation).items()}
    with making(folder) as part:
        for name, data in files.items():
            write_whole(part / name, data)


def _thumbnails(evaluation: Evaluation, side: int | None, bits: int) -> dict[str, bytes]:
    """The surest mistakes as the model saw them, by input."""
    if side is None:
        return {}
    wrong = [answer.input for answer in evaluation.worst(SHOWN)]
    images, _ = readable([Path(file) for file in wrong], side, bits)
    return {file: thumbnail(image, TILE) for file, image in zip(wrong, images, strict=True)}


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    file = io.StringIO()
    table = csv.writer(file, lineterminator="\n")
    table.writerow(head)
    table.writerows(rows)
    return file.getvalue().encode()
