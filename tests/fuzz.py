"""Coverage-guided fuzzing of the decoder, by hand: it ends with an error at the first exception
that is no ValueError.

pip install atheris && python tests/fuzz.py -max_total_time=120
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fedexperts", "json"]):
    from test_fuzz import GOOD, read


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as seeds:
        for place, good in enumerate(GOOD):
            (Path(seeds) / str(place)).write_bytes(good)
        atheris.Setup([*sys.argv, seeds], read)
        atheris.Fuzz()
