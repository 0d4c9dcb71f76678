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
from tests.races.processes import until
from tests.test_admin import sagas_of_every_kind

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: chromium)"),
    pytest.mark.usefixtures("few_to_choose"),
]

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

    def is_painted() -> bool:
        browser.picture(path)
        return path.stat().st_size > 20_000

    until(is_painted, what="a page that is not empty")  # it is loaded before it is painted


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


WIDE, NARROW = (1280, 900), (390, 844)
BEYOND = """Math.max(0, ...[...document.querySelectorAll('#result_list')].map(list =>
    list.offsetWidth - list.parentElement.clientWidth))"""
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"
CUT = """[...document.querySelectorAll('section table')].filter(table => table.offsetWidth > 0 &&
    table.offsetWidth > table.parentElement.clientWidth + 1 &&
    !['auto', 'scroll'].includes(getComputedStyle(table.parentElement.parentElement).overflowX)).length"""


def size(browser: Browser, width: int, height: int) -> None:
    browser.do(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
    )  # fmt: skip


def everything(lane: Lane) -> list[str]:
    """Locks and sagas of every kind, an election and a session; the addresses of their pages."""
    session = lane("sessions.open", owner="worker-eu-1", ttl_seconds=600, metadata={"pod": "worker-7f9c"})
    about = {"owner": "worker-eu-1", "session_id": session["session_id"]}
    lane("locks.acquire", key="gpu/pool", owner="train-1", capacity=10, permits=4, ttl_seconds=600)
    lane("locks.acquire", key="gpu/pool", capacity=10, permits=3, metadata={"run": 17}, **about)
    lane("locks.acquire", key="catalog", owner="an_owner_of_one_word_" * 6, mode="shared", metadata={
        "a": "long_value" * 9})  # fmt: skip
    for number in range(4):
        lane("locks.acquire", key="catalog", owner=f"reader-{number}", mode="shared", ttl_seconds=600)
    lane(
        "elections.campaign",
        name="primary",
        candidate="node-1",
        value={"at": "10.0.0.7:5432"},
        ttl_seconds=600,
    )
    space, key = lane.namespace, f"{lane.namespace}_2F"
    sagas = sagas_of_every_kind(lane)
    lane("sagas.start", name="order_fulfillment_of_the_north", steps=[{"name": "reserve_inventory", "kind": "signal"}],
         tags={"shop": "berlin", "customer": "4711", "channel": "marketplace"})  # fmt: skip
    return [
        "/admin/", f"/admin/locks/lock/?namespace={space}", f"/admin/locks/lock/{key}gpu_2Fpool/change/",
        f"/admin/locks/lock/{key}catalog/change/", f"/admin/locks/election/?namespace={space}",
        f"/admin/locks/election/{key}_24election_3Aprimary/change/", f"/admin/core/session/?namespace={space}",
        f"/admin/core/session/{key}{session['session_id']}/change/",
        f"/admin/sagas/saga/?namespace={space}", f"/admin/sagas/attention/?namespace={space}",
        *(f"/admin/sagas/saga/{key}{saga_id}/change/" for saga_id in sagas.values()),
        f"/admin/sagas/definitionname/?namespace={space}", f"/admin/sagas/definitionname/{key}order/change/",
        f"/admin/sagas/schedule/?namespace={space}", f"/admin/sagas/schedule/{key}nightly/change/",
        f"/admin/sagas/task/?namespace={space}", f"/admin/discovery/service/?namespace={space}",
        f"/admin/discovery/service/{key}bank/change/", f"/admin/discovery/instance/{key}bank_23one/change/",
    ]  # fmt: skip


def test_operators_pages_fit_every_screen(
    browser: Browser, served: Served, locks: Lane, settings: Any, tmp_path: Path
) -> None:
    settings.DEV = True
    addresses = everything(locks)
    settings.DEV = False
    for number, address in enumerate(addresses):
        for width, height in (WIDE, NARROW):
            size(browser, width, height)
            browser.open(f"http://127.0.0.1:{served.port}{address}")
            browser.until(f"location.href.endsWith({address!r}) && document.readyState == 'complete'")
            browser.until("!!document.querySelector('#now, #pages, section.panel')")
            assert browser.evaluate(OVERFLOW) <= 0, f"{address} at {width}"
            assert browser.evaluate(CUT) == 0, f"{address} at {width}: a table is cut"
            if "/admin/sagas/" in address and width == WIDE[0]:
                assert browser.evaluate(BEYOND) <= 0, f"{address}: one has to scroll"
            browser.picture(tmp_path / f"{number}-{width}.png")
    assert hosts(browser) == {f"127.0.0.1:{served.port}"}
    assert browser.said == []


def test_an_operator_tries_a_definition_out(
    browser: Browser, served: Served, locks: Lane, settings: Any, tmp_path: Path
) -> None:
    settings.DEV = True
    steps = [{"name": name, "service": "shop", "action": name, "compensation": f"undo_{name}"}
             for name in ("reserve", "charge", "ship")]  # fmt: skip
    locks("definitions.put", name="parcel", steps=steps, output={"id": "${steps.ship.output}"})
    settings.DEV = False
    browser.open(
        f"http://127.0.0.1:{served.port}/admin/sagas/definitionname/{locks.namespace}_2Fparcel/change/"
    )
    browser.until("!!document.querySelector('#actions [value=definitions_simulate]')")
    browser.evaluate("document.querySelector('#actions [value=definitions_simulate]').click()")
    browser.until("!!document.querySelector('#simulate [name=\"answers/charge/outcome\"]')")
    browser.evaluate("document.querySelector('[name=\"answers/charge/outcome\"]').value = 'failed'")
    browser.evaluate("document.querySelector('[name=\"answers/charge/code\"]').value = 'card_declined'")
    browser.evaluate("document.querySelector('#simulate button').click()")
    browser.until("document.body.innerText.includes('compensation.succeeded')")
    shown = browser.evaluate("document.body.innerText").lower()
    assert "card_declined" in shown
    assert "compensated" in shown
    for width, height in (WIDE, NARROW):
        size(browser, width, height)
        assert browser.evaluate(OVERFLOW) <= 0, width
        assert browser.evaluate(CUT) == 0, width
        keep(browser, f"simulate-{width}.png", tmp_path)
    assert browser.said == []


def test_an_operator_force_releases_a_lock(
    browser: Browser, served: Served, locks: Lane, tmp_path: Path
) -> None:
    address = f"/admin/locks/lock/{locks.namespace}_2Fjobs_2F1/change/"
    browser.open(f"http://127.0.0.1:{served.port}{address}")
    browser.until("!!document.querySelector('#actions button')")
    browser.evaluate("document.querySelector('#actions button').click()")
    browser.until("!!document.querySelector('#confirm [name=reason]')")
    browser.evaluate("document.querySelector('#confirm button').click()")  # the browser asks for the reason
    time.sleep(0.5)
    browser.until("!!document.querySelector('#confirm [name=reason]')")
    browser.evaluate("document.querySelector('#confirm [name=reason]').value = 'its node is gone'")
    browser.evaluate("document.querySelector('#confirm [name=lock_delay_seconds]').value = '30'")
    browser.evaluate("document.querySelector('#confirm button').click()")
    browser.until(f"location.pathname == {address!r} && document.body.innerText.includes('1 done')")
    keep(browser, "force-release.png", tmp_path)
    shown = browser.evaluate("document.body.innerText").lower()
    assert "delayed" in shown
    assert "its node is gone" in shown
    assert f"user:ada-{locks.namespace}" in shown
    assert browser.said == []


def test_an_operator_helps_a_stuck_saga(
    browser: Browser, served: Served, locks: Lane, settings: Any, tmp_path: Path
) -> None:
    settings.DEV = True
    saga_id = sagas_of_every_kind(locks)["stuck"]
    settings.DEV = False
    address = f"/admin/sagas/saga/{locks.namespace}_2F{saga_id}/change/"
    browser.open(f"http://127.0.0.1:{served.port}{address}")
    browser.until("!!document.querySelector('[data-stuck=print] [value=steps_complete]')")
    assert browser.evaluate("document.querySelectorAll('#timeline .lane[data-lane] .bar').length") >= 3
    keep(browser, "saga.png", tmp_path)
    browser.evaluate("document.querySelector('[data-stuck=print] [value=steps_complete]').click()")
    browser.until("!!document.querySelector('#confirm [name=reason]')")
    assert browser.evaluate("document.querySelector('#confirm [name=step]').value") == "print"
    browser.evaluate("document.querySelector('#confirm [name=reason]').value = 'printed it by hand'")
    browser.evaluate("document.querySelector('#confirm [name=output]').value = JSON.stringify({pages: 2})")
    browser.evaluate("document.querySelector('#confirm button').click()")
    browser.until(f"location.pathname == {address!r} && document.body.innerText.includes('1 done')")
    shown = browser.evaluate("document.body.innerText").lower()
    assert "printed it by hand" in shown
    assert "succeeded" in shown
    assert browser.said == []


def test_a_cache_is_looked_into(
    browser: Browser, served: Served, locks: Lane, settings: Any, tmp_path: Path
) -> None:
    settings.DEV = True
    locks("caches.put", max_ttl_seconds=7200, quota_bytes=1 << 20)
    for n in range(3):
        locks(
            "cache.put",
            key=f"products/{n}",
            value={"name": "lamp", "price": n},
            tags=["catalogue", f"product:{n}"],
        )
    locks("cache.get", key="products/1")
    settings.DEV = False
    browser.open(f"http://127.0.0.1:{served.port}/admin/cache/cache/")
    browser.until(f"document.body.innerText.includes({locks.namespace!r})")
    keep(browser, "caches.png", tmp_path)
    address = f"{locks.namespace}_2Fcache"
    browser.open(f"http://127.0.0.1:{served.port}/admin/cache/cache/{address}/change/")
    browser.until("document.body.innerText.includes('hit ratio')")
    browser.evaluate("document.querySelector('#look input').value = 'products/1'")
    browser.evaluate("document.querySelector('#look button').click()")
    browser.until(
        "document.body.innerText.includes('Key products/1') && document.body.innerText.includes('price')"
    )
    keep(browser, "cache.png", tmp_path)
    browser.evaluate("document.querySelector('button[value=cache_invalidate]').click()")
    browser.until("!!document.querySelector('[name=tags]')")
    browser.evaluate("document.querySelector('[name=tags]').value = 'catalogue, product:1'")
    keep(browser, "cache-invalidate.png", tmp_path)
    browser.evaluate("document.querySelector('[name=tags]').form.submit()")
    browser.until("document.body.innerText.includes('cache.invalidate: 1 done.')")
    assert hosts(browser) == {f"127.0.0.1:{served.port}"}
    assert browser.said == []
