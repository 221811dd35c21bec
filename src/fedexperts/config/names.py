"""Which sections a config has, and what each can name. This room imports none of what it names, and
reads no config.
"""

from ..catalog import Named
from ..data import DATA
from ..methods import METHODS
from ..models import MODELS

ENGINES = Named(
    "fedexperts.config",
    {
        "inprocess": "engines:InProcessSettings",
        "flower-simulation": "engines:FlowerSimulationSettings",
        "flower": "engines:FlowerSettings",
    },
)
NAMED: dict[str, Named] = {
    "data": DATA,
    "model": MODELS,
    "method": METHODS,
    "engine": ENGINES,
    "gate": MODELS,
}
PLAIN = Named(
    "fedexperts",
    {
        "learning": "learn:Learning",
        "run": "config.settings:RunSettings",
        "start": "config.settings:StartSettings",
        "mixture": "config.settings:MixtureSettings",
        "guard": "admission:Guard",
        "merge": "average:MergeSettings",
        "upload": "upload:UploadSettings",
        "privacy": "privacy:PrivacySettings",
    },
)
SECTIONS = (*NAMED, *PLAIN)
# sections without which there is no mixture, or a gate like its experts
OPTIONAL = {"gate", "mixture"}
FROZEN = ("clip", "model", "classifier", "encoder")
PATHS = tuple(  # keys that may name a file or folder
    [("data", key) for key in ("path", "root", "split")]
    + [(section, key) for section in ("model", "gate") for key in FROZEN]
)
DEFAULT_NAMES = {"engine": "inprocess"}


def known(kind: str) -> Named:
    """The classes that a section can name: kind is "data", "model", "method", "engine" or
    "gate".
    """
    return NAMED[kind]
