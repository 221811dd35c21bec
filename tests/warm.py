"""Programs that start at once: one process has imported what every command imports, and makes a
copy of itself for each. A copy has the folder, the environment and the streams of whoever asks, as
a new process has; only the imports are not repeated.

It knows nothing of pages. Whoever asks, `python warm.py ADDRESS WORDS`, imports nothing heavy.
"""

import importlib
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

HEAVY = ("torch", "transformers", "pandas", "matplotlib.pyplot", "fedexperts.report")
LONGEST = 1 << 17  # bytes of arguments and environment


def asked(address: str, words: list[str]) -> int:
    """The exit status of a command that a copy carries out here."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.connect(address)
        request = json.dumps([words, os.getcwd(), dict(os.environ)])
        socket.send_fds(line, [request.encode()], [0, 1, 2])
        return int(line.recv(16) or b"1")


def make_copies(address: str) -> NoReturn:
    """A copy for each that asks, until this process is ended."""
    for name in HEAVY:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # copies that have ended are forgotten
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        door.bind(address)
        door.listen()
        while True:
            line, _ = door.accept()
            if not os.fork():
                be_a_copy(line)
            line.close()


def be_a_copy(line: socket.socket) -> NoReturn:
    """Stand where the other stands, do what it says, say how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request, streams, _, _ = socket.recv_fds(line, LONGEST, 3)
    words, folder, environment = json.loads(request)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = carry_out(words)
    sys.stdout.flush()
    sys.stderr.flush()
    line.send(str(status).encode())
    os._exit(status)


def carry_out(words: list[str]) -> int:
    """`fedexperts` with arguments, or a file of Python; the exit status."""
    import runpy
    import traceback

    from fedexperts.cli import main

    sys.argv = words
    sys.path[:0] = [part for part in os.environ.get("PYTHONPATH", "").split(":") if part]
    try:
        if words[0] == "fedexperts":
            main()
        else:
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return status(end.code)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def status(code: Any) -> int:
    """What a process would end with."""
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(asked(sys.argv[1], sys.argv[2:]))
