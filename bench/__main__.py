"""`python -m bench` lists the benchmarks, `python -m bench NAME` runs one."""

import argparse
import ast
import os
from importlib import import_module
from pathlib import Path

import torch

from bench.shape import RESULTS, BenchOptions, BenchReport

FOLDER = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """Return the first line of each benchmark's docstring by name. A benchmark is a file with a function `run`."""
    found = {}
    for file in sorted(FOLDER.glob("*.py")):
        tree = ast.parse(file.read_text())
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[file.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: list[str] | None = None) -> None:
    known = benchmarks()
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run a benchmark, or list them all.")
    parser.add_argument("name", nargs="?", choices=list(known))
    parser.add_argument("--quick", action="store_true", help="take seconds, not minutes; the figures mean nothing")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=device, help="a torch device: cpu, cuda, cuda:1")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads for arithmetic")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the result files")
    given = parser.parse_args(arguments)
    if given.name is None:
        for name, line in known.items():
            print(f"{name:10} {line}")
        return
    torch.set_num_threads(given.threads)
    options = BenchOptions(device=given.device, threads=given.threads, quick=given.quick, out=given.out)
    report = BenchReport(given.name, options)
    import_module(f"bench.{given.name}").run(report)
    report.close()


if __name__ == "__main__":
    main()
