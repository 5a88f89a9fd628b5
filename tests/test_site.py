"""The site: pages of the executed reports that read nothing from elsewhere; in a browser where there is one."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import unquote

import pytest

from lib.params import ROOT, Params

pytest.importorskip("furo", reason="`make site` installs the packages that the site needs")
pytestmark = pytest.mark.slow

WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def html() -> Path:
    subprocess.run(
        [sys.executable, "docs/site/pages.py"], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    return ROOT / "build" / "site" / "html"


@pytest.fixture(scope="module")
def pages(html) -> list[Path]:
    return sorted(html.rglob("*.html"))


def test_every_study_has_its_page_and_its_card(html):
    index = (html / "index.html").read_text()
    for name, study in Params().studies.items():
        assert (html / f"{name}.html").exists() and f'href="{name}.html"' in index
        assert study.title.replace("'", "’") in index


def test_pages_are_small_and_read_nothing_from_elsewhere(html, pages):
    assert sum(path.stat().st_size for path in html.rglob("*") if path.is_file()) < 8_000_000
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"', text)
        assert not [a or b for a, b in loaded if re.match(r"https?:|//", a or b)], page


def test_links_lead_somewhere(pages):
    for page in pages:
        for target, anchor in re.findall(r'<a [^>]*href="([^"#:]*)(?:#([^"]*))?"', page.read_text()):
            leads_to = (page.parent / unquote(target)).resolve() if target else page
            assert leads_to.exists(), (page.name, target)
            if anchor and leads_to.suffix == ".html":
                assert f'id="{unquote(anchor)}"' in leads_to.read_text(), (page.name, target, anchor)


def test_figures_of_reports_are_described(html):
    for name in Params().studies:
        text = (html / f"{name}.html").read_text()
        assert all(re.search(r' alt="[^"]{9,}"', image) for image in re.findall(r"<img [^>]*_images[^>]*>", text)), name


def test_a_browser_shows_every_page_whole(html, pages):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("there is no Chromium")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(html))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base, faults = f"http://127.0.0.1:{server.server_port}/", []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("console", lambda said: said.type == "error" and faults.append(said.text))
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.on("request", lambda one: one.url.startswith((base, "data:")) or faults.append(one.url))
            for path in pages:
                page.goto(base + path.relative_to(html).as_posix())
                wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
                assert wide <= 0, f"{path.name} is {wide} pixels wider than {width}"
        browser.close()
    server.shutdown()
    assert faults == []
