"""The rules of the house. Each failure names the file, the line and the way out."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.house import FLOOR_OF, HOUSE, ON_TOP, PRODUCT, Source, shared_class_names, sources

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
MAX_FILE_LINES, MAX_FUNCTION_LINES = 320, 60


ALL, OURS = sources(), sources(*PRODUCT)


def path_of(source: Source) -> str:
    return source.path


every_source = pytest.mark.parametrize("source", ALL, ids=path_of)
every_product_source = pytest.mark.parametrize("source", OURS, ids=path_of)


def imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[tuple[int, str]]:
    """(line, imported module) of the import statements among `nodes`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import by full name, so that this test can read it"
            yield node.lineno, node.module or ""


@every_source
def test_imports_go_down_only(source: Source) -> None:
    """On one floor, folders do not know each other: what two of them need belongs on the floor below."""
    mine = source.folder
    for line, module in imports(ast.walk(source.tree)):
        theirs = module.split(".")[0]
        if theirs in FLOOR_OF and theirs != mine and mine not in ON_TOP:
            assert FLOOR_OF[theirs] < FLOOR_OF[mine], f"{source.path}:{line}: {mine} may not import {module}"


@every_product_source
def test_heavy_packages_are_imported_in_one_place(source: Source) -> None:
    for line, module in imports(ast.walk(source.tree)):
        home = HOME_OF.get(module.split(".")[0])
        assert home is None or source.path.startswith(home), (
            f"{source.path}:{line}: {module} is imported in {home} alone"
        )


def test_facts_clocks_and_policies_need_no_torch() -> None:
    """Serve runs the scaling policy in its controller, which should not load an engine."""
    modules = ["engine.facts", "engine.stats", "engine.clock", "engine.errors"]
    if (HOUSE / "engine/steptime.py").exists():
        modules.append("engine.steptime")
    without = [s.path for s in sources("policy", "hardware") if s.path != "hardware/paced.py"]
    modules += [path.removesuffix(".py").replace("/", ".") for path in without]

    program = f"import sys; sys.modules['torch'] = None; import {', '.join(modules)}"
    result = subprocess.run([sys.executable, "-c", program], cwd=HOUSE, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr


def test_the_command_line_starts_without_ray_grpc_or_torch() -> None:
    """`generate --local` must work where ray and grpc cannot be imported: commands import what they use."""
    names = ("bench", "compare", "deploy", "drafters", "hardware")
    parts = [f"cluster.cli.{name}" for name in names]
    for path in ("cluster/cli/__init__.py", *(f"{part.replace('.', '/')}.py" for part in parts)):
        for line, module in imports(Source(path).tree.body):
            root = module.split(".")[0]
            known = root == "typer" or root in sys.stdlib_module_names or module in parts
            assert known, f"{path}:{line}: import {module} inside"


@every_product_source
def test_no_module_keeps_state(source: Source) -> None:
    """A mutable value at module level must be a constant, in capitals; nothing is `global` or kept by thread."""
    for node in ast.walk(source.tree):
        assert not isinstance(node, ast.Global), f"{source.path}:{node.lineno}: global {node.names}: give it an owner"
        by_thread = isinstance(node, ast.Attribute) and ast.unparse(node) == "threading.local"
        assert not by_thread, f"{source.path}:{node.lineno}: threading.local: give it an owner"
    for node in source.tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_mutable(node.value):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                name = ast.unparse(target)
                assert name.isupper() or name == "__all__", f"{source.path}:{node.lineno}: {name} can change"


def is_mutable(value: ast.expr | None) -> bool:
    makers = {"list", "dict", "set", "defaultdict", "Counter", "deque"}
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    called = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[-1] in makers
    return isinstance(value, displays) or called


@pytest.mark.parametrize("source", [s for s in OURS if FLOOR_OF[s.folder] <= FLOOR_OF["local"]], ids=path_of)
def test_nothing_is_configured_by_the_environment(source: Source) -> None:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            raise AssertionError(f"{source.path}:{node.lineno}: make it a key of the configuration")


@every_source
def test_files_and_functions_stay_short(source: Source) -> None:
    """When one grows past this, look for the missing noun."""
    assert source.num_lines <= MAX_FILE_LINES, f"{source.path} has {source.num_lines} lines"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{source.path}:{node.lineno}: {node.name} has {length} lines"


def test_a_class_name_stands_for_one_thing() -> None:
    """Two classes of one name send a reader to the wrong file. Rename the one on the higher floor more precisely."""
    assert shared_class_names(OURS) == {}


def test_every_folder_is_on_a_floor() -> None:
    """A new folder of Python needs a place in FLOORS, or no rule holds for it."""
    folders = {file.relative_to(HOUSE).parts[0] for file in HOUSE.glob("*/**/*.py")}
    ours = {folder for folder in folders if not folder.startswith(".") and folder not in ("build", "shared")}

    assert ours <= set(FLOOR_OF)
