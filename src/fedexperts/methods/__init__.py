"""The methods, by the name that a config gives them."""

from ..method import Method
from .fedavg import Alone, FedAvg
from .fedmoe import FedMoE, FedMoEStrong
from .pfedmoap import PFedMoAP

METHODS: dict[str, type[Method]] = {
    "alone": Alone,
    "fedavg": FedAvg,
    "fedmoe": FedMoE,
    "fedmoe-strong": FedMoEStrong,
    "pfedmoap": PFedMoAP,
}
