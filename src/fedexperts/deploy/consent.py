"""What leaves a site, in words: before it connects, and of each run before it is first answered.

This room sends nothing and refuses nothing; what a site allows is checked where a run's config is
read (`config/deployed.py`), and what may leave is held by `upload.py`.
"""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from .. import config as door
from ..admission import CHANGED, OPEN, SAYS
from ..client import Job
from ..config import Allowed, Config
from ..message import Task
from ..post import About
from ..tensors import Tensors, packed_size
from . import certificates, hello
from .sitefolder import SiteFolder

_TOLD: dict[Task, str] = {
    "train": "after training",
    "absorb": "after taking in what the server gave back (few methods do)",
    "predict": "after an evaluation",
}


def first_lines(site: SiteFolder) -> list[str]:
    """To whom the site speaks, what it tells in any run, and what it lets a run be."""
    ends = certificates.ends(site.door.authorities)
    print_ = hello.hash_of(site.door.authorities)[:16]
    allowed = Allowed.read(site.allowed)
    return [
        "What leaves this site: the tensors that a run's method names, and the figures below; no"
        " example, no name of a file, nothing that lies in private/. Each run's tensors are listed"
        " before its first answer.",
        f"To whom: {site.door.called}, if its certificate is signed by ca.crt (sha256 {print_}...,"
        f" until {ends:%Y-%m-%d}). Whoever runs that server can read it.",
        *_figures(allowed),
        f"What this site allows (site.toml, [allow]): {_permits(allowed)}.",
    ]


def _figures(allowed: Allowed) -> list[str]:
    lines = []
    for task, when in _TOLD.items():
        names = ["examples", *OPEN, *SAYS[task]] if task == "train" else list(SAYS[task])
        lines.append(f"Figures {when}: {', '.join(names)}.")
    lines.append(f"Figures if its data changed: {', '.join(CHANGED)}.")
    if "confusion" in allowed.figures:
        lines.append("Figures if a run asks for them, as [allow] lets it: test_confusion.")
    return lines


def _permits(allowed: Allowed) -> str:
    upload = "any size"
    if allowed.upload is not None:
        upload = f"up to {allowed.upload:,} bytes"
    noise = "without noise, too"
    if allowed.noise:
        noise = f"with upload.noise of {allowed.noise:g} or more"
    return (
        f"runs: {_listed(allowed.runs)}; methods: {_listed(allowed.methods)}; classes:"
        f" {_listed(allowed.classes)}; an upload: {upload}, {noise}; code of its own:"
        f" {_listed(allowed.modules or ())}; other files: {_listed(allowed.paths or ())}"
    )


def _listed(names: Sequence[str] | None) -> str:
    if names is None:
        return "any"
    return ", ".join(names) or "none"


def of_study(about: About) -> str:
    """What a run's study means for what leaves the site; nothing for a run that stands alone."""
    if "study" not in about:
        return ""
    return (
        f"It is one of {about['runs']} runs, at most, of the study {about['study']}: as much leaves"
        " this site in each of them, and an account of privacy is of each alone."
    )


def leaving(run: str, job: Job, site: str, study: str = "") -> list[str]:
    """What leaves the site in a run."""
    when = f"each of its {job.rounds} rounds"
    if job.rounds == 1:
        when = "its one round"
    lines = [f"The run {run}: {when} may send to the server"]
    lines += [f"  {line}" for line in _tensors(_uploads(job, site))]
    said = job.terms.says
    if said:
        lines.append(f"  figures of this method after an evaluation: {', '.join(said)}")
    if job.upload.secure:
        lines.append("  behind masks: the server sees the sum of all clients and no upload")
    lines.append(f"  {_noise(job)}")
    if study:
        lines.append(f"  {study}")
    return lines


def _uploads(job: Job, site: str) -> Tensors:
    server = job.method.open(job.given)
    uploads = job.method.expects(server, job.model, site)
    if not job.upload.secure:
        return uploads
    return {name: torch.zeros_like(value, dtype=torch.int64) for name, value in uploads.items()}


def _tensors(uploads: Tensors) -> Iterable[str]:
    for name, tensor in sorted(uploads.items()):
        shape = " x ".join(map(str, tensor.shape)) or "one number"
        size = tensor.numel() * tensor.element_size()
        yield f"{name}: {shape}, {str(tensor.dtype).removeprefix('torch.')}, {size:,} bytes"
    if not uploads:
        yield "no tensor"
    else:
        yield f"in all {packed_size(uploads):,} bytes"


def _noise(job: Job) -> str:
    if job.noises_sums:
        return "with this machine's part of the noise that hides an example in the sum ([privacy])"
    if job.privacy.unit == "example":
        return "as it was trained in steps that this machine noised ([privacy])"
    if job.upload.noise:
        return (
            f"with noise of {job.upload.noise:g} times the clip of {job.upload.clip:g}, drawn by"
            " this machine"
        )
    if job.upload.clip:
        return f"clipped to a distance of {job.upload.clip:g} from what was sent, without noise"
    return "as it was trained, without noise (upload.noise = 0)"


def dry_run(site: SiteFolder, config: Config) -> list[str]:
    """What an experiment would send from this site with its own data, and whether the site allows
    it: ValueError, with the reason, if it does not. Nothing is kept and nobody is called.
    """
    allowed = Allowed.read(site.allowed)
    allowed.check_run(config.name)
    as_a_run = door.resolve([(config.nested() | {"tune": {}}, "a dry run")])
    with tempfile.TemporaryDirectory(prefix="fedexperts-") as folder:
        private, splits = Path(folder) / "private", Path(folder) / "split"
        job, client, _ = door.site(as_a_run.toml(), site.name, site.data, private, splits, allowed)
        uploads = _uploads(job, site.name)
        allowed.check_upload(packed_size(uploads))
    counted = f"{len(client.train)} to train, {len(client.valid)} to validate, {len(client.test)}"
    return [f"This site's examples: {counted} to test.", *leaving(config.name, job, site.name)]
