"""Your own images in folders: a folder of clients, client/class/image.jpg, or one client's own,
class/image.jpg.

In a client's folder, train/class/image.jpg, valid/... and test/... give the parts. Hidden files are
passed over, other files that are no images are named in a note, and what else does not fit is
refused by name. This room reads names, not images.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import category

from ..options import option, typed_path
from .examples import PART, Example, Listing, below, composed, merged, words
from .images import SUFFIXES, Folder, several
from .own import Own

JUNK = ("thumbs.db", "desktop.ini")  # what Windows leaves behind; other systems' begins with a dot
LAYOUT = (
    "expected FOLDER/client/class/image.jpg or, if data.site names whose folder it is,"
    " FOLDER/class/image.jpg"
)


@dataclass(frozen=True, kw_only=True)
class ImageFolders(Own):
    """Your own images in folders: client/class/image.jpg, or one client's own, class/image.jpg."""

    path: str = option(
        "", says="the folder of clients or, if data.site names the one client, of classes"
    )

    def listing(self) -> Listing:
        root = typed_path(self.path)
        if not root.is_dir():
            raise ValueError(
                f"data.path = {self.path!r}: no such folder, seen from {Path.cwd()}; {LAYOUT}"
            )
        walk = _Walk(root)
        homes = {self.site: root}
        if not self.site:
            homes = {composed(home.name): home for home in walk.folders(root)}
        examples = [
            example for client, home in homes.items() for example in walk.client(client, home)
        ]
        parts = [name for name in homes if name.lower() in PART]
        if not self.site and (len(parts) > 1 or len(parts) == len(homes) == 1):
            raise ValueError(
                f"{root} holds {several(parts)}, which are parts of one client's own data and no"
                " clients: use data.site = its name, or a folder of that name around them"
            )
        if bare := sorted(homes.keys() - {example.client for example in examples}):
            raise ValueError(
                f"no image in {several(bare)}, in {root}: add some, or remove the folder"
            )
        if not examples:
            raise ValueError(f"{root} holds no folder; {LAYOUT}")
        classes = frozenset(map(words, walk.classes))
        return Listing(examples, classes, Folder(root), walk.notes())


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
    classes: set[str] = field(default_factory=set)  # as their folders are named
    passed: dict[str, None] = field(default_factory=dict)  # a set that keeps its order

    def client(self, client: str, home: Path) -> Iterator[Example]:
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
            raise ValueError(f"{home} holds images of no class ({names}); {LAYOUT}")
        return folders

    def notes(self) -> tuple[str, ...]:
        notes = merged(self.classes)
        if self.passed:
            notes += (f"Passed over, as no images: {several(self.passed)}.",)
        return notes

    def _images(self, home: Path) -> list[Path]:
        folders, images = self._entries(home)
        if folders:
            raise ValueError(f"{folders[0]}: a folder where images should be; {LAYOUT}")
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
