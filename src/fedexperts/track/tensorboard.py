"""TensorBoard: event files in a folder, one folder a run."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from . import Followed


class _Run:
    def __init__(self, writer: SummaryWriter) -> None:
        self.writer = writer

    def tell(self, round: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, round)
        self.writer.flush()

    def end(self, finished: bool) -> None:
        self.writer.close()


def begin(address: str, run: Followed, told: int) -> _Run:
    """What a crash left behind of rounds after `told` is purged: TensorBoard shows each once."""
    writer = SummaryWriter(str(Path(address) / run.name), purge_step=told + 1)
    if told < 0:
        writer.add_text(
            "settings", "\n".join(f"    {key} = {value}" for key, value in run.settings.items())
        )
    return _Run(writer)
