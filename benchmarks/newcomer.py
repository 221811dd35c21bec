"""scratch"""
from dataclasses import dataclass, replace
from fedexperts.data.digits import DigitsScanners
from fedexperts.data import Federation


@dataclass(frozen=True, kw_only=True)
class LeftOut(DigitsScanners):
    """The demo's clients without one of each scanner, the newcomers."""

    fold: int = 0

    def load(self, seed: int) -> Federation:
        whole = super().load(seed)
        stay = {name: parts for name, parts in whole.parts.items() if int(name.rpartition("-")[2]) // self.scanners != self.fold}
        return replace(whole, parts=stay, domains={name: whole.domains[name] for name in stay})
