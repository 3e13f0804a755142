"""The shape of the code: short functions, one file per heavy dependency."""

import ast
import statistics
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = list(ROOT.glob("srft_ray/**/*.py"))
FILES = [*SYSTEM, *ROOT.glob("algorithms/*.py")]


def importers(package: str) -> set[str]:
    found = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            if any(name.split(".")[0] == package for name in names):
                found.add(str(file.relative_to(ROOT)))
    return found


def test_heavy_dependencies_have_one_home():
    assert importers("vllm") == {"srft_ray/rollout/vllm_engine.py"}
    assert importers("deepspeed") == {"srft_ray/train/deepspeed_engine.py"}
    assert not importers("srft_ray") & {str(file.relative_to(ROOT)) for file in ROOT.glob("algorithms/*.py")}


def test_functions_are_short():
    lengths = [
        node.end_lineno - node.lineno + 1
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert statistics.median(lengths) <= 12 and max(lengths) <= 60


def test_algorithms_are_short_files():
    """A method is one readable file; the vocabulary that methods are made of is not much longer."""
    import algorithms

    lengths = {file.name: len(file.read_text().splitlines()) for file in ROOT.glob("algorithms/*.py")}
    methods = {f"{cls.__module__.removeprefix('algorithms.')}.py" for cls in algorithms.REGISTRY.values()}
    assert max(lengths.values()) <= 150 and all(lengths[name] <= 75 for name in methods)


def test_the_system_stays_readable_in_an_hour():
    """Lines of code of srft_ray: without blank lines, comments and docstrings."""
    count = 0
    for file in SYSTEM:
        source = file.read_text()
        documented = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ) and ast.get_docstring(node):
                documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        count += sum(
            bool(line.strip()) and not line.strip().startswith("#") and number not in documented
            for number, line in enumerate(source.splitlines(), start=1)
        )
    print(
        f"{count} lines of code, {sum(len(file.read_text().splitlines()) for file in SYSTEM)} with documentation and blank lines"
    )
    assert count <= 4200
