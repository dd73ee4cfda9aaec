"""The camera's page: over real HTTP, and as a person uses it in a browser."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from tasktok_edge import apps
from tasktok_edge.apps.live import OWN, Live, Model, Wish, open_model
from tasktok_edge.apps.serve import serving
from tasktok_edge.errors import UsageError
from tasktok_edge.runtimes.cameras import Frame, Frames
from tasktok_edge.runtimes.sinks import Sinks
from tasktok_edge.runtimes.stream import stream
from tests.helpers_bundle import build

pytest.importorskip("openvino")
CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("out")
    return [build(folder / name, "openvino") for name in ("one", "two")]


def moving() -> Iterator[Frame]:
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, 256, (48, 64, 3), np.uint8)


@contextmanager
def camera(bundles: list[Path], address: str = "0", token: str | None = None) -> Iterator[tuple[Live, str]]:
    """A camera's loop in a thread, as `tasktok-edge camera --serve` has it, and its page's address."""
    over, opening = threading.Event(), partial(open_model, device="auto", threads=1, budgets=True)
    with ExitStack() as stack:
        model = opening(bundles[0])
        live = Live(bundles, opening, Wish(model, "seg", OWN), "moving", 500)
        stack.callback(live.close)
        url = stack.enter_context(serving(live, address, token))
        results = stack.enter_context(stream(model.own, Frames(moving, fps=60), task="seg", on_event=live.tell))
        live.results = results
        sinks = Sinks([live], live.tell)

        def loop() -> None:
            while not over.is_set():
                one = results.poll(0.05)
                live.obey()
                if one is not None:
                    sinks.write(one)

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield live, url
        finally:
            over.set()
            thread.join()


def result(client: httpx.Client, after: int = -1, **more: object) -> tuple[dict[str, Any], bytes, bytes]:
    answer = client.get("api/live", params={"after": after, **more}).raise_for_status().content  # type: ignore[dict-item]
    length = int.from_bytes(answer[:4], "big")
    head = json.loads(answer[4 : 4 + length])
    first, second = head["pictures"]
    assert len(answer) == 4 + length + first + second
    return head, answer[4 + length : 4 + length + first], answer[4 + length + first :]


def shape(jpeg: bytes) -> tuple[int, ...]:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return picture.shape


def test_viewers_see_each_result_once_and_several_cost_one_coding(bundles: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    coded, jpeg = list[int](), apps.live._jpeg
    monkeypatch.setattr(apps.live, "_jpeg", lambda picture: coded.append(1) or jpeg(picture))

    def view(url: str, n: int) -> list[int]:
        with httpx.Client(base_url=url) as client:
            seen = [-1]
            while len(seen) <= n:
                head, left, right = result(client, seen[-1])
                if "result" in head:
                    assert shape(left) == shape(right) == (48, 64, 3)
                    seen.append(head["result"]["frame"])
            return seen[1:]

    with camera(bundles) as (live, url), ThreadPoolExecutor(4) as pool:
        views = list(pool.map(partial(view, url), [15] * 4))
        assert live.results is not None
        counts = live.results.counts
        with httpx.Client(base_url=url) as client:
            answered = client.get("metrics").text
    for seen in views:
        assert seen == sorted(set(seen))
    assert len(coded) == 2 * len({frame for seen in views for frame in seen})  # degraded and restored, whoever looks
    assert counts.answered + counts.dropped in (counts.captured, counts.captured - 1)
    assert 'tasktok_frames_total{outcome="answered"}' in answered
    assert 'tasktok_events_total{kind="opened"} 1.0' in answered and "tasktok_result_age_seconds" in answered
    assert 'tasktok_seconds_count{part="end_to_end"}' in answered


def test_what_somebody_asks_for_is_used_and_what_there_is_not_is_told(bundles: list[Path]) -> None:
    with camera(bundles) as (live, url), httpx.Client(base_url=url) as client:
        result(client)
        for change, told in (
            ({"task": "sge"}, "did you mean 'seg'"),
            ({"budget": "99"}, "unknown budget '99'"),
            ({"bundle": 7}, "there is no bundle 7"),
        ):
            answer = client.post("api/change", json=change)
            assert answer.status_code == 422 and told in answer.json()["detail"]
        assert client.post("api/change", json={"colour": "red"}).status_code == 422
        head = result(client)[0]
        assert (head["task"], head["bundle"], head["name"], head["tasks"]) == ("seg", 0, "tiny", ["cls", "seg", "det"])
        first = live.now.model
        assert client.post("api/change", json={"task": "det", "bundle": 1}).status_code == 200
        head = _until(client, lambda head: head["bundle"] == 1)
        assert head["task"] == "det" and head["selected"] is not None and not head["ended"]
        assert "closed" in repr(first.own) and "closed" not in repr(live.now.model.own)
        head, _, drawn = result(client, answer=True)
        assert "said" in head["result"] and shape(drawn) == (48, 64, 3)


def test_frames_go_on_while_a_bundle_is_opened(bundles: list[Path]) -> None:
    gate, begun = threading.Event(), threading.Event()
    with camera(bundles) as (live, url), httpx.Client(base_url=url) as client, ThreadPoolExecutor(1) as pool:
        opening = live.opening

        def slowly(path: Path) -> Model:
            begun.set()
            gate.wait(10)
            return opening(path)

        live.opening = slowly
        asked = pool.submit(partial(live.wish, bundle=1))
        begun.wait(10)
        live._wish = live.now  # somebody else asked for something just before
        seen = [result(client)[0]["result"]["frame"]]
        while len(seen) < 5:
            head = result(client, seen[-1])[0]
            seen.append(head["result"]["frame"])
        assert not asked.done() and seen == sorted(set(seen)) and head["bundle"] == 0
        gate.set()
        asked.result(10)
        _until(client, lambda head: head["bundle"] == 1)


def _until(client: httpx.Client, wanted: Any) -> dict[str, Any]:
    for _ in range(100):
        head = result(client)[0]
        if wanted(head):
            return head
        time.sleep(0.02)
    raise AssertionError("it never came")


def test_only_who_has_the_token_gets_in(bundles: list[Path]) -> None:
    with camera(bundles, "0.0.0.0:0", "very secret") as (_, address):
        url = address.partition("?")[0].replace("0.0.0.0", "127.0.0.1")
        assert address.endswith("?token=very secret")
        with httpx.Client(base_url=url) as client:
            result_status = [client.get(path).status_code for path in ("", "page.js", "api/live", "metrics", "?token=wrong")]
            assert result_status == [401] * 5 and client.post("api/change", json={}).status_code == 401
            assert client.get("healthz").status_code in (200, 503)
            assert client.get("metrics", headers={"Authorization": "Bearer very secret"}).status_code == 200
            came = client.get("", params={"token": "very secret"})
            assert came.status_code == 303 and came.headers["location"] == "/"
            cookie = came.headers["set-cookie"].lower()
            assert "httponly" in cookie and "samesite=strict" in cookie
            assert client.get("").status_code == 200 and client.get("api/live").status_code == 200


def test_a_token_is_made_up_where_others_can_reach_the_page(bundles: list[Path]) -> None:
    with camera(bundles, "0.0.0.0:0") as (_, address):
        assert len(address.partition("?token=")[2]) >= 32


def test_other_sites_can_neither_look_nor_change(bundles: list[Path]) -> None:
    with camera(bundles) as (_, url), httpx.Client(base_url=url) as client:
        assert client.get("", headers={"Host": "evil.example"}).status_code == 400  # DNS that points here
        evil = {"Origin": "http://evil.example"}
        assert client.post("api/change", json={"task": "det"}, headers=evil).status_code == 403
        page = client.get("")
        assert "default-src 'self'" in page.headers["content-security-policy"] and "http" not in page.text
        for name in ("page.js", "page.css"):
            assert client.get(name).status_code == 200
        assert client.get("../../pyproject.toml").status_code == 404 and client.get("other.js").status_code == 404


def test_health_tells_a_camera_that_gives_nothing(bundles: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with camera(bundles) as (live, url), httpx.Client(base_url=url) as client:
        result(client)
        assert client.get("healthz").json() == {"status": "ok"}
        monkeypatch.setattr("tasktok_edge.apps.serve.SICK_S", 0)
        assert client.get("healthz").json() == {"status": "no result for 0 s"}
        assert live.results is not None
        live.results.close()
        answer = client.get("healthz")
        assert answer.status_code == 503 and answer.json() == {"status": "the source has ended"}


def test_a_viewer_that_never_reads_stops_nobody(bundles: list[Path]) -> None:
    with camera(bundles) as (_, url):
        host, _, port = url.removeprefix("http://").strip("/").partition(":")
        viewer = socket.create_connection((host, int(port)))
        viewer.sendall(f"GET /api/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() * 50)
        with httpx.Client(base_url=url) as client:
            first = result(client)[0]["result"]["frame"]
            assert result(client, first)[0]["result"]["frame"] > first
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    viewer.close()


def test_an_address_that_cannot_be_had_is_told(bundles: list[Path]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for address, told in (
            ("80x", "give PORT"),
            ("localhost:99999", "give PORT"),
            (str(taken.getsockname()[1]), "Address already in use"),
        ):
            with pytest.raises(UsageError, match=told), camera(bundles, address):
                pass


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_as_a_person_uses_it(bundles: list[Path], tmp_path: Path) -> None:
    sync = pytest.importorskip("playwright.sync_api")
    said = list[str]()
    with camera(bundles) as (live, url), sync.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        asked = set[str]()
        page.on("request", lambda request: asked.add(request.url))
        page.goto(url)
        page.wait_for_selector("#health.ok")
        _wait(lambda: page.locator("#right").evaluate("e => e.naturalWidth") == 64)
        box = page.locator("#pair").bounding_box()
        page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 20)
        assert page.locator("#slider").input_value() == "25"
        assert page.locator("#right").evaluate("e => e.style.clipPath") == "inset(0px 0px 0px 25%)"
        page.select_option("#task", "det")
        _wait(lambda: page.locator("#tokens-told").inner_text().endswith("for det"))
        assert live.now.task == "det"
        page.select_option("#bundle", "1")
        _wait(lambda: page.locator("#bundle").input_value() == "1")
        _wait(lambda: live.now.model.path == bundles[1])
        page.uncheck("#answer")
        assert int(page.locator("#counts td").nth(1).inner_text()) > 0
        page.screenshot(path=str(tmp_path / "page.png"))
        assert live.results is not None
        live.results.close()
        page.wait_for_selector("#health.bad")
        assert page.locator("#health").inner_text() == "the source has ended"
        page.wait_for_selector("#pair.old")  # no old picture is shown as new
        browser.close()
    assert not said and all(address.startswith((url, "blob:", "data:")) for address in asked)


def _wait(holds: Any) -> None:
    for _ in range(200):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it never held")
