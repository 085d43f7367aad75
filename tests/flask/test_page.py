"""The page in a real browser: the shop of examples/flask_app, started with its one command, in headless Chromium."""

from __future__ import annotations

import importlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from commands import free_port
from failures import HOSTILE, fail_jobs
from keys import named
from rq import Queue
from support import wait_until
from webserver import running

from rq_pooled.embedded import EmbeddedServer

pytestmark = pytest.mark.timeout(180)
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.common.exceptions import StaleElementReferenceException

IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
DESKTOP, PHONE = (1280, 900), (390, 844)
TOKEN = "t0ken"
SCREENSHOTS = os.environ.get("SCREENSHOTS")


@pytest.fixture(scope="module")
def shop(_server_available: None, tmp_path_factory: Any) -> Iterator[tuple[str, EmbeddedServer]]:
    """The address of the shop, run by its one command, and its Redis."""
    port, log = free_port(), tmp_path_factory.mktemp("shop") / "log"
    with EmbeddedServer() as one:
        environment = {"RQ_POOLED_URL": one.url, "RQ_POOLED_HEARTBEAT_INTERVAL": "1", "RQ_POOLED_GUARD_INTERVAL": "1"}
        environment["SHOP_TOKEN"] = TOKEN
        command = ["examples/flask_app", "--port", str(port)]
        with running(command, f"http://127.0.0.1:{port}/", log, **environment):
            wait_until(lambda: "connections: command" in log.read_text(), 30, log.read_text())
            yield f"http://127.0.0.1:{port}", one


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: Any) -> Iterator[Any]:
    """Headless Chromium, one for all tests."""
    if CHROMIUM is None or DRIVER is None:
        (pytest.fail if IN_CI else pytest.skip)("needs chromium and chromedriver (apt-get install chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-background-networking", "disable-component-update", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


Look = Callable[..., Any]


@pytest.fixture
def look(chromium: Any, shop: tuple[str, EmbeddedServer]) -> Iterator[Look]:
    """Open the page, ``look(PHONE, dark=True, script=False)``; afterwards nothing may be in the browser's error log."""
    address, one = shop
    redis = one.client()
    for queue in ("mail", HOSTILE):
        for key in (named(f"rq:failed:{queue}"), named(f"rq:queue:{queue}"), named(f"rq:scheduled:{queue}")):
            redis.delete(key)
        redis.srem(named("rq:queues"), named(f"rq:queue:{queue}"))

    def open_page(size: tuple[int, int] = DESKTOP, dark: bool = False, script: bool = True, path: str = "/rq/") -> Any:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not script})
        chromium.get(address + path)
        return chromium

    chromium.get(f"{address}/operator?token={TOKEN}")
    chromium.get_log("browser")
    yield open_page
    chromium.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    errors = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors


def text(browser: Any, selector: str = "main") -> str:
    """What an element shows."""
    # In one step: the page may be refreshed at any moment.
    return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText", selector))


def button(browser: Any, label: str) -> Any:
    """The button that a screen reader calls so."""
    return browser.find_element("css selector", f'button[aria-label^="{label}"]')


def press(browser: Any, label: str) -> None:
    """Press a button, again if a refresh has replaced it meanwhile."""

    def pressed() -> bool:
        try:
            button(browser, label).click()
        except StaleElementReferenceException:
            return False
        return True

    wait_until(pressed)


def cell(browser: Any, section: str, row: str, label: str) -> str:
    """What stands in a table, in the row of this name, under this label."""
    script = """
        const rows = [...document.querySelectorAll(`#${arguments[0]} tbody tr`)];
        const row = rows.find(one => one.querySelector("th").innerText.trim() == arguments[1]);
        return row?.querySelector(`td[data-label="${arguments[2]}"]`)?.innerText"""
    return str(browser.execute_script(script, section, row, label))


def keep(browser: Any, name: str) -> None:
    """Keep a screenshot of the whole page where SCREENSHOTS names a folder."""
    if SCREENSHOTS:
        height = browser.execute_script("return document.documentElement.scrollHeight")
        width = browser.execute_script("return document.documentElement.clientWidth")
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def test_a_burst_of_a_thousand_jobs(look: Look, shop: tuple[str, EmbeddedServer]) -> None:
    """The shop's button enqueues 1 000 jobs; the page shows them, and by itself how they are worked off."""
    redis = shop[1].client()
    before = redis.zcard(named("rq:finished:orders"))
    browser = look(path="/")
    browser.find_element("xpath", "//button[contains(., '1 000')]").click()
    wait_until(lambda: browser.current_url.endswith("/rq/#queues"))
    assert "orders" in text(browser, "#queues") and "packer" in text(browser, "#workers")
    keep(browser, "burst")

    def settled() -> bool:
        # Retries of jobs that fail often may go on; the others are through.
        return redis.llen(named("rq:queue:orders")) == 0 and redis.zcard(named("rq:finished:orders")) - before > 900

    wait_until(settled, 90)
    # Nobody reloads: the script does it in place.
    wait_until(lambda: "ValueError" in text(browser, "#failures"), 30)
    wait_until(lambda: cell(browser, "queues", "orders", "Queued") == "0", 30)
    wait_until(lambda: _int(cell(browser, "workers", "packer", "Finished")) > 900, 30)
    wait_until(lambda: browser.find_elements("css selector", "#connections svg path.line"), 30)
    assert "command 1, listen 1" in text(browser, "#connections")
    keep(browser, "after-burst")


def _int(shown: str) -> int:
    return int("".join(character for character in shown if character.isdigit()) or 0)


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
def test_buttons(look: Look, shop: tuple[str, EmbeddedServer], script: bool) -> None:
    """Requeue, bury and sweep work, with and without JavaScript, and the page tells what was done."""
    redis = shop[1].client()
    fail_jobs(redis, "mail", ["ValueError: a", "ValueError: b", "shop.Busy: c", "OSError: d"], f"buttons{script}")
    redis.zadd(named("rq:failed:mail"), {"ghost": 9e9})
    browser = look(script=script)
    assert "entry without a job" in text(browser, "#failures")
    press(browser, "Requeue 2: ValueError in mail")
    wait_until(lambda: "2 jobs requeued in “mail”" in text(browser, "#message"))
    assert redis.llen(named("rq:queue:mail")) == 2
    press(browser, "Bury 1: shop.Busy in mail")
    wait_until(lambda: "1 job moved to the dead letters of “mail”" in text(browser, "#message"))
    press(browser, "Sweep: entries without a job in mail")
    wait_until(lambda: "1 entry without a job removed" in text(browser, "#message"))
    assert [job_id.decode() for job_id in redis.zrange(named("rq:failed:mail"), 0, -1)] == [f"buttons{script}-3"]
    browser.get(browser.current_url.partition("/rq/")[0] + "/rq/queue?name=mail")
    browser.find_element("partial link text", "Requeue failed jobs").click()
    press(browser, "Requeue 1 failed job: mail")
    wait_until(lambda: redis.zcard(named("rq:failed:mail")) == 0)
    assert "1 job requeued in “mail”" in text(browser, "#message")
    browser = look(script=script)
    assert browser.find_element("id", "pause").is_displayed() == script
    # Lists show times in the visitor's zone, too, where there is a script to do so.
    browser = look(script=script, path="/rq/trail")
    title = "return document.querySelector('time').title"
    assert script != browser.execute_script(title).endswith("UTC")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_readable(look: Look, shop: tuple[str, EmbeddedServer], size: tuple[int, int], dark: bool) -> None:
    """On a screen and a phone, light and dark: nothing is cut off, all text has contrast, what is touched is large
    enough.
    """
    redis = shop[1].client()
    fail_jobs(redis, "mail", ["ValueError: " + "long " * 80, "shop.payments.errors.CardHasExpired: x" + "y" * 300], "r")
    queue = Queue("mail", connection=redis)
    queue.enqueue("math.factorial", 3)
    browser = look(size, dark)
    keep(browser, f"{'phone' if size == PHONE else 'desktop'}-{'dark' if dark else 'light'}")
    width = browser.execute_script("return document.documentElement.scrollWidth")
    assert width <= size[0]
    poor = browser.execute_script(_CONTRAST)
    assert poor == []
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground.removeprefix("rgb(").rstrip(")").split(","))
    assert (brightness < 150) == dark
    if size == PHONE:
        small = browser.execute_script(
            "return [...document.querySelectorAll('button, nav a, summary')].filter(e => e.offsetParent && "
            "e.getBoundingClientRect().height < 44).map(e => e.textContent)"
        )
        assert small == []


def test_workers_fit_the_screen(look: Look, shop: tuple[str, EmbeddedServer]) -> None:
    """The buttons that stop a worker stand on the screen of a laptop, however long its name and its queues' are."""
    redis, name = shop[1].client(), "f" * 48
    fields = {"birth": "2026-11-29T00:00:00.000000Z", "queues": "high,default,mail", "hostname": "h", "pid": "1"}
    redis.hset(named(f"rq:worker:{name}"), mapping={**fields, "state": "idle"})
    redis.sadd(named("rq:workers"), named(f"rq:worker:{name}"))
    try:
        browser = look(DESKTOP, path="/rq/workers")
        assert name in text(browser, "main")
        assert "Shut down" in text(browser, "main")
        all_of_them = "return [...document.querySelectorAll('html, section')]"
        assert browser.execute_script(f"{all_of_them}.filter(e => e.scrollWidth > e.clientWidth).length") == 0
    finally:
        redis.srem(named("rq:workers"), named(f"rq:worker:{name}"))
        redis.delete(named(f"rq:worker:{name}"))


#: Text whose contrast to what is behind it is under 4.5 (WCAG AA), as a list of [text, ratio].
_CONTRAST = """
const parse = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] > .99) return c; } return [255, 255, 255]; };
const poor = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.getClientRects().length) continue;
  const style = getComputedStyle(e), ink = parse(e.namespaceURI.includes("svg") ? style.fill : style.color);
  const [a, b] = [luminance(ink), luminance(ground(e))].sort((x, y) => y - x);
  const ratio = (a + .05) / (b + .05);
  if (ratio < 4.5) poor.push([e.textContent.trim().slice(0, 40), Math.round(ratio * 10) / 10]);
}
return poor;
"""


def test_keyboard(look: Look, shop: tuple[str, EmbeddedServer]) -> None:
    """Without a mouse: a link skips to the content, every button is reached by Tab, shows where it is, and works."""
    redis = shop[1].client()
    fail_jobs(redis, "mail", ["ValueError: a"], "k")
    browser = look()
    keys = webdriver.ActionChains(browser)
    keys.send_keys("\ue004").perform()
    assert browser.switch_to.active_element.text == "Skip to content"
    assert browser.switch_to.active_element.is_displayed()
    for _ in range(60):
        webdriver.ActionChains(browser).send_keys("\ue004").perform()
        active = browser.switch_to.active_element
        if (active.get_attribute("aria-label") or "").startswith("Requeue 1: ValueError in mail"):
            break
    else:
        raise AssertionError("Tab does not reach the button")
    assert browser.execute_script("return getComputedStyle(document.activeElement).outlineWidth") == "3px"
    webdriver.ActionChains(browser).send_keys("\ue007").perform()
    wait_until(lambda: "1 job requeued" in text(browser, "#message"))


def test_refreshing_disturbs_nobody(look: Look, shop: tuple[str, EmbeddedServer]) -> None:
    """What is focused stays, open details stay open, Pause pauses, while everything else is refreshed in place."""
    redis = shop[1].client()
    fail_jobs(redis, "mail", ["ValueError: a"], "f")
    browser = look()
    browser.find_element("css selector", "#others summary").click()
    focused = button(browser, "Requeue 1: ValueError in mail")
    browser.execute_script("arguments[0].focus()", focused)
    seen = text(browser, "#as-of")
    wait_until(lambda: text(browser, "#as-of") != seen, 30)
    assert browser.switch_to.active_element == focused
    assert browser.find_element("id", "others").get_attribute("open") is not None
    pause = browser.find_element("id", "pause")
    pause.click()
    assert pause.text == "Resume refresh" and pause.get_attribute("aria-pressed") == "true"
    redis.sadd(named("rq:queues"), named("rq:queue:mail"))
    pause.click()
    seen = text(browser, "#as-of")
    wait_until(lambda: text(browser, "#as-of") != seen, 30)


def test_hostile_data_is_only_text(look: Look, shop: tuple[str, EmbeddedServer]) -> None:
    """Scripts and images in names, descriptions and errors are shown, not run."""
    redis = shop[1].client()
    (job_id,) = fail_jobs(redis, HOSTILE, [f"ValueError: {HOSTILE}"], "h")
    redis.hset(named(f"rq:job:{job_id}"), "description", HOSTILE)
    browser = look()
    assert '<script>alert("x")</script>' in text(browser, "#failures")
    assert browser.execute_script("return document.querySelectorAll('main img, main script').length") == 0
    with pytest.raises(Exception, match="no such alert"):
        _ = browser.switch_to.alert.text


def test_redis_frozen_and_back(look: Look, shop: tuple[str, EmbeddedServer], chromium: Any) -> None:
    """While Redis is frozen the page says so above what it showed, which looks old, and in its title; then it goes on,
    also where the address has a name and a password in it.
    """
    browser = look()
    browser.get(browser.current_url.replace("http://", "http://name:password@"))
    shown = text(browser, "#queues")
    assert not text(browser, "#stale")
    shop[1].pause()
    try:
        wait_until(lambda: "Redis does not answer. What you see is as of" in text(browser, "#stale"), 40)
        assert text(browser, "#queues") == shown and "Redis does not answer" in browser.title
        assert browser.find_element("id", "queues").value_of_css_property("opacity") == "0.5"
    finally:
        shop[1].resume()
    wait_until(lambda: not text(browser, "#stale") and "answer" not in browser.title, 40)
    chromium.get_log("browser")  # the 503 itself is in the log


def test_one_command_ends_as_one(_server_available: None, tmp_path: Path) -> None:
    """SIGTERM to the command ends its worker, its web server and its own Redis."""
    port, log = free_port(), tmp_path / "log"
    with ExitStack() as stack:
        address = f"http://127.0.0.1:{port}"
        process = stack.enter_context(
            running(["examples/flask_app", "--port", str(port)], f"{address}/rq/health/redis", log)
        )
        process.terminate()
        assert process.wait(40) == 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _processes_of(str(port)):
        time.sleep(0.05)
    assert not _processes_of(str(port))


def _processes_of(word: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if word.encode() in line and b"gunicorn" in line:
            found.append(int(folder.name))
    return found


def picture(browser: Any, name: str) -> None:
    """Keep what one screen shows where SCREENSHOTS names a folder; docs/pictures is made so."""
    if SCREENSHOTS:
        browser.save_screenshot(str(Path(SCREENSHOTS) / f"{name}.png"))


def test_from_the_first_screen_to_the_fault(look: Look, shop: tuple[str, EmbeddedServer]) -> None:
    """An operator finds what fails most and since when on the first screen, opens one such job with its traceback, and
    requeues just those.
    """
    redis = shop[1].client()
    redis.delete(named("rq:failed:orders"))
    fail_jobs(redis, "mail", ["ValueError: the card has expired"] * 5 + ["OSError: x"] * 2, "find")
    browser = look()
    wait_until(lambda: "most often ValueError in math.factorial, first" in text(browser, ".verdict.first, .verdict"))
    picture(browser, "failures")
    bottom = "return document.querySelector('#failures tbody tr').getBoundingClientRect().bottom"
    assert browser.execute_script(bottom) < 900, "what fails most stands on the screen of a laptop"
    assert cell(browser, "failures", "ValueError\nin math.factorial", "Jobs") == "5"
    browser.find_element("css selector", "#failures tbody td.latest a").click()
    assert "Traceback (most recent call last)" in text(browser, "pre") and "the card has expired" in text(
        browser, "pre"
    )
    picture(browser, "job")
    browser.back()
    wait_until(lambda: browser.find_elements("css selector", "#failures tbody th a"))
    browser.find_element("css selector", "#failures tbody th a").click()
    assert "1 to 5 of 5, the newest first, among the newest 7 failed jobs" in text(browser, ".note")
    picture(browser, "group")
    button(browser, "Requeue all 5").click()
    wait_until(lambda: "5 jobs requeued in “mail”" in text(browser, "#message"))
    assert redis.zcard(named("rq:failed:mail")) == 2 and redis.llen(named("rq:queue:mail")) == 5
    browser.refresh()
    assert redis.llen(named("rq:queue:mail")) == 5, "a reload does nothing again"


def test_chosen_jobs_are_deleted_after_a_question(look: Look, shop: tuple[str, EmbeddedServer]) -> None:
    """Ticked jobs are deleted once the number is confirmed, without JavaScript, too."""
    redis = shop[1].client()
    redis.delete(named("rq:failed:orders"))
    fail_jobs(redis, "mail", ["ValueError: x"] * 3, "tick")
    browser = look(script=False, path="/rq/failed?queue=mail")
    for job_id in ("tick-0", "tick-2"):
        browser.find_element("css selector", f'input[value="{job_id}"]').click()
    browser.find_element("css selector", 'button[name="act"][value="delete"]').click()
    assert "Delete 2 jobs?" in text(browser, "h1") and redis.zcard(named("rq:failed:mail")) == 3
    button(browser, "Delete 2 jobs").click()
    wait_until(lambda: "2 jobs deleted from “mail”" in text(browser, "#message"))
    assert redis.zrange(named("rq:failed:mail"), 0, -1) == [b"tick-1"]


def _axe() -> str:
    """The source of axe-core: of the file that AXE_CORE names (npm pack axe-core), else of the wheel that ships it."""
    if path := os.environ.get("AXE_CORE"):
        return Path(path).read_text()
    package = (pytest.importorskip if not IN_CI else importlib.import_module)("axe_core_python")
    return (Path(package.__file__).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, (1600, 900)], ids=["desktop", "phone", "wide"])
def test_axe_finds_nothing(look: Look, shop: tuple[str, EmbeddedServer], size: tuple[int, int], dark: bool) -> None:
    """axe-core finds no fault on any page, and none is wider than its screen."""
    redis = shop[1].client()
    fail_jobs(redis, "mail", ["ValueError: " + "long " * 80, "shop.CardHasExpired: x" + "y" * 300], "axe")
    group = "queue=mail&exception=ValueError&function=math.factorial"
    for path in (
        *("/rq/", "/rq/failed", f"/rq/failed?{group}", "/rq/failed?dead=1", "/rq/job?id=axe-0", "/rq/job?id=none"),
        *("/rq/failed/confirm?act=delete&job=axe-0&job=axe-1", "/rq/workers", "/rq/workers?stop=packer&act=hold"),
        *("/rq/schedule", "/rq/trail", "/rq/queue?name=mail", "/rq/queue?name=mail&act=requeue"),
    ):
        browser = look(size, dark, path=path)
        browser.execute_script(_axe())
        asked = (
            "axe.run().then(r => arguments[0](r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 150))])))"
        )
        assert browser.execute_async_script(asked) == [], path
        assert browser.execute_script("return document.documentElement.scrollWidth") <= size[0], path
        keep(browser, f"{size[0]}-{'dark' if dark else 'light'}{path.replace('/', '_')[:40]}")
        if path == "/rq/job?id=none":
            # The browser notes an answer of 404 as an error.
            browser.get_log("browser")
