"""The results page of a suite in a real browser, network off: are the figures there, and right?"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from playwright.sync_api import Browser, sync_playwright

from tether.report.suite import build_suite_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine")
PATIENCE_MS = 300_000


def _load(name: str) -> ModuleType:
    # The synthetic suite lives beside the unit tests, which are not a package.
    path = Path(__file__).parents[1] / "unit" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"browser_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite along an axis, which has every figure that there is."""
    folder = tmp_path_factory.mktemp("suite")
    errors = {
        size: {
            "scratch": (size**-0.2, 0.5 * size**-0.3),
            "full": (0.9 * size**-0.2, 0.4 * size**-0.3),
            "mft": (0.8 * size**-0.2, 0.4 * size**-0.3),
        }
        for size in (250, 500, 1000)
    }
    results = _load("synthetic_suite").curves_over("size", errors)
    (folder / "results.json").write_text(json.dumps(results))
    return build_suite_report(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        yield own
        own.close()


def _open(browser: Browser, path: Path, width: int) -> tuple[dict[str, int], list[str]]:
    """Marks of each figure, and what the page complained about or asked for."""
    context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
    context.set_default_timeout(PATIENCE_MS)
    own = context.new_page()
    complaints: list[str] = []
    own.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    own.on("pageerror", lambda error: complaints.append(str(error)))
    own.on("request", lambda r: complaints.append(r.url) if r.url != path.as_uri() else None)
    own.goto(path.as_uri(), timeout=PATIENCE_MS)
    marks: dict[str, int] = own.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll(".plot")].map(
          (plot) => [plot.dataset.figure, plot.querySelectorAll(".point").length]))"""
    )
    is_wide = own.evaluate("document.documentElement.scrollWidth > innerWidth")
    context.close()
    return marks, [*complaints, *(["wider than the window"] if is_wide else [])]


@pytest.mark.parametrize("width", [1280, 390])
def test_every_figure_has_its_marks_and_nothing_complains(
    browser: Browser, page: Path, width: int
) -> None:
    marks, complaints = _open(browser, page, width)
    assert complaints == []
    # Curves and ranks: 3 recipes; against full, 2 recipes on 3 tasks: too few for a mean.
    assert marks.pop("sizes-1-1") == 3 * 3
    assert marks.pop("sizes-1-2") == 3 * 3
    assert marks.pop("over-tasks-1-1") == 2 * 3
    assert sorted(marks) == ["overview-4-1", "overview-4-2", "ranks-1-1", "ranks-1-2"]
    assert marks["overview-4-1"] == marks["overview-4-2"] == 2 * 3
    assert min(marks.values()) >= 3


def test_a_broken_page_is_noticed(browser: Browser, page: Path) -> None:
    """The control: a figure without data and an undefined function must both show."""
    broken = page.with_name("broken.html")
    text = page.read_text(encoding="utf-8").replace('"mode":"lines+markers"', '"mode":"none"')
    broken.write_text(text.replace("</body>", "<script>missing()</script></body>"))
    marks, complaints = _open(browser, broken, 1280)
    assert any("missing is not defined" in words for words in complaints)
    assert marks["sizes-1-1"] == 0
