"""The methods, by the name that a config gives them. This room imports none of them."""

from ..catalog import Named

METHODS = Named(
    __name__,
    {
        "alone": "fedavg:Alone",
        "central": "central:Central",
        "fedavg": "fedavg:FedAvg",
        "fedavg-tuned": "central:FineTuned",
        "fedjets": "fedjets:FedJETs",
        "gaussian-experts": "gaussian:GaussianExperts",
        "fedmoe": "fedmoe:FedMoE",
        "fedmoe-strong": "fedmoe:FedMoEStrong",
        "fedmoe-framed": "framed:FedMoEFramed",
        "pfedmoap": "pfedmoap:PFedMoAP",
    },
)
