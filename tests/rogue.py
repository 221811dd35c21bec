"""A site whose answers go wrong, each in another way; everything else of it is the real thing.

python tests/rogue.py SITE_FOLDER NAME
"""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fedexperts.deploy import joining, site
from fedexperts.deploy.sitefolder import SiteFolder
from fedexperts.flower import answered
from fedexperts.message import decode_order, decode_reply, encode

SLOW = 32.0  # seconds, beyond the run's deadline


def spoilt(here: Callable[[str], Any], data: bytes) -> tuple[bytes, str]:
    """The honest answer, made wrong in the way of its round."""
    order = decode_order(data)
    honest, what = answered(here, data)
    if order.task != "train":
        return honest, what
    reply = decode_reply(honest, len(honest))
    context = reply.tensors["context"]

    def saying(value: torch.Tensor) -> bytes:
        return encode(replace(reply, tensors={"context": value}))

    if order.round == 5:
        time.sleep(SLOW)
    lies: dict[int, bytes] = {
        1: saying(context[:1]),
        2: saying(context * float("nan")),
        # 1.5 MiB: the gateway passes it on, and the server has not asked for it
        3: saying(torch.zeros(3 * 2**17)),
        4: b"\x80\x04\x95garbage",
    }
    return lies.get(order.round, honest), f"{what}, and lied" if order.round in lies else what


if __name__ == "__main__":
    site.answered = spoilt  # type: ignore[attr-defined]
    joining.join(
        SiteFolder.at(Path(sys.argv[1]), sys.argv[2]), 180.0, lambda text: print(text, flush=True)
    )
