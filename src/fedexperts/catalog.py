"""Classes by name, each imported when it is first asked for: what there is can be listed without
waiting for torch.

This room does not know what the classes are.
"""

import ast
import importlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path


class Named(Mapping[str, type]):
    """Of a package: `Named(__name__, {"alone": "fedavg:Alone"})["alone"]` is the class `Alone` in
    `fedavg.py`.
    """

    def __init__(self, package: str, modules: Mapping[str, str]) -> None:
        self._package = package
        self._modules = dict(modules)

    def __getitem__(self, name: str) -> type:
        module, _, attribute = self._modules[name].partition(":")
        loaded: type = getattr(importlib.import_module(f".{module}", self._package), attribute)
        return loaded

    def meaning(self, name: str) -> str:
        """The first line of a class's docstring, read in its file; nothing is imported for it."""
        module, _, attribute = self._modules[name].partition(":")
        spec = find_spec(f".{module}", self._package)
        assert spec is not None
        assert spec.origin is not None
        for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == attribute:
                return (ast.get_docstring(node) or "").split("\n")[0]
        raise AssertionError(f"{spec.origin} has no class {attribute}")

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)
