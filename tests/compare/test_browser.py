"""The page in a browser: every plot is drawn, nothing is wider than the window, light and dark differ."""

import asyncio
from pathlib import Path

import pytest

from compare.report.files import write
from tests.compare.browser import CHROMIUM, Tab, tab
from tests.compare.sample import document

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

PLOTS = """[...document.querySelectorAll(".plot")].map(plot => [
    plot.dataset.plot, plot.querySelectorAll("svg.main-svg").length, plot.querySelectorAll(".trace, .hm").length])"""
WIDTHS = "[document.documentElement.scrollWidth, document.documentElement.clientWidth, innerWidth]"
WIDER = """[...document.querySelectorAll("main > section *")]
    .filter(e => !e.closest(".scroll table, svg, .plot") && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.outerHTML.slice(0, 200))"""
COLOURS = """(() => { const of = (e, key) => getComputedStyle(e)[key];
    const text = document.querySelector(".plot .xtick text");
    return [of(document.body, "color"), of(document.body, "backgroundColor"), of(text, "fill")]; })()"""
VISIBLE = 'document.querySelectorAll("#plot-pareto .scatterlayer .trace").length'
BUTTONS = '[...document.querySelectorAll(".modebar-btn")].map(button => button.dataset.title)'


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    """All in one browser: to start it takes longer than to look."""
    write(document(), tmp_path / "report")

    async def look() -> None:
        async with tab(tmp_path / "profile") as page:
            await page.resize(1440)
            await page.prefer("light")
            await page.open(tmp_path / "report" / "index.html")
            await _every_plot_is_drawn(page)
            await _nothing_is_too_wide(page)
            await _light_and_dark_differ(page)
            await _series_can_be_hidden(page)
            await _a_number_tells_its_source(page)
            assert page.errors == []

    asyncio.run(look())


async def _every_plot_is_drawn(page: Tab) -> None:
    found = await page.evaluate(PLOTS)
    assert [key for key, _, _ in found] == ["pareto", "ttft", "steps", "payback", "many", "unknowns"]
    assert all(drawings and traces for _, drawings, traces in found), found
    buttons = await page.evaluate(BUTTONS)
    assert buttons
    assert not [title for title in buttons if "hare" in title or "loud" in title], "a plot can be sent to somebody"


async def _nothing_is_too_wide(page: Tab) -> None:
    for width in (390, 768, 1440):
        await page.resize(width)
        scrolled, inner, window = await page.evaluate(WIDTHS)
        assert scrolled <= inner <= window == width
        assert await page.evaluate(WIDER) == []
        drawn = await page.evaluate('Math.max(...[...document.querySelectorAll(".main-svg")].map(s => s.clientWidth))')
        assert 0.5 * min(width, 1200) < drawn <= width


async def _light_and_dark_differ(page: Tab) -> None:
    light = await page.evaluate(COLOURS)
    await page.prefer("dark")
    dark = await page.evaluate(COLOURS)
    assert all(before != after for before, after in zip(light, dark, strict=True)), (light, dark)
    assert dark[0] != dark[1]


async def _series_can_be_hidden(page: Tab) -> None:
    before = await page.evaluate(VISIBLE)
    await page.evaluate("""document.querySelector('[data-plot=pareto][data-trace="1"]').click()""")
    await page.settle()
    assert await page.evaluate(VISIBLE) == before - 1


async def _a_number_tells_its_source(page: Tab) -> None:
    await page.evaluate('document.querySelector("[data-number]").click()')
    said = await page.evaluate('document.getElementById("source").textContent')
    assert "simulated: simulated over every unknown" in said
