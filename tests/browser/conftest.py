"""A browser, a watched page in it, and what serves the page."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from typing import Final

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, sync_playwright
from redis import Redis

from browser.real_replica import Served, serving, train
from browser.watched import Watched

_LAUNCH: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_REPORT_VIOLATIONS: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`);
});
"""


@pytest.fixture(scope="session")
def bank(redis_url: str) -> Iterator[str]:
    """A bank that knows the tasks 0 to 4 of seed 0, learnt from a topic with a hostile name."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    with Redis.from_url(redis_url) as client:
        train(client, name)
        yield name
        client.delete(*client.scan_iter(match=f"supsup:{{{name}}}:*", count=1000))


@pytest.fixture
def replica(redis_url: str, bank: str) -> Iterator[Served]:
    with serving(redis_url, bank) as served:
        yield served


@pytest.fixture
def guarded_replica(redis_url: str, bank: str) -> Iterator[Served]:
    """The same, but it wants the token `let-me-in`."""
    with serving(redis_url, bank, token="let-me-in") as served:  # noqa: S106 - a token for this test alone
        yield served


@pytest.fixture(scope="module")  # playwright keeps an event loop in this thread, which other modules must not find
def browser() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    with sync_playwright() as playwright, playwright.chromium.launch(executable_path=program, args=_LAUNCH) as launched:
        yield launched


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    made = browser.new_context(viewport={"width": 1280, "height": 900})
    made.add_init_script(_REPORT_VIOLATIONS)
    yield made
    made.close()


@pytest.fixture
def watched(context: BrowserContext) -> Iterator[Watched]:
    """A new page; at the end nothing may have gone wrong on it that the test did not expect."""
    page = context.new_page()
    page.set_default_timeout(10_000)
    seen = Watched(page)
    page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.outside.append(request.url))
    yield seen
    assert seen.complaints() == []
    with contextlib.suppress(Error):  # the page is gone
        assert page.evaluate("window.violations") == []
    assert [url for url in seen.outside if not url.startswith("http://127.0.0.1:")] == []
