"""Controls that methods on frozen features have in common: what a linear classifier does with them,
and what all data in one place would do. This room knows no method.
"""

from ..declared import Control

PROBE = Control(
    "linear probe",
    {"model.name": ("linear-probe",), "method.name": ("alone",)},
    alike=("data.",),
)
AVERAGED = Control(
    "linear probes averaged",
    {"model.name": ("linear-probe",), "method.name": ("fedavg",), "run.pooled": (False, None)},
    alike=("data.",),
)
POOLED = Control(
    "all data in one place",
    {"run.pooled": (True,)},
    alike=("data.",),
    free=("run.participation",),
)
