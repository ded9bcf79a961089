"""The web console in a browser. Run by run.sh; every check is a function, and all of them run."""

import json
import pathlib
import re
import sys
import threading
import traceback
import urllib.error
import urllib.request

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

BASE, CHROMIUM, IMAGES = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
KEY = "test-key"
HOSTILE = '<img src="/x-pwned" onerror="window.pwned=1"><script>window.pwned=1</script>[a](javascript:pwned=1)</div>'
HARD = "A farmer has 17 sheep, sells all but 9, buys twice as many as are left and gives 5 away. How many are there?"
# What Chromium itself says of an answer that is no success; the tests that provoke one allow it.
REFUSED = re.compile(r"Failed to load resource: the server responded with a status of (400|401|404)")


class Tab:
    """A page, with all that went wrong on it."""

    def __init__(self, browser, scheme="light", width=1280, height=800, key=KEY):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong, self.asked = [], []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.page.on("dialog", lambda d: (self.wrong.append(f"dialog: {d.message}"), d.dismiss()))
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.goto(BASE + "/")
        if key:
            self.give(key)
            expect(self.page.locator("#link")).to_have_text("live")

    def give(self, key):
        expect(self.page.locator("#key-form")).to_be_visible()
        self.page.fill("#key", key)
        self.page.keyboard.press("Enter")

    def ask(self, text):
        self.page.fill("#prompt", text)
        self.page.press("#prompt", "Enter")
        return self.page.locator("article").last

    def answered(self, article):
        expect(article).not_to_have_attribute("aria-busy", "true", timeout=120_000)
        return article

    def budget(self, tokens):
        steps = [0, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
        self.page.focus("#budget")
        self.page.keyboard.press("End")
        for _ in range(len(steps) - (steps.index(tokens) if tokens is not None else len(steps))):
            self.page.keyboard.press("ArrowLeft")

    def picture(self, name):
        self.page.screenshot(path=IMAGES / f"{name}.png")

    def axe(self, what):
        found = Axe().run(self.page).response["violations"]
        grave = [v for v in found if v["impact"] in ("serious", "critical")]
        told = [(v["id"], [n["html"][:150] for n in v["nodes"][:3]]) for v in grave]
        assert not grave, f"{what}: {told}"

    def fits(self, what):
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{what}: {wide} pixels too wide"

    def close(self, allowed=None):
        wrong = [w for w in self.wrong if not (allowed and allowed.search(w)) and not (REFUSED.search(w) and "401" in w)]
        outside = [u for u in self.asked if not u.startswith((BASE, "data:"))]
        self.context.close()
        assert not wrong, f"the console says {wrong}"
        assert not outside, f"it asked {outside}"


def post(path, body):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    request = urllib.request.Request(BASE + path, json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=300).read()


def close_marker():
    """The id of the token that ends the thinking of the bundled model."""
    tokens = json.loads(pathlib.Path("models/target/tokenizer.json").read_text())["added_tokens"]
    return next(str(t["id"]) for t in tokens if t["content"] == "</think>")


def thinks_long(tab):
    """What the page asks from now on is thought about until the context is full or the answer is asked for, however
    quick and sure of itself the model is: it is kept from ending the thinking, and warm enough not to loop."""
    def ask(route):
        body = {"temperature": 1.0, **route.request.post_data_json, "logit_bias": {close_marker(): -100}}
        route.continue_(post_data=json.dumps(body))

    tab.page.route("**/v1/chat/completions", ask)


class Load:
    """Other clients, so that there is something to see: long answers at a temperature at which guesses go wrong."""

    ASKED = ["What is 23 * 17?", "Is 91 a prime number?", HARD, "What is 15% of 80?", "Sum the numbers from 1 to 20."]

    def __init__(self, clients):
        self.on = True
        self.threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self, i):
        n = i
        while self.on:
            body = {"model": "ponder-bundled", "messages": [{"role": "user", "content": self.ASKED[n % 5]}], "seed": n,
                    "temperature": 1.3, "ignore_eos": True, "max_completion_tokens": [400, 900, 650, 1200][n % 4],
                    "reasoning_effort": ["high", "auto", "max"][n % 3], "thinking_token_budget": [900, 256, 512][n % 3]}
            try:
                post("/v1/chat/completions", body)
            except urllib.error.URLError as error:
                print("a client of the load:", error)
            n += 7

    def stop(self):
        self.on = False
        for thread in self.threads:
            thread.join(120)


def key_is_asked_for(browser):
    tab = Tab(browser, key=None)
    expect(tab.page.locator("#key-form")).to_be_visible()
    tab.axe("key form")
    tab.give("wrong")
    expect(tab.page.locator("#key-said")).to_contain_text("401")
    tab.give(KEY)
    expect(tab.page.locator("#key-form")).to_be_hidden()
    expect(tab.page.locator("#link")).to_have_text("live")
    assert tab.page.evaluate("sessionStorage.length") == 1 and tab.page.evaluate("localStorage.length") == 0
    assert not tab.context.cookies()
    tab.close()


def conversation_with_thinking(browser):
    tab = Tab(browser)
    article = tab.ask("What is 15% of 80?")
    expect(article.locator(".think")).to_be_visible()
    tab.answered(article)
    assert len(article.locator(".thought").text_content()) > 5
    assert "12" in article.locator(".answer").inner_text(), article.inner_text()
    expect(article.locator(".count")).to_contain_text(re.compile(r"^\d[\d,]* tokens? · "))
    expect(article.locator(".meta")).to_contain_text("tokens/s")
    # The panel folded with the answer, and opens by keyboard.
    assert article.locator("details.think").get_attribute("open") is None
    article.locator("summary").focus()
    tab.page.keyboard.press("Enter")
    expect(article.locator(".thought")).to_be_visible()
    # The next turn knows the one before.
    with tab.page.expect_request("**/v1/chat/completions") as sent:
        second = tab.ask("And 20%?")
    assert [m["role"] for m in sent.value.post_data_json["messages"]] == ["user", "assistant", "user"]
    tab.answered(second)
    tab.axe("after a conversation")
    tab.close()


def budget_is_exact(browser):
    tab = Tab(browser)
    tab.budget(16)
    expect(tab.page.locator("#budget-says")).to_have_text("at most 16")
    article = tab.answered(tab.ask(HARD))
    count = re.match(r"(\d+) of 16 tokens", article.locator(".count").text_content())
    assert count and int(count[1]) <= 16, article.locator(".count").text_content()
    tab.budget(0)
    article = tab.answered(tab.ask("What is 2 + 2?"))
    expect(article.locator(".think")).to_be_hidden()
    tab.close()


def answer_now(browser):
    tab = Tab(browser)
    tab.page.select_option("#effort", "max")
    tab.page.locator(".more summary").click()
    tab.page.fill("#system", "Think for very long.")
    thinks_long(tab)
    # The page itself presses the button as soon as it can be pressed: that is long before the context is full.
    tab.page.evaluate("""() => {
        const button = document.querySelector("#answer-now");
        new MutationObserver(() => button.disabled || button.click()).observe(button, { attributes: true });
    }""")
    for attempt in range(8):
        article = tab.ask(f"{HARD} Check every step {attempt + 2} times.")
        tab.answered(article)
        if "you asked" in (article.locator(".why").text_content() or ""):
            assert article.locator(".answer").text_content().strip()
            return tab.close(re.compile("status of 404"))
    raise AssertionError("it never was asked while it thought")


def errors_are_shown(browser):
    tab = Tab(browser)
    tab.page.select_option("#effort", "none")
    tab.budget(64)
    article = tab.answered(tab.ask("What is 2 + 2?"))
    expect(article.locator(".error")).to_contain_text("400")
    expect(article.locator(".error")).to_contain_text("contradicts")
    expect(tab.page.locator("#prompt")).to_have_value("What is 2 + 2?")
    tab.axe("an error")
    # A stream that breaks off is said to.
    tab.page.route("**/v1/chat/completions", lambda r: r.fulfill(content_type="text/event-stream", body=sse(content="half")[:-len("data: [DONE]\n\n")]))
    article = tab.answered(tab.ask("again"))
    expect(article.locator(".error")).to_contain_text("broke off")
    tab.close(re.compile("status of 400"))


def sse(**delta):
    chunk = {"id": "chatcmpl-x", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    end = {"id": "chatcmpl-x", "choices": [{"index": 0, "delta": {}, "finish_reason": HOSTILE}]}
    return "".join(f"data: {json.dumps(c)}\n\n" for c in (chunk, end)) + "data: [DONE]\n\n"


def hostile_output_is_inert(browser):
    tab = Tab(browser)
    page = tab.page
    page.route("**/v1/chat/completions", lambda r: r.fulfill(content_type="text/event-stream", body=sse(reasoning_content=HOSTILE, content=HOSTILE)))
    article = tab.answered(tab.ask(HOSTILE))
    assert article.locator(".answer").text_content() == HOSTILE
    assert article.locator(".thought").text_content() == HOSTILE
    assert page.locator(".asked").text_content() == HOSTILE
    page.route("**/v1/chat/completions", lambda r: r.fulfill(status=400, json={"error": {"message": HOSTILE, "code": HOSTILE}}))
    article = tab.answered(tab.ask("hello"))
    assert HOSTILE in article.locator(".error").text_content()
    trace = {"traceEvents": [{"name": n, "pid": p, "tid": HOSTILE, "ts": 1, "dur": 5, "ph": "X", "args": {"step": 1, "answers": [HOSTILE]}}
                             for n, p in (("thinking", "requests"), ("Verify", "actors"))]}
    page.set_input_files("#file", {"name": HOSTILE + ".json", "mimeType": "application/json", "buffer": json.dumps(trace).encode()})
    page.locator(".lane").click()
    expect(page.locator("#life-title")).to_contain_text("<img")
    page.wait_for_timeout(300)
    assert page.evaluate("window.pwned") is None
    assert page.locator("img").count() == 1 and page.locator("body script").count() == 0
    assert not [u for u in tab.asked if "pwned" in u]
    tab.close(re.compile("status of 400"))


def engine_and_traces(browser):
    load = Load(5)
    try:
        tab = Tab(browser)
        page = tab.page
        expect(page.locator(".lane").first).to_be_visible()
        expect(page.locator("#vitals")).to_contain_text("tokens/s")
        expect(page.locator("#actors text.rate").first).to_contain_text("/s")
        expect(page.locator("#blocks p")).to_contain_text("held")
        page.locator(".lane").first.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#life")).to_contain_text("What it did")
        tab.axe("a life")
        page.keyboard.press("Escape")
        expect(page.locator("#life")).to_be_hidden()
        page.locator("#record").click()
        expect(page.locator("#source")).to_contain_text("the last 5 seconds", timeout=20_000)
        assert page.locator(".lane").count() > 0
        expect(page.locator("#blocks")).to_contain_text("does not record")
        page.locator(".lane").first.click()
        expect(page.locator("#life")).to_contain_text("target.Verify")
        page.locator("#life-close").click()
        tab.axe("a recorded trace")
        page.locator("#live").click()
        expect(page.locator("#blocks p")).to_contain_text("held")
        for name, wrong in (("no.json", b"no"), ("empty.json", b"{}"), ("other.json", b'{"traceEvents":[{"name":1},null]}')):
            page.set_input_files("#file", {"name": name, "mimeType": "application/json", "buffer": wrong})
            expect(page.locator("#engine-said")).to_contain_text(name)
        tab.close()
    finally:
        load.stop()


def while_it_thinks(tab, then):
    """Asks until there was time for `then` while an answer was thought about."""
    for _ in range(8):
        article = tab.ask(HARD)
        while len(article.locator(".thought").text_content()) < 60 and article.get_attribute("aria-busy"):
            tab.page.wait_for_timeout(20)
        then()
        if tab.page.locator("#answer-now:enabled").count() > 0:
            return article
        tab.answered(article)
        tab.page.locator("#clear").click()
    raise AssertionError("it thinks too fast for a picture")


def pictures(browser):
    load = Load(7)
    try:
        for scheme in ("light", "dark"):
            tab = Tab(browser, scheme)
            page = tab.page
            tab.answered(tab.ask("What is 15% of 80?"))
            tab.budget(1024)
            page.select_option("#effort", "high")
            page.locator(".more summary").click()
            page.fill("#temperature", "1")
            page.locator(".more summary").click()
            thinks_long(tab)
            article = while_it_thinks(tab, lambda: tab.picture(f"console-chat-{scheme}"))
            tab.axe(f"chat, {scheme}")
            tab.fits("chat")
            tab.answered(article)
            page.locator("#show-chat").click()
            page.set_viewport_size({"width": 1280, "height": 1120})
            page.wait_for_timeout(25_000)
            tab.picture(f"console-engine-{scheme}")
            tab.axe(f"engine, {scheme}")
            tab.fits("engine")
            tab.close()
        for scheme in ("light", "dark"):
            tab = Tab(browser, scheme, 390, 844)
            tab.answered(tab.ask("Is 91 a prime number?"))
            tab.fits("chat on a phone")
            tab.axe(f"chat on a phone, {scheme}")
            tab.page.locator("#show-engine").click()
            expect(tab.page.locator("#engine")).to_be_visible()
            tab.page.wait_for_timeout(1000)
            tab.fits("engine on a phone")
            tab.axe(f"engine on a phone, {scheme}")
            tab.close()
    finally:
        load.stop()


CHECKS = [key_is_asked_for, conversation_with_thinking, budget_is_exact, answer_now, errors_are_shown,
          hostile_output_is_inert, engine_and_traces, pictures]


def main():
    failed = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for check in CHECKS:
            try:
                check(browser)
                print(f"  ok      {check.__name__}", flush=True)
            except Exception:
                failed.append(check.__name__)
                print(f"  FAILED  {check.__name__}\n{traceback.format_exc()}", flush=True)
        browser.close()
    print(f"web console: {len(CHECKS) - len(failed)} passed, {len(failed)} failed")
    sys.exit(1 if failed else 0)


main()
