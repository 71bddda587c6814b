"""The training corpus: Python source of the standard library and of installed open-source packages.

The choice of files, the held-out part and the order depend only on paths and contents, so two machines with the same
package versions see the same corpus.
"""

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
from typing import Self

STDLIB = "stdlib"
PACKAGES = (
    *(STDLIB, "transformers", "torch", "numpy", "networkx", "huggingface_hub", "accelerate", "pydantic", "rich"),
    *("typer", "click", "jinja2", "fsspec", "filelock", "packaging", "fastapi", "starlette", "uvicorn", "aiohttp"),
    *("anyio", "websockets", "requests", "urllib3", "tqdm", "psutil", "hypothesis", "pygments", "setuptools"),
)
# The share of a package's files that is read; the largest packages would otherwise outweigh all others.
SHARES = {"transformers": 0.35, "torch": 0.3, "pygments": 0.3, "setuptools": 0.5}
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
    """Return the first 64 bits of the SHA-256 of `text`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True)
class Function:
    """A documented function: a chat sample (the docstring asks, the code answers) or a prompt to complete."""

    path: str
    name: str
    signature: str
    docstring: str
    code: str

    @property
    def request(self) -> str:
        """The user's turn: the docstring, preceded by the signature for half of the functions."""
        if digest(self.path + self.name) % 2:
            return f"{self.signature}\n{self.docstring}"
        return self.docstring

    @property
    def prompt(self) -> str:
        """The function up to and including its docstring, as plain source."""
        return f'{self.signature}\n    """{self.docstring}"""\n'


@dataclass(frozen=True)
class SourceFile:
    """A Python file; `path` is relative to the standard library or to site-packages."""

    path: str
    text: str

    @property
    def package(self) -> str:
        return self.path.split("/", 1)[0]

    @property
    def held_out(self) -> bool:
        return digest(self.path) % HELD_OUT_ONE_IN == 0

    def functions(self) -> Iterator[Function]:
        """Yield the functions and methods that have a short docstring and 3 to 30 lines of code."""
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
    """Return the folder of the sources of `package`, or None if it is not installed."""
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def package_version(package: str) -> str:
    return platform.python_version() if package == STDLIB else importlib.metadata.version(package)


def without_licence(text: str) -> str:
    """Return `text` without a leading comment block that states a licence."""
    lines = text.splitlines(keepends=True)
    count = 0
    while count < len(lines) and (lines[count].startswith("#") or not lines[count].strip()):
        count += 1
    head = "".join(lines[:count])
    return "".join(lines[count:]) if LICENCE.search(head) else text


def readable(text: str) -> bool:
    """Tell whether `text` looks like source that people wrote rather than data or generated code."""
    if GENERATED.search(text[:1500]):
        return False
    if max((len(line) for line in text.splitlines()), default=0) > MAX_LINE_CHARS:
        return False
    letters = sum(char.isalpha() for char in text)
    digits = sum(char.isdigit() for char in text)
    return letters > 0.4 * len(text) and digits < 0.12 * len(text)


@dataclass(frozen=True)
class Corpus:
    """The source files, ordered by a hash of their paths."""

    files: tuple[SourceFile, ...]

    @classmethod
    def collect(cls) -> Self:
        """Read every package in `PACKAGES` that is installed."""
        files: dict[str, SourceFile] = {}
        for package in PACKAGES:
            for file in cls._read(package):
                content = hashlib.sha256(file.text.encode()).hexdigest()
                known = files.get(content)
                if known is None or file.path < known.path:
                    files[content] = file
        return cls(tuple(sorted(files.values(), key=lambda file: digest("order " + file.path))))

    @staticmethod
    def _read(package: str) -> Iterator[SourceFile]:
        root = package_root(package)
        if root is None:
            return
        for file in sorted(root.rglob("*.py")):
            relative = file.relative_to(root)
            if SKIPPED_FOLDERS.intersection(relative.parts) or file.name.startswith("test_"):
                continue
            path = f"{package}/{relative.as_posix()}"
            if digest("share " + path) / 2**64 >= SHARES.get(package, 1.0):
                continue
            if not MIN_FILE_BYTES <= file.stat().st_size <= MAX_FILE_BYTES:
                continue
            try:
                text = without_licence(file.read_bytes().decode("utf-8")).replace("\r\n", "\n")
            except UnicodeDecodeError:
                continue
            if len(text) >= MIN_FILE_BYTES and readable(text):
                yield SourceFile(path, text)

    @cached_property
    def training(self) -> tuple[SourceFile, ...]:
        return tuple(file for file in self.files if not file.held_out)

    @cached_property
    def held_out(self) -> tuple[SourceFile, ...]:
        return tuple(file for file in self.files if file.held_out)

    def versions(self) -> dict[str, str]:
        """Return the version of each package that contributed at least one file."""
        found = {file.package for file in self.files}
        return {package: package_version(package) for package in PACKAGES if package in found}
