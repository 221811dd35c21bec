"""Coverage-guided fuzzing of the decoder, by hand: it ends with an error at the first exception that is no ValueError.

pip install atheris && python tests/fuzz.py -max_total_time=120
"""

import sys

import atheris

with atheris.instrument_imports(include=["fedexperts.message", "fedexperts.tensors"]):
    from test_fuzz import GOOD, read


if __name__ == "__main__":
    for good in GOOD:
        read(good)
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
