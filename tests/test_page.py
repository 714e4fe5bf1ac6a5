"""The server's page in a headless Chromium, on a small server that says what ``ouroboros serve`` says.

Skipped where Playwright or Chromium is missing. The system's browser is driven, nothing is downloaded.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fake_server import STEPS, TEXT, FakeServer

sync_api: Any = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=20_000)  # a busy machine
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def page(browser: Any, server: FakeServer) -> Iterator[Any]:
    """The page, open; at the end nothing may have gone wrong in it, and nothing been fetched from elsewhere."""
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(20_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.extend([said.text] * (said.type == "error")))
    home = "http://127.0.0.1:", "data:"
    page.on("request", lambda asked: wrong.extend([asked.url] * (not asked.url.startswith(home))))
    page.goto(server.url)
    expect(page.locator("#model")).to_have_text("embedded")
    yield page
    context.close()
    assert [text for text in wrong if "Failed to load resource" not in text] == []  # refusals, and servers that left


def send(page: Any, text: str) -> None:
    page.get_by_role("textbox", name="Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def answered(page: Any) -> None:
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.locator(".writing")).to_have_count(0)


def test_streams_coloured_by_source(page: Any, server: FakeServer) -> None:
    server.pause = 0.02
    server.goes_on.clear()
    send(page, "Write add.")
    expect(page.locator(".token.draft").first).to_be_visible()
    assert page.locator(".token.phrase").count() == 0  # the second step is still to come
    assert page.get_by_role("button", name="Stop").is_visible()
    server.goes_on.set()
    answered(page)
    tokens = [(text, source) for step in STEPS for text, source in step]
    shown = page.locator(".token").evaluate_all("all => all.map(one => [one.textContent, one.classList[1]])")
    assert [tuple(pair) for pair in shown] == tokens
    assert page.locator(".answer .text").text_content() == TEXT
    assert page.locator(".plot rect").count() == 6  # three steps of two sources each
    heights = page.locator(".plot rect").evaluate_all("all => all.map(one => Number(one.getAttribute('height')))")
    assert heights == [2, 1, 3, 1, 1, 1]
    expect(page.locator(".figures")).to_have_text("9 tokens in 3 steps")
    expect(page.locator(".caption")).to_have_text("tokens per step: 3.00 on average, 4 at most")
    assert re.fullmatch(r"[\d.]+ tokens/s", page.locator(".rate").text_content())
    colours = {page.locator(f".token.{name}").first.evaluate("one => getComputedStyle(one).color") for name in COLOURS}
    assert len(colours) == len(COLOURS)
    body = server.bodies[0]
    assert body["messages"] == [{"role": "user", "content": "Write add."}]
    assert (body["stream"], body["return_sources"], body["model"]) == (True, True, "embedded")
    assert "draft" not in body


COLOURS = ("draft", "phrase", "bonus")


def test_a_conversation(page: Any, server: FakeServer) -> None:
    page.get_by_text("Settings", exact=True).click()
    page.get_by_label("System message").fill("Be brief.")
    page.get_by_label("Tokens at most").fill("77")
    page.get_by_role("textbox", name="Message", exact=True).fill("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("line")
    page.keyboard.press("Enter")
    answered(page)
    send(page, "two")
    answered(page)
    page.get_by_role("button", name="New chat").click()
    send(page, "   ")  # nothing to send
    send(page, "three")
    answered(page)
    asked = [[one["content"] for one in body["messages"]] for body in server.bodies]
    assert asked == [["Be brief.", "one\nline"], ["Be brief.", "one\nline", TEXT, "two"], ["Be brief.", "three"]]
    assert [one["role"] for one in server.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert server.bodies[0]["max_tokens"] == 77
    page.get_by_label("Temperature").fill("7")
    send(page, "four")
    assert len(server.bodies) == 3  # refused by the form itself


def test_a_token_says_where_it_came_from(page: Any, server: FakeServer) -> None:
    server.refused = [" a", "<b>"]
    send(page, "x")
    answered(page)
    page.locator(".token.phrase").first.hover()
    expect(page.get_by_role("tooltip")).to_have_text("phrase memory, step 2, token 1 of 4")
    page.locator(".token.bonus").nth(1).hover()
    expected = 'target model, step 2, token 4 of 4\ndrafted here and refused: " a", "<b>"'
    assert page.locator("#tip").text_content() == expected
    page.mouse.move(1, 1)
    expect(page.locator("#tip")).to_be_hidden()
    page.locator(".answer .text").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    expect(page.get_by_role("tooltip")).to_have_text("draft model, step 1, token 2 of 3")
    expect(page.get_by_role("status")).to_have_text("add(: draft model, step 1, token 2 of 3")


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_stops(page: Any, server: FakeServer, way: str) -> None:
    server.steps, server.pause = [(("word ", "draft"),)] * 2000, 0.01
    send(page, "x")
    expect(page.locator(".token").nth(3)).to_be_attached()
    if way == "Escape":
        page.keyboard.press("Escape")
    else:
        page.get_by_role("button", name="Stop").click()
    answered(page)
    assert server.gone.wait(10)
    expect(page.locator(".answer .note")).to_have_text("Stopped.")
    written = page.locator(".answer .text").text_content()
    assert written == "word " * (len(written) // 5)
    server.steps, server.pause = STEPS, 0.0
    send(page, "y")
    answered(page)
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": written}


def ratio(page: Any) -> float:
    said = page.locator(".verdict").text_content()
    found = re.fullmatch(
        r"Ouroboros is ([\d.]+) times as fast: [\d.]+ to [\d.]+ tokens per second\. Both wrote the same text\.", said
    )
    assert found is not None, said
    return float(found[1])


def test_both_ways_on_one_prompt(page: Any, server: FakeServer) -> None:
    server.pause = server.plain_pause = 0.06
    page.get_by_text("Both", exact=True).click()
    send(page, "x")
    answered(page)
    drafted, plain = server.bodies
    assert (plain["draft"], plain["memory"]) == (False, False)
    assert {**drafted, "draft": False, "memory": False} == plain  # the same seed as well
    assert page.locator(".answer h2").all_text_contents() == ["Ouroboros", "Plain decoding"]
    assert 2 < ratio(page) < 4.5  # 6 tokens in 2 steps to 8 in 8: 3 times, less what the machine is busy


def test_an_answer_of_one_step_is_compared_too(page: Any, server: FakeServer) -> None:
    server.steps = [(("yes", "draft"), (".", "bonus"))]
    page.get_by_text("Both", exact=True).click()
    send(page, "Short?")
    expect(page.locator(".verdict")).to_have_text(
        "Too short to be timed: 2 tokens in 1 step with Ouroboros, 2 tokens in 2 steps without. "
        "Both wrote the same text."
    )
    server.steps = [(("no", "bonus"),)]
    send(page, "Shorter?")
    expect(page.locator(".verdict").nth(1)).to_contain_text(
        "1 token in 1 step with Ouroboros, 1 token in 1 step without."
    )


def test_the_other_way_afterwards(page: Any, server: FakeServer) -> None:
    server.pause = server.plain_pause = 0.06
    page.get_by_role("radio", name="Plain").focus()
    page.keyboard.press("Space")
    send(page, "x")
    answered(page)
    assert server.bodies[0]["draft"] is False
    assert page.locator(".token.bonus").count() == 9
    page.get_by_role("button", name="Compare with Ouroboros").click()
    answered(page)
    assert "draft" not in server.bodies[1]
    assert server.bodies[1]["seed"] == server.bodies[0]["seed"]
    assert 2 < ratio(page) < 4.5
    expect(page.get_by_role("button", name="Compare")).to_have_count(0)


def test_survives_a_restart(page: Any, server: FakeServer) -> None:
    with FakeServer() as first:
        page.goto(first.url)
        first.goes_on.clear()
        send(page, "x")
        expect(page.locator(".token").first).to_be_visible()
    port = first.port
    expect(page.get_by_role("alert")).to_contain_text("Trying again")
    expect(page.locator(".answer .note")).to_contain_text("Trying again")
    with FakeServer(port) as second:
        answered(page)
        assert page.locator(".answer .text").text_content() == TEXT
        expect(page.locator(".figures")).to_have_text("9 tokens in 3 steps")
        expect(page.get_by_role("alert")).to_be_hidden()
        assert second.bodies[0] == first.bodies[0]
    page.goto(server.url)


def test_waits_for_a_server_that_is_busy_or_starting(page: Any, server: FakeServer) -> None:
    server.refusals = [(503, {}, "loading"), (429, {"Retry-After": "1"}, "the queue is full")]
    send(page, "x")
    expect(page.get_by_role("alert")).to_contain_text("starting or stopping")
    expect(page.get_by_role("alert")).to_contain_text("queue is full")
    answered(page)
    assert len(server.bodies) == 3
    assert page.locator(".answer .text").text_content() == TEXT


def test_shows_refusals_and_keeps_what_was_typed(page: Any, server: FakeServer) -> None:
    server.refusals = [(400, {}, "the prompt has <b>9,000</b> tokens")]
    send(page, "a long text")
    answered(page)
    expect(page.get_by_role("alert")).to_have_text("the prompt has <b>9,000</b> tokens")
    expect(page.get_by_role("textbox", name="Message", exact=True)).to_have_value("a long text")
    server.failure = "the model broke"
    page.keyboard.press("Enter")
    answered(page)
    expect(page.get_by_role("alert")).to_have_text("the model broke")
    server.failure = None
    send(page, "again")
    answered(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_an_api_key(page: Any, server: FakeServer) -> None:
    server.key = "secret"
    page.reload()
    expect(page.get_by_role("alert")).to_contain_text("wants an API key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.keyboard.type("secret")
    page.keyboard.press("Tab")
    expect(page.locator("#model")).to_have_text("embedded")
    expect(page.get_by_role("alert")).to_be_hidden()
    page.reload()
    expect(page.locator("#model")).to_have_text("embedded")  # kept for this tab
    send(page, "x")
    answered(page)
    assert server.keys[-1] == "Bearer secret"
    assert page.evaluate("localStorage.length") == 0


def test_text_is_never_markup(page: Any, server: FakeServer) -> None:
    evil = "<img src=x onerror=document.title='evil'><script>document.title='evil'</script>&amp;"
    server.steps = [((evil, "draft"), ("", "bonus"))]
    send(page, evil)
    answered(page)
    assert page.locator(".answer .text").text_content() == evil
    assert page.locator(".question").text_content() == evil
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "Ouroboros"
    expect(page.locator(".figures")).to_have_text("2 tokens in 1 step")


def test_answers_without_sources_are_shown(page: Any, server: FakeServer) -> None:
    server.sources = False
    send(page, "x")
    answered(page)
    assert page.locator(".answer .text").text_content() == TEXT


def test_dark_and_light(page: Any, server: FakeServer) -> None:
    def lightness() -> float:
        numbers = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)")
        return float(sum(numbers[:3]) / 3)

    button = page.get_by_role("button", name="Dark colours")
    assert lightness() > 200
    page.emulate_media(color_scheme="dark")
    assert lightness() < 60
    page.reload()
    expect(button).to_have_attribute("aria-pressed", "true")
    button.click()
    assert lightness() > 200
    page.reload()
    assert lightness() > 200  # chosen, whatever the system says
    expect(button).to_have_attribute("aria-pressed", "false")


def test_a_phone(page: Any, server: FakeServer) -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    server.steps = [*STEPS, (("x" * 300, "draft"),)]
    page.get_by_text("Both", exact=True).click()
    send(page, "y" * 200)
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.getElementById('log').scrollWidth") <= 360
    for name in ("Send", "New chat"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 360
        assert box["y"] + box["height"] <= 640


def test_a_screen_reader_is_told(page: Any, server: FakeServer) -> None:
    server.pause = 0.2
    send(page, "x")
    expect(page.get_by_role("status")).to_have_text("Ouroboros is answering")
    answered(page)
    expect(page.get_by_role("status")).to_contain_text("Ouroboros: def add(a, b):")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, textarea')]"
        ".filter(one => !one.labels?.length && !one.textContent.trim() && !one.ariaLabel).map(one => one.id)"
    )
    assert unnamed == []


def test_the_server_itself(browser: Any) -> None:
    """The embedded pair behind the page, both ways."""
    pytest.importorskip("fastapi")
    import ouroboros
    from tests.servers import serving

    with ouroboros.load(dtype="float32") as decoder, serving(decoder) as running, browser.new_context() as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("console", lambda said: wrong.extend([said.text] * (said.type in ("error", "warning"))))
        page.goto(running.address)
        page.get_by_text("Settings", exact=True).click()
        page.get_by_label("Tokens at most").fill("40")
        page.get_by_text("Both", exact=True).click()
        send(page, "def fibonacci(n):")
        answered(page)
        expect(page.locator(".verdict")).to_contain_text("Both wrote the same text.")
        drafted, plain = page.locator(".answer .text").all_text_contents()
        assert drafted == plain
        figures = [re.findall(r"\d+", text) for text in page.locator(".figures").all_text_contents()]
        (tokens, steps), (plain_tokens, plain_steps) = [tuple(map(int, numbers)) for numbers in figures]
        assert tokens == plain_tokens == plain_steps > 10
        assert steps < tokens
        assert page.locator(".answer").nth(1).locator(".token:not(.bonus)").count() == 0
        assert wrong == []
