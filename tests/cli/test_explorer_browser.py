"""The explorer in a real browser, from disk, network off: points, molecule, layers, keys."""

from __future__ import annotations

import base64
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tether.report.build import build_report, render_report
from tether.report.read import read_comparison

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine")

# WebGL without a graphics card; the rest is drawn without it.
FLAGS = ("--no-sandbox", "--disable-gpu", "--enable-unsafe-swiftshader", "--no-first-run")
PATIENCE_MS = 600_000
PADDING = 10
PLOTLY_STUB = "const Plotly = { newPlot() {}, redraw() {}, Plots: { resize() {} } };"
# Every control back, as a user would do it; a change of points forgets the selection.
RESET = """() => {
  const $ = (name) => document.getElementById(`explorer-${name}`);
  const set = (element, value, event) => {
    element.value = value;
    element.dispatchEvent(new Event(event, { bubbles: true }));
  };
  set($("run"), String(JSON.parse($("data").textContent).start), "change");
  $("kind").querySelector("[value=edges]").click();
  $("kind").querySelector("[value=atoms]").click();
  set($("colour"), "class", "change");
  $("before").dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
}"""


def _load(name: str) -> ModuleType:
    # The synthetic folder lives beside the unit tests, which are not a package.
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"browser_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    _load("test_report").write_comparison(folder)
    _load("synthetic_collapse").add_collapse(folder, seeds=(0,))
    for path in folder.glob("runs/*-s[12]"):
        shutil.rmtree(path)
    # Thousands of points of parity plots only cost time here; the report's own test draws them.
    for path in folder.glob("runs/*/predictions.parquet"):
        path.unlink()
    return folder


@pytest.fixture(scope="module")
def report(folder: Path) -> Path:
    """The page without plotly and its figures, which most tests here need not wait for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tether.report.page.get_plotlyjs", lambda: PLOTLY_STUB)
        page = folder / "light.html"
        page.write_text(render_report(read_comparison(folder)), encoding="utf-8")
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield own
        own.close()


@dataclass
class Opened:
    """A page with what it complained about and asked for."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, name: str) -> str:
        return self.page.locator(f"#explorer-{name}").inner_text()


def _open(browser: Browser, path: Path, script: str = "") -> Opened:
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, offline=True)
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = context.new_page()
    opened = Opened(page)
    if script:
        page.add_init_script(script)
    page.on("console", lambda m: opened.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("request", lambda request: opened.requests.append(request.url))
    page.goto(path.as_uri(), timeout=PATIENCE_MS)
    page.locator("#explorer-before").scroll_into_view_if_needed()
    return opened


@pytest.fixture(scope="module")
def loaded(browser: Browser, report: Path) -> Iterator[Opened]:
    """The page, loaded once: a loaded machine takes a minute for it."""
    own = _open(browser, report)
    own.page.wait_for_selector("#explorer-molecule canvas", state="attached")
    yield own
    own.page.context.close()


@pytest.fixture
def opened(loaded: Opened, report: Path) -> Iterator[Opened]:
    """The page as it is at first, and proof that a test made it neither complain nor call."""
    loaded.page.mouse.move(0, 0)
    loaded.page.evaluate(RESET)
    expect(loaded.page.locator("#explorer-state")).to_have_text("moved furthest")
    yield loaded
    assert loaded.errors == []
    assert loaded.requests == [report.as_uri()]


class Data:
    """The run that is shown first, read from the page's own JSON."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        found = re.search(r'id="explorer-data">(.*?)</script>', text, re.DOTALL)
        assert found is not None
        self.payload: dict[str, Any] = json.loads(found[1])
        self.view = self.payload["runs"][self.payload["start"]]["views"]["atoms"]
        self.structure = self.unpack(self.view["structure"], "<u4")

    @staticmethod
    def unpack(text: str, dtype: str) -> np.ndarray:
        return np.frombuffer(base64.b64decode(text), dtype=dtype)

    def places(self, layer: int) -> np.ndarray:
        """x and y before, x and y after, from 0 to 1."""
        return self.unpack(self.view["layers"][layer]["xy"], "<u2").reshape(-1, 4) / 65535

    def loneliest(self) -> int:
        """The point whose nearest neighbour before is furthest, so that no other is hit."""
        places = self.places(-1)[:, :2]
        apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
        np.fill_diagonal(apart, np.inf)
        return int(apart.min(axis=1).argmax())


def _pixel(opened: Opened, plot: str, place: np.ndarray) -> tuple[float, float]:
    """Where a point of a map is drawn, from the map's corner."""
    box = opened.page.locator(f"#explorer-{plot}").bounding_box()
    assert box is not None
    width, height = box["width"] - 2 * PADDING, box["height"] - 2 * PADDING
    side = min(width, height)
    x = PADDING + (width - side) / 2 + side * place[0]
    return float(x), float(PADDING + (height + side) / 2 - side * place[1])


def _marked(opened: Opened, plot: str, at: tuple[float, float]) -> int:
    """Pixels of the highlight within 12 px of a place."""
    count: int = opened.page.evaluate(
        """([id, x, y]) => {
          const canvas = document.querySelectorAll(`#explorer-${id} canvas`)[1];
          const ratio = canvas.width / canvas.getBoundingClientRect().width;
          const size = Math.round(24 * ratio);
          const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
          copy.drawImage(canvas, 0, 0);
          const image = copy.getImageData(x * ratio - size / 2, y * ratio - size / 2, size, size);
          return image.data.filter((v, k) => k % 4 === 3 && v > 0).length;
        }""",
        [plot, *at],
    )
    return count


def _drawn(opened: Opened, selector: str) -> str:
    url: str = opened.page.evaluate("(s) => document.querySelector(s).toDataURL()", selector)
    return url


def _n_colours(opened: Opened) -> int:
    """Different colours of the molecule's picture."""
    count: int = opened.page.evaluate(
        """() => {
          const source = document.querySelector("#explorer-molecule canvas");
          const copy = Object.assign(document.createElement("canvas"), { width: source.width, height: source.height });
          const context = copy.getContext("2d");
          context.drawImage(source, 0, 0);
          const words = new Uint32Array(context.getImageData(0, 0, copy.width, copy.height).data.buffer);
          return new Set(words).size;
        }"""  # noqa: E501
    )
    return count


def test_a_click_shows_the_molecule_and_marks_the_point_in_both_maps(
    opened: Opened, report: Path
) -> None:
    data = Data(report)
    point = data.loneliest()
    place = data.places(-1)[point]
    name = data.payload["structures"]["ids"][data.structure[point]]
    there = {
        plot: _pixel(opened, plot, place[ends])
        for plot, ends in (("before", slice(0, 2)), ("after", slice(2, 4)))
    }
    assert {plot: _marked(opened, plot, at) for plot, at in there.items()}["before"] == 0
    at_first = opened.page.get_attribute("#explorer-molecule", "data-structure")
    assert at_first != name
    assert opened.text("state") == "moved furthest"

    x, y = there["before"]
    opened.page.locator("#explorer-before").click(position={"x": x, "y": y})
    expect(opened.page.locator("#explorer-state")).to_have_text("selected")
    assert name in opened.text("title")
    assert opened.page.get_attribute("#explorer-molecule", "data-structure") == name
    for plot, at in there.items():
        assert _marked(opened, plot, at) > 100, plot
    assert _n_colours(opened) > 50
    assert "predicted" in opened.text("facts")
    assert "10 nearest points" in opened.text("facts")
    expect(opened.page.locator("#explorer-live")).to_contain_text("Selected.")


def test_the_layer_slider_moves_the_points_and_keeps_the_selection(opened: Opened) -> None:
    opened.page.locator("#explorer-before").focus()
    opened.page.keyboard.press("Home")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator("#explorer-state")).to_have_text("selected")
    title, before = opened.text("title"), _drawn(opened, "#explorer-after canvas")
    assert opened.text("layer-value") == "3 of 3 (last)"
    opened.page.locator("#explorer-layer").focus()
    for _ in range(3):
        opened.page.keyboard.press("ArrowLeft")
    expect(opened.page.locator("#explorer-layer-value")).to_have_text("0 of 3 (first)")
    assert _drawn(opened, "#explorer-after canvas") != before
    assert opened.text("title") == title
    # Nothing has moved in the first layer of this run: both maps are the same picture.
    first, second = (_drawn(opened, f"#explorer-{plot} canvas") for plot in ("before", "after"))
    assert first == second


def test_keys_go_from_point_to_point_and_are_spoken(opened: Opened, report: Path) -> None:
    data = Data(report)
    opened.page.locator("#explorer-before").focus()
    opened.page.keyboard.press("Home")
    expect(opened.page.locator("#explorer-state")).to_have_text("pointed at")
    places = data.places(-1)[:, :2]
    first = opened.text("title")
    opened.page.keyboard.press("ArrowLeft")
    expect(opened.page.locator("#explorer-title")).not_to_have_text(first)
    left = opened.text("title")
    name = left.rsplit(" of ", 1)[1]
    candidates = [
        places[at, 0]
        for at, row in enumerate(data.structure)
        if data.payload["structures"]["ids"][row] == name
    ]
    assert min(candidates) < places[0, 0]
    opened.page.keyboard.press("Enter")
    live = opened.page.locator("#explorer-live")
    expect(live).to_contain_text(f"Selected. {left}. Molecule:")
    opened.page.keyboard.press("PageDown")
    expect(opened.page.locator("#explorer-state")).to_have_text("pointed at")
    opened.page.keyboard.press("Escape")
    expect(opened.page.locator("#explorer-title")).to_have_text(left)


def test_edges_mark_both_ends(opened: Opened) -> None:
    opened.page.locator("#explorer-kind input[value=edges]").check()
    expect(opened.page.locator("#explorer-layer-value")).to_have_text("last only")
    molecule = opened.page.locator("#explorer-molecule")
    expect(molecule).to_have_attribute("data-atoms", re.compile(r"^\d+,\d+$"))
    assert re.search(r"Length\s+\d\.\d\d Å", opened.text("facts"))
    assert "and" in (molecule.get_attribute("aria-label") or "")
    opened.page.locator("#explorer-kind input[value=atoms]").check()
    expect(molecule).to_have_attribute("data-atoms", re.compile(r"^\d+$"))


def test_circled_and_chosen_points_stand_out(opened: Opened) -> None:
    box = opened.page.locator("#explorer-before").bounding_box()
    assert box is not None
    whole = _drawn(opened, "#explorer-after canvas")
    mouse = opened.page.mouse
    mouse.move(box["x"] + 2, box["y"] + 2)
    mouse.down()
    for x, y in ((0.55, 0.01), (0.55, 0.99), (0.01, 0.99)):
        mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
    mouse.up()
    lasso = opened.page.locator("#explorer-lasso")
    expect(lasso).to_have_text(re.compile(r"^\d+ atoms circled: \d+ \w+"))
    assert _drawn(opened, "#explorer-after canvas") != whole
    opened.page.locator("#explorer-clear").click()
    expect(lasso).to_have_text("")
    chip = opened.page.locator("#explorer-legend button", has_text="C4")
    chip.click()
    expect(chip).to_have_attribute("aria-pressed", "true")
    assert _drawn(opened, "#explorer-after canvas") != whole
    opened.page.locator("#explorer-colour").select_option("error:gap")
    expect(opened.page.locator("#explorer-gradient")).to_be_visible()
    expect(opened.page.locator("#explorer-legend")).to_be_hidden()


def test_elements_have_the_colours_of_the_data(opened: Opened, report: Path) -> None:
    opened.page.locator("#explorer-colour").select_option("element")
    shown = opened.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll("#explorer-legend button")].map(
          (chip) => [chip.dataset.name, chip.querySelector("path").getAttribute("fill")]))"""
    )
    elements = Data(report).payload["elements"].values()
    light = {element["symbol"]: element["colours"][0] for element in elements}
    assert len(shown) > 3
    assert shown.items() <= light.items()


def test_another_run_keeps_the_atom(opened: Opened, report: Path) -> None:
    opened.page.locator("#explorer-before").focus()
    opened.page.keyboard.press("End")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator("#explorer-state")).to_have_text("selected")
    title, facts = opened.text("title"), opened.text("facts")
    recipes = [run["recipe"] for run in Data(report).payload["runs"]]
    opened.page.locator("#explorer-run").select_option(str(recipes.index("probe")))
    expect(opened.page.locator("#explorer-after-title")).to_have_text("After: probe, seed 0")
    expect(opened.page.locator("#explorer-title")).to_have_text(title)
    expect(opened.page.locator("#explorer-facts")).to_contain_text("10 of them still are")
    assert opened.text("facts") != facts


def test_dark_pages_have_dark_molecules(opened: Opened) -> None:
    def corner() -> list[int]:
        pixel: list[int] = opened.page.evaluate(
            """() => {
              const source = document.querySelector("#explorer-molecule canvas");
              const context = Object.assign(document.createElement("canvas"), { width: 8, height: 8 }).getContext("2d");
              context.drawImage(source, 0, 0);
              return [...context.getImageData(2, 2, 1, 1).data];
            }"""  # noqa: E501
        )
        return pixel

    opened.page.wait_for_function(
        "document.getElementById('explorer-molecule').dataset.structure !== undefined"
    )
    assert corner()[:3] == [255, 255, 255]
    opened.page.emulate_media(color_scheme="dark")
    for _ in range(100):
        opened.page.wait_for_timeout(100)
        if corner()[0] < 255:
            break
    assert max(corner()[:3]) < 40
    opened.page.emulate_media(color_scheme="light")


def test_without_webgl_the_words_stay(browser: Browser, report: Path) -> None:
    refuse = """
      const original = HTMLCanvasElement.prototype.getContext;
      HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
        return String(kind).startsWith("webgl") ? null : original.call(this, kind, ...rest);
      };
    """
    opened = _open(browser, report, refuse)
    expect(opened.page.locator("#explorer-no-webgl")).to_be_visible()
    expect(opened.page.locator("#explorer-molecule")).to_be_hidden()
    opened.page.locator("#explorer-before").focus()
    opened.page.keyboard.press("Home")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator("#explorer-live")).to_contain_text("Selected.")
    assert opened.page.locator("#collapse-atoms-1").count() == 1
    opened.page.context.close()
    assert opened.errors == []


def test_the_whole_report_opens_without_a_complaint(browser: Browser, folder: Path) -> None:
    path = build_report(folder)
    opened = _open(browser, path)
    plots = opened.page.locator(".plot").count()
    # Four bars, three curves, two watched, four over layers, distance, forest.
    assert plots == 4 + 3 + 2 + 4 + 1 + 1
    assert opened.page.locator(".plot .main-svg").count() >= plots
    opened.page.wait_for_selector("#explorer-molecule canvas", state="attached")
    opened.page.context.close()
    assert opened.errors == []
    assert opened.requests == [path.as_uri()]


def test_a_broken_page_is_noticed(browser: Browser, report: Path, tmp_path: Path) -> None:
    """The control: an undefined function, a remote request and code from text must all show."""
    broken = tmp_path / "broken.html"
    extra = """<script>
      fetch("https://example.invalid/x").catch(() => {});
      try { new Function("return 1")(); } catch (error) { console.error(String(error)); }
      missing();
    </script></body>"""
    text = report.read_text(encoding="utf-8").replace("</body>", extra)
    broken.write_text(text, encoding="utf-8")
    opened = _open(browser, broken)
    opened.page.context.close()
    words = " ".join(opened.errors)
    for part in ("missing is not defined", "example.invalid", "EvalError"):
        assert part in words, part
