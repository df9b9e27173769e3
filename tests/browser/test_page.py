"""The replica's page in a real browser. No test may leave an error in its console; `watched` sees to that."""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Page, Request, expect

from browser.overviews import overview_of
from browser.real_replica import HOSTILE_STREAM, Served
from browser.watched import Watched

pytestmark = pytest.mark.integration

ONE = [(0.55, 0.15), (0.5, 0.5), (0.45, 0.85)]
THREE = [
    *((0.45 + 0.20 * math.sin(t / 3), 0.32 - 0.14 * math.cos(t / 3)) for t in range(-3, 9)),
    *((0.45 + 0.23 * math.sin(t / 3), 0.62 - 0.17 * math.cos(t / 3)) for t in range(1, 13)),
]


def open_page(page: Page, replica: Served) -> None:
    page.goto(replica.url)
    expect(page.get_by_test_id("readiness")).to_have_text("Ready")


def draw(page: Page, points: Sequence[tuple[float, float]]) -> None:
    """One stroke over the pad; its corners are (0, 0) and (1, 1)."""
    pad = page.get_by_test_id("pad")
    pad.scroll_into_view_if_needed()
    box = pad.bounding_box()
    assert box is not None
    for place, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        if place == 0:
            page.mouse.down()
    page.mouse.up()


def can(page: Page, overview: dict[str, Any]) -> None:
    """From now on the page gets this overview, whatever the server says."""
    page.unroute("**/overview")
    page.route("**/overview", lambda route: route.fulfill(json=overview))


def is_question(request: Request) -> bool:
    return request.method == "POST" and request.url.endswith("/infer")


def question_after(page: Page, act: Callable[[], object]) -> dict[str, Any]:
    """The last question that the page asks because of an act, once it was answered."""
    asked: list[Request] = []
    page.on("requestfinished", lambda request: asked.append(request) if is_question(request) else None)
    with page.expect_request_finished(is_question):
        act()
    page.wait_for_timeout(500)  # more than two questions are apart
    return json.loads(asked[-1].post_data or "")


def image_of(question: dict[str, Any]) -> np.ndarray:
    (x,) = question["inputs"]
    assert (x["name"], x["shape"], x["datatype"], len(x["data"])) == ("x", [1, 28, 28], "UINT8", 784)
    return np.array(x["data"], np.uint8)


def test_version_and_masks_are_shown(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    truth = page.request.get(f"{replica.url}overview").json()
    expect(page.get_by_test_id("bank")).to_have_text(truth["bank"])
    expect(page.get_by_test_id("version")).to_have_text(str(truth["version"]))
    expect(page.get_by_test_id("masks")).to_have_text(str(truth["masks"]))
    expect(page.get_by_test_id("budget")).to_have_text(f"{truth['budget']:,}")
    expect(page.get_by_test_id("mask-row")).to_have_count(len(truth["mask_stats"]))
    for mask in truth["mask_stats"]:
        row = page.locator(f"[data-testid=mask-row][data-mask='{mask['id']}']")
        expect(row.get_by_test_id("mask-batches")).to_have_text(f"{mask['batches']:,}")
        expect(row.get_by_test_id("mask-accuracy")).to_have_text(f"{mask['accuracy']:.1%}".replace("%", " %"))
        expect(row.get_by_test_id("mask-updated")).to_have_text(re.compile(r"ago|just now"))


def test_the_states_made_up_here_have_the_form_of_what_a_replica_says(watched: Watched, replica: Served) -> None:
    truth, made_up = watched.page.request.get(f"{replica.url}overview").json(), overview_of()
    assert made_up.keys() == truth.keys()
    for part in ("network", "requests"):
        assert made_up[part].keys() == truth[part].keys()
    for part in ("mask_stats", "decisions"):
        assert made_up[part][0].keys() == truth[part][0].keys()


def test_traffic_is_drawn_for_the_busiest_masks(watched: Watched, replica: Served) -> None:
    page = watched.page
    can(page, overview_of(12, busy=9))
    open_page(page, replica)
    entries = page.get_by_test_id("legend-entry").filter(visible=True)
    expect(entries).to_have_count(7)
    expect(entries.last).to_contain_text("3 other masks")
    bands = page.locator("[data-testid=traffic] path.area").evaluate_all("all => all.map(p => p.getBBox().height)")
    assert min(bands) > 0
    can(page, overview_of(3, busy=0))
    expect(page.get_by_test_id("traffic-none")).to_be_visible()


def test_what_changes_in_the_bank_is_seen_without_a_reload(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    can(page, {**overview_of(3), "version": 4013})
    expect(page.get_by_test_id("version")).to_have_text("4,013")
    expect(page.get_by_test_id("mask-row")).to_have_count(3)


def test_of_many_masks_fifty_are_shown_and_any_is_found_by_its_number(watched: Watched, replica: Served) -> None:
    page = watched.page
    can(page, overview_of(2500))
    open_page(page, replica)
    expect(page.get_by_test_id("mask-row")).to_have_count(50)
    expect(page.get_by_test_id("more")).to_contain_text("2,450 more")
    page.get_by_test_id("filter").fill("1234")
    expect(page.get_by_test_id("mask-row")).to_have_count(1)
    expect(page.get_by_test_id("mask-row")).to_have_attribute("data-mask", "1234")
    page.get_by_test_id("filter").fill("24")
    expect(page.get_by_test_id("mask-row")).to_have_count(50)
    expect(page.get_by_test_id("mask-row").first).to_have_attribute("data-mask", "24")


def test_a_bank_that_is_too_old_is_said_with_its_reason(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    reasons = {"stale": "nothing was heard of the bank for 41 s"}
    can(page, {**overview_of(), "ready": False, "reasons": reasons, "staleness_s": 41.2})
    expect(page.get_by_test_id("readiness")).to_have_text("Not ready")
    expect(page.get_by_test_id("reasons")).to_contain_text("nothing was heard of the bank for 41 s")
    expect(page.get_by_test_id("staleness-tile")).to_have_class(re.compile(r"\bover\b"))


def test_a_hostile_stream_name_is_shown_as_text(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    expect(page.get_by_test_id("decisions")).to_contain_text(HOSTILE_STREAM)
    assert page.locator("main img, main script").count() == 0
    assert page.title() != "taken"


def test_a_stroke_leads_to_a_request_and_its_answer_is_shown(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    question = question_after(page, lambda: draw(page, ONE))
    assert question["parameters"] == {"inference": "exact"}
    assert image_of(question).max() == 255
    expect(page.get_by_test_id("answer")).to_be_visible()
    expect(page.get_by_test_id("label")).to_have_text(re.compile(r"^\d$"))
    expect(page.get_by_test_id("answer-task")).to_have_text(re.compile(r"^\d+$"))
    expect(page.get_by_test_id("confidence")).to_have_text(re.compile(r"^\d+\.\d %$"))
    expect(page.get_by_test_id("threshold")).to_contain_text("75.0 %")
    expect(page.get_by_test_id("probability")).to_have_count(10)


def test_a_digit_is_sent_as_mnist_shows_digits(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    small_and_off_centre = [(0.1 + 0.4 * x, 0.1 + 0.4 * y) for x, y in THREE]
    image = image_of(question_after(page, lambda: draw(page, small_and_off_centre))).reshape(28, 28).astype(float)
    rows, columns = np.nonzero(image.sum(1))[0], np.nonzero(image.sum(0))[0]
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    centre = [(image.sum(axis) @ (np.arange(28) + 0.5)) / image.sum() for axis in (0, 1)]
    assert np.abs(np.array(centre) - 14.5).max() <= 0.5
    assert 0.2 < (image > 230).sum() / (image > 0).sum() < 0.8  # soft edges
    assert 60 < image.sum() / 255 < 180  # MNIST: 103 on average


def test_a_chosen_permutation_changes_the_image_that_is_sent(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    plain = image_of(question_after(page, lambda: draw(page, THREE)))
    with page.expect_response(re.compile(r"/permutation\?seed=0&task=0$")):
        page.get_by_test_id("order").select_option("permuted")
    with page.expect_response(re.compile(r"/permutation\?seed=0&task=3$")) as response:
        permuted = image_of(question_after(page, lambda: page.get_by_test_id("task").fill("3")))
    assert not np.array_equal(permuted, plain)
    assert np.array_equal(permuted, plain[response.value.json()["order"]])
    shown = page.get_by_test_id("sent").evaluate("c => [...c.getContext('2d').getImageData(0, 0, 28, 28).data]")
    assert shown[::4] == permuted.tolist()


def test_the_same_digit_under_another_permutation_is_answered_by_another_mask(
    watched: Watched, replica: Served
) -> None:
    page = watched.page
    open_page(page, replica)
    page.get_by_test_id("order").select_option("permuted")
    question_after(page, lambda: draw(page, THREE))
    first = page.get_by_test_id("answer-task").inner_text()
    question_after(page, lambda: page.get_by_test_id("task").fill("2"))
    expect(page.get_by_test_id("answer-task")).not_to_have_text(first)


def test_an_unknown_task_is_called_novel(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    page.get_by_test_id("order").select_option("permuted")
    page.get_by_test_id("task").fill("1")
    question_after(page, lambda: draw(page, THREE))
    expect(page.get_by_test_id("novel")).to_be_hidden()
    question_after(page, lambda: page.get_by_test_id("task").fill("4711"))
    expect(page.get_by_test_id("novel")).to_be_visible()
    expect(page.get_by_test_id("novel")).to_have_text("novel: no mask is confident")


@pytest.mark.parametrize("mode", ["one-shot", "binary"])
def test_another_inference_is_asked_for(watched: Watched, replica: Served, mode: str) -> None:
    page = watched.page
    open_page(page, replica)
    question_after(page, lambda: draw(page, ONE))
    question = question_after(page, lambda: page.get_by_test_id("inference").select_option(mode))
    assert question["parameters"] == {"inference": mode}


def test_one_question_at_a_time_and_at_most_five_a_second(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    asked: list[Request] = []
    page.on("requestfinished", lambda request: asked.append(request) if is_question(request) else None)
    for _ in range(2):
        draw(page, THREE)
    page.wait_for_timeout(500)
    starts = [request.timing["startTime"] for request in asked]
    ends = [request.timing["startTime"] + request.timing["responseEnd"] for request in asked]
    assert len(asked) >= 2
    assert min(np.diff(starts)) > 180  # ms; the browser's own clock is rough
    assert all(start >= end for start, end in zip(starts[1:], ends, strict=False))


def test_a_digit_can_be_drawn_with_the_keyboard_and_cleared(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)

    def draw_with_keys() -> None:
        page.get_by_test_id("pad").focus()
        for key in ["ArrowUp"] * 4 + ["Space"] + ["ArrowDown"] * 8 + ["Space"]:
            page.keyboard.press(key)

    image = image_of(question_after(page, draw_with_keys)).reshape(28, 28)
    assert np.ptp(np.nonzero(image.sum(1))[0]) > 3 * np.ptp(np.nonzero(image.sum(0))[0])
    expect(page.get_by_test_id("answer")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_test_id("answer")).to_be_hidden()
    draw(page, ONE)
    expect(page.get_by_test_id("answer")).to_be_visible()
    page.get_by_test_id("clear").click()
    expect(page.get_by_test_id("answer")).to_be_hidden()


def test_without_images_of_28_by_28_the_page_says_why_there_is_no_pad(watched: Watched, replica: Served) -> None:
    page = watched.page
    network = {"architecture": "fc-64", "input_shape": [20], "classes": 3, "outputs": 3}
    can(page, {**overview_of(), "network": network})
    open_page(page, replica)
    expect(page.get_by_test_id("pad-area")).to_be_hidden()
    expect(page.get_by_test_id("no-pad")).to_contain_text("takes inputs of 20")


def test_a_token_is_asked_for_and_kept(watched: Watched, guarded_replica: Served) -> None:
    page, watched.expected = watched.page, ["status of 401"]
    page.goto(guarded_replica.url)
    expect(page.get_by_test_id("token-form")).to_be_visible()
    expect(page.get_by_test_id("main")).to_be_hidden()
    page.get_by_test_id("token").fill("wrong")
    page.get_by_test_id("token-send").click()
    expect(page.get_by_test_id("token-refused")).to_be_visible()
    page.get_by_label("Token").fill(guarded_replica.token)
    page.keyboard.press("Enter")
    expect(page.get_by_test_id("readiness")).to_have_text("Ready")
    expect(page.get_by_test_id("token-form")).to_be_hidden()
    question_after(page, lambda: draw(page, ONE))
    expect(page.get_by_test_id("answer")).to_be_visible()
    watched.expected = []
    watched.errors.clear()
    page.reload()
    expect(page.get_by_test_id("readiness")).to_have_text("Ready")


def test_a_server_that_goes_away_is_said(watched: Watched, replica: Served) -> None:
    page, watched.expected = watched.page, ["ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE"]
    open_page(page, replica)
    replica.stop()
    expect(page.get_by_test_id("connection")).to_contain_text("The server does not answer")
    expect(page.get_by_test_id("connection-age")).to_contain_text("Trying again")
    expect(page.get_by_test_id("masks")).to_have_text(re.compile(r"\d"))


def test_the_page_goes_on_trying_and_is_well_again_when_the_server_is(watched: Watched, replica: Served) -> None:
    page, watched.expected = watched.page, ["ERR_CONNECTION_FAILED"]
    open_page(page, replica)
    page.route("**/overview", lambda route: route.abort("connectionfailed"))
    expect(page.get_by_test_id("connection")).to_be_visible()
    page.unroute("**/overview")
    expect(page.get_by_test_id("connection")).to_be_hidden()
    expect(page.get_by_test_id("readiness")).to_have_text("Ready")


def test_a_refused_question_is_said_in_the_servers_words(watched: Watched, replica: Served) -> None:
    page, watched.expected = watched.page, ["status of 503"]
    open_page(page, replica)
    page.route("**/infer", lambda route: route.fulfill(status=503, json={"error": "the bank is <b>too old</b>"}))
    draw(page, ONE)
    expect(page.get_by_test_id("draw-error")).to_have_text("the bank is <b>too old</b>")
    expect(page.get_by_test_id("answer")).to_be_hidden()


def test_a_hidden_tab_asks_for_nothing(watched: Watched, replica: Served) -> None:
    page = watched.page
    open_page(page, replica)
    hide = """hidden => {
        Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    page.wait_for_timeout(500)
    before = len(watched.outside)
    page.wait_for_timeout(2500)
    assert len(watched.outside) == before
    with page.expect_request("**/overview"):
        page.evaluate(hide, False)


def test_a_narrow_screen_needs_no_scrolling_sideways(watched: Watched, replica: Served) -> None:
    page = watched.page
    page.set_viewport_size({"width": 360, "height": 700})
    open_page(page, replica)
    question_after(page, lambda: draw(page, ONE))
    assert page.evaluate("document.documentElement.scrollWidth") == 360
