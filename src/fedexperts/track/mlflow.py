"""MLflow: a study is an experiment, a run a run."""

import time
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from . import Followed

RUN, ROUND = "fedexperts.run", "fedexperts.round"


class _Run:
    def __init__(self, client: MlflowClient, run: str, told: int) -> None:
        self.client, self.run, self.told = client, run, told

    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        if round <= self.told:  # it came to know more than we noted before a crash
            return
        now = int(1000 * time.time())
        metrics = [Metric(name, value, now, round) for name, value in figures.items()]
        self.client.log_batch(self.run, metrics, tags=[RunTag(ROUND, str(round))])

    def end(self, finished: bool) -> None:
        self.client.set_terminated(self.run, "FINISHED" if finished else "KILLED")


def begin(address: str, run: Followed, told: int) -> _Run:
    client = MlflowClient(address)
    known = client.get_experiment_by_name(run.study)
    experiment = known.experiment_id if known else client.create_experiment(run.study)
    for earlier in client.search_runs([experiment], f"tags.`{RUN}` = '{run.id}'"):
        client.update_run(earlier.info.run_id, "RUNNING")
        return _Run(client, earlier.info.run_id, max(told, int(earlier.data.tags.get(ROUND, -1))))
    made = client.create_run(experiment, tags={RUN: run.id}, run_name=run.name)
    client.log_batch(
        made.info.run_id, params=[Param(key, str(value)) for key, value in run.settings.items()]
    )
    return _Run(client, made.info.run_id, told)
