"""Data: federations of labelled images and texts, their splits and features. Knows no model, method
or engine.

To add a source: a frozen dataclass whose fields are its options, with `load(seed)`, and its name
here. This room imports none of them.
"""

from ..catalog import Named

DATA = Named(
    __name__,
    {
        "digits-scanners": "digits:DigitsScanners",
        "digits-pathological": "digits:DigitsPathological",
        "reviews": "reviews:Reviews",
        "image-folders": "folders:ImageFolders",
        "simulated-folders": "folders:SimulatedFolders",
        "table": "table:Table",
        "hub": "hub:Hub",
    },
)
