"""Controls that several methods have in common: what a linear classifier does with frozen features,
what one averaged model does where a server holds a mixture, what all data in one place would do.
This room knows no method.
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
VECTORS = Control(
    "FedAvg of class vectors, fine-tuned",
    {
        "method.name": ("class-vectors",),
        "method.whiten": (False,),
        "method.personal": (True,),
    },
    alike=("data.",),
)
WHITENED = Control(
    "the same on whitened features",
    {
        "method.name": ("class-vectors",),
        "method.whiten": (True,),
        "method.personal": (True,),
    },
    alike=("data.",),
)
POOLED = Control(
    "all data in one place",
    {"run.pooled": (True,)},
    alike=("data.",),
    free=("run.participation",),
)
OF_A_MIXTURE = (
    Control(
        "one averaged model",
        {
            "method.name": ("fedavg", "fedavg-tuned"),
            "mixture.experts": (None,),
            "method.personal": (False, None),
            "run.pooled": (False, None),
        },
        alike=("data.", "model.", "start."),
        of="server",
        needed=(
            "no finished run of fedavg on the same data and from the same start is among these, so"
            " they do not tell whether a mixture adds anything to one averaged model"
        ),
    ),
    Control(
        "uniform relevance",
        {"method.relevance": ("uniform",)},
        free=("method.temperature",),
        of="server",
    ),
    Control(
        "all data in one place",
        {"run.pooled": (True,)},
        alike=("data.", "model."),
        free=("run.participation",),
        of="server",
    ),
)
