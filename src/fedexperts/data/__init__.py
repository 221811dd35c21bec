"""Data: federations of labelled images, their splits and features. Knows no model, method or engine.

To add a source: a frozen dataclass whose fields are its options, with `load(seed)`, and its name here.
"""

from .digits import DigitsPathological, DigitsScanners
from .features import features
from .federation import Federation, Parts, Source

DATA: dict[str, type[Source]] = {
    "digits-scanners": DigitsScanners,
    "digits-pathological": DigitsPathological,
}

__all__ = ["DATA", "DigitsPathological", "DigitsScanners", "Federation", "Parts", "Source", "features"]
