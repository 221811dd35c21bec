"""Bytes from Hugging Face's hub: what it offers of a repository, and how that gets here whole.

Only `fetched` downloads, and only `fedexperts fetch` calls it: a run has no hidden traffic, and
gives the same tomorrow. The hub's own library says what there is and keeps the cache; the bytes
come by here, because a line that is cut at nine tenths must not cost them, and because a file that
is not what the hub says of it must not get its name. This room does not know what is read of it.

    CACHE/models--OWNER--NAME/blobs/HASH               a file, by the hash of its bytes
    CACHE/models--OWNER--NAME/blobs/HASH.incomplete    what has come of it
    CACHE/models--OWNER--NAME/snapshots/COMMIT/PATH    where libraries look for it
"""

import fcntl
import glob
import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import SEEK_END
from pathlib import Path
from typing import Any, BinaryIO

from huggingface_hub import (
    HfApi,
    constants,
    get_session,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub import errors as refused
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    disable_progress_bars,
    hf_raise_for_status,
    logging,
)

from .fetch import Repository, needed
from .tensors import naming

Tell = Callable[[int, int], None]  # bytes that are there, of all
TRIES, PAUSE = 5, 1.0  # times, and seconds between them, that nothing came
CHUNK = 2**20  # bytes that are hashed at once


@dataclass(frozen=True)
class File:
    """A file of a repository: its path in there, its size, the hash that the hub knows it by."""

    path: str
    size: int
    hash: str  # sha256 of a large one; git's sha1 of another


@dataclass(frozen=True)
class Offer:
    """What the hub says of a repository: its licence, and of its files those that are read here."""

    repository: Repository
    licence: str
    commit: str
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def left(self) -> list[File]:
        """Those that are not on this machine."""
        blobs, shown = (self.repository.folder / name for name in ("blobs", "snapshots"))
        return [
            file
            for file in self.files
            if not ((blobs / file.hash).exists() or (shown / self.commit / file.path).exists())
        ]


def offer(repository: Repository) -> Offer:
    """Ask the hub what it has; ValueError, with what to do, if it has nothing that is read here."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with _plainly(repository):
        about: Any = HfApi().repo_info(
            repository.name,
            repo_type=repository.kind,
            revision=repository.revision,
            files_metadata=True,
        )
    there = {file.rfilename: file for file in about.siblings or []}
    wanted = needed(repository.kind, list(there))
    _check_readable(repository, list(there), wanted)
    files = tuple(_file(repository, there[path]) for path in wanted)
    card = about.card_data or {}
    return Offer(repository, str(card.get("license") or "not stated"), about.sha, files)


def _check_readable(repository: Repository, there: Sequence[str], wanted: Sequence[str]) -> None:
    suffix = ".parquet" if repository.kind == "dataset" else ".safetensors"
    if any(path.endswith(suffix) for path in wanted):
        return
    why = f"it has no {suffix} file, and no other is read"
    if any(path.endswith(".bin") for path in there):
        why += ": its weights are pickles, which can run programs when they are read"
    raise ValueError(f"{repository.name}: {why}. Use another, or see {repository.page}")


def _file(repository: Repository, told: Any) -> File:
    """A file as the hub tells of it; its path and its hash become names on this machine's disk."""
    file = File(told.rfilename, told.size, told.blob_id)
    if told.lfs is not None:
        file = File(told.rfilename, told.lfs["size"], told.lfs["sha256"])
    if ".." in file.path.split("/") or file.path.startswith("/"):
        raise ValueError(f"{repository.page} lists {file.path!r}, which is no file of its own")
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", str(file.hash)):
        raise ValueError(
            f"{repository.page} does not say what {file.path} should be (its hash is"
            f" {file.hash!r}): expected a hub that does; HF_ENDPOINT says which is asked"
        )
    return file


def fetched(offer: Offer, tell: Tell = lambda done, total: None) -> Path:
    """Download what is left of an offer, and give it its place; `tell` hears of every piece.

    ValueError, with what to do, if that fails: what has come is kept, and another call goes on.
    """
    disable_progress_bars()
    repository, left = offer.repository, offer.left
    blobs = repository.folder / "blobs"
    with naming(blobs):
        blobs.mkdir(parents=True, exist_ok=True)
    _check_room(offer, left, blobs)
    done = offer.size - sum(file.size for file in left)
    tell(done, offer.size)
    for file in left:
        before = done

        def piece(there: int, before: int = before) -> None:
            tell(before + there, offer.size)

        _bring(offer, file, blobs / file.hash, piece)
        done += file.size
    with _plainly(repository):
        return Path(
            snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=repository.revision,
                allow_patterns=[glob.escape(file.path) for file in offer.files],
            )
        )


def _check_room(offer: Offer, left: Sequence[File], blobs: Path) -> None:
    """ValueError if the disk is too small for what is left: said before, not in the middle."""
    there = sum(part.stat().st_size for part in blobs.glob("*.incomplete"))
    lacking, free = sum(file.size for file in left) - there, shutil.disk_usage(blobs).free
    if lacking > free:
        raise ValueError(
            f"{offer.repository.name} takes {size(lacking)} more, and the disk of {blobs} has"
            f" {size(free)} left: free some space there, or set HF_HOME to a folder on another"
        )


def _bring(offer: Offer, file: File, path: Path, piece: Callable[[int], None]) -> None:
    """A whole file under the name of its hash, or what has come of it beside."""
    part = path.with_name(f"{path.name}.incomplete")
    address = hf_hub_url(
        offer.repository.name, file.path, repo_type=offer.repository.kind, revision=offer.commit
    )
    part.touch()
    with naming(part), open(part, "r+b") as into:
        try:
            fcntl.flock(into, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is fetching {offer.repository.name}: wait for it, or stop it"
            ) from None
        with _plainly(offer.repository):
            _fill(into, address, file.size, piece)
        if _hash(into, file) != file.hash:
            part.unlink()
            raise ValueError(
                f"{file.path} of {offer.repository.name} is not what the hub says it is (its hash"
                f" is another than {file.hash}), and was thrown away: type the same again, and if"
                " that does not help, do not trust the line"
            )
        part.replace(path)


def _fill(into: BinaryIO, address: str, size: int, piece: Callable[[int], None]) -> None:
    """Go on where a file ends, as often as something comes."""
    silent = 0
    piece(into.seek(0, SEEK_END))
    while (begin := into.tell()) < size:
        try:
            _take(into, address, piece)
        except refused.HfHubHTTPError:  # an answer, and no cut line
            raise
        except HTTPError:
            silent = 0 if into.tell() > begin else silent + 1
            if silent == TRIES:
                raise
            time.sleep(PAUSE)
    into.flush()


def _take(into: BinaryIO, address: str, piece: Callable[[int], None]) -> None:
    """What one answer brings."""
    headers = build_hf_headers() | {
        "Range": f"bytes={into.tell()}-",
        "Accept-Encoding": "identity",
    }
    with get_session().stream(
        "GET",
        address,
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # from the beginning, whatever was asked
            into.seek(0)
            into.truncate()
        for chunk in response.iter_bytes():
            into.write(chunk)
            piece(into.tell())


def _hash(file: BinaryIO, told: File) -> str:
    """Of a file that is open, by the kind that the hub told."""
    digest = hashlib.sha256()
    if len(told.hash) == 40:
        digest = hashlib.sha1(f"blob {told.size}\0".encode(), usedforsecurity=False)
    file.seek(0)
    while chunk := file.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def size(count: int) -> str:
    """Bytes in words."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count} bytes"


@contextmanager
def _plainly(repository: Repository) -> Iterator[None]:
    """What the hub or the way to it refuses, with what to do."""
    try:
        yield
    except refused.HFValidationError:
        raise ValueError(
            f"{repository.name!r} is no name on the hub; expected OWNER/NAME"
        ) from None
    except refused.OfflineModeIsEnabled:
        raise ValueError(
            "HF_HUB_OFFLINE is set, so nothing is downloaded; unset it, or bring"
            f" {repository.folder} from a machine that has it"
        ) from None
    except refused.GatedRepoError:
        raise ValueError(
            f"{repository.name} is given only to those who accept its terms: do that on"
            f" {repository.page}, then type: hf auth login"
        ) from None
    except refused.RepositoryNotFoundError:
        kind = repository.kind.replace("dataset", "data set")
        raise ValueError(
            f"{constants.ENDPOINT} has no {kind} {repository.name} that you may see:"
            " check the name or, if it is a private one, type: hf auth login"
        ) from None
    except refused.HfHubHTTPError as error:
        code = error.response.status_code
        raise ValueError(
            f"{constants.ENDPOINT} answered {code} for {repository.name}: try again later, what"
            " has come is kept"
        ) from None
    except (HTTPError, refused.LocalEntryNotFoundError) as error:
        raise ValueError(
            f"the line to {constants.ENDPOINT} is cut ({str(error).splitlines()[0]}). Type the same"
            " again when it is there: what has come is kept"
        ) from None
