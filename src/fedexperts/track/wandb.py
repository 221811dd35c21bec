"""Weights & Biases: a study is a group in a project, a run a run; no machine details."""

from collections.abc import Mapping

import wandb

from . import Followed

QUIET = wandb.Settings(
    console="off",
    silent=True,
    init_timeout=30,
    save_code=False,
    host="",
    x_disable_machine_info=True,
    x_disable_stats=True,
    x_save_requirements=False,
)


class _Run:
    def __init__(self, run: wandb.Run) -> None:
        self.run = run

    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        self.run.log(dict(figures), step=round)

    def end(self, finished: bool) -> None:
        self.run.finish(0 if finished else 1)


def begin(address: str, run: Followed, told: int) -> _Run:
    offline = wandb.setup().settings.mode in ("offline", "dryrun")
    if not offline and not wandb.login(prompt=False, verify=False):
        raise ValueError("you are not logged in; use `wandb login`, or WANDB_MODE=offline")
    return _Run(
        wandb.init(
            project=address,
            group=run.study,
            name=run.name,
            id=run.id,
            config=dict(run.settings),
            dir=str(run.folder),
            resume="allow",
            reinit="create_new",
            settings=QUIET,
        )
    )
