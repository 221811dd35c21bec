"""What is fetched from the hub: only what is read, said before, whole or refused, never twice."""

import fcntl
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest
from click.testing import Result
from hubserver import COMMIT, Hub, serving
from huggingface_hub import snapshot_download
from typer.testing import CliRunner

import fedexperts
from fedexperts import download
from fedexperts.cli import app
from fedexperts.fetch import Repository, here, needed, to_paste
from fedexperts.models.huggingface import find_clip, load_clip

TINYCLIP = Path(fedexperts.__file__).parent / "models" / "tinyclip"
CLIP = "models/some/clip"
JUNK = ("pytorch_model.bin", "README.md", "onnx/model.onnx", "tf_model.h5")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub with one CLIP, ours; what is fetched lies in tmp_path / "cache"."""
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(download, "PAUSE", 0.0)
        files = {file.name: file.read_bytes() for file in TINYCLIP.iterdir() if file.is_file()}
        server.repositories[CLIP] = files | dict.fromkeys(JUNK, b"x" * 5000)
        yield server


def call(*words: object) -> Result:
    done = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "120"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def said(*words: object) -> str:
    """What is said of what cannot be done, in one line."""
    done = call(*words)
    assert done.exit_code == 1
    return " ".join(done.output.split())


def weights(hub: Hub) -> tuple[bytes, str]:
    data = hub.repositories[CLIP]["model.safetensors"]
    return data, hashlib.sha256(data).hexdigest()


def blob(tmp_path: Path, name: str) -> Path:
    return tmp_path / "cache" / "models--some--clip" / "blobs" / name


# ---- what comes


def test_a_clip_comes_with_the_files_that_are_read_and_is_found_by_its_name(
    hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match='type "fedexperts fetch some/clip" first'):
        find_clip("some/clip")
    assert call("fetch", "some/clip").exit_code == 0
    folder = find_clip("some/clip")
    came = {file.name for file in folder.rglob("*") if file.is_file()}
    assert came == {name for name in hub.repositories[CLIP] if name not in JUNK}
    assert load_clip("some/clip").key == load_clip("tinyclip").key
    assert not list(tmp_path.rglob("*.incomplete"))


def test_sizes_and_the_licence_are_said_before_a_byte_comes(hub: Hub) -> None:
    hub.licences[CLIP] = "cc-by-nc-4.0"
    hub.refusals[f"{CLIP}/files"] = (500, "")
    done = call("fetch", "some/clip")
    assert done.exit_code == 1
    total = sum(len(data) for name, data in hub.repositories[CLIP].items() if name not in JUNK)
    assert f"{total / 1e6:.3g} MB" in done.output
    assert "cc-by-nc-4.0" in done.output
    assert "answered 500 for some/clip: try again later, what has come is kept" in done.output
    assert not hub.sent


def test_what_is_there_does_not_come_again(hub: Hub) -> None:
    call("fetch", "some/clip")
    hub.sent.clear()
    done = call("fetch", "some/clip")
    assert "0 bytes" in done.output
    assert not hub.sent


LAYOUTS = {
    "transformers": (
        ["config.json", "tokenizer.json", "model.safetensors"],
        ["flax_model.msgpack"],
    ),
    "shards": (
        ["model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ["pytorch_model-1-of-2.bin"],
    ),
    "open_clip": (
        ["config.json", "open_clip_config.json", "open_clip_model.safetensors"],
        ["model.safetensors", "open_clip_pytorch_model.bin"],
    ),
    "both": (
        ["open_clip_config.json", "preprocessor_config.json", "model.safetensors"],
        ["open_clip_model.safetensors"],
    ),
    "siglip": (["config.json", "spiece.model", "model.safetensors"], [".gitattributes"]),
    "sentences": (
        ["modules.json", "1_Pooling/config.json", "vocab.txt", "model.safetensors"],
        ["openvino/openvino_model.xml", "onnx/model.onnx", "onnx/config.json"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_each_layout_the_weights_that_are_read_are_needed_and_no_others(layout: str) -> None:
    wanted, others = LAYOUTS[layout]
    assert sorted(needed("model", [*others, *wanted])) == sorted(wanted)


def test_a_data_set_comes_as_its_parquet_files_and_is_read(hub: Hub, copies: Path) -> None:
    pytest.importorskip("datasets")
    from fedexperts.data.hub import Hub as Source

    for name, repository in (
        ("dtd", "tanganke/dtd"),
        ("sentiment140", "stanfordnlp/sentiment140"),  # of a revision other than the newest
    ):
        files = {
            str(file.relative_to(copies / name)): file.read_bytes()
            for file in (copies / name).rglob("*.parquet")
        }
        hub.repositories[f"datasets/{repository}"] = files | {"script.py": b"raise", "a.zip": b""}
        source = Source(dataset=name, partition="dirichlet", clients=2, side=8)
        with pytest.raises(ValueError, match=f"Type: fedexperts fetch {name}, or give a copy"):
            source.at_hand()
        assert call("fetch", name).exit_code == 0
        source.at_hand()
        copy = replace(source, path=str(copies / name))
        assert source.load(0).manifest() == copy.load(0).manifest()
    asked = [one for one in hub.asked if "/resolve/" in one]
    assert not [one for one in asked if "script" in one or "zip" in one]
    assert "GET /api/datasets/stanfordnlp/sentiment140/revision/refs/pr/6" in hub.asked
    assert "GET /api/datasets/stanfordnlp/sentiment140" not in hub.asked


def write_config(tmp_path: Path, name: str, clip: str) -> Path:
    file = tmp_path / f"{name}.toml"
    file.write_text(
        f'name = "{name}"\n[data]\nname = "hub"\ndataset = "dtd"\n[model]\nname = "prompted-clip"\n'
        f'clip = "{clip}"\n[method]\nname = "fedavg"\n'
    )
    return file


def test_a_config_or_a_folder_of_them_is_fetched_with_all_that_it_lacks(
    hub: Hub, copies: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datasets")
    hub.repositories["models/other/clip"] = hub.repositories[CLIP]
    hub.repositories["datasets/tanganke/dtd"] = {
        f"data/{file.name}": file.read_bytes() for file in (copies / "dtd/data").iterdir()
    }
    configs = tmp_path / "configs-of-mine"
    configs.mkdir()
    for name, clip in (("one", "some/clip"), ("two", "other/clip"), ("three", "tinyclip")):
        write_config(configs, name, clip)
    assert call("fetch", configs / "one.toml").exit_code == 0
    assert len(hub.sent) == 1
    done = call("fetch", configs)
    assert "other/clip" in done.output
    assert "some/clip" not in done.output
    assert len(hub.sent) == 2
    assert "Nothing is lacking" in call("fetch", configs).output
    assert call("check", configs / "two.toml", "--set=data.clients=2").exit_code == 0


def test_what_a_config_lacks_is_one_block_to_paste(hub: Hub, tmp_path: Path) -> None:
    file = write_config(tmp_path, "one", "timm/resnet50_clip.openai")
    for command in ("check", "run"):
        done = call(command, file)
        assert done.exit_code == 1
        lines = done.output.splitlines()
        begin = lines.index("All of it, to paste:")
        assert lines[begin + 1 :] == [
            "fedexperts fetch dtd timm/resnet50_clip.openai",
            "# to download, about: dtd 0.6 GB, timm/resnet50_clip.openai 0.41 GB",
        ]


def test_data_that_are_not_there_are_said_with_the_rest(hub: Hub) -> None:
    text = said("run", "configs/own/images-clip", "--set=data.path=nowhere")
    assert "data.path = 'nowhere': no such folder, seen from" in text
    assert "All of it, to paste: fedexperts fetch openai/clip-vit-base-patch32" in text


def test_a_missing_extra_is_said_with_the_rest_and_before_a_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    done = call("check", write_config(tmp_path, "one", "tinyclip"))
    assert done.output.splitlines()[-3:-1] == [
        "pip install 'fedexperts[hub]'",
        "fedexperts fetch dtd",
    ]
    done = call("reproduce", "pfedmoap", "--only=dtd/promptfl", f"--out={tmp_path / 'runs'}")
    assert "pip install 'fedexperts[hub]'\nfedexperts fetch dtd timm" in done.output
    assert "type: pip install 'fedexperts[hub]'" in said("fetch", "dtd")
    assert not [one for one in hub.asked if "dtd" in one]


def test_what_no_download_brings_is_no_part_of_the_block() -> None:
    assert not to_paste([ValueError("Fed up")])


# ---- what the library brought


def test_a_download_that_left_out_what_is_not_read_is_whole(hub: Hub) -> None:
    snapshot_download("some/clip", allow_patterns=["*.json", "*.txt", "model.safetensors"])
    assert load_clip("some/clip").key == load_clip("tinyclip").key


def test_a_download_without_weights_is_not(hub: Hub) -> None:
    snapshot_download("some/clip", ignore_patterns=["*.safetensors"])
    with pytest.raises(ValueError, match="nor, whole, in this machine's Hugging Face cache"):
        find_clip("some/clip")
    assert call("fetch", "some/clip").exit_code == 0
    assert here(Repository("some/clip")) is not None


# ---- what goes wrong


def test_a_line_that_is_cut_is_taken_up_where_it_was(hub: Hub, tmp_path: Path) -> None:
    data, sha256 = weights(hub)
    half = len(data) // 2
    hub.cuts = [half, *[5000] * 2 * download.TRIES]  # as often as it likes, while something comes
    assert call("fetch", "some/clip").exit_code == 0
    first, second, *others = (begin for name, begin in hub.sent if name == sha256)
    assert first == 0
    assert half - 2**17 < second <= half
    assert others == [second + 5000 * (n + 1) for n in range(2 * download.TRIES)]
    assert blob(tmp_path, sha256).read_bytes() == data


def test_a_line_that_stays_cut_is_an_error_and_the_next_call_goes_on(
    hub: Hub, tmp_path: Path
) -> None:
    data, sha256 = weights(hub)
    hub.cuts = [len(data) // 2, *[0] * download.TRIES]
    text = said("fetch", "some/clip")
    assert f"the line to {hub.address} is cut" in text
    assert "what has come is kept" in text
    kept = blob(tmp_path, f"{sha256}.incomplete").stat().st_size
    assert kept > len(data) // 4
    assert call("fetch", "some/clip").exit_code == 0
    assert hub.sent[-1] == (sha256, kept)


def test_other_bytes_than_the_hub_says_are_refused_and_thrown_away(
    hub: Hub, tmp_path: Path
) -> None:
    data, sha256 = weights(hub)
    hub.forged[sha256] = data[:-1] + b"!"
    text = said("fetch", "some/clip")
    assert "model.safetensors of some/clip is not what the hub says it is" in text
    assert not blob(tmp_path, sha256).exists()
    assert not blob(tmp_path, f"{sha256}.incomplete").exists()
    assert here(Repository("some/clip")) is None
    hub.forged.clear()
    assert call("fetch", "some/clip").exit_code == 0


def test_a_small_file_is_held_against_its_hash_too(hub: Hub) -> None:
    hub.forged["config.json"] = b" " * len(hub.repositories[CLIP]["config.json"])
    assert "config.json of some/clip is not what the hub says it is" in said("fetch", "some/clip")


def test_a_disk_that_is_too_small_is_said_before(hub: Hub) -> None:
    hub.claims["model.safetensors"] = 10**16
    text = said("fetch", "some/clip")
    assert "some/clip takes 1e+07 GB more, and the disk of" in text
    assert "free some space there, or set HF_HOME to a folder on another" in text
    assert not hub.sent


def test_a_disk_that_is_full_in_the_middle_is_said_and_what_came_is_kept(
    hub: Hub, tmp_path: Path
) -> None:
    _, sha256 = weights(hub)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, before[1]))
    try:
        text = said("fetch", "some/clip")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert f"{sha256}.incomplete: File too large" in text
    kept = blob(tmp_path, f"{sha256}.incomplete").stat().st_size
    assert 0 < kept <= 2**18
    assert call("fetch", "some/clip").exit_code == 0
    assert hub.sent[-1] == (sha256, kept)


@pytest.mark.parametrize(
    ("refusal", "says"),
    [
        ((404, "RepoNotFound"), "has no model some/clip that you may see: check the name"),
        ((401, "RepoNotFound"), "if it is a private one, type: hf auth login"),
        ((403, "GatedRepo"), "given only to those who accept its terms: do that on"),
        ((401, "GatedRepo"), "/some/clip, then type: hf auth login"),
        ((404, "RevisionNotFound"), "answered 404 for some/clip"),
    ],
)
def test_a_closed_door_is_said_with_what_opens_it(
    hub: Hub, refusal: tuple[int, str], says: str
) -> None:
    hub.refusals[CLIP] = refusal
    assert says in said("fetch", "some/clip")


def test_a_name_that_nothing_has_is_answered_with_the_nearest(hub: Hub) -> None:
    assert "did you mean cifar10?" in said("fetch", "cifar-10")
    assert "no data set of the papers, no config, and no OWNER/NAME" in said("fetch", "nothing")
    assert "'some/cl ip' is no name on the hub" in said("fetch", "some/cl ip")
    assert "use data.path = a folder of parquet files" in said("fetch", "office-caltech10")


def test_a_hub_that_does_not_answer_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the line to http://127.0.0.1:9 is cut" in said("fetch", "some/clip")


def test_weights_that_are_pickles_alone_do_not_come(hub: Hub) -> None:
    del hub.repositories[CLIP]["model.safetensors"]
    text = said("fetch", "some/clip")
    assert "some/clip: it has no .safetensors file" in text
    assert "its weights are pickles, which can run programs when they are read" in text
    assert not [one for one in hub.asked if "/resolve/" in one]


@pytest.mark.parametrize("name", ["../../../../stolen", ""])
def test_a_hash_that_is_none_becomes_no_name_on_this_disk(hub: Hub, name: str) -> None:
    hub.hashes["config.json"] = name
    assert "does not say what config.json should be" in said("fetch", "some/clip")


def test_a_path_that_leads_out_of_the_cache_is_refused(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    hub.repositories["datasets/tanganke/dtd"] = {"../../../../stolen.parquet": b"PAR1"}
    assert "stolen.parquet" in said("fetch", "dtd")
    assert not list(tmp_path.parent.rglob("stolen.parquet"))


def test_two_that_fetch_the_same_at_once_do_not_write_one_file(hub: Hub, tmp_path: Path) -> None:
    _, sha256 = weights(hub)
    part = blob(tmp_path, f"{sha256}.incomplete")
    part.parent.mkdir(parents=True)
    with open(part, "wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is fetching some/clip" in said("fetch", "some/clip")
    assert call("fetch", "some/clip").exit_code == 0


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_where_it_was(hub: Hub, tmp_path: Path) -> None:
    """As it is typed, with HF_ENDPOINT and HF_HOME."""
    data, sha256 = weights(hub)
    home = tmp_path / "home"
    about: Any = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(home)}
    command = [sys.executable, "-m", "fedexperts", "fetch", "some/clip"]
    hub.pause = len(data) // 2
    first = subprocess.Popen(command, env=about, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    part = home / "hub" / "models--some--clip" / "blobs" / f"{sha256}.incomplete"
    for _ in range(600):
        if part.exists() and part.stat().st_size > len(data) // 4:
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    kept = part.stat().st_size
    hub.pause = 0
    done = subprocess.run(command, env=about, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert hub.sent[-1] == (sha256, kept)
    assert f"some/clip is in {home}/hub/models--some--clip/snapshots/{COMMIT}" in done.stdout
    kept_json = home / "hub" / "models--some--clip" / "snapshots" / COMMIT / "config.json"
    assert json.loads(kept_json.read_text())["model_type"] == "clip"
