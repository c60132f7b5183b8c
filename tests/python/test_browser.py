"""Runs in a real browser: an EventSource in Chromium reads what real servers send.

Skipped where there is no browser, unless LLM_CALLBACK_REQUIRE says `browser`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from selenium import webdriver
from selenium.webdriver.support.wait import WebDriverWait

from llm_callback import open_run
from readers import numbers, say, text
from servers import flask_server, starlette_server
from support import DEADLINE, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llm_callback import Run
    from servers import Server

pytestmark = pytest.mark.thread_unsafe(reason="shares one browser")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# An EventSource's readyState.
OPEN, CLOSED = 1, 2


class Page:
    """The page of a server, in a browser: what its EventSource has seen."""

    def __init__(self, browser: webdriver.Chrome) -> None:
        self._browser = browser

    def view(self, server: Server, path: str) -> None:
        """Open the page in a tab of its own, reading from ``/runs/<path>``."""
        self.leave()
        self._browser.switch_to.new_window("tab")
        self._browser.get(f"{server.url}/#/runs/{path}")

    def leave(self) -> None:
        """Close the tab: a page that another one replaces may live on in the browser's cache, with its connection."""
        first, *others = self._browser.window_handles
        for tab in others:
            self._browser.switch_to.window(tab)
            self._browser.close()
        self._browser.switch_to.window(first)

    def seen(self, number: int) -> list[dict[str, Any]]:
        """Wait until so many events were seen; return all, each checked to have come with its id."""
        self._until(lambda: self._ask("seen.length") >= number)
        seen = self._ask("seen")
        assert [last_event_id for last_event_id, _ in seen] == [event["id"] for _, event in seen]
        return [event for _, event in seen]

    def states(self, last: int) -> list[int]:
        """Wait until the EventSource was told to be in this state; return all that it was in at its events."""
        self._until(lambda: self._ask("states.at(-1)") == last)
        assert self._ask("source.readyState") == last
        return self._ask("states")

    def _ask(self, expression: str) -> Any:
        return self._browser.execute_script(f"return {expression}")

    def _until(self, condition: Callable[[], bool]) -> None:
        WebDriverWait(self._browser, DEADLINE, 0.01).until(lambda _: condition())


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """Give a page in a browser of its own."""
    if CHROMIUM is None or DRIVER is None:
        missing = "no browser: needs chromium and chromedriver on PATH"
        if "browser" in os.environ.get("LLM_CALLBACK_REQUIRE", "").split(","):
            pytest.fail(missing)
        pytest.skip(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in [*FLAGS, f"--user-data-dir={profile}"]:
            options.add_argument(flag)
        browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            browser.set_script_timeout(DEADLINE)
            yield Page(browser)
        finally:
            browser.quit()


@pytest.fixture(params=[flask_server, starlette_server], ids=["flask", "starlette"])
def serving(request: pytest.FixtureRequest) -> Any:
    """Serve runs with one of the frameworks, for a browser that reconnects at once."""
    return lambda **options: request.param(**{"retry": 1, "heartbeat": 0.05, **options})


def ids(run: Run) -> list[str]:
    """Return the ids of all events."""
    return [event["id"] for event in run.subscribe("start").read(100_000, 0)]


def test_a_viewer_sees_a_run_live_and_stops(page: Page, serving: Any) -> None:
    """Each event is seen while the run goes on; after the last one the browser comes back once, and is told to stop."""
    run = open_run(new_id())
    with serving() as server:
        page.view(server, run.run_id)
        for number in range(1, 11):
            assert len(page.seen(number)) == number
            say(run, f"{number} ")
        run.complete()
        events = page.seen(12)
        assert page.states(CLOSED)[0] == OPEN
        answers = [server.answer() for _ in range(2)]
        assert not server.has_answered
    assert [(given.status, given.last_event_id) for given in answers] == [
        (200, None),
        (204, events[-1]["id"]),
    ]
    assert numbers(events) == list(range(1, 13))
    assert text(events) == "1 2 3 4 5 6 7 8 9 10 "


def test_a_viewer_comes_back_when_the_server_drops_it(page: Page, serving: Any) -> None:
    """Dropped again and again, the browser reconnects after the last event that it has seen: all come, each once."""
    run = open_run(new_id())
    with serving() as server:
        page.view(server, run.run_id)
        for number in range(1, 6):
            page.seen(number)
            given = server.answer()
            assert given.status == 200
            assert given.last_event_id == (None if number == 1 else ids(run)[number - 2])
            server.drop()
            given.freed()
            say(run, f"{number} ")
        run.complete()
        events = page.seen(7)
        page.states(CLOSED)
    assert numbers(events) == list(range(1, 8))
    assert text(events) == "1 2 3 4 5 "


def test_a_viewer_comes_back_to_a_run_that_has_ended(page: Page, serving: Any) -> None:
    """What was said, and the end, while the browser was away is read when it comes back; then it stops."""
    run = open_run(new_id())
    with serving(retry=500) as server:
        page.view(server, run.run_id)
        page.seen(1)
        server.answer()
        server.drop()
        for _ in range(1_000):
            say(run)
        run.complete()
        assert numbers(page.seen(1_002)) == list(range(1, 1_003))
        page.states(CLOSED)


def test_a_page_that_was_rendered_with_events(page: Page, serving: Any) -> None:
    """The parameter says what the page has; where it reconnects with the same URL, the header wins."""
    run = open_run(new_id())
    say(run, "rendered")
    with serving() as server:
        page.view(server, f"{run.run_id}?last_event_id={ids(run)[-1]}")
        assert page.states(OPEN) == [OPEN]
        say(run, "live ")
        page.seen(1)
        server.drop()
        say(run, "again")
        run.complete()
        events = page.seen(3)
        page.states(CLOSED)
    assert numbers(events) == [3, 4, 5]
    assert text(events) == "live again"


def test_a_viewer_of_nothing_stops(page: Page, serving: Any) -> None:
    """404 and 400 stop the browser: it is not told to come back, and does not."""
    run = open_run(new_id())
    with serving() as server:
        for path, status in [("nobody", 404), (f"{run.run_id}?last_event_id=x", 400)]:
            page.view(server, path)
            assert page.states(CLOSED) == [CLOSED]
            assert server.answer().status == status
            assert not server.has_answered
    run.complete()


def test_a_viewer_that_leaves_frees_its_reader(page: Page, serving: Any) -> None:
    """When the page is closed in the middle of a quiet run, its reader is freed, before the run's end."""
    run = open_run(new_id())
    with serving() as server:
        page.view(server, run.run_id)
        page.seen(1)
        page.leave()
        server.answer().freed()
    run.complete()


def test_a_browser_reads_every_text(page: Page, serving: Any) -> None:
    """Line ends of all kinds, NUL, a byte order mark and what UTF-16 needs two units for come through unchanged."""
    texts = ["a\r\nb\rc\nd", "\u2028\u2029\x85\x0b\x0c", "\0", "\ufeff", "💥 é", "data: x\n\n", ""]
    run = open_run(new_id())
    for one in texts:
        say(run, one)
    run.complete()
    with serving() as server:
        page.view(server, run.run_id)
        events = page.seen(len(texts) + 2)
        page.states(CLOSED)
    assert [event["data"]["content"] for event in events[1:-1]] == texts
