"""Figures of the source's shape: `python tools/code_figures.py` prints them, and `tests/unit/test_layout.py`
limits them."""

import ast
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINE_LENGTH = 110
NODES_PER_LINE_BEFORE = 12.04  # of the library at revision 80b6525, measured by this script's rule


@dataclass(frozen=True)
class Figures:
    """Of a set of files; lengths in lines, docstrings and comments included.

    Attributes:
        nodes_per_line: syntax-tree nodes by lines of code, without blank lines, comments and docstrings.
    """

    files: int
    lines: int
    longest_file: int
    functions: int
    function_median: float
    function_p90: int
    longest_function: int
    longest_line: int
    nodes_per_line: float


def library_files() -> list[Path]:
    return sorted([*ROOT.glob("srft_ray/**/*.py"), *ROOT.glob("algorithms/*.py")])


def measure(files: Sequence[Path]) -> Figures:
    sources = [file.read_text() for file in files]
    trees = [ast.parse(source) for source in sources]
    lengths = sorted(length for tree in trees for length in function_lengths(tree))
    nodes = sum(1 for tree in trees for _ in ast.walk(tree))
    code_lines = sum(len(code_line_numbers(*pair)) for pair in zip(sources, trees, strict=True))
    lines = [source.splitlines() for source in sources]
    return Figures(
        files=len(files),
        lines=sum(map(len, lines)),
        longest_file=max(map(len, lines)),
        functions=len(lengths),
        function_median=statistics.median(lengths),
        function_p90=lengths[int(0.9 * len(lengths))],
        longest_function=lengths[-1],
        longest_line=max(len(line) for file in lines for line in file),
        nodes_per_line=nodes / code_lines,
    )


def function_lengths(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.end_lineno - node.lineno + 1


def code_line_numbers(source: str, tree: ast.Module) -> set[int]:
    """Numbers of the lines that hold code: no blank line, comment or docstring."""
    documented = set[int]()
    for node in ast.walk(tree):
        may_have_one = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if may_have_one and ast.get_docstring(node):
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return {
        number
        for number, line in enumerate(source.splitlines(), start=1)
        if line.strip() and not line.strip().startswith("#") and number not in documented
    }


def main() -> None:
    figures = measure(library_files())
    for name, value in vars(figures).items():
        print(f"{name:18} {value:.2f}" if isinstance(value, float) else f"{name:18} {value}")
    print(f"nodes per line, share of 80b6525: {figures.nodes_per_line / NODES_PER_LINE_BEFORE:.0%}")


if __name__ == "__main__":
    main()
