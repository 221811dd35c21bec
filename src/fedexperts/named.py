"""Classes by name, each imported when it is first asked for: what there is can be listed without waiting for torch.

This room does not know what the classes are.
"""

import importlib
from collections.abc import Iterator, Mapping


class Named(Mapping[str, type]):
    """Of a package: `Named(__name__, {"alone": "fedavg:Alone"})["alone"]` is the class `Alone` in `fedavg.py`."""

    def __init__(self, package: str, places: Mapping[str, str]) -> None:
        self._package = package
        self._places = dict(places)

    def __getitem__(self, name: str) -> type:
        module, _, attribute = self._places[name].partition(":")
        found: type = getattr(importlib.import_module(f".{module}", self._package), attribute)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
