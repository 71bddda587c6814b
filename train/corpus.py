"""Python source that any machine has: the standard library and installed open-source packages.

Which files are read, which are held out and in what order depends on their paths and contents alone, so
two machines with the same package versions see the same corpus.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

STDLIB = "stdlib"
# Package -> share of its files that is read (the largest packages would drown the rest).
PACKAGES: dict[str, float] = {
    STDLIB: 1.0,
    "transformers": 0.35,
    "torch": 0.3,
    "numpy": 1.0,
    "networkx": 1.0,
    "huggingface_hub": 1.0,
    "accelerate": 1.0,
    "pydantic": 1.0,
    "rich": 1.0,
    "typer": 1.0,
    "click": 1.0,
    "jinja2": 1.0,
    "fsspec": 1.0,
    "filelock": 1.0,
    "packaging": 1.0,
    "fastapi": 1.0,
    "starlette": 1.0,
    "uvicorn": 1.0,
    "aiohttp": 1.0,
    "anyio": 1.0,
    "websockets": 1.0,
    "requests": 1.0,
    "urllib3": 1.0,
    "tqdm": 1.0,
    "psutil": 1.0,
    "hypothesis": 1.0,
    "pygments": 0.3,
    "setuptools": 0.5,
}
SKIPPED_FOLDERS = frozenset(
    {
        *("test", "tests", "testing", "idlelib", "lib2to3", "distutils", "ensurepip", "turtledemo"),
        *("encodings", "pydoc_data", "unicode_data", "lexers", "styles"),
        *("site-packages", "dist-packages", "_vendor", "_distutils", "vendored", "__pycache__"),
    }
)
HELD_OUT_ONE_IN = 50
MAX_FILE_BYTES = 120_000
MIN_FILE_BYTES = 200
MAX_LINE_CHARS = 400
GENERATED = re.compile(r"generated (by|from|file)|do not edit|auto-?generated|@generated", re.IGNORECASE)
LICENCE = re.compile(r"copyright|license", re.IGNORECASE)


def digest(text: str) -> int:
    """The first 64 bits of the SHA-256 of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Function:
    """One documented function: a chat sample (docstring asks, code answers) or a prompt to complete."""

    path: str
    name: str
    signature: str
    docstring: str
    code: str

    @property
    def request(self) -> str:
        """The user's turn: the docstring, for half of the functions below the signature."""
        if digest(self.path + self.name) % 2:
            return f"{self.signature}\n{self.docstring}"
        return self.docstring

    @property
    def prompt(self) -> str:
        """The function up to and including its docstring, as plain source."""
        return f'{self.signature}\n    """{self.docstring}"""\n'


@dataclass(frozen=True)
class Document:
    """One source file; `path` is relative to the standard library or to site-packages."""

    path: str
    text: str

    @property
    def package(self) -> str:
        return self.path.split("/", 1)[0]

    @property
    def held_out(self) -> bool:
        return digest(self.path) % HELD_OUT_ONE_IN == 0

    def functions(self) -> Iterator[Function]:
        """Top-level functions and methods that have a short docstring and 3 to 30 lines of code."""
        try:
            tree = ast.parse(self.text)
        except (SyntaxError, ValueError):
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (found := self._function(node)) is not None:
                yield found

    def _function(self, node: ast.FunctionDef) -> Function | None:
        docstring = (ast.get_docstring(node) or "").split("\n\n", 1)[0].strip()
        if not 15 <= len(docstring) <= 200 or '"""' in docstring or "\\" in docstring or len(node.body) < 2:
            return None
        lines = self.text.splitlines()
        start, body = node.lineno - 1, node.body[1].lineno - 1
        end = node.end_lineno or start
        head = lines[start : node.body[0].lineno - 1]
        if not 2 <= end - body <= 30 or not head:
            return None
        code = textwrap.dedent("\n".join(head + lines[body:end]))
        signature = textwrap.dedent("\n".join(head)).rstrip()
        if not code.startswith("def ") or not signature.endswith(":") or len(code) > 1200:
            return None
        return Function(self.path, node.name, signature, docstring, code)


def package_root(package: str) -> Path | None:
    """Where the sources of `package` lie, or None where it is not installed."""
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def package_version(package: str) -> str:
    return platform.python_version() if package == STDLIB else importlib.metadata.version(package)


def without_licence(text: str) -> str:
    """`text` without a leading comment block that states a licence."""
    lines = text.splitlines(keepends=True)
    count = 0
    while count < len(lines) and (lines[count].startswith("#") or not lines[count].strip()):
        count += 1
    head = "".join(lines[:count])
    return "".join(lines[count:]) if LICENCE.search(head) else text


def readable(text: str) -> bool:
    """Whether `text` looks like source that people wrote rather than data or generated code."""
    if GENERATED.search(text[:1500]):
        return False
    if max((len(line) for line in text.splitlines()), default=0) > MAX_LINE_CHARS:
        return False
    letters = sum(char.isalpha() for char in text)
    digits = sum(char.isdigit() for char in text)
    return letters > 0.4 * len(text) and digits < 0.12 * len(text)


@dataclass(frozen=True)
class Corpus:
    """The documents, in an order given by the hash of their paths."""

    documents: tuple[Document, ...]

    @classmethod
    def collect(cls) -> Corpus:
        """Reads every package in `PACKAGES` that is installed here."""
        documents: dict[str, Document] = {}
        for package in PACKAGES:
            for document in cls._read(package):
                content = hashlib.sha256(document.text.encode()).hexdigest()
                known = documents.get(content)
                if known is None or document.path < known.path:
                    documents[content] = document
        return cls(tuple(sorted(documents.values(), key=lambda document: digest("order " + document.path))))

    @staticmethod
    def _read(package: str) -> Iterator[Document]:
        root = package_root(package)
        if root is None:
            return
        for file in sorted(root.rglob("*.py")):
            relative = file.relative_to(root)
            if SKIPPED_FOLDERS.intersection(relative.parts) or file.name.startswith("test_"):
                continue
            path = f"{package}/{relative.as_posix()}"
            if digest("share " + path) / 2**64 >= PACKAGES[package]:
                continue
            if not MIN_FILE_BYTES <= file.stat().st_size <= MAX_FILE_BYTES:
                continue
            try:
                text = without_licence(file.read_bytes().decode("utf-8")).replace("\r\n", "\n")
            except UnicodeDecodeError:
                continue
            if len(text) >= MIN_FILE_BYTES and readable(text):
                yield Document(path, text)

    @cached_property
    def training(self) -> tuple[Document, ...]:
        return tuple(document for document in self.documents if not document.held_out)

    @cached_property
    def held_out(self) -> tuple[Document, ...]:
        return tuple(document for document in self.documents if document.held_out)

    def versions(self) -> dict[str, str]:
        """Package -> version, of the packages that gave at least one document."""
        found = {document.package for document in self.documents}
        return {package: package_version(package) for package in PACKAGES if package in found}
