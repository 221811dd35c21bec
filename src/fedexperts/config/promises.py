"""What an experiment promises about its clients, and whether it can be had together.

Everything that excludes each other is said here, when it is asked for. This room does not know how
noise is drawn, nor how uploads become one.
"""

from ..average import MergeSettings
from ..method import Method
from ..model import Model
from ..privacy import PrivacySettings, accounting
from ..upload import UploadSettings
from .reading import Config


def check(config: Config, method: Method, model: Model) -> None:
    """ValueError, with what to type, if a method and a model cannot keep what is asked for."""
    privacy: PrivacySettings = config.section("privacy")
    merge: MergeSettings = config.section("merge")
    name = config.values["method"]["name"]
    if privacy.unit == "none":
        return
    accounting()
    if privacy.unit == "example":
        _check_steps(name, method, method.trains(model))
    elif privacy.noised_by == "server":
        _check_sums(f'privacy.noised_by = "server" noises the one mean that it sends; {name}', method)
        if merge.robust:
            raise ValueError(
                f'privacy.noised_by = "server" counts on a mean, which one client moves by no more'
                f' than its share; use merge.rule = "mean", not "{merge.rule}"'
            )


def _check_steps(name: str, method: Method, trained: Model) -> None:
    if trained.buffers:
        raise ValueError(
            "privacy.unit = \"example\" clips each example's own gradient, and behind a batch norm"
            ' an example has none of its own; use model.norm = "group", or a model without'
        )
    if type(method).observe is not Method.observe:
        raise ValueError(
            f'privacy.unit = "example" noises the steps of a training, and {name} uploads more of'
            ' its examples than what it trained; use privacy.unit = "client", or another method'
        )


def _check_sums(who: str, method: Method) -> None:
    if method.reads() != "sums":
        raise ValueError(
            f"{who} needs to see more of uploads than that: experts, neighbours and relevance are"
            ' made of single ones; use privacy.noised_by = "client", or method.name = "fedavg"'
        )


def door(config: Config) -> UploadSettings:
    """What is done to uploads: as [upload] says, or so that [privacy] hides a client."""
    upload: UploadSettings = config.section("upload")
    privacy: PrivacySettings = config.section("privacy")
    if privacy.unit != "client":
        return upload
    if upload.clip:
        raise ValueError(
            f'upload.clip = {upload.clip} and privacy.unit = "client" both clip uploads; use'
            " privacy.clip alone, whose noise is counted"
        )
    noise = privacy.use(1, 1, 1, config.values["run"]["rounds"]).noise
    return UploadSettings(privacy.clip, noise if privacy.noised_by == "client" else 0.0)
