"""Walks a page: no digit without a label and a source."""

import re
from html.parser import HTMLParser
from typing import Any

FREE = {"script", "style", "cite", "a", "svg"}
VOID = {"meta", "link", "br", "img", "input", "hr", "col", "wbr", "source", "area", "base", "embed", "track"}


def walk(html: str, report: dict[str, Any]) -> None:
    """Asserts that text has digits only in elements with `data-number` or `data-name`, and that each number is the
    JSON's, with a label and a source. In scripts, styles, charts, <cite> and <a> there may be digits."""
    walker = _Walker()
    walker.feed(html)
    walker.close()

    assert walker.open == [], f"not closed: {walker.open}"
    assert walker.bare == [], f"numbers without label and source: {walker.bare[:5]}"
    for key, text in walker.numbers:
        assert key in report["numbers"], f"the page has {key}, the JSON has not"
        number = report["numbers"][key]
        assert text == number["text"], f"{key}: the page has {text!r}, the JSON {number['text']!r}"
        assert number["label"] and number["source"], key
    missing = set(report["numbers"]) - {key for key, _ in walker.numbers}
    assert not missing, f"the page has not {sorted(missing)[:5]}"


class _Walker(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.bare: list[str] = []
        self.numbers: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        self.open.append((tag, dict(attrs)))
        if "data-number" in dict(attrs):
            self.numbers.append((dict(attrs)["data-number"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        opened, _ = self.open.pop()
        assert opened == tag, f"<{opened}> is closed by </{tag}> at line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        attributes = {name for _, attrs in self.open for name in attrs}
        if "data-number" in attributes:
            key, text = self.numbers[-1]
            self.numbers[-1] = (key, text + data)
        elif re.search(r"\d", data) and "data-name" not in attributes and not FREE & {tag for tag, _ in self.open}:
            self.bare.append(data.strip())
