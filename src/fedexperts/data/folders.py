"""Your own images in folders: a folder of clients, client/class/image.jpg, or one client's own,
class/image.jpg; or those of a data set, to be dealt out to simulated clients.

In a client's folder, train/class/image.jpg, valid/... and test/... give the parts. Hidden files are
passed over, other files that are no images are named in a note, and what else does not fit is
refused by name. This room reads names, not images.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import category

from ..options import Outside, option, typed_path
from .examples import PART, Example, Listing, below, classes_of, composed, merged, quoted, words
from .federation import Federation
from .images import SUFFIXES, Folder, several
from .own import Own
from .simulated import IN_GROUPS, Simulated

JUNK = ("thumbs.db", "desktop.ini")  # what Windows leaves behind; other systems' begins with a dot
LAYOUT = (
    "expected FOLDER/client/class/image.jpg. For FOLDER/class/image.jpg use --set data.site=NAME if"
    " it is one client's own, or --set data.name=simulated-folders --set data.partition=dirichlet"
    " to deal it out to simulated clients"
)
IN_DOMAINS = "expected FOLDER/domain/class/image.jpg, as data.partition asks whose an image is"
IN_ONE = (
    "expected FOLDER/class/image.jpg, without or with FOLDER/train and FOLDER/test around the"
    ' classes; for FOLDER/domain/class/image.jpg use data.partition = "dirichlet-in-domains" or'
    ' "natural"'
)


@dataclass(frozen=True, kw_only=True)
class ImageFolders(Own):
    """Your own images in folders: client/class/image.jpg, or one client's own, class/image.jpg."""

    path: str = option(
        "", says="the folder of clients or, if data.site names the one client, of classes"
    )

    def listing(self) -> Listing:
        walk = _Walk(_folder(self.path, LAYOUT), LAYOUT)
        if self.site:
            return walk.listing({self.site: walk.root})
        return walk.listing(
            walk.homes("use data.site = its name, or a folder of that name around them")
        )


@dataclass(frozen=True, kw_only=True)
class SimulatedFolders(Simulated, Outside):
    """Images in folders that belong to no clients, or to few: dealt out to simulated ones."""

    path: str = option(
        "", says="the folder of classes or, where partition asks whose an image is, of domains"
    )

    def at_hand(self) -> None:
        """ValueError, with what to do, for what does not fit at `path`; no picture is read."""
        self._listing()

    def load(self, seed: int) -> Federation:
        """ValueError, with what to do, if there is no such folder, or it cannot be dealt out."""
        listing = self._listing()
        return self.simulate(listing, classes_of(listing, (), ""), seed)

    def _listing(self) -> Listing:
        """Whose an image is: its domain, if there are domains."""
        if not self.path:
            raise ValueError("data.path is missing: use --set data.path=FOLDER")
        if self.partition in IN_GROUPS:
            walk = _Walk(_folder(self.path, IN_DOMAINS), IN_DOMAINS)
            return walk.listing(walk.homes('use data.partition = "dirichlet"'))
        walk = _Walk(_folder(self.path, IN_ONE), IN_ONE)
        return walk.listing({walk.root.name: walk.root})


def _folder(path: str, layout: str) -> Path:
    root = typed_path(path)
    if root.is_file():
        raise ValueError(
            f"data.path = {str(root)!r} is a file; {layout}. A table is read by --set"
            " data.name=table"
        )
    if not root.is_dir():
        raise ValueError(
            f"data.path = {str(root)!r}: no such folder, seen from {Path.cwd()}; use --set"
            f" data.path=FOLDER, {layout}"
        )
    return root


def images_below(root: Path) -> list[Path]:
    """All images in a folder and in those below it, whatever these mean; none that is hidden."""
    images = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]  # those to go on with
        images += [Path(folder, name) for name in files if _is_image(name)]
    return sorted(images)


def in_class_folders(files: Iterable[str], classes: Iterable[str]) -> list[str]:
    """Those of the files whose folder is named like a class."""
    known = set(map(words, classes))
    return [file for file in files if words(Path(file).parent.name) in known]


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES


@dataclass
class _Walk:
    """On the way through a folder: what was seen, and what was passed by."""

    root: Path
    layout: str  # what is expected, in words
    classes: set[str] = field(default_factory=set)  # as their folders are named
    passed: dict[str, None] = field(default_factory=dict)  # a set that keeps its order

    def homes(self, instead: str) -> dict[str, Path]:
        """The folders in the root, each a client by its name; ValueError, with what to do instead,
        if they are parts.
        """
        homes = {composed(home.name): home for home in self.folders(self.root)}
        parts = [name for name in homes if name.lower() in PART]
        if len(parts) > 1 or len(parts) == len(homes) == 1:
            raise ValueError(
                f"{self.root} holds {several(parts)}, which are parts of one client's own data and"
                f" no clients: {instead}"
            )
        return homes

    def listing(self, homes: Mapping[str, Path]) -> Listing:
        """All images of all clients; ValueError for a client without any."""
        examples: list[Example] = []
        for client, home in homes.items():
            examples += self._client(client, home)
        if bare := sorted(homes.keys() - {example.client for example in examples}):
            raise ValueError(
                f"{self.root} has no image in {quoted(bare)}; {self.layout}. Add some, or remove"
                f" what is empty{self._read_here()}"
            )
        if not examples:
            raise ValueError(f"{self.root} holds no folder; {self.layout}")
        classes = frozenset(map(words, self.classes))
        return Listing(examples, classes, Folder(self.root), self.notes())

    def _read_here(self) -> str:
        """Where other files lie in place of images: what an image is."""
        if not self.passed:
            return ""
        return (
            f". Images are files as {', '.join(SUFFIXES)}; passed over were {several(self.passed)}"
        )

    def _client(self, client: str, home: Path) -> Iterator[Example]:
        """The images of one client."""
        for part, folder_of_part in self._parts(home):
            for folder in self.folders(folder_of_part):
                self.classes.add(composed(folder.name))
                for file in self._images(folder):
                    yield Example(below(self.root, file), words(folder.name), client, part)

    def folders(self, home: Path) -> list[Path]:
        """The folders in `home`, where no image may lie: it would have no client or no class."""
        folders, images = self._entries(home)
        if images:
            names = several((file.name for file in images), 3)
            raise ValueError(f"{home} holds images of no class ({names}); {self.layout}")
        return folders

    def notes(self) -> tuple[str, ...]:
        notes = merged(self.classes)
        if self.passed:
            notes += (f"Passed over, as no images: {several(self.passed)}.",)
        return notes

    def _images(self, home: Path) -> list[Path]:
        folders, images = self._entries(home)
        if folders:
            raise ValueError(f"{folders[0]}: a folder where images should be; {self.layout}")
        return images

    def _parts(self, home: Path) -> list[tuple[str, Path]]:
        """The parts that a client gives, if its folders are named so, or all of it to train on."""
        folders = self.folders(home)
        parts = [
            (PART[name], folder) for folder in folders if (name := folder.name.lower()) in PART
        ]
        whole = len(parts) == len(folders)
        if whole and "train" in dict(parts):
            return parts
        if len(parts) > 1 or (whole and parts):
            names = ", ".join(folder.name for folder in folders)
            raise ValueError(
                f"{home} holds {names}: expected train, valid and test, or train alone, or"
                " classes alone"
            )
        return [("train", home)]

    def _entries(self, home: Path) -> tuple[list[Path], list[Path]]:
        """The folders and the images in `home`, by name; other files that show are noted."""
        folders, images = [], []
        for entry in sorted(home.iterdir(), key=lambda entry: composed(entry.name)):
            if entry.name.startswith(".") or entry.name.lower() in JUNK:
                continue
            if any(category(mark) in ("Cc", "Cs") for mark in entry.name):
                raise ValueError(
                    f"{entry.name!a} in {home}: a name that cannot be written; use another"
                )
            if entry.is_symlink():
                below(self.root, entry)
            if entry.is_dir():
                folders.append(entry)
            elif _is_image(entry.name):
                images.append(entry)
            else:
                self.passed[below(self.root, entry)] = None
        return folders, images
