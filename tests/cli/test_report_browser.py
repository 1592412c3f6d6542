"""The report in a real browser, with the network off: do the figures appear, and nothing else?"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tether.report.build import build_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine")

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--virtual-time-budget=10000",
    "--enable-logging=stderr",
    "--v=0",
    # Every name resolves to nothing and every connection goes to a closed port.
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=127.0.0.1:9",
)


def _write_comparison(folder: Path) -> None:
    # The synthetic folder lives beside the unit tests, which are not a package.
    path = Path(__file__).parents[1] / "unit" / "test_report.py"
    spec = importlib.util.spec_from_file_location("synthetic_comparison", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.write_comparison(folder)


def _dump(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The DOM after the scripts ran, and the console's errors."""
    command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=300, check=True
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    _write_comparison(folder)
    return build_report(folder)


class _Addresses(HTMLParser):
    """Addresses in src, href and the like of every element outside of scripts' text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "xlink:href", "srcset", "poster"}
        self.found += [value or "" for name, value in attrs if name in names]


def test_figures_are_drawn_without_errors_or_network(page: Path, tmp_path: Path) -> None:
    dom, console = _dump(page, tmp_path / "profile")
    assert console == []
    # Four bars, five parities, three curves.
    plots = re.findall(r'<div class="plot[^>]*data-figure="([^"]+)"', dom)
    assert len(plots) == 12
    assert dom.count('<svg class="main-svg"') >= len(plots)
    assert dom.count('class="point"') > 5 * 1000
    addresses = _Addresses(dom).found
    assert len(addresses) > 5
    assert [address for address in addresses if re.match(r"(?i)\s*(https?:)?//", address)] == []


def test_figures_follow_the_colour_scheme(page: Path, tmp_path: Path) -> None:
    fills = {}
    for name, scheme in (("dark", 0), ("light", 1)):
        flag = f"--blink-settings=preferredColorScheme={scheme}"
        dom, _ = _dump(page, tmp_path / name, flag)
        fills[name] = set(re.findall(r'class="legendtext"[^>]*fill: (rgb\([^)]*\))', dom))
    assert fills == {"dark": {"rgb(228, 231, 234)"}, "light": {"rgb(27, 31, 35)"}}


def test_a_broken_page_is_noticed(page: Path, tmp_path: Path) -> None:
    """The control: an undefined function and a remote image must both show."""
    broken = tmp_path / "broken.html"
    extra = '<img src="https://example.invalid/x.png"><script>missing()</script></body>'
    broken.write_text(page.read_text(encoding="utf-8").replace("</body>", extra), encoding="utf-8")
    dom, console = _dump(broken, tmp_path / "profile")
    assert any("missing is not defined" in line for line in console)
    assert any("Content Security Policy" in line for line in console)
    assert "https://example.invalid/x.png" in _Addresses(dom).found
