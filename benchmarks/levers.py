"""What each lever of Fed-MoE in strength gains, and the paper's ablations: the server's accuracy on
digits-scanners.

    python benchmarks/levers.py            10 minutes on two cores; goes on where it was stopped
    python benchmarks/levers.py --print    the table alone

configs/demo/fedmoe-digits/fedmoe.toml, untuned, with one thing changed at a time; accuracy after
the last round in percent, mean over seeds, and its difference to the preset on validation data,
paired by seed, with its 95 % interval. Defaults are chosen by validation; the test column is there
to be read.
"""

from pathlib import Path

from grid import SEEDS, choices, run, served, variant

from fedexperts import config as door

CHOICES: dict[str, dict[str, object]] = {
    "in strength": {},
    "experts keep nine tenths (lam = 0.1)": {"method.lam": 0.1},
    "clients keep a tenth of their own (lam_client = 0.1)": {"method.lam_client": 0.1},
    "relevance as in the paper": {"method.relevance": "sum"},
    "its mean over the reserve set at temperatures of 0.01": {
        "method.relevance": "mean",
        "method.temperature": 0.01,
        "method.blend_temperature": 0.01,
    },
    "every client counts the same": {"method.weights": "equal"},
    "clients not held near (mu = 0)": {"method.mu": 0.0},
    "blend in the same round": {"method.blend": "same-round"},
    "no blend": {"method.blend": "none"},
    "gate not warmed up": {"method.warmup": 0},
    "gate trained one pass a round": {"method.gate_epochs": 1},
    "no entropy term": {"method.beta": 0.0},
    "T = 3": {"method.inner": 3},
    "experts tuned on the reserve set": {"method.tune_epochs": 1},
    "random common start": {"start.epochs": 0},
    "no main expert": {"mixture.mains": 0},
    "K = 2": {"mixture.experts": 2},
    "K = 8": {"mixture.experts": 8},
    "top-2": {"mixture.top": 2},
    "top-4 (dense)": {"mixture.top": 4},
    "reserve of 5 a class": {"data.reserve": 5},
    "reserve of 20 a class": {"data.reserve": 20},
    "reserve skewed, Dirichlet(0.3)": {"data.reserve_alpha": 0.3},
}


def main() -> None:
    base = door.load("configs/demo/fedmoe-digits/fedmoe.toml")
    names = {choice: f"lever-{i:02d}" for i, choice in enumerate(CHOICES)}
    changes = {choice: {"run.evaluate_every": 40} | change for choice, change in CHOICES.items()}
    experiments = [variant(base, names[choice], changes[choice]) for choice in CHOICES]
    out = run(experiments, SEEDS, __doc__ or "", Path("runs/levers"))
    print("\n".join(choices({choice: served(out, name, SEEDS) for choice, name in names.items()})))


if __name__ == "__main__":
    main()
