"""The panels and the notebooks in a real browser: JupyterLab with headless Chromium."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.error import URLError

import nbformat
import pytest

import advnb
from advnb.fonts import LATENTS
from advnb.live.landscape import MapFigure

playwright = pytest.importorskip("playwright.sync_api")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
TOKEN = "advnb-test"
VIEW = {"width": 1400, "height": 1000}
BROKEN = re.compile(r"Error displaying widget|model not found|Error creating widget|Traceback")

PANELS = {  # a cell each
    "certificate": """
from advnb.live import CertificatePanel
CertificatePanel(advnb.zoo.load("fonts-small-certified"), advnb.load("fonts").test(12))
""",
    "latent": """
from advnb.live import LatentPanel
LatentPanel(advnb.zoo.load("fonts-cnn-normal"), advnb.load("fonts").test(20), image=3)
""",
    "steps": """
from advnb.live import StepPanel
data = advnb.load("fonts")
attacks = {
    "regular": advnb.Attack(advnb.Pixels(0.3), steps=20),
    "on-manifold": advnb.Attack(advnb.OnManifold(data.manifold, 0.3), steps=10, lr=0.02),
}
StepPanel(advnb.zoo.load("fonts-cnn-normal"), data.test(20), attacks)
""",
    "curves": """
from advnb.live import CurvePanel
CurvePanel(advnb.curves.summary(advnb.sweeps.shipped("fonts")), paper=advnb.curves.printed())
""",
    "embedding": """
from advnb.live import EmbeddingPanel
data = advnb.load("fonts")
EmbeddingPanel(
    advnb.zoo.load("fonts-cnn-normal"), data.train(1500), data.test(1500), projection="pca"
)
""",
    "map": """
from advnb.live import BlindspotPanel
BlindspotPanel(
    advnb.zoo.load("fonts-cnn-adversarial"), advnb.load("fonts").test(12), steps=5,
    alphas=[0.5, 0.62, 0.74, 0.88, 1], shifts=[-1, -0.4, 0, 0.5, 1]
)
""",
}

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.flaky(reruns=2),  # pages under load miss a message now and then
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A JupyterLab server over copies of the notebooks; its address."""
    folder = tmp_path_factory.mktemp("lab")
    for path in NOTEBOOKS:
        shutil.copy(path, folder)
    notebook = nbformat.read(folder / "08_blindspots.ipynb", as_version=4)
    position = next(i for i, c in enumerate(notebook.cells) if "BlindspotPanel(" in c.source)
    notebook.cells = notebook.cells[: position + 1]
    notebook.cells.append(nbformat.v4.new_code_cell("import time\ntime.sleep(600)"))
    nbformat.write(notebook, folder / "panel.ipynb")
    for name, source in PANELS.items():
        notebook.cells = [nbformat.v4.new_code_cell(f"import advnb\n{source.strip()}")]
        nbformat.write(notebook, folder / f"{name}.ipynb")
    config = tmp_path_factory.mktemp("config")
    (config / "labconfig").mkdir()
    (config / "labconfig" / "page_config.json").write_text(
        '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}'
    )
    env = os.environ | {
        "ADVNB_PROFILE": "course",  # 64 images in the panel, as its stated times are for
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTERLAB_WORKSPACES_DIR": str(config / "workspaces"),
        "JUPYTERLAB_SETTINGS_DIR": str(config / "settings"),
    }
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--port=0", "--allow-root",
        f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={TOKEN}",
    ]  # fmt: skip
    with open(config / "log.txt", "w") as log:
        server = subprocess.Popen(command, env=env, stderr=log, stdout=log)
    try:
        yield _address(server, config / "log.txt")
    finally:
        server.terminate()
        server.wait(20)


def _address(server: subprocess.Popen, log: Path) -> str:
    for _ in range(300):
        found = re.search(r"http://(?:localhost|127\.0\.0\.1):(\d+)/", log.read_text())
        if found:
            address = f"http://127.0.0.1:{found[1]}"
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5)
                return address
            except URLError:
                pass
        assert server.poll() is None, log.read_text()
        time.sleep(0.2)
    raise TimeoutError(log.read_text())


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as tool:
        chromium = tool.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield chromium
        chromium.close()


class Page:
    """A notebook in JupyterLab, and what the console said."""

    def __init__(
        self,
        page: playwright.Page,
        lab: str,
        name: str,
        ready: str = "text=/\\| Idle/",
    ) -> None:
        self.page = page
        self.errors: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        for seconds in (15, 40, 60):  # a cold first start can miss the kernel's first status
            self.errors.clear()
            self.page.goto(f"{lab}/lab/tree/{name}?token={TOKEN}&reset")
            try:
                self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
                self.page.wait_for_selector(ready, timeout=1000 * seconds)
                return
            except playwright.TimeoutError:
                if seconds == 60:
                    raise

    def _console(self, message: playwright.ConsoleMessage) -> None:
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.errors.append(message.text)

    def run_all(self) -> None:
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    def text(self) -> str:
        return self.page.inner_text(".jp-Notebook")

    def images(self) -> int:
        """Pictures on the page that the browser has decoded."""
        script = "all => all.filter(i => i.complete && i.naturalWidth > 0).length"
        return self.page.eval_on_selector_all(".jp-OutputArea img", script)


class Panel:
    """The first panel on a page."""

    def __init__(self, page: playwright.Page) -> None:
        self.page = page
        page.wait_for_selector(".widget-hslider", timeout=60_000)
        self.root = page.locator(".jupyter-widgets.widget-vbox").first
        self.root.scroll_into_view_if_needed()

    def slider(self, name: str) -> playwright.Locator:
        return self.root.locator(".widget-hslider", has_text=re.compile(f"^{name}"))

    def handle(self, name: str) -> playwright.Locator:
        return self.slider(name).locator(".noUi-handle")

    def value(self, name: str) -> float:
        return float(self.slider(name).locator(".widget-readout").inner_text().replace("−", "-"))

    def key(self, name: str, *keys: str) -> None:
        for key in keys:
            self.handle(name).press(key)

    def drag(self, name: str, to: float) -> None:
        """Drag a slider's handle to a share of its track, in several moves."""
        handle = self.handle(name)
        track = handle.locator("xpath=ancestor::*[contains(@class, 'noUi-base')]").bounding_box()
        knob = handle.bounding_box()
        assert track is not None
        assert knob is not None
        y = knob["y"] + knob["height"] / 2
        self.page.mouse.move(knob["x"] + knob["width"] / 2, y)
        self.page.mouse.down()
        end = track["x"] + to * track["width"]
        for part in range(1, 11):
            here = knob["x"] + (end - knob["x"]) * part / 10
            self.page.mouse.move(here, y)
        self.page.mouse.up()

    def button(self, name: str) -> None:
        self.root.get_by_role("button", name=name, exact=True).click()

    @property
    def alt(self) -> str:
        return self.root.locator("img").first.get_attribute("alt") or ""

    @property
    def status(self) -> str:
        return self.root.locator("[role=status], [role=alert]").inner_text()

    def wait(self, what: str, holds: object, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not holds():  # type: ignore[operator]
            assert time.monotonic() < end, f"{what}: {self.alt} | {self.status}"
            self.page.wait_for_timeout(20)

    def settled(self, alpha: float, beta: float, steps: int = 40) -> None:
        """Wait until the picture is the complete one of these parameters."""
        text = f"alpha {alpha:g} and shifted by beta {beta:g},"
        done = f"step {steps} of {steps}"
        self.wait(text, lambda: text in self.alt and done in self.alt and done in self.status)


Shown = TypeVar("Shown", bound="Panel")


def end_kernels(lab: str, name: str = "") -> None:
    """Shut down the kernels that earlier tests left, or a notebook's: a page would ask theirs for
    its widgets."""
    head = {"Authorization": f"token {TOKEN}"}
    asked = urllib.request.Request(f"{lab}/api/sessions", headers=head)
    for session in json.load(urllib.request.urlopen(asked, timeout=20)):
        if session["path"] == name or not name:
            place = f"{lab}/api/sessions/{session['id']}"
            urllib.request.urlopen(
                urllib.request.Request(place, headers=head, method="DELETE"), timeout=20
            ).close()


def opened(
    browser: playwright.Browser,
    lab: str,
    name: str,
    kind: type[Shown],
    first: Callable[[Shown], None],
) -> tuple[Page, Shown]:
    """A page and its panel, once `first` has come true: a kernel that is told of a panel while it
    starts a cell may lose the message for good, and gets another start."""
    for attempt in (1, 2, 3):
        page = Page(browser.new_page(viewport=VIEW), lab, name)
        page.run_all()
        try:
            panel = kind(page.page)
            first(panel)
            return page, panel
        except (playwright.TimeoutError, AssertionError):
            page.page.close()
            end_kernels(lab, name)
            if attempt == 3:
                raise
    raise AssertionError


@pytest.fixture(scope="module")
def live(browser: playwright.Browser, lab: str) -> Iterator[tuple[Page, Panel]]:
    """The notebook up to its panel, with a cell that keeps the kernel busy behind it."""

    def first(panel: Panel) -> None:
        panel.settled(1, 0)
        panel.key("alpha", "ArrowLeft")
        panel.settled(0.99, 0)
        panel.key("alpha", "ArrowRight")
        panel.settled(1, 0)

    page, panel = opened(browser, lab, "panel.ipynb", Panel, first)
    yield page, panel
    page.page.close()


def test_keys_reach_both_ends_while_another_cell_is_busy(live: tuple[Page, Panel]) -> None:
    page, panel = live
    assert page.page.locator("text=[*]:").count() > 0, "the kernel should be busy"
    panel.key("alpha", "Home")
    panel.settled(0.5, 0)
    panel.key("beta", "End")
    panel.settled(0.5, 0.25)
    panel.key("beta", "Home")
    panel.settled(0.5, -0.25)
    panel.key("alpha", "End")  # beta must follow alpha: at 1 it can only be 0
    panel.settled(1, 0)
    assert not page.errors


def test_drags_reach_both_ends_and_the_last_value_wins(live: tuple[Page, Panel]) -> None:
    page, panel = live
    for alpha, beta in ((0.5, 0.25), (0.5, -0.25)):
        panel.drag("alpha", 0.0)
        panel.drag("beta", 1.0 if beta > 0 else 0.0)
        panel.settled(alpha, beta)
    panel.drag("alpha", 1.0)
    panel.settled(1, 0)
    for _ in range(25):  # faster than the attack: only the last one may end up on the page
        panel.key("alpha", "ArrowLeft")
    alpha = panel.value("alpha")
    assert alpha == pytest.approx(0.75)
    panel.settled(alpha, 0)
    page.page.wait_for_timeout(500)
    panel.settled(alpha, 0)
    assert not page.errors


def test_stop_stops_and_reset_resets(live: tuple[Page, Panel]) -> None:
    page, panel = live
    panel.key("alpha", "End")  # where the model is robust nothing leaves the batch
    panel.key("steps", "End")
    panel.root.get_by_role("button", name="Stop").click()
    panel.wait("stopped", lambda: panel.status.startswith("Stopped"))
    before = panel.alt
    page.page.wait_for_timeout(1000)
    assert panel.alt == before
    assert "step 100 of 100" not in before
    panel.root.get_by_role("button", name="Reset").click()
    panel.settled(1, 0)
    panel.root.get_by_role("button", name="(0.9, 0.05)").click()
    panel.settled(0.9, 0.05)
    assert not page.errors


def test_the_papers_buttons_one_after_another(live: tuple[Page, Panel]) -> None:
    page, panel = live
    texts = panel.root.get_by_role("button").filter(has_text="(").all_inner_texts()
    assert len(texts) >= 5
    for text in [*texts, *texts[::-1], texts[-1], texts[1]]:
        alpha, beta = map(float, text.strip("()").split(","))
        panel.button(text)
        panel.settled(alpha, beta)
    page.page.wait_for_timeout(500)  # what a page reports late changes nothing
    panel.settled(alpha, beta)
    assert not page.errors


def test_the_pickers_change_model_and_data(live: tuple[Page, Panel]) -> None:
    page, panel = live
    panel.button("(0.9, 0.05)")
    selects = panel.root.locator("select")
    selects.nth(0).select_option("fonts-cnn-adversarial")
    selects.nth(1).select_option("FONTS (hard)")
    panel.settled(0.9, 0.05)
    panel.root.get_by_role("button", name="Reset").click()
    panel.settled(1, 0)
    assert not page.errors


def test_beta_can_be_moved_except_where_it_can_only_be_zero(live: tuple[Page, Panel]) -> None:
    page, panel = live

    def movable() -> bool:
        return panel.slider("beta").locator(".noUi-target[disabled]").count() == 0

    for alpha, beta in ((0.8, 0.1), (1, 0), (0.9, 0.05), (0.8, 0), (1, 0), (0.7, 0)):
        panel.button(f"({alpha:g}, {beta:g})")  # beta's value and whether it can be moved, at once
        panel.settled(alpha, beta)
        panel.wait("beta", lambda there=alpha < 1: movable() == there)
    panel.key("beta", "End")
    panel.settled(0.7, 0.15)
    panel.button("Reset")
    panel.settled(1, 0)
    panel.wait("beta", lambda: not movable())
    assert not page.errors


def test_certificates_by_key_and_button(browser: playwright.Browser, lab: str) -> None:
    def settled(panel: Panel, alpha: float, beta: float) -> None:
        text = f"alpha {alpha:g} and shifted by beta {beta:g},"  # it ends where all are fooled
        panel.wait(text, lambda: text in panel.alt and re.search(r"step \d+ of 40", panel.alt))

    def movable() -> bool:
        return panel.slider("beta").locator(".noUi-target[disabled]").count() == 0

    page, panel = opened(
        browser, lab, "certificate.ipynb", Panel, lambda panel: settled(panel, 1, 0)
    )
    texts = panel.root.get_by_role("button").filter(has_text="(").all_inner_texts()
    assert texts[0] == "(1, 0)"
    for text in [*texts[1:], texts[0], texts[-1], texts[0]]:  # beta can be moved, or not, at once
        alpha, beta = map(float, text.strip("()").split(","))
        panel.button(text)
        settled(panel, alpha, beta)
        panel.wait("beta", lambda there=alpha < 1: movable() == there)
    panel.key("alpha", "Home")
    settled(panel, 0.5, 0)
    for key, beta in (("End", 0.25), ("Home", -0.25)):
        panel.key("beta", key)
        settled(panel, 0.5, beta)
    counts = [
        int(count) for count, _ in re.findall(r"(\d+) (certified|open|fooled|wrong)", panel.alt)
    ]
    assert len(counts) == 4
    assert sum(counts) == 12
    panel.key("alpha", "End")
    settled(panel, 1, 0)
    panel.key("eps", "Home")
    panel.wait("no radius", lambda: "within 0.1:" not in panel.alt and "of 40" in panel.status)
    panel.button("Reset")
    settled(panel, 1, 0)
    panel.wait("the first radius", lambda: "within 0.1:" in panel.alt)
    assert not page.errors
    page.page.close()


def latency(
    page: Page, panel: Panel, slider: str, done: str, presses: int = 15
) -> tuple[list[float], list[float]]:
    """Milliseconds from a key press to the first new frame, and to one that says `done`."""
    first, complete = [], []
    for number in range(presses):
        key = "ArrowRight" if number % 2 else "ArrowLeft"
        script = """(view) => { window.start = 0; window.frames = [];
            const note = () => { const i = view.querySelector('img'); if (i && window.start)
              i.decode().then(() =>
                window.frames.push([performance.now() - window.start, i.alt])); };
            if (window.seen) window.seen.disconnect();
            window.seen = new MutationObserver(note);
            window.seen.observe(view, {childList: true, subtree: true, attributes: true});
            document.addEventListener('keydown', () => { window.start = performance.now(); },
              {capture: true, once: true}); }"""
        panel.root.locator(".widget-html:has(img)").last.evaluate(script)
        panel.key(slider, key)
        panel.wait(
            done, lambda: page.page.evaluate("d => window.frames.some(f => f[1].includes(d))", done)
        )
        frames = page.page.evaluate("window.frames")
        first.append(frames[0][0])
        complete.append(next(ms for ms, alt in frames if done in alt))
        page.page.wait_for_timeout(150)
    return first, complete


def test_a_key_press_shows_a_new_frame(live: tuple[Page, Panel]) -> None:
    page, panel = live
    panel.key("alpha", "End")  # where the model is robust, nearly all images run all 40 steps
    panel.settled(1, 0)
    first, complete = latency(page, panel, "alpha", "step 40 of 40")
    # the stated bounds are for an idle machine: the benchmark judges, here it is printed
    medians = statistics.median(first), statistics.median(complete)
    print("first frame {:.0f} ms, complete {:.0f} ms".format(*medians))
    assert all(a <= b for a, b in zip(first, complete))
    assert not page.errors


@pytest.fixture(scope="module")
def latent(browser: playwright.Browser, lab: str) -> Iterator[tuple[Page, Panel]]:
    def first(panel: Panel) -> None:
        panel.wait("the image", lambda: panel.alt.startswith("An image of D, its code changed"))

    page, panel = opened(browser, lab, "latent.ipynb", Panel, first)
    yield page, panel
    page.page.close()


def test_a_key_moves_a_number_of_the_code(latent: tuple[Page, Panel]) -> None:
    page, panel = latent
    model, one = advnb.zoo.load("fonts-cnn-normal"), advnb.load("fonts").test(20)[3]
    picture = panel.root.locator("img")
    before = picture.get_attribute("src")
    panel.key("rotation", "End")
    code = one.z.clone()
    code[0, 5] = one.dataset.manifold.bounds[1][5]
    far = (code - one.z).abs().max().item()
    panel.wait("turned", lambda: f"by {far:.2f} at most, outside eta 0.3;" in panel.alt)
    # the line above the picture is a message of its own
    panel.wait("told", lambda: panel.status == f"largest change {far:.2f}: outside eta = 0.3")
    assert picture.get_attribute("src") != before
    turned = one.with_x(one.dataset.manifold.decode(code, one))
    ((guess, _),) = advnb.models.predictions(model, turned)
    chance = advnb.models.logits(model, turned).softmax(1).max().item()
    told = re.search(r"classified as (\w) with probability (\d+)%", panel.alt)
    assert told is not None
    assert told[1] == guess
    assert abs(int(told[2]) / 100 - chance) <= 0.05
    panel.button("Own code")
    panel.wait("home", lambda: "by 0.0" in panel.alt)  # a slider's steps are up to 0.016 wide
    for name, own in zip(LATENTS, one.z[0].tolist()):
        assert panel.value(name) == pytest.approx(own, abs=0.016)
    panel.key("image", "ArrowRight")
    panel.wait("another image", lambda: panel.alt.startswith("An image of E,"))
    panel.button("Reset")
    panel.wait("reset", lambda: panel.alt.startswith("An image of D,"))
    assert not page.errors


def rest(panel: Panel) -> None:
    """Back at the image's own code, and nothing on its way from the page: what a page reports
    late of a walk's steps is taken for somebody's move."""
    for _ in range(10):
        panel.button("Reset")
        panel.page.wait_for_timeout(1000)
        if panel.status == "largest change 0.00: inside eta = 0.3":
            return
    raise AssertionError(f"no rest: {panel.status}")


def test_an_attack_moves_the_sliders(latent: tuple[Page, Panel]) -> None:
    page, panel = latent
    own = advnb.load("fonts").test(20).z[3].tolist()
    rest(panel)
    panel.button("Attack")
    panel.wait("followed", lambda: abs(panel.value("t_x") - own[0]) > 0.02)
    away = [abs(panel.value(name) - z) for name, z in zip(LATENTS, own)]
    assert max(away) <= 0.3 + 0.001
    assert not page.errors


def test_an_attack_comes_to_its_end(latent: tuple[Page, Panel]) -> None:
    _, panel = latent
    rest(panel)
    panel.button("Attack")
    panel.wait("attacked", lambda: panel.status == "step 40 of 40: fooled")
    panel.page.wait_for_timeout(700)  # and stays there, whatever the page reports back
    assert panel.status == "step 40 of 40: fooled"


def test_an_image_stays_what_it_is(latent: tuple[Page, Panel]) -> None:
    _, panel = latent
    for name in ("Reset", "Own code"):
        panel.button(name)
    panel.key("image", "ArrowRight")
    panel.wait("another image", lambda: panel.alt.startswith("An image of E,"))
    panel.page.wait_for_timeout(700)
    assert panel.status == "largest change 0.00: inside eta = 0.3"


def test_curves_by_choice_and_key(browser: playwright.Browser, lab: str) -> None:
    def first(panel: Panel) -> None:
        panel.wait(
            "drawn", lambda: panel.alt.startswith("test error against training images, all.")
        )

    page, panel = opened(browser, lab, "curves.ipynb", Panel, first)
    assert "at 250 training images: normal 0.7" in panel.status
    panel.key("n", "ArrowRight")
    panel.wait("a larger n", lambda: "at 500 training images" in panel.status)
    panel.root.locator("select").nth(0).select_option(label="on-true")
    panel.wait("one strategy", lambda: "against training images, on-true." in panel.alt)
    panel.root.locator("select").nth(2).select_option(label="test error")
    panel.wait("another axis", lambda: "against test error, on-true." in panel.alt)
    assert re.search(r"on-true 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]$", panel.status)
    assert not page.errors
    page.page.close()


def test_a_key_press_moves_the_letter(latent: tuple[Page, Panel]) -> None:
    page, panel = latent
    first, _ = latency(page, panel, "rotation", "its code changed")
    print(f"latent panel {statistics.median(first):.0f} ms")
    assert not page.errors


def test_keys_scrub_through_an_attack(browser: playwright.Browser, lab: str) -> None:
    def first(panel: Panel) -> None:
        panel.wait(
            "searched", lambda: re.fullmatch(r"step 20: .* manifold \d\.\d{3}", panel.status)
        )

    page, panel = opened(browser, lab, "steps.ipynb", Panel, first)
    last = panel.alt
    panel.key("step", "ArrowLeft")
    panel.wait("a step back", lambda: panel.status.startswith("step 19: "))
    assert "after step 19 of the regular attack" in panel.alt
    assert panel.status in panel.alt
    panel.key("step", "Home")
    panel.wait("the start", lambda: panel.status.startswith("step 0: "))
    panel.key("step", "End")
    panel.wait("the end", lambda: panel.alt == last)
    panel.root.locator("select").select_option("on-manifold")
    panel.wait("a shorter attack", lambda: panel.status.startswith("step 10: loss"))
    panel.wait("not farther than its steps", lambda: panel.value("step") == 10)
    panel.wait("on the manifold", lambda: panel.status.endswith("manifold 0.000"))
    assert not page.errors
    page.page.close()


class Pointed(Panel):
    """A panel whose picture is pointed at."""

    @property
    def picture(self) -> playwright.Locator:
        return self.root.locator("[role=group] img")

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Move to a place in fractions of the picture, and say where that is, to the pixel."""
        box = self.picture.bounding_box()
        assert box is not None
        across, down = round(box["x"] + x * box["width"]), round(box["y"] + y * box["height"])
        self.page.mouse.move(across, down)
        return (across - box["x"]) / box["width"], (down - box["y"]) / box["height"]

    def shows(self, image: int) -> None:
        self.wait(f"test image {image}", lambda: f"Test image {image} shows " in self.alt)
        self.wait("the slider follows", lambda: self.value("image") == image)


@pytest.fixture(scope="module")
def embedding(browser: playwright.Browser, lab: str) -> Iterator[tuple[Page, Pointed]]:
    def first(panel: Pointed) -> None:
        panel.wait("the points", lambda: panel.status.startswith("Test image 0: mean"), 120)

    page, panel = opened(browser, lab, "embedding.ipynb", Pointed, first)
    yield page, panel
    page.page.close()


PLACES = [(0.1, 0.5), (0.25, 0.4), (0.4, 0.6), (0.3, 0.3), (0.2, 0.7)]


def test_pointing_shows_the_nearest_point(embedding: tuple[Page, Pointed]) -> None:
    page, panel = embedding
    data, still = advnb.load("fonts"), advnb.Attack(advnb.Pixels(0.1), steps=0)
    own = advnb.live.EmbeddingPanel(
        advnb.zoo.load("fonts-cnn-normal"), data.train(1500), data.test(1500), attack=still,
        projection="pca", points=1500,
    )  # fmt: skip
    assert own.settle(120)
    own.close()
    seen = set()
    for place in PLACES:
        x, y = panel.point(*place)
        image = own.frame.map.nearest(x, y)
        panel.shows(image)
        assert panel.status.startswith(f"Test image {image}: mean distance to the 5 nearest")
        seen.add((image, panel.picture.get_attribute("src")))
        assert page.images() == 1
    assert len(seen) == len(PLACES)
    before = panel.alt
    panel.point(0.8, 0.5)  # beside the plane: nothing is picked there
    page.page.wait_for_timeout(300)
    assert panel.alt == before
    assert not BROKEN.search(page.text())
    assert not page.errors


def test_a_click_holds_the_point_and_arrows_step(embedding: tuple[Page, Pointed]) -> None:
    page, panel = embedding
    panel.button("Reset")
    panel.shows(0)
    panel.root.locator("[role=group]").focus()
    for key, image in (("ArrowRight", 1), ("ArrowDown", 2), ("ArrowLeft", 1), ("ArrowUp", 0)):
        page.page.keyboard.press(key)
        panel.shows(image)
    for _ in range(20):  # faster than pictures: none of them is lost
        page.page.keyboard.press("ArrowRight")
    panel.shows(20)
    hold = panel.root.locator("input[type=checkbox]")
    panel.point(*PLACES[0])
    page.page.mouse.down()
    page.page.mouse.up()
    panel.wait("held", lambda: ", held: mean distance" in panel.status)
    assert hold.is_checked()
    before = panel.alt
    panel.point(*PLACES[2])
    page.page.wait_for_timeout(300)
    assert panel.alt == before
    for place in (PLACES[0], PLACES[1]):
        panel.point(*place)
        if place == PLACES[0]:
            page.page.mouse.down()
            page.page.mouse.up()
            panel.wait("let go", lambda: ", held" not in panel.status and not hold.is_checked())
    panel.wait("follows again", lambda: panel.alt != before)
    assert not page.errors


def test_hovering_shows_a_new_picture(embedding: tuple[Page, Pointed]) -> None:
    page, panel = embedding
    panel.button("Reset")
    panel.shows(0)
    panel.picture.evaluate(
        """(img) => { window.start = 0; window.took = [];
        img.parentElement.addEventListener(
          'pointermove', () => { window.start = performance.now(); }, true);
        new MutationObserver((seen) => {
          const start = window.start;
          if (start && seen.some((change) => change.attributeName === 'src')) img.decode().then(
            () => { window.took.push(performance.now() - start); });
        }).observe(img, {attributes: true}); }"""
    )
    for number in range(21):
        panel.point(0.06 + 0.4 * (number % 7) / 7, 0.2 + 0.6 * (number % 5) / 5)
        panel.wait("a picture", lambda: page.page.evaluate("window.took.length") > number)  # noqa: B023
        page.page.wait_for_timeout(150)
    took = page.page.evaluate("window.took")
    # the stated bound is for an idle machine: the benchmark judges, here it is printed
    print(f"embedding panel {statistics.median(took):.0f} ms")
    assert len(took) == 21, "one picture each"
    assert not page.errors


def test_a_click_on_the_map_moves_the_sliders(browser: playwright.Browser, lab: str) -> None:
    def first(panel: Pointed) -> None:
        panel.settled(1, 0, 5)

    page, panel = opened(browser, lab, "map.ipynb", Pointed, first)
    assert panel.picture.count() == 0
    panel.button("Map")
    panel.wait("searched", lambda: "25 of 25 pairs of the map" in panel.status, 60)
    split, own = advnb.load("fonts").test(12), MapFigure()
    land = advnb.blindspots.Landscape(
        advnb.zoo.load("fonts-cnn-adversarial"), split, alphas=[0.5, 0.62, 0.74, 0.88, 1],
        shifts=[-1, -0.4, 0, 0.5, 1],
    )  # fmt: skip
    own.draw(land, 1, 0, (), "")
    width, height = own.canvas.get_width_height()
    for alpha, shift, beta in ((0.5, 1, 0.25), (0.88, -0.4, -0.024), (1, 0.5, 0)):
        x, y = own.figure.axes[0].transData.transform((alpha, shift))
        panel.point(x / width, 1 - y / height)
        page.page.mouse.down()
        page.page.mouse.up()
        panel.settled(alpha, beta, 5)
        assert panel.value("alpha") == alpha
        assert panel.value("beta") == pytest.approx(beta, abs=0.0025)  # a slider stands on a step
        ring = f"A ring at alpha {alpha:g}, relative shift {shift if alpha < 1 else 0:.2f}."
        panel.wait("the ring", lambda: ring in (panel.picture.get_attribute("alt") or ""))  # noqa: B023
    before = panel.picture.get_attribute("src")
    panel.key("alpha", "ArrowLeft")
    panel.settled(0.99, 0, 5)
    panel.wait("the ring", lambda: panel.picture.get_attribute("src") != before)
    assert page.images() == 2
    assert not page.errors
    page.page.close()


@pytest.fixture(scope="module")
def context(browser: playwright.Browser) -> playwright.BrowserContext:
    """One for many pages, so that JupyterLab's scripts are fetched and compiled once."""
    return browser.new_context(viewport=VIEW)


@pytest.fixture(scope="module")
def whole(lab: str) -> str:
    """The server, from now on showing all cells of a notebook, and not those near the window."""
    place = f"{lab}/lab/api/settings/@jupyterlab/notebook-extension:tracker"
    raw = json.dumps({"raw": json.dumps({"windowingMode": "none"})}).encode()
    head = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    asked = urllib.request.Request(place, raw, head, method="PUT")
    urllib.request.urlopen(asked, timeout=20).close()
    return lab


@pytest.mark.parametrize("path", NOTEBOOKS[::3], ids=lambda path: path.stem)
def test_an_unrun_notebook_shows_its_pictures(
    context: playwright.BrowserContext, whole: str, path: Path
) -> None:
    end_kernels(whole)
    page = Page(context.new_page(), whole, path.name, ready=".jp-Cell")  # it needs no kernel
    notebook = nbformat.read(path, as_version=4)
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    pictures = sum("image/png" in o.get("data", {}) for o in outputs)
    assert pictures >= 3
    end = time.monotonic() + 30
    while page.images() < pictures and time.monotonic() < end:
        page.page.wait_for_timeout(50)
    assert page.images() == pictures
    assert not BROKEN.search(page.text())
    assert not page.errors
    page.page.close()
