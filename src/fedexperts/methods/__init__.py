"""The methods, by the name that a config gives them."""

from ..method import Method
from .central import Central, FineTuned
from .fedavg import Alone, FedAvg
from .fedjets import FedJETs
from .fedmoe import FedMoE, FedMoEStrong
from .pfedmoap import PFedMoAP

METHODS: dict[str, type[Method]] = {
    "alone": Alone,
    "central": Central,
    "fedavg": FedAvg,
    "fedavg-tuned": FineTuned,
    "fedjets": FedJETs,
    "fedmoe": FedMoE,
    "fedmoe-strong": FedMoEStrong,
    "pfedmoap": PFedMoAP,
}
