"""What an experiment promises about its clients, and whether it can be had together.

Everything that excludes each other is said here, when it is asked for. This room does not know how
noise is drawn, nor how uploads become one.
"""

from dataclasses import replace

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
    upload: UploadSettings = config.section("upload")
    if upload.secure:
        _check_secure(name, method, model, merge)
    if privacy.unit == "none":
        return
    accounting()
    if privacy.unit == "example" and method.sensitivity():
        _check_noised_sums(name, upload)
    elif privacy.unit == "example":
        _check_steps(name, method, model)
    elif method.sensitivity():
        raise ValueError(
            f'privacy.unit = "client" clips the change of what all share, and {name} uploads sums'
            ' that nobody shares; use privacy.unit = "example"'
        )
    elif privacy.noised_by == "server":
        _check_sums(f'privacy.noised_by = "server" noises one mean, and {name}', method)
        if merge.robust:
            raise ValueError(
                f'privacy.noised_by = "server" counts on a mean, which one client moves by no more'
                f' than its share; use merge.rule = "mean", not "{merge.rule}"'
            )


def _check_steps(name: str, method: Method, model: Model) -> None:
    trained = method.trains(model)
    if trained.buffers:
        raise ValueError(
            'privacy.unit = "example" clips each example\'s own gradient, and behind a batch norm'
            ' an example has none of its own; use model.norm = "group", or a model without'
        )
    learned = {*model.initial, *trained.initial}
    more = {name for name in method.uploads(model) - learned if not name.startswith("gate.")}
    if more and type(method).observe is not Method.observe:
        raise ValueError(
            f'privacy.unit = "example" noises the steps of a training, and {name} uploads more of'
            ' its examples than what it trained; use privacy.unit = "client", or another method,'
            ' as method.name = "gaussian-sums", whose sums are noised'
        )


def _check_noised_sums(name: str, upload: UploadSettings) -> None:
    if not upload.secure:
        raise ValueError(
            f'privacy.unit = "example" hides an example of {name} in everybody\'s sum, of whose'
            " noise each client adds a part; use upload.secure = true"
        )


def _check_sums(who: str, method: Method) -> None:
    if method.reads() != "sums":
        raise ValueError(
            f"{who} needs to see more of uploads than that: nearest experts, relevance and means"
            ' over some are made of single ones; leave it out, or use method.name = "fedavg"'
        )


def _check_secure(name: str, method: Method, model: Model, merge: MergeSettings) -> None:
    _check_sums(f"upload.secure = true shows the server one mean of all, and {name}", method)
    if merge.robust:
        raise ValueError(
            f'merge.rule = "{merge.rule}" holds uploads against each other, and upload.secure ='
            " true hides each; leave out one of them"
        )
    if method.trains(model).buffers:
        raise ValueError(
            "upload.secure = true sums numbers in fixed point, and a batch norm counts steps; use"
            ' model.norm = "group", or a model without'
        )
    try:
        import Crypto.Protocol.SecretSharing  # noqa: F401
        import cryptography  # noqa: F401
    except ImportError:
        raise ValueError(
            "upload.secure = true needs two packages that are not installed; use pip install"
            ' "fedexperts[privacy]"'
        ) from None


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
    noise = noise if privacy.noised_by == "client" else 0.0
    return replace(upload, clip=privacy.clip, noise=noise)
