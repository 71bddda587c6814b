"""The documentation is true: generated parts are current, and every file, link and target that it names exists."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from bench.docs import BEGIN, END, PAGES, ROOT, configuration_keys, put_into, statistics
from engine.stats import GatewayCounters, ReplicaStats

MAX_README_LINES = 150
DOCUMENTS = ["README.md", *sorted(f"docs/{file.name}" for file in (ROOT / "docs").glob("*.md"))]
NOT_IN_THE_REPOSITORY = ("build", "report")
FOLDERS = [f.name for f in ROOT.iterdir() if f.is_dir() and f.name not in NOT_IN_THE_REPOSITORY]
TOP_LEVEL = "|".join(re.escape(name) for name in FOLDERS if not name.startswith("."))


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_current(name: str) -> None:
    page = (ROOT / name).read_text()
    assert page.count(BEGIN) == page.count(END) == 1

    assert put_into(page, PAGES[name]()) == page, "run make docs"


def test_what_is_around_a_generated_part_stays() -> None:
    assert put_into(f"before\n{BEGIN}\nold\n{END}\nafter", "new") == f"before\n{BEGIN}\nnew\n{END}\nafter"


def test_every_configuration_key_is_described_where_it_is_declared() -> None:
    keys = list(configuration_keys())

    assert [key.path for key in keys if not key.help] == []
    page = (ROOT / "docs/configuration.md").read_text()
    assert [key.path for key in keys if f"`{key.name}`" not in page] == []


@pytest.mark.parametrize("declared", [ReplicaStats, GatewayCounters])
def test_every_statistic_is_described_where_it_is_declared(declared: type) -> None:
    found = list(statistics(declared))

    assert [statistic.path for statistic in found if not statistic.help] == []
    page = (ROOT / "docs/statistics.md").read_text()
    assert [statistic.path for statistic in found if f"`{statistic.path}`" not in page] == []


def test_the_readme_takes_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MAX_README_LINES


def named_paths(text: str) -> Iterator[str]:
    """Yield what looks like a path of this repository, in backticks or in a block of code, but for NAME as a part."""
    code = "\n".join(re.findall(r"`[^`\n]+`|^```.*?^```", text, re.DOTALL | re.MULTILINE))
    for path in re.findall(rf"(?<![\w./~-])(?:{TOP_LEVEL})/[\w./-]*", code):
        if "NAME" not in path:
            yield path.rstrip(".")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_is_named_exists(name: str) -> None:
    missing = [path for path in named_paths((ROOT / name).read_text()) if not (ROOT / path).exists()]

    assert missing == [], f"{name} names files that do not exist"


def test_the_walkthrough_names_what_is_in_its_files() -> None:
    rows = re.findall(
        r"^\|[^|]+\| `([\w/]+\.py)` \|(.+)\|$", (ROOT / "docs/request-walkthrough.md").read_text(), re.MULTILINE
    )
    assert 5 <= len(rows) <= 10

    for file, names in rows:
        source = (ROOT / file).read_text()
        for name in re.findall(r"`([\w.]+)`", names):
            missing = [
                part for part in name.split(".") if not re.search(rf"(?:(?:def|class) |^){part}\b", source, re.M)
            ]
            assert missing == [], f"{file} has no {name}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_has_a_target(name: str) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", (ROOT / name).read_text()):
        path, _, anchor = unquote(link).partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name} links to {link}"
        assert not anchor or anchor in anchors(target), f"{name} links to {link}: there is no such heading"


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_make_target_that_is_named_exists(name: str) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    for target in re.findall(r"(?:`|^)make ([\w-]+)", (ROOT / name).read_text(), re.MULTILINE):
        assert target in targets, f"{name} names make {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in reached:
            continue
        reached.add(page)
        links = re.findall(r"\]\((?!https?://)([^)#\s]+\.md)", page.read_text())
        ahead += [(page.parent / link).resolve() for link in links]

    assert {ROOT / name for name in DOCUMENTS} <= reached
