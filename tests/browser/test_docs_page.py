"""A replica's page at /docs in a real browser. No test may leave an error in its console; `watched` sees to that."""

from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from browser.real_replica import Served
from browser.watched import Watched

pytestmark = pytest.mark.integration

INFER = "/v2/models/{name}/infer"


def open_docs(page: Page, replica: Served) -> dict[str, Any]:
    """The page, shown; returns the document it shows."""
    page.goto(f"{replica.url}docs")
    expect(page.get_by_test_id("main")).to_be_visible()
    return page.request.get(f"{replica.url}openapi.json").json()


def operation(page: Page, path: str) -> Locator:
    """The part of an address, opened."""
    found = page.get_by_test_id("operation").filter(has=page.locator("summary").get_by_text(path, exact=True))
    found.locator("summary").click()
    return found


def test_every_operation_is_shown_with_its_parameters_and_statuses(watched: Watched, replica: Served) -> None:
    document = open_docs(watched.page, replica)
    told = {
        f"{method.upper()} {path}": (
            [parameter["name"] for parameter in each.get("parameters", [])],
            sorted(each["responses"]),
        )
        for path, item in document["paths"].items()
        for method, each in item.items()
    }
    shown = watched.page.get_by_test_id("operation").evaluate_all("""all => all.map(each => [
        `${each.querySelector(".method").textContent} ${each.querySelector("[data-testid=path]").textContent}`,
        [...each.querySelectorAll("form [name]")].map(input => input.name),
        [...each.querySelectorAll("[data-testid=status]")].map(line => line.firstChild.textContent.trim())])""")
    assert {name: (parameters, statuses) for name, parameters, statuses in shown} == told
    assert len(shown) == len(told)


def test_requests_and_responses_are_shown_with_their_fields_and_examples(watched: Watched, replica: Served) -> None:
    document = open_docs(watched.page, replica)
    infer = operation(watched.page, INFER)
    for name in document["components"]["schemas"]["InferenceRequest"]["properties"]:
        expect(infer.locator("li > code").get_by_text(name, exact=True).first).to_be_visible()
    expect(infer).to_contain_text("one of exact, one-shot, binary")
    expect(infer.get_by_test_id("example").filter(has_text='"model_version"')).to_be_visible()
    expect(infer).to_contain_text("the one here is digits")


def test_the_example_is_answered_when_it_is_sent(watched: Watched, replica: Served) -> None:
    open_docs(watched.page, replica)
    infer = operation(watched.page, INFER)
    infer.get_by_test_id("send").click()
    expect(infer.get_by_test_id("response-status")).to_have_text("200 OK")
    expect(infer.get_by_test_id("response")).to_contain_text('"model_version"')


def test_a_wrong_request_is_answered_in_the_servers_words(watched: Watched, replica: Served) -> None:
    watched.expected = ["status of 400"]
    open_docs(watched.page, replica)
    infer = operation(watched.page, INFER)
    infer.get_by_test_id("body").fill("[]")
    infer.get_by_test_id("send").click()
    expect(infer.get_by_test_id("response-status")).to_contain_text("400")
    expect(infer.get_by_test_id("response")).to_contain_text('"error"')


def test_parameters_are_put_into_path_and_query(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_docs(page, replica)
    order = operation(page, "/permutation")
    order.get_by_label("task").fill("3")
    order.get_by_test_id("send").click()
    expect(order.get_by_test_id("response")).to_contain_text('"task": 3')
    version = operation(page, "/v2/models/{name}/versions/{version}")
    with page.expect_response("**/v2/models/*/versions/*") as answered:
        version.get_by_test_id("send").click()
    assert answered.value.status == 200, "the version that answers is filled in"
    metrics = operation(page, "/metrics")
    metrics.get_by_test_id("send").click()
    expect(metrics.get_by_test_id("response")).to_contain_text("supsup_serve_ready")


def test_one_page_leads_to_the_other(watched: Watched, replica: Served) -> None:
    page = watched.page
    page.goto(replica.url)
    page.get_by_test_id("docs").click()
    expect(page.get_by_test_id("title")).to_have_text("supsup-daemon replica")
    page.get_by_text("The bank at a glance").click()
    expect(page.get_by_test_id("readiness")).to_have_text("Ready")


def test_a_token_is_asked_for_and_kept(watched: Watched, guarded_replica: Served) -> None:
    page, watched.expected = watched.page, ["status of 401"]
    page.goto(f"{guarded_replica.url}docs")
    expect(page.get_by_test_id("token-form")).to_be_visible()
    page.get_by_test_id("token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("token-refused")).to_be_visible()
    expect(page.get_by_test_id("main")).to_be_hidden()
    page.get_by_test_id("token").fill(guarded_replica.token)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("main")).to_be_visible()
    expect(page.get_by_test_id("token-form")).to_be_hidden()
    watched.expected = []
    watched.errors.clear()
    infer = operation(page, INFER)
    infer.get_by_test_id("send").click()
    expect(infer.get_by_test_id("response-status")).to_have_text("200 OK")
    page.reload()
    expect(page.get_by_test_id("main")).to_be_visible()


def test_a_narrow_screen_needs_no_scrolling_sideways(watched: Watched, replica: Served) -> None:
    page = watched.page
    page.set_viewport_size({"width": 360, "height": 700})
    open_docs(page, replica)
    infer = operation(page, INFER)
    infer.get_by_test_id("send").click()
    expect(infer.get_by_test_id("response")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
