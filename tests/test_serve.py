"""The local page answers as the command does, to its own page alone, and shows what it answers in a
real browser.
"""

import base64
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CASES, TinyData, rewrite, tiny
from PIL import Image
from test_dual import experiment as dual
from test_dual import save_both
from typer.testing import CliRunner

pytest.importorskip("uvicorn")
from fedexperts import serve
from fedexperts.cli import app
from fedexperts.predict import Learned, predictions
from fedexperts.serve import door
from fedexperts.study import once

HERE = Path(__file__).parent
EVIL = "<img src=x onerror=document.body.dataset.ran=1>"


@dataclass(frozen=True)
class Site:
    """A page that is being served."""

    port: int
    server: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            line.request("GET" if body is None else "POST", path, body, named)
            answer = line.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            line.close()

    def raw(self, sent: bytes) -> socket.socket:
        """A stranger's connection, over which this was sent."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        line.sendall(sent)
        return line

    @property
    def visitors(self) -> int:
        return len(self.server.server_state.connections)

    def say(self, body: bytes) -> tuple[int, dict[str, Any]]:
        status, _, content = self.ask("/say", body)
        return status, json.loads(content)


@contextmanager
def served(predictor: Learned, host: str = "127.0.0.1") -> Iterator[Site]:
    with serve.listen("127.0.0.1", 0) as door:
        server = serve.server(serve.application(predictor, host))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [door]})
        thread.start()
        try:
            yield Site(door.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of pFedMoAP, whose experts speak."""
    path = tmp_path_factory.mktemp("serve") / "run"
    once(tiny(CASES["nearest"]), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three of the tiny world's images, as files."""
    root, images = tmp_path_factory.mktemp("pictures"), TinyData().load(0).inputs
    for i in range(3):
        Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(root / f"{i}.png")
    return sorted(root.iterdir())


@pytest.fixture(scope="module")
def site(run: Path) -> Iterator[Site]:
    with served(Learned.of(run, "a")) as found:
        yield found


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The page of a run that learned from texts."""
    path = tmp_path_factory.mktemp("texts") / "run"
    words = {
        "data": {"name": "reviews", "clients": 2, "reviews": 40},
        "model": {"name": "transformer", "tokens": 12},
    }
    once(tiny(CASES["fedavg"], **words, run={"rounds": 1}), path)
    with served(Learned.of(path, "")) as found:
        yield found


def printed(run: Path, *asked: object) -> list[dict[str, Any]]:
    """What the command says."""
    done = CliRunner().invoke(app, ["predict", str(run), *map(str, asked), "--format", "json"])
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# ---- answers


def test_an_image_is_answered_as_the_command_answers_with_all_classes_and_the_loudest_expert_first(
    run: Path, site: Site, pictures: list[Path]
) -> None:
    for picture in pictures:
        (expected,) = printed(run, picture, "--client", "a")
        status, said = site.say(picture.read_bytes())
        assert status == 200
        assert (
            [said["class"], said["probability"]]
            == said["classes"][0]
            == [expected["class"], expected["probability"]]
        )
        assert {name for name, _ in said["classes"]} == {"ant", "bee", "cow"}
        assert sum(share for _, share in said["classes"]) == pytest.approx(1)
        assert dict(said["experts"]) == expected["experts"]
        for listed in (said["classes"], said["experts"]):
            assert listed == sorted(listed, key=lambda pair: -pair[1])


def test_a_text_is_answered(texts: Site) -> None:
    status, said = texts.say("überaus köstlich".encode())
    assert (status, said["experts"]) == (200, [])
    assert [said["class"], said["probability"]] == said["classes"][0]
    assert json.loads(texts.ask("/about")[2])["suffixes"] is None


def test_a_picture_is_answered_behind_a_model_for_photographs(
    tmp_path: Path, pictures: list[Path]
) -> None:
    once(dual(save_both(tmp_path)), tmp_path / "run")
    answered = []
    with served(Learned.of(tmp_path / "run", "a")) as site:
        for picture in pictures:
            (expected,) = printed(tmp_path / "run", picture, "--client", "a")
            status, said = site.say(picture.read_bytes())
            assert status == 200
            assert [said["class"], said["probability"]] == list(said["classes"][0])
            assert said["probability"] == pytest.approx(expected["probability"], abs=1e-6)
            assert dict(said["experts"]) == pytest.approx(expected["experts"], abs=1e-6)
            answered.append(said["probability"])
    assert len({*answered}) == len(pictures), "it looks at the picture"


@pytest.mark.parametrize(
    ("kind", "body", "status", "message"),
    [
        ("images", lambda good: b"no image", 400, "not an image of a kind that is read here"),
        ("images", lambda good: good[:60], 400, "truncated"),
        ("images", lambda good: b"", 400, "it is empty"),
        ("images", lambda good: b"P5 10000 10000 255\n", 400, "it has 10,000 x 10,000 pixels"),
        ("images", lambda good: bytes(serve.LARGEST + 1), 413, "larger than 33,554,432 bytes"),
        ("texts", lambda good: b"\xff\xfe", 400, "not text in UTF-8"),
        ("texts", lambda good: b" \n", 400, "it is empty"),
        ("texts", lambda good: b"a" * (serve.LONGEST + 1), 413, "larger than 65,536 bytes"),
    ],
)
def test_what_cannot_be_predicted_is_said(
    kind: str,
    body: Callable[[bytes], bytes],
    status: int,
    message: str,
    site: Site,
    texts: Site,
    pictures: list[Path],
) -> None:
    found, said = {"images": site, "texts": texts}[kind].say(body(pictures[0].read_bytes()))
    assert found == status
    assert message in said["error"]


def test_it_answers_while_it_computes_and_computes_one_at_a_time(
    run: Path, pictures: list[Path]
) -> None:
    predictor, going, busy, most = Learned.of(run, "a"), threading.Event(), [0], []

    def slowly(images: Any) -> Any:
        busy[0] += 1
        most.append(busy[0])
        assert going.wait(30)
        time.sleep(0.1)  # so that others, if they were let in, would be in here too
        busy[0] -= 1
        return predictor.built.encode(images)

    with served(replace(predictor, built=replace(predictor.built, encode=slowly))) as site:
        asked = [
            threading.Thread(target=site.say, args=(picture.read_bytes(),)) for picture in pictures
        ]
        for each in asked:
            each.start()
        assert site.ask("/about")[0] == 200
        going.set()
        for each in asked:
            each.join()
    assert most == [1, 1, 1]


# ---- who may ask


def test_only_loopbacks_own_names_are_answered_on_loopback(run: Path, site: Site) -> None:
    assert [
        site.ask("/about", Host=host)[0] for host in ("127.0.0.1:80", "localhost", "evil.example")
    ] == [
        200,
        200,
        400,
    ]
    with served(Learned.of(run, "a"), "0.0.0.0") as open_site:
        assert open_site.ask("/about", Host="laptop.local")[0] == 200


def test_another_page_may_not_ask(site: Site, pictures: list[Path]) -> None:
    picture = pictures[0].read_bytes()
    assert site.ask("/say", picture, Sec_Fetch_Site="cross-site")[0] == 403
    assert site.ask("/say", picture, Sec_Fetch_Site="same-origin")[0] == 200


def test_the_page_is_kept_from_loading_anything_from_elsewhere(site: Site) -> None:
    for path in ("/", "/page.css", "/page.js", "/about"):
        status, headers, body = site.ask(path)
        assert status == 200
        assert headers["Content-Security-Policy"].startswith(
            "default-src 'none'; script-src 'self';"
        )
        assert not re.search(rb"https?:", body)


def test_a_question_of_another_origin_is_refused_also_from_browsers_that_say_no_more(
    site: Site, pictures: list[Path]
) -> None:
    picture = pictures[0].read_bytes()
    for origin in (
        "http://evil.example",
        "null",
        f"http://127.0.0.1:{site.port + 1}",
        "http://127.0.0.1",
    ):
        assert site.ask("/say", picture, Origin=origin)[0] == 403
    assert site.ask("/say", picture, Origin=site.url)[0] == 200


HEAD = b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /../../etc/passwd" + HEAD, 404),
        (b"GET /%2e%2e/%00%ff\\page.js" + HEAD, 404),
        (b"GET //page.js" + HEAD, 404),
        (b"GET http://evil.example/" + HEAD, 404),
        (b"GET /page.js\xff" + HEAD, 400),
        (b"CONNECT evil.example:80" + HEAD, 404),
        (b"OPTIONS *" + HEAD, 404),
        (b"PUT /say" + HEAD, 405),
        (b"GET /say" + HEAD, 405),
        (b"POST /" + HEAD, 405),
        (b"NO /SUCH" + HEAD, 404),
        (b"GET / HTTP/1.1\r\n", 400),  # without a host
        (b"GET / HTTP/1.1\r\nHost: [::1]\r\n", 400),
        (b"GET /" + HEAD + b"Host: localhost\r\n", 400),
        (b"GET /" + HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\n", 200),
        (b"GET /" + HEAD + b"X: " + bytes(10) + b"\r\n", 400),
        (b"GET /" + HEAD + b"X: " + b"x" * 2**17 + b"\r\n", 400),
        (b"POST /say" + HEAD + b"Content-Length: -1\r\n", 400),
        (b"POST /say" + HEAD + b"Content-Length: 9\r\nContent-Length: 8\r\n", 400),
        (b"POST /say" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01" + bytes(600), 400),  # TLS
    ],
)
def test_odd_requests_are_refused_and_nothing_is_said_of_them_on_the_terminal(
    site: Site, sent: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with site.raw(b"") as line:
        with suppress(ConnectionError):
            line.sendall(sent + b"\r\n")
        assert line.recv(12) == b"HTTP/1.1 %d" % status
    assert site.ask("/about")[0] == 200
    assert caplog.messages == []


def test_noise_of_all_kinds_is_never_an_error_of_the_server(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Also behind a whole request, and while an answer is on its way."""
    luck, good = random.Random(0), b"POST /say" + HEAD + b"Content-Length: 3\r\n\r\nxyz"
    for _ in range(150):
        noise = bytearray(good * luck.randint(1, 3))
        for _ in range(luck.randint(1, 6)):
            noise[luck.randrange(len(noise))] = luck.choice(b"\r\n\0 /:%\xff0a")
        with site.raw(bytes(noise)) as line, suppress(ConnectionError):
            line.shutdown(socket.SHUT_WR)
            answers = b"".join(iter(lambda: line.recv(2**16), b""))
            assert b"HTTP/1.1 500" not in answers  # 503, come again, it may be
    assert site.ask("/about")[0] == 200
    assert caplog.messages == []


# ---- strangers


def test_an_honest_page_is_answered_among_hundreds_of_strangers(
    site: Site, pictures: list[Path]
) -> None:
    beginnings = (
        b"",
        b"G",
        b"GET /about HTTP/1.1\r\nHost: 127",
        b"POST /say" + HEAD + b"Content-Length: 9\r\n\r\nx",
    )
    strangers = [site.raw(beginnings[i % 4]) for i in range(300)]
    try:
        begun = time.monotonic()
        assert site.ask("/about")[0] == 200
        assert site.say(pictures[0].read_bytes())[0] == 200
        assert time.monotonic() - begun < 10
        assert site.visitors <= door.VISITORS
    finally:
        for each in strangers:
            each.close()


def test_strangers_who_send_much_are_not_kept_and_an_honest_picture_is_answered_meanwhile(
    site: Site, pictures: list[Path]
) -> None:
    """15 with 30 MB each, as took 450 MB and kept it."""
    much = b"x" * (30 * 10**6)
    before = resident()
    head = b"POST /say" + HEAD + b"Content-Length: %d\r\n\r\n" % (len(much) + 1)
    strangers = [site.raw(head) for _ in range(15)]
    try:
        for each in strangers:
            with suppress(OSError):  # it was dropped already
                each.sendall(much)
        assert site.say(pictures[0].read_bytes())[0] == 200
        assert resident() - before < 2 * door.TOGETHER
    finally:
        for each in strangers:
            each.close()


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        pytest.skip("counts memory as Linux does")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_who_sends_slowly_is_dropped(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "PATIENCE", 0.3)
    silent, slow = (
        site.raw(b"GET / HTTP/1.1\r\n"),
        site.raw(b"POST /say" + HEAD + b"Content-Length: 99\r\n\r\nx"),
    )
    with silent, slow:
        assert silent.recv(99) == b""
        assert slow.recv(12) == b"HTTP/1.1 408"
        while slow.recv(2**16):  # and then it is closed
            pass
    with site.raw(b"GET /about" + HEAD + b"\r\n") as idle:
        while idle.recv(2**16):
            pass
    assert caplog.messages == []


def test_who_leaves_in_the_middle_is_not_said_on_the_terminal(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.raw(b"POST /say" + HEAD + b"Content-Length: 99\r\n\r\nx").close()
    assert site.ask("/about")[0] == 200
    assert caplog.messages == []


def test_when_too_many_wait_for_their_turn_others_are_told_to_come_again(
    run: Path, pictures: list[Path]
) -> None:
    predictor, going = Learned.of(run, "a"), threading.Event()

    def slowly(images: Any) -> Any:
        assert going.wait(30)
        return predictor.built.encode(images)

    with (
        served(replace(predictor, built=replace(predictor.built, encode=slowly))) as site,
        ThreadPoolExecutor(serve.WAITING + 2) as pool,
    ):
        asked = [pool.submit(site.say, pictures[0].read_bytes()) for _ in range(serve.WAITING + 2)]
        refused = [each.result() for each in islice(as_completed(asked), 2)]
        going.set()
        statuses = Counter(each.result()[0] for each in asked)
    assert [status for status, _ in refused] == [503, 503]
    assert "try again in a moment" in refused[0][1]["error"]
    assert statuses == {200: serve.WAITING, 503: 2}


def test_for_who_left_before_its_turn_nothing_is_computed(run: Path, pictures: list[Path]) -> None:
    predictor, going, computed = Learned.of(run, "a"), threading.Event(), [0]

    def slowly(images: Any) -> Any:
        computed[0] += 1
        assert going.wait(30)
        return predictor.built.encode(images)

    picture = pictures[0].read_bytes()
    asked = b"POST /say" + HEAD + b"Content-Length: %d\r\n\r\n" % len(picture) + picture
    with served(replace(predictor, built=replace(predictor.built, encode=slowly))) as site:
        first = site.raw(asked)
        while not computed[0]:
            time.sleep(0.01)
        others = [site.raw(asked) for _ in range(3)]
        while site.visitors < 4:
            time.sleep(0.01)
        for each in others:
            each.close()
        while site.visitors > 1:
            time.sleep(0.01)
        going.set()
        assert first.recv(12) == b"HTTP/1.1 200"
        first.close()
        assert site.say(picture)[0] == 200
    assert computed == [2]


# ---- on the command line


@pytest.mark.slow
def test_the_command_warns_where_others_can_reach_it_and_ends_with_ctrl_c(run: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fedexperts",
        "serve",
        str(run),
        "--client",
        "a",
        "--host",
        "0.0.0.0",
        "--port",
        "0",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # a shell's background job, as these tests may be, ignores Ctrl-C, and so would the page
    with subprocess.Popen(
        command,
        cwd=HERE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **pipes,
    ) as process:
        assert process.stdout
        who, where = process.stdout.readline(), process.stdout.readline()
        found = re.search(r"http://0\.0\.0\.0:(\d+)", where)
        assert found
        assert "a's own model" in who
        assert Site(int(found[1])).ask("/")[0] == 200
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "anybody who can reach this address can use the page" in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_said(run: Path, site: Site) -> None:
    done = CliRunner().invoke(app, ["serve", str(run), "--port", str(site.port)])
    assert done.exit_code == 1
    assert "Address already in use" in done.stderr
    assert "use a free --port" in " ".join(done.stderr.split())


def test_what_to_install_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    for name in ("fedexperts.serve", "fedexperts.serve.door"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("fedexperts.serve")
    done = CliRunner().invoke(app, ["serve", str(run)])
    assert done.exit_code == 1
    assert "pip install 'fedexperts[serve]'" in done.stderr.replace("\n", " ")


# ---- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a window, that downloads nothing and calls nobody."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromium-driver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for switch in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def seen(browser: Any, count: int) -> list[Any]:
    """The predictions on the page, the oldest first, once there are so many."""
    from selenium.webdriver.support.wait import WebDriverWait

    def found(_: Any) -> list[Any]:
        return list(reversed(browser.find_elements("css selector", "article")))

    WebDriverWait(browser, 20).until(lambda driver: len(found(driver)) == count)
    return found(browser)


def text(element: Any, selector: str) -> str:
    return str(element.find_element("css selector", selector).get_property("textContent"))


def rows(article: Any, table: str) -> list[list[str]]:
    """Names and figures of a table's rows."""
    return [
        [text(row, "th"), text(row, "td:last-child")]
        for row in article.find_elements("css selector", f"{table} tr")
    ]


def listed(pairs: list[Any]) -> list[list[str]]:
    return [[name, f"{100 * share:.1f} %"] for name, share in pairs]


HAND = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const given = new DataTransfer();
given.items.add(new File([bytes], arguments[1]));
const options = {bubbles: true, cancelable: true, dataTransfer: given, clipboardData: given};
const way = arguments[2] === "drop" ? DragEvent : ClipboardEvent;
document.body.dispatchEvent(new way(arguments[2], options));
"""


def hand(browser: Any, way: str, file: Path, name: str = "") -> None:
    """Drop a file on the page, or paste it, under a name of one's own."""
    browser.execute_script(
        HAND, base64.b64encode(file.read_bytes()).decode(), name or file.name, way
    )


@pytest.mark.slow
def test_images_that_are_chosen_dropped_or_pasted_are_shown_as_they_are_answered(
    site: Site, pictures: list[Path], browser: Any
) -> None:
    browser.get(site.url)
    browser.find_element("id", "files").send_keys("\n".join(map(str, pictures)))
    seen(browser, 3)
    hand(browser, "drop", pictures[0])
    hand(browser, "paste", pictures[1])
    for article, picture in zip(seen(browser, 5), [*pictures, *pictures[:2]], strict=True):
        said = site.say(picture.read_bytes())[1]
        assert text(article, "h2") == " ".join(
            listed([[said["class"] + ",", said["probability"]]])[0]
        )
        assert text(article, ".what") == picture.name
        assert rows(article, "div > .classes") == listed(said["classes"])
        assert rows(article, ".experts") == listed(said["experts"])
        bars = article.find_elements("css selector", "div > .classes .bar")
        full = article.find_element("css selector", "div > .classes td").size["width"]
        for bar, (_, share) in zip(bars, said["classes"], strict=True):
            assert bar.size["width"] == pytest.approx(share * full, abs=1.5)
        assert article.find_element("css selector", "img").get_property("naturalWidth") == 4


@pytest.mark.slow
def test_a_wrong_file_is_named_with_the_reason_also_for_who_listens(
    site: Site, browser: Any, tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no image")
    browser.get(site.url)
    browser.find_element("id", "files").send_keys(str(tmp_path / "notes.png"))
    (article,) = seen(browser, 1)
    assert text(article, "h2") == "Not predicted"
    assert "notes.png: not an image of a kind that is read here" in text(article, ".what")
    assert "notes.png: not an image of a kind that is read here" in text(browser, "[role=status]")


@pytest.mark.slow
def test_names_of_files_classes_and_runs_are_words_and_never_run(
    tmp_path: Path, pictures: list[Path], browser: Any
) -> None:
    once(tiny(CASES["fedavg-probe"]), tmp_path / "run")
    about = json.loads((tmp_path / "run" / "environment.json").read_text())
    classes = {"classes": [EVIL, EVIL + "2", EVIL + "3"]}
    rewrite(tmp_path / "run", "environment.json", json.dumps(about | classes))
    with served(Learned.of(tmp_path / "run", "")) as site:
        browser.get(site.url)
        hand(browser, "drop", pictures[0], EVIL + ".png")
        (article,) = seen(browser, 1)
        assert text(article, ".what") == EVIL + ".png"
        assert EVIL in text(article, "h2")
        assert browser.execute_script("return document.body.dataset.ran") is None
        assert not browser.find_elements("css selector", "[onerror]")


@pytest.mark.slow
def test_texts_are_typed_and_the_page_works_from_the_keyboard(
    texts: Site, site: Site, browser: Any
) -> None:
    from selenium.webdriver import ActionChains, Keys

    browser.get(texts.url)
    ActionChains(browser).send_keys(Keys.TAB, "simply perfect").key_down(Keys.CONTROL).send_keys(
        Keys.ENTER
    ).perform()
    (article,) = seen(browser, 1)
    said = texts.say(b"simply perfect")[1]
    assert rows(article, "div > .classes") == listed(said["classes"])
    assert not article.find_element("css selector", ".experts").is_displayed()
    browser.get(site.url)
    ActionChains(browser).key_up(Keys.CONTROL).send_keys(Keys.TAB).perform()
    assert browser.switch_to.active_element.get_property("id") == "files"


@pytest.mark.slow
def test_the_page_asks_its_own_server_alone_and_breaks_no_rule_of_its_own(
    site: Site, pictures: list[Path], browser: Any
) -> None:
    browser.get(site.url)
    browser.get_log("browser")
    hand(browser, "drop", pictures[0])
    seen(browser, 1)
    loaded = browser.execute_script(
        "return performance.getEntriesByType('resource').map((each) => each.name)"
    )
    assert {f"{site.url}/{name}" for name in ("page.css", "page.js", "about", "say")} <= set(loaded)
    assert all(name.startswith((site.url, f"blob:{site.url}", "data:,")) for name in loaded)
    assert browser.get_log("browser") == []


def test_grey_of_sixteen_bits_is_read_as_the_run_read_its_own(run: Path, tmp_path: Path) -> None:
    """Without a word on it, from its darkest pixel; with twelve bits, this one is nearly white."""
    ramp = np.arange(3071, 4095, 4, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    body, read = (tmp_path / "a.png").read_bytes(), []
    learned = Learned.of(run, "a")
    for bits in (0, 12):
        data = learned.config.values["data"] | {"bits": bits}
        config = replace(learned.config, values=learned.config.values | {"data": data})
        predictor = replace(learned, config=config)
        with served(predictor) as site:
            _, answer = site.say(body)
        ((expected,), _) = next(predictions(predictor, [str(tmp_path / "a.png")]))
        assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)
        read.append(answer["probability"])
    assert read[0] != pytest.approx(read[1], abs=1e-4)
