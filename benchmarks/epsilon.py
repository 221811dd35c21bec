"""What does differential privacy cost in accuracy and in time?

    python benchmarks/epsilon.py [digits] [pacs]             goes on where it was stopped

digits: real digits behind the tiny CLIP, 20 clients with four scanners, all of them in each of two
rounds, two epochs in batches of 16, seed 0; delta 1e-5. Methods that train hide each example in
every step (DP-SGD, clip 1), `gaussian-sums` in sums behind masks, once. Rates were not tuned for
the noise.

pacs: PACS in FEDEXPERTS_DATA, 20 clients, eight pictures of a class, so 56 a client; one round of
`gaussian-sums`, seeds 10 to 12, of which nothing was chosen; delta 1e-3. Beside it what needs no
noise, as nothing leaves (own expert alone), and what has none (Gaussian experts).

Accuracy in percent is the mean over clients, each on its own test part, after the last round; in
brackets seconds of processor time of the run, in one process.
"""

import json
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from attacks import METHODS

from fedexperts import config as door
from fedexperts.config import Config, load, resolve
from fedexperts.loop import run
from fedexperts.metrics import spent
from fedexperts.rundir import RunDir

FOLDER = Path("runs/epsilon")
CONFIGS = Path(__file__).parents[1] / "configs/benchmark/pacs-few"
EPSILONS = (0, 8, 3, 1)  # 0: without privacy
SEEDS = (10, 11, 12)
SUMS: dict[str, Any] = {"model": {"name": "prompted-clip"}, "method": {"name": "gaussian-sums"}}
TRAINED = ("FedAvg (linear probe)", "Fed-MoE (linear probes)", "PromptFL", "pFedMoAP")
ON_DIGITS = {"Gaussian sums": SUMS} | {name: METHODS[name] for name in TRAINED}
ON_PACS = {
    "own Gaussian expert alone": "gaussian-alone",
    "Gaussian experts": "gaussian-experts",
    "Gaussian sums": "gaussian-sums-private",
}


def on_digits(method: str, epsilon: int) -> Config:
    base: dict[str, Any] = {
        "name": "private",
        "data": {"name": "digits-scanners"},
        "run": {"rounds": 2, "evaluate_every": 100},
        "engine": {"together": 20},
    }
    more: dict[str, Any] = {"learning.epochs": 2, "learning.batch": 16}
    if method == "Gaussian sums":
        more = {"run.rounds": 1, "upload.secure": True}
    config = resolve([(base, "here"), (ON_DIGITS[method], "here")])
    return config.having(more | _hiding(epsilon, 1e-5), "here")


def on_pacs(method: str, epsilon: int, seed: int) -> Config:
    config = load(CONFIGS / f"{ON_PACS[method]}.toml")
    more: dict[str, Any] = {"data.shots": 8, "run.seed": seed, "run.evaluate_every": 100}
    if method == "Gaussian sums":
        more |= _hiding(epsilon, 1e-3)
    return config.having(more, "here")


def _hiding(epsilon: int, delta: float) -> dict[str, Any]:
    unit = "example" if epsilon else "none"
    return {"privacy.unit": unit, "privacy.epsilon": float(epsilon), "privacy.delta": delta}


def measured(name: str, config: Config) -> dict[str, float]:
    """Accuracy, seconds, and what was spent; kept in a file."""
    file = FOLDER / f"{name}.json".replace(" ", "-")
    if file.exists():
        kept: dict[str, float] = json.loads(file.read_text())
        return kept
    shutil.rmtree(FOLDER / "run", ignore_errors=True)
    folder = RunDir.create(FOLDER / "run", config.toml(), {})
    with door.opened(config, FOLDER / "run" / "private") as (job, engine, _):
        began = time.process_time()
        run(job, engine, config.section("run"), folder)
        seconds = time.process_time() - began
    rows = [row for row in folder.rows("clients.jsonl") if row["round"] == job.rounds]
    right = [100 * row["test_correct"] / row["test_examples"] for row in rows]
    total = spent(folder.rows("rounds.jsonl"))
    came = {
        "accuracy": statistics.fmean(right),
        "seconds": seconds,
        "spent": total[0] if total else 0.0,
    }
    file.write_text(json.dumps(came))
    return came


def cell(each: list[dict[str, float]]) -> str:
    accuracy, seconds = (
        statistics.fmean(one[what] for one in each) for what in ("accuracy", "seconds")
    )
    return f"{accuracy:.1f} ({seconds:.1f} s)"


def table_of_digits() -> None:
    print("\n| method | none | epsilon 8 | epsilon 3 | epsilon 1 |\n|---|---|---|---|---|")
    for method in ON_DIGITS:
        cells = [
            cell([measured(f"{method}-{epsilon}", on_digits(method, epsilon))])
            for epsilon in EPSILONS
        ]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


def table_of_pacs() -> None:
    print("\n| PACS | none | epsilon 8 | epsilon 3 | epsilon 1 |\n|---|---|---|---|---|")
    for method in ON_PACS:
        epsilons = EPSILONS if method == "Gaussian sums" else (0,)
        cells = [
            cell(
                [
                    measured(f"pacs-{method}-{epsilon}-{seed}", on_pacs(method, epsilon, seed))
                    for seed in SEEDS
                ]
            )
            for epsilon in epsilons
        ]
        cells += ["-"] * (len(EPSILONS) - len(cells))
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    tables = {"digits": table_of_digits, "pacs": table_of_pacs}
    for name in [word for word in sys.argv[1:] if word in tables] or tables:
        tables[name]()


if __name__ == "__main__":
    main()
