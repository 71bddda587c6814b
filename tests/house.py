"""Measures the product's source code: its size per folder and what makes it hard to read.

`python -m tests.house` prints the table that `make check` ends with; tests/test_layout.py asserts the rules among it.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

HOUSE = Path(__file__).resolve().parent.parent
FLOORS = [
    {"engine"},
    {"prefill", "decode", "policy", "hardware"},
    {"local"},
    {"train", "compare"},
    {"cluster"},
    {"bench", "tests"},
]
FLOOR_OF = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
ON_TOP = FLOORS[-1]
PRODUCT = [folder for floor in FLOORS[:-1] for folder in sorted(floor)]

# A docstring that opens with one of these is not a sentence: "Of a step that drafts nothing", "Where pages lie".
FRAGMENT_OPENERS = set(
    """as at by for from how in of on so that those to until up what when where whether which who whose why with
    """.split()  # noqa: SIM905
)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """One Python file of the project; `path` is relative to the repository's root."""

    path: str

    @cached_property
    def text(self) -> str:
        return (HOUSE / self.path).read_text()

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def folder(self) -> str:
        return self.path.split("/")[0]

    @property
    def num_lines(self) -> int:
        return len(self.text.splitlines())

    @property
    def num_any(self) -> int:
        """How often the type `Any` is written."""
        return sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(self.tree))

    @property
    def num_ignores(self) -> int:
        return len(re.findall(r"# *type: *ignore", self.text))

    @property
    def classes(self) -> Iterator[ast.ClassDef]:
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.ClassDef))

    @property
    def docstrings(self) -> Iterator[tuple[int, str]]:
        """Yield (line, docstring) of the module, its classes and its functions."""
        for node in ast.walk(self.tree):
            if isinstance(node, Documented) and (docstring := ast.get_docstring(node)):
                yield node.body[0].lineno, docstring

    @property
    def fragments(self) -> Iterator[tuple[int, str]]:
        """Yield (line, docstring) of those that begin with a fragment."""
        for line, docstring in self.docstrings:
            if (first := re.match(r"[A-Za-z]+", docstring)) and first.group().lower() in FRAGMENT_OPENERS:
                yield line, docstring


def sources(*folders: str) -> list[Source]:
    """Return every Python file of the folders (of all, if none is named), without generated ones."""
    files = [file for folder in folders or FLOOR_OF for file in (HOUSE / folder).rglob("*.py")]
    return [Source(str(file.relative_to(HOUSE))) for file in sorted(files) if "_pb2" not in file.name]


def shared_class_names(product: list[Source]) -> dict[str, list[str]]:
    """Return the class names that stand for more than one thing, each with the files that define it."""
    places = defaultdict(list)
    for source in product:
        for node in source.classes:
            places[node.name].append(source.path)
    return {name: paths for name, paths in sorted(places.items()) if len(paths) > 1}


def main() -> None:
    product = sources(*PRODUCT)
    lines = {folder: sum(s.num_lines for s in product if s.folder == folder) for folder in PRODUCT}
    total = sum(lines.values())
    docstrings = sum(1 for source in product for _ in source.docstrings)
    print("lines of product code: " + ", ".join(f"{folder} {count:,}" for folder, count in lines.items()))
    print(f"  all together {total:,}; with bench and tests {sum(s.num_lines for s in sources()):,}")
    print(f"`Any` per thousand lines: {1000 * sum(s.num_any for s in product) / total:.1f}")
    print(f"`type: ignore`: {sum(s.num_ignores for s in product)}")
    print(f"class names with two meanings: {len(shared_class_names(product))}")
    print(f"docstrings that begin with a fragment: {sum(1 for s in product for _ in s.fragments)} of {docstrings:,}")


if __name__ == "__main__":
    main()
