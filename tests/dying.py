"""`fedexperts deploy server`, which dies, as a machine does, before it hears a site's call: the one
that is named, once the file ARMED is there.

    python dying.py FOLDER CALL ARMED
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from fedexperts.cli import main
from fedexperts.deploy.gateway import Gateway
from fedexperts.deploy.members import Member

folder, last_call, armed = sys.argv[1:]
passed_on = Gateway._pass_on


async def dies(
    self: Gateway, call: str, member: Member, headers: Mapping[str, str], body: bytes
) -> tuple[int, str, bytes]:
    if call == last_call and Path(armed).exists():
        os.killpg(0, signal.SIGKILL)
    return await passed_on(self, call, member, headers, body)


Gateway._pass_on = dies  # type: ignore[method-assign]
sys.argv = ["fedexperts", "deploy", "server", folder]
main()
