"""What each lever of Fed-MoE framed gains: the server's accuracy on four scanners, with networks of
4 K weights.

    python benchmarks/framed.py            10 minutes on two cores; goes on where it was stopped
    python benchmarks/framed.py --print    the table alone

configs/demo/fedmoe-digits/framed.toml at width 8, untuned, with one thing changed at a time;
accuracy after the last round in percent, mean over three seeds, and its difference to the preset on
validation data, paired by seed, with its 95 % interval.
"""

from pathlib import Path

from grid import SEEDS, choices, run, served, variant

from fedexperts import config as door

FEW = SEEDS[:3]
CHOICES: dict[str, dict[str, object]] = {
    "framed": {},
    "no frames": {"method.frames": False},
    "start not taught anew": {"method.restart": 0},
    "experts share all moves (share = none)": {"method.share": "none"},
    "experts moved by their own clients alone (share = whole)": {"method.share": "whole"},
    "groups by chance": {"method.relevance": "shuffled"},
    "clients not held near (mu = 0)": {"method.mu": 0.0},
    "K = 2": {"mixture.experts": 2, "mixture.top": 2},
    "K = 8": {"mixture.experts": 8, "mixture.top": 8},
    "K chosen, at most 8": {
        "mixture.experts": 8,
        "mixture.top": 8,
        "method.groups": "chosen",
    },
    "soft groups (a client has shares of several)": {"method.groups": "soft"},
    "K = 8, soft groups": {"mixture.experts": 8, "mixture.top": 8, "method.groups": "soft"},
    "top-1 instead of all": {"mixture.top": 1},
    "half of the clients a round": {"run.participation": 0.5},
}


def main() -> None:
    base = door.load("configs/demo/fedmoe-digits/framed.toml")
    names = {choice: f"framed-{i:02d}" for i, choice in enumerate(CHOICES)}
    shared = {"model.width": 8, "run.evaluate_every": 40}
    experiments = [variant(base, names[choice], shared | CHOICES[choice]) for choice in CHOICES]
    out = run(experiments, FEW, __doc__ or "", Path("runs/framed"))
    print("\n".join(choices({choice: served(out, name, FEW) for choice, name in names.items()})))


if __name__ == "__main__":
    main()
