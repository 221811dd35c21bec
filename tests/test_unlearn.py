"""Taking a client out of a finished run is never having had it."""

from pathlib import Path

import pytest
from conftest import CASES, Case, Spoilt, carry_out, every_file, tiny
from typer.testing import CliRunner

from fedexperts.cli import app
from fedexperts.config import Config
from fedexperts.message import Reply
from fedexperts.unlearn import unlearn


def once(case: Case) -> Config:
    return tiny(case, run={"rounds": 1, "participation": 1.0})


def of_state(path: Path) -> dict[str, bytes]:
    """The server's state and that of every client but c, byte for byte."""
    kinds, gone = ("server.safetensors", ".private"), "private/c/"
    return {
        name: data
        for name, data in every_file(path).items()
        if name.endswith(kinds) and not name.startswith(gone)
    }


def test_the_rest_of_the_run_is_that_of_a_run_which_never_had_the_client(tmp_path: Path) -> None:
    """Server and clients, bit for bit; the reference run never got a word of it."""

    def silent(reply: Reply) -> Reply | None:
        if reply.client == "c" and reply.task == "train":
            return None
        return reply

    config = once(CASES["gaussian"])
    with_it = carry_out(config, tmp_path / "with")
    never = carry_out(config, tmp_path / "never", lambda engine: Spoilt(engine, silent))
    without = unlearn(with_it, "c", tmp_path / "without")
    assert of_state(without.path) == of_state(never.path)
    assert of_state(without.path) != of_state(with_it.path)
    assert {row["client"] for row in without.rows("clients.jsonl")} == set("abde")
    without.check()


def test_nothing_of_the_client_is_in_the_new_folder(tmp_path: Path) -> None:
    with_it = carry_out(once(CASES["gaussian"]), tmp_path / "with")
    row = with_it.look()
    assert row is not None
    mean = row[1]["pool.c.mean"].numpy().tobytes()
    without = unlearn(with_it, "c", tmp_path / "without")
    assert any(mean in data for data in every_file(with_it.path).values())
    assert not any(mean in data for data in every_file(without.path).values())
    assert not (without.path / "private" / "c").exists()


@pytest.mark.parametrize(
    ("case", "client", "says"),
    [
        ("gaussian", "z", "the server has no expert of 'z'; it has a, b, c, d, e"),
        ("gaussian-chosen", "c", "run anew without it"),
        ("fedavg", "c", "nothing tells it apart"),
        ("gaussian-sums", "c", "it knows sums alone"),
    ],
)
def test_what_cannot_be_taken_out_exactly_is_said(
    case: str, client: str, says: str, tmp_path: Path
) -> None:
    folder = carry_out(once(CASES[case]), tmp_path / "run")
    result = CliRunner().invoke(
        app, ["unlearn", str(folder.path), client, "--out", str(tmp_path / "new")]
    )
    assert result.exit_code == 1
    assert says in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()


def test_the_command_says_that_the_old_folder_still_has_it(tmp_path: Path) -> None:
    folder = carry_out(once(CASES["gaussian"]), tmp_path / "run")
    result = CliRunner().invoke(
        app, ["unlearn", str(folder.path), "c", "--out", str(tmp_path / "new")]
    )
    assert result.exit_code == 0, result.output
    assert "still has what c sent" in " ".join(result.output.split())
