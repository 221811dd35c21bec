"""What does differential privacy cost in accuracy and in time?

    python benchmarks/epsilon.py             goes on where it was stopped

Real digits behind the tiny CLIP, 20 clients with four scanners, all of them in each of five rounds,
two epochs in batches of 16, seed 0. Each training example is hidden (`privacy.unit = "example"`,
DP-SGD, delta 1e-5, clip 1), with the noise that is found for the epsilon. Accuracy in percent is
the mean over clients, each on its own test part, after the last round; seconds are of the whole run
in one process. Rates were not tuned for the noise.
"""

import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from attacks import METHODS

from fedexperts import config as door
from fedexperts.config import resolve
from fedexperts.loop import run
from fedexperts.metrics import spent
from fedexperts.rundir import RunDir

FOLDER = Path("runs/epsilon")
EPSILONS = (0, 8, 3, 1)  # 0: without privacy
ALONE = METHODS["FedAvg (linear probe)"] | {"method": {"name": "alone"}}
TRAINED: dict[str, dict[str, Any]] = {"own probe alone": ALONE} | {
    name: sections for name, sections in METHODS.items() if name != "Gaussian experts"
}


def measured(method: str, epsilon: float) -> dict[str, float]:
    """Accuracy, seconds, and what was spent; kept in a file."""
    file = FOLDER / f"{method}-{epsilon}.json".replace(" ", "-")
    if file.exists():
        kept: dict[str, float] = json.loads(file.read_text())
        return kept
    base = {
        "name": "private",
        "data": {"name": "digits-scanners"},
        "run": {"rounds": 5, "evaluate_every": 100},
        "engine": {"together": 20},
        "privacy": {"unit": "example", "epsilon": float(epsilon)} if epsilon else {},
    }
    config = resolve([(base, "here"), (TRAINED[method], "here")])
    config = config.having({"learning.epochs": 2, "learning.batch": 16}, "here")
    shutil.rmtree(FOLDER / "run", ignore_errors=True)
    folder = RunDir.create(FOLDER / "run", config.toml(), {})
    began = time.monotonic()
    with door.opened(config, FOLDER / "run" / "private") as (job, engine, _):
        run(job, engine, config.section("run"), folder)
    rows = [row for row in folder.rows("clients.jsonl") if row["round"] == 5]
    right = [100 * row["test_correct"] / row["test_examples"] for row in rows]
    total = spent(folder.rows("rounds.jsonl"))
    came = {
        "accuracy": statistics.fmean(right),
        "seconds": time.monotonic() - began,
        "spent": total[0] if total else 0.0,
    }
    file.write_text(json.dumps(came))
    return came


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    print("| method | none | epsilon 8 | epsilon 3 | epsilon 1 |\n|---|---|---|---|---|")
    for method in TRAINED:
        cells = []
        for epsilon in EPSILONS:
            came = measured(method, epsilon)
            cells.append(f"{came['accuracy']:.1f} ({came['seconds']:.0f} s)")
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
