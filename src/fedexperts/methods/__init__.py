"""The methods, by the name that a config gives them. This room imports none of them."""

from ..catalog import Named

METHODS = Named(
    __name__,
    {
        "alone": "fedavg:Alone",
        "central": "central:Central",
        "class-vectors": "vectors:ClassVectors",
        "fedavg": "fedavg:FedAvg",
        "fedamp": "fedamp:FedAMP",
        "fedavg-tuned": "central:FineTuned",
        "feddf": "feddf:FedDF",
        "fedet": "fedet:FedET",
        "fedjets": "fedjets:FedJETs",
        "gaussian-experts": "gaussian:GaussianExperts",
        "gaussian-sums": "leaning:LeaningExperts",
        "fedmoe": "fedmoe:FedMoE",
        "fedmoe-strong": "fedmoe:FedMoEStrong",
        "fedotp": "fedotp:FedOTP",
        "fedper": "fedper:FedPer",
        "fedpgp": "fedpgp:FedPGP",
        "fedtpg": "fedtpg:FedTPG",
        "heterofl": "heterofl:HeteroFL",
        "fedmoe-framed": "framed:FedMoEFramed",
        "pfedmma": "pfedmma:PFedMMA",
        "pfedmoap": "pfedmoap:PFedMoAP",
        "pfedprompt": "pfedprompt:PFedPrompt",
        "promptfolio": "promptfolio:PromptFolio",
    },
)
