"""The page in a browser: every plot is drawn, nothing is wider than the window, light and dark differ."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from compare.report.files import write
from tests.compare.browser import CHROMIUM, Tab, tab
from tests.compare.sample import document

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

PLOTS = """[...document.querySelectorAll(".plot")].map(plot => {
    const shown = [...plot.querySelectorAll("svg")].filter(svg => svg.clientWidth);
    return [plot.id.slice(5), shown.length, shown[0].querySelectorAll("[data-series]").length]; })"""
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth, innerWidth]"
WIDER = """[...document.querySelectorAll("main > section *")]
    .filter(e => !e.closest(".scroll table, svg, .plot") && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 200))"""
COLOURS = """(() => { const of = (e, key) => getComputedStyle(e)[key];
    const text = document.querySelector(".plot svg text");
    return [of(document.body, "color"), of(document.body, "backgroundColor"), of(text, "fill")]; })()"""
OPEN = """document.querySelectorAll("main details").forEach(e => { e.open = true; })"""
VISIBLE = """[...document.querySelectorAll("#plot-pareto svg.wide [data-series]")]
    .filter(drawn => drawn.getBoundingClientRect().width).length"""
POINT_AT = """(() => { const target = document.querySelector("#plot-pareto svg.wide .target");
    target.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
    const tip = document.getElementById("tip"), box = tip.getBoundingClientRect();
    return [tip.textContent, box.left >= 0 && box.right <= innerWidth && box.width > 0]; })()"""


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """All in one browser: to start it takes longer than to look."""
    write(document(), tmp_path / "report")

    async def look() -> None:
        async with tab(tmp_path / "profile") as page:
            await page.resize(1440)
            await page.prefer("light")
            await page.open(tmp_path / "report" / "index.html")
            await _every_plot_is_drawn(page, ["pareto", "ttft", "steps", "payback", "many", "unknowns"])
            await _nothing_is_too_wide(page, (390, 768, 1440))
            await _light_and_dark_differ(page)
            await _series_can_be_hidden(page)
            await _a_number_tells_its_source(page)
            await _a_value_of_a_chart_tells_its_source(page)
            assert page.errors == []

    asyncio.run(look())


def test_a_whole_report_in_a_browser(report_folder: Path, tmp_path: Path) -> None:
    report = json.loads((report_folder / "report.json").read_text())
    blocks = [block for section in report["sections"] for block in section["blocks"]]
    drawn = [b["key"] for b in blocks if b["kind"] not in ("paragraph", "table") and b.get("series") != []]
    assert {block["kind"] for block in blocks} >= {"paragraph", "table", "plot", "waterfall", "tornado"}

    async def look() -> None:
        async with tab(tmp_path / "profile") as page:
            for width, scheme in ((390, "light"), (1440, "dark")):
                await page.resize(width)
                await page.prefer(scheme)
                await page.open(report_folder / "index.html")
                await _every_plot_is_drawn(page, drawn)
                await page.evaluate(OPEN)
                await _nothing_is_too_wide(page, (width,))
                await _contents_stay_usable(page, width)
            await _light_and_dark_differ(page)
            assert page.errors == []

    asyncio.run(look())


async def _every_plot_is_drawn(page: Tab, keys: list[str]) -> None:
    found = await page.evaluate(PLOTS)
    assert [key for key, _, _ in found] == keys
    assert all(drawings == 1 and values for _, drawings, values in found), found


async def _nothing_is_too_wide(page: Tab, widths: Sequence[int]) -> None:
    for width in widths:
        await page.resize(width)
        scrolled, inner, window = await page.evaluate(WIDTHS)
        assert scrolled <= inner <= window == width
        assert await page.evaluate(WIDER) == []
        drawn = await page.evaluate('Math.max(...[...document.querySelectorAll(".plot svg")].map(s => s.clientWidth))')
        assert 0.5 * min(width, 1200) < drawn <= width


async def _light_and_dark_differ(page: Tab) -> None:
    found = {}
    for scheme in ("light", "dark"):
        await page.prefer(scheme)
        found[scheme] = await page.evaluate(COLOURS)
    assert all(light != dark for light, dark in zip(*found.values(), strict=True)), found
    assert found["dark"][0] != found["dark"][1]


async def _contents_stay_usable(page: Tab, width: int) -> None:
    """Beside the page, or on a narrow one folded at its top, wherever one is."""
    assert await page.evaluate('document.getElementById("contents").open') == (width > 1000)
    await page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    await page.settle()
    top = await page.evaluate('document.querySelector("nav").getBoundingClientRect().top')
    assert 0 <= top < 50
    last = await page.evaluate('[...document.querySelectorAll("nav a")].at(-1).className')
    assert last == "here"


async def _series_can_be_hidden(page: Tab) -> None:
    before = await page.evaluate(VISIBLE)
    await page.evaluate("""document.querySelector('#pareto .legend [data-series="1"]').click()""")
    await page.settle()
    assert await page.evaluate(VISIBLE) == before - 1 - 8  # a line, and its values' texts


async def _a_number_tells_its_source(page: Tab) -> None:
    await page.evaluate('document.querySelector("[data-number]").click()')
    said = await page.evaluate('document.getElementById("source").textContent')
    assert "simulated: simulated over every unknown" in said


async def _a_value_of_a_chart_tells_its_source(page: Tab) -> None:
    said, inside = await page.evaluate(POINT_AT)
    assert said.startswith("8 × B200, DSpark\nSpeed of one answer: 400 tok/s")
    assert said.endswith("simulated: steps of 61 layers under 400 requests")
    assert inside
