"""The pages with consoles work in a real browser, and ask nothing of any other host."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client

from tests.browser import CHROMIUM, Browser
from tests.doors import Lane, Served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)")

# Where the documents' pictures are: SYROS_TEST_PICTURES=docs/img takes them anew.
PICTURES = os.environ.get("SYROS_TEST_PICTURES")
QUERY = "document.querySelector('.graphiql-query-editor .CodeMirror').CodeMirror"
RESULT = "document.querySelector('.result-window .CodeMirror').CodeMirror"
BUTTON = "document.querySelector('.graphiql-execute-button')"


@pytest.fixture
def browser(staff: Client, production: None) -> Iterator[Browser]:
    """A browser with a signed-in administrator, where nobody is let in without."""
    with Browser({"sessionid": staff.cookies["sessionid"].value}) as found:
        yield found


@pytest.fixture
def locks(lane: Lane, production: None, settings: Any) -> Lane:
    """A namespace with something in it."""
    settings.DEV = True
    for number in range(3):
        lane("locks.acquire", key=f"jobs/{number}", owner="nightly", ttl_seconds=600)
    settings.DEV = False
    return lane


def hosts(browser: Browser) -> set[str]:
    return {urlsplit(url).netloc for url in browser.requests if urlsplit(url).scheme not in {"data", "blob"}}


def keep(browser: Browser, name: str, tmp_path: Path) -> None:
    path = (Path(PICTURES) if PICTURES else tmp_path) / name
    browser.picture(path)
    assert path.stat().st_size > 20_000, "an empty page"


def run(browser: Browser, document: str, expected: str) -> str:
    """Run a document in GraphiQL's editor; the answer holds what is expected."""
    browser.evaluate(f"{QUERY}.setValue({document!r})")
    time.sleep(0.5)  # the page looks at what is typed a moment later
    browser.evaluate(f"{BUTTON}.click()")
    found: str = browser.until(f"{RESULT}.getValue().includes({expected!r}) && {RESULT}.getValue()")
    return found


def test_graphiql_works_offline_for_staff(
    browser: Browser, served: Served, locks: Lane, tmp_path: Path
) -> None:
    browser.open(f"http://127.0.0.1:{served.port}/graphql")
    browser.until(f"{QUERY}.getValue().includes('locksFind')")
    # Its documentation is there once it has asked for the schema.
    browser.until("!!document.querySelector('[aria-label=\"Show Documentation Explorer\"]')")
    headers = f'{{"Syros-Namespace": "{locks.namespace}"}}'
    browser.evaluate("document.querySelectorAll('.graphiql-editor-tools button')[1].click()")
    browser.until("document.querySelectorAll('.graphiql-editor-tool .CodeMirror').length > 1")
    browser.evaluate(
        "[...document.querySelectorAll('.graphiql-editor-tool .CodeMirror')].at(-1)"
        f".CodeMirror.setValue({headers!r})"
    )
    browser.evaluate(f"{BUTTON}.click()")
    browser.until(f"{RESULT}.getValue().includes('jobs/2') && {RESULT}.getValue().includes('lock.acquired')")
    keep(browser, "graphiql.png", tmp_path)

    taken = run(
        browser, "mutation { locksAcquire(key: 'mine', owner: 'ada') { key } }".replace("'", '"'), '"mine"'
    )
    assert "errors" not in taken
    streamed = run(
        browser,
        "subscription { eventsFollow(fromPosition: 1, system: true) { event { streamId } } }",
        "$lock:mine",
    )
    assert "errors" not in streamed
    assert hosts(browser) == {f"127.0.0.1:{served.port}"}
    assert browser.said == []


def test_swagger_ui_works_offline(browser: Browser, served: Served, tmp_path: Path) -> None:
    browser.open(f"http://127.0.0.1:{served.port}/api/docs")
    browser.until("document.querySelectorAll('.opblock').length > 10")
    find = "document.querySelector('#operations-locks-locks_find')"
    browser.evaluate(f"{find}.querySelector('button').click()")
    for button in ("try-out__btn", "execute"):
        browser.until(f"!!{find}.querySelector('.{button}')")
        browser.evaluate(f"{find}.querySelector('.{button}').click()")
    answer = browser.until(f"{find}.querySelector('.live-responses-table .response')?.innerText")
    assert answer.startswith("200")
    assert '"items":' in answer
    browser.evaluate(f"{find}.querySelector('.live-responses-table').scrollIntoView({{block: 'end'}})")
    keep(browser, "swagger.png", tmp_path)
    assert hosts(browser) == {f"127.0.0.1:{served.port}"}
    assert browser.said == []
