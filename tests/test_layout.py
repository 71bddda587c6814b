"""The rules of the house. Each failure names the file, the line and the way out."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from engine.config import Config
from engine.facts import PageCounts, ReplicaStats

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
HOME_OF = {
    "ray": "cluster/",
    "grpc": "cluster/",
    "grpc_health": "cluster/",
    "grpc_reflection": "cluster/",
    "fastapi": "cluster/",
    "starlette": "cluster/",
    "uvicorn": "cluster/",
    "aiohttp": "cluster/",
    "nixl": "engine/transfer.py",
    "triton": "engine/kernels/",
}
ON_TOP = FLOORS[-1]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 320, 60


def sources() -> list[str]:
    """Every Python file of ours, from the root."""
    files = [file for folder in FLOOR_OF for file in (HOUSE / folder).rglob("*.py")]
    return sorted(str(file.relative_to(HOUSE)) for file in files if "_pb2" not in file.name)


def of_the_product() -> list[str]:
    return [source for source in sources() if source.split("/")[0] not in ON_TOP]


def tree(source: str) -> ast.Module:
    return ast.parse((HOUSE / source).read_text())


def imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """(line, imported module) of the import statements among `nodes`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by full name, so that this test can read it"
            yield node.lineno, node.module or ""


@pytest.mark.parametrize("source", sources())
def test_imports_go_down_only(source: str) -> None:
    """On one floor, folders do not know each other: what two of them need belongs on the floor below."""
    mine = source.split("/")[0]
    for line, module in imports(ast.walk(tree(source))):
        theirs = module.split(".")[0]
        if theirs in FLOOR_OF and theirs != mine and mine not in ON_TOP:
            assert FLOOR_OF[theirs] < FLOOR_OF[mine], f"{source}:{line}: {mine} may not import {module}"


@pytest.mark.parametrize("source", of_the_product())
def test_heavy_packages_are_imported_in_one_place(source: str) -> None:
    for line, module in imports(ast.walk(tree(source))):
        home = HOME_OF.get(module.split(".")[0])
        assert home is None or source.startswith(home), f"{source}:{line}: {module} is imported in {home} alone"


def test_facts_clocks_and_policies_need_no_torch() -> None:
    """Serve runs the scaling policy in its controller, which should not load an engine."""
    modules = ["engine.facts", "engine.clock", "engine.errors"]
    if (HOUSE / "engine/steptime.py").exists():
        modules.append("engine.steptime")
    without = [s for s in sources() if s.startswith(("policy/", "hardware/")) and s != "hardware/paced.py"]
    modules += [s.removesuffix(".py").replace("/", ".") for s in without]

    program = f"import sys; sys.modules['torch'] = None; import {', '.join(modules)}"
    result = subprocess.run([sys.executable, "-c", program], cwd=HOUSE, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr


def test_the_command_line_starts_without_ray_grpc_or_torch() -> None:
    """`generate --local` must work where ray and grpc cannot be imported: commands import what they use."""
    names = ("bench", "compare", "deploy", "drafters", "hardware")
    parts = [f"cluster.cli_{name}" for name in names]
    for source in ("cluster/cli.py", *(f"{part.replace('.', '/')}.py" for part in parts)):
        for line, module in imports(tree(source).body):
            root = module.split(".")[0]
            known = root == "typer" or root in sys.stdlib_module_names or module in parts
            assert known, f"{source}:{line}: import {module} inside"


@pytest.mark.parametrize("source", of_the_product())
def test_no_module_keeps_state(source: str) -> None:
    """A mutable value at module level must be a constant, in capitals; nothing is `global` or kept by thread."""
    for node in ast.walk(tree(source)):
        assert not isinstance(node, ast.Global), f"{source}:{node.lineno}: global {node.names}: give it an owner"
        by_thread = isinstance(node, ast.Attribute) and ast.unparse(node) == "threading.local"
        assert not by_thread, f"{source}:{node.lineno}: threading.local: give it an owner"
    for node in tree(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_mutable(node.value):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                name = ast.unparse(target)
                assert name.isupper() or name == "__all__", f"{source}:{node.lineno}: {name} can change"


def is_mutable(value: ast.expr | None) -> bool:
    makers = {"list", "dict", "set", "defaultdict", "Counter", "deque"}
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    called = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in makers
    return isinstance(value, displays) or called


@pytest.mark.parametrize("source", [s for s in of_the_product() if FLOOR_OF[s.split("/")[0]] <= FLOOR_OF["local"]])
def test_nothing_is_configured_by_the_environment(source: str) -> None:
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            raise AssertionError(f"{source}:{node.lineno}: make it a key of the configuration")


@pytest.mark.parametrize("source", sources())
def test_files_and_functions_stay_short(source: str) -> None:
    """When one grows past this, look for the missing noun."""
    lines = len((HOUSE / source).read_text().splitlines())
    assert lines <= MAX_FILE_LINES, f"{source} has {lines} lines"
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{source}:{node.lineno}: {node.name} has {length} lines"


def section_of(annotation: object) -> type[BaseModel] | None:
    """The section that a field holds: itself, or one for each name."""
    candidates = [annotation, *get_args(annotation)]
    return next((a for a in candidates if isinstance(a, type) and issubclass(a, BaseModel)), None)


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if section := section_of(field.annotation):
            yield from keys(section, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.mark.parametrize("key", [*keys(Config)])
def test_every_configuration_key_is_in_the_readme(key: str) -> None:
    readme = HOUSE / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")

    name = key.split(".")[-1]

    assert re.search(rf"\b{name}\b", readme.read_text()), f"README.md does not explain {key}"


@pytest.mark.parametrize("name", [*ReplicaStats.__dataclass_fields__, *PageCounts.__dataclass_fields__])
def test_every_statistic_is_in_the_readme(name: str) -> None:
    assert f"`{name}`" in (HOUSE / "README.md").read_text(), f"README.md does not explain {name}"


def test_every_configuration_key_is_explained_where_it_is_declared() -> None:
    for section in (section_of(field.annotation) for field in Config.model_fields.values()):
        assert section is not None
        assert [n for n, field in section.model_fields.items() if not field.description] == []


def test_every_folder_is_on_a_floor() -> None:
    """A new folder of Python needs a place in FLOORS, or no rule holds for it."""
    folders = {file.relative_to(HOUSE).parts[0] for file in HOUSE.glob("*/**/*.py")}
    ours = {folder for folder in folders if not folder.startswith(".") and folder not in ("build", "shared")}

    assert ours <= set(FLOOR_OF)
