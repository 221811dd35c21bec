"""What the paper leaves open: each choice against the default, on validation data of
digits-scanners.

    python benchmarks/defaults.py            15 minutes on two cores; goes on where it was stopped
    python benchmarks/defaults.py --print    the table alone

12 rounds, K = 4, rates 0.1 (prompt) and 0.15 (gate); mean over clients of local accuracy after the
last round, mean over seeds, and its difference to the defaults on validation data, paired by seed,
with its 95 % interval. Defaults are chosen by the validation columns; the test column is there to
be read.
"""

from pathlib import Path

from grid import SEEDS, choices, rows, run, variant

from fedexperts import config as door
from fedexperts.metrics import score, valid

SHARED: dict[str, object] = {
    "run.rounds": 12,
    "run.evaluate_every": 12,
    "method.experts": 4,
    "learning.rate": 0.1,
    "method.gate_rate": 0.15,
}
CHOICES: dict[str, dict[str, object]] = {
    "the defaults": {},
    "attention scores / sqrt(head width) instead of times 10": {"method.attention_scale": 0.0},
    "T_MoE normalised (true cosine)": {"method.normalised": True},
    "gate without biases": {"method.bias": False},
    "gate's values and output start as the identity": {"method.gate_init": "identity"},
    "linear gate": {"method.gate": "linear"},
    "gate averaged each round": {"method.gates": "averaged"},
    "gate 64 wide, strided pooling": {"method.width": 64},
    "gate 64 wide, mean pooling": {"method.width": 64, "method.pooling": "mean"},
    "gate 64 wide, random projection": {"method.width": 64, "method.pooling": "random"},
    "lambda 0": {"method.lam": 0.0},
    "lambda 1": {"method.lam": 1.0},
    "16 context tokens instead of 4": {"model.context": 16},
    'context starts as "a photo of a"': {"model.init": "words"},
    "prompts kept instead of reset": {"method.reset": False},
    "4 views of each image": {"learning.views": 4},
    "cosine schedule": {"learning.schedule": "cosine"},
}


def main() -> None:
    base = door.load("configs/demo/pfedmoap.toml")
    names = {choice: f"choice-{i:02d}" for i, choice in enumerate(CHOICES)}
    experiments = [
        variant(base, names[choice], SHARED | changes) for choice, changes in CHOICES.items()
    ]
    out = run(experiments, SEEDS, __doc__ or "", Path("runs/defaults"))
    accuracies = {
        choice: [(valid(last), score(last).mean) for last in rows(out, name, SEEDS)]
        for choice, name in names.items()
    }
    print("\n".join(choices(accuracies)))


if __name__ == "__main__":
    main()
