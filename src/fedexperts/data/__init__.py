"""Data: federations of labelled images and texts, their splits and features. Knows no model, method or engine.

To add a source: a frozen dataclass whose fields are its options, with `load(seed)`, and its name here.
"""

from .digits import DigitsPathological, DigitsScanners
from .features import features
from .federation import Federation, Parts, Source
from .folders import ImageFolders
from .hub import Hub
from .reviews import Reviews
from .table import Table

DATA: dict[str, type[Source]] = {
    "digits-scanners": DigitsScanners,
    "digits-pathological": DigitsPathological,
    "reviews": Reviews,
    "image-folders": ImageFolders,
    "table": Table,
    "hub": Hub,
}

__all__ = [
    "DATA",
    "DigitsPathological",
    "DigitsScanners",
    "Federation",
    "Hub",
    "ImageFolders",
    "Parts",
    "Reviews",
    "Source",
    "Table",
    "features",
]
