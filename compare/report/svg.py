"""SVG as matplotlib writes it, made fit for a page: colours are CSS variables, and areas have texts to show."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
POINT_RADIUS = 9.0
"""Of the area around a point that shows its text, in units of the SVG (1/72 inch)."""


@dataclass(frozen=True)
class HoverArea:
    """An area that shows a text: a box of the given edges, or a point if both pairs of edges are the same."""

    series: int
    text: str
    x: tuple[float, float]
    y: tuple[float, float]


def for_page(text: str, name: str, label: str, variables: dict[str, str], targets: Iterable[HoverArea]) -> str:
    """Return the SVG as an element of an HTML page, of class `name`.

    `variables`: the CSS variable that stands for each colour. A group whose ID is series-N gets data-series="N", as the
    targets of series N have; all other groups' IDs are removed, since a page has many drawings.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(text)
    for element in list(root):
        if element.tag.endswith("}metadata") or element.find(f"{{{SVG}}}style") is not None:
            root.remove(element)
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": name, "role": "img", "aria-label": label}
    for element in root.iter(f"{{{SVG}}}g"):
        series = re.fullmatch(r"series-(\d+)", element.attrib.pop("id", ""))
        if series:
            element.set("data-series", series[1])
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _style(element.attrib["style"], variables))
    root.extend(map(_element, targets))
    return ElementTree.tostring(root, encoding="unicode")


def _style(style: str, variables: dict[str, str]) -> str:
    style = re.sub(r"font-family: [^;]*(; )?", "", style)
    return re.sub("#[0-9a-f]{6}", lambda found: variables.get(found[0], found[0]), style)


def _element(target: HoverArea) -> ElementTree.Element:
    (left, right), (top, bottom) = target.x, target.y
    if left == right and top == bottom:
        tag, shape = "circle", {"cx": left, "cy": top, "r": POINT_RADIUS}
    else:
        tag, shape = "rect", {"x": left, "y": top, "width": right - left, "height": bottom - top}
    attributes = {key: f"{value:.1f}" for key, value in shape.items()}
    found = ElementTree.Element(f"{{{SVG}}}{tag}", {"class": "target", "data-series": str(target.series), **attributes})
    ElementTree.SubElement(found, f"{{{SVG}}}title").text = target.text
    return found
