"""The shape of the code: rooms and the order of their imports, short functions, one file per heavy
dependency."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tools.code_figures import (
    LINE_LENGTH,
    NODES_PER_LINE_BEFORE,
    library_files,
    measure,
)

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = sorted(ROOT.glob("srft_ray/**/*.py"))
ALGORITHMS = sorted(ROOT.glob("algorithms/*.py"))
# Each room may import the rooms of the levels below its own, not its neighbours.
LEVELS = (
    ("errors", "imports", "text"),
    ("fork_server", "plugins", "tasks"),
    ("config",),
    ("models", "observe"),
    ("data", "sync", "verify"),
    ("train", "rollout"),
    ("run",),
    ("commands",),
)
LEVEL_OF = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}
HEAVY = {
    "vllm": {"srft_ray/rollout/vllm_engine.py"},
    "deepspeed": {
        *(f"srft_ray/train/deepspeed_{part}.py" for part in ("config", "import", "loading", "state")),
    },
    "peft": {"srft_ray/train/lora.py"},
}
LIMITS = {
    "longest_file": 250,
    "function_median": 10,
    "function_p90": 40,
    "longest_function": 60,
    "longest_line": LINE_LENGTH,
    "nodes_per_line": 0.75 * NODES_PER_LINE_BEFORE,
}


@cache
def imports_of(file: Path) -> list[tuple[str, tuple[str, ...]]]:
    """(module, names) of every import statement, also of those inside functions and `if TYPE_CHECKING`."""
    return list(_imports(file))


def _imports(file: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            yield node.module or "", tuple(alias.name for alias in node.names)


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The package below srft_ray that a module is in, or the name of a module beside the packages."""
    return module.split(".")[1] if "." in module else ""


def import_graph() -> dict[str, set[str]]:
    """The modules of the library that each module imports."""
    modules = {module_of(file): file for file in LIBRARY}
    graph = {}
    for module, file in modules.items():
        found = set()
        for imported, names in imports_of(file):
            # `from package import name` imports the submodule of that name, if there is one.
            submodules = {f"{imported}.{name}" for name in names} & modules.keys()
            found |= submodules or ({imported} & modules.keys())
        graph[module] = found - {module}
    return graph


def importers(package: str) -> set[str]:
    return {
        str(file.relative_to(ROOT))
        for file in library_files()
        if any(module.split(".")[0] == package for module, _ in imports_of(file))
    }


def test_the_code_has_room_to_breathe():
    figures = measure(library_files())
    above = {
        name: f"{getattr(figures, name)}, limit {limit}"
        for name, limit in LIMITS.items()
        if getattr(figures, name) > limit
    }
    assert not above


def test_imports_have_no_circle():
    graph = import_graph()
    done, path = set[str](), list[str]()

    def visit(module: str) -> None:
        assert module not in path, f"circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        for imported in sorted(graph[module]):
            visit(imported)
        path.pop()
        done.add(module)

    for module in sorted(graph):
        visit(module)
    assert len(done) == len(LIBRARY)


def test_imports_go_down_the_levels():
    """`srft_ray/__init__` and `__main__` only name the public functions; they may import any room."""
    wrong = [
        f"{module} imports {imported}"
        for module, found in import_graph().items()
        for imported in found
        if module not in ("srft_ray", "srft_ray.__main__")
        and room_of(module) != room_of(imported)
        and imported != "srft_ray"
        and LEVEL_OF[room_of(module)] <= LEVEL_OF[room_of(imported)]
    ]
    assert not wrong


def test_no_room_imports_the_private_names_of_another_file():
    private = [
        f"{file.relative_to(ROOT)}: {module} {name}"
        for file in library_files()
        for module, names in imports_of(file)
        for name in names
        if module.split(".")[0] in ("srft_ray", "algorithms") and name.startswith("_")
    ]
    assert not private


def test_heavy_dependencies_have_one_home():
    assert {package: importers(package) for package in HEAVY} == HEAVY


def test_processes_that_do_not_need_transformers_do_not_import_it():
    """It takes two seconds of CPU, in each of the ten processes that a start of a run waits for."""
    found = {
        str(file.relative_to(ROOT))
        for file in LIBRARY
        for statement in ast.parse(file.read_text()).body
        if isinstance(statement, ast.Import | ast.ImportFrom) and "transformers" in ast.unparse(statement)
    }
    assert found == {"srft_ray/train/deepspeed_loading.py"}


def names_of(module: str) -> set[str]:
    """What another file can import from a module of ours."""
    path = ROOT / module.replace(".", "/")
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    found = {inner.stem for inner in path.glob("*")} if path.is_dir() else set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {name.asname or name.name for name in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            # The package gives names late: they are strings there.
            found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
            found |= {str(name.value) for name in ast.walk(node) if isinstance(name, ast.Constant)}
        elif hasattr(node, "name"):
            found.add(node.name)
    return found


def test_scripts_import_what_is_there():
    """Most of their imports run only after minutes of work."""
    scripts = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/**/*.py"), *ROOT.glob("tools/*.py")]
    missing = [
        f"{file.name}: {module}.{name}"
        for file in scripts
        for module, names in imports_of(file)
        for name in names
        if module.split(".")[0] in ("srft_ray", "algorithms") and name not in names_of(module)
    ]
    assert len(scripts) > 15 and not missing


def test_three_files_import_the_internals_of_ray():
    found = {
        str(file.relative_to(ROOT))
        for file in LIBRARY
        if any(re.match(r"ray\..*(_internal|_private)", module) for module, _ in imports_of(file))
    }
    rooms = {"run/elasticity.py", "data/loop.py", "fork_server/ray_start.py"}
    assert found == {f"srft_ray/{file}" for file in rooms}


def test_algorithms_know_torch_only():
    allowed = {"torch", "algorithms", *sys.stdlib_module_names}
    wrong = [
        f"{file.name} imports {module}"
        for file in ALGORITHMS
        for module, _ in imports_of(file)
        if module.split(".")[0] not in allowed
    ]
    assert not wrong


def test_the_whole_config_is_known_to_three_rooms():
    """All others receive their section, or a value that was resolved from it. `srft_ray/__init__` names it to
    users."""
    rooms = {
        room_of(module_of(file))
        for file in LIBRARY
        if module_of(file) != "srft_ray"
        for module, names in imports_of(file)
        if module.startswith("srft_ray.config") and {"Config", "Resolved"} & set(names)
    }
    assert rooms <= {"config", "run", "commands"}


def test_every_room_says_what_it_owns():
    packages = [path for path in ROOT.glob("srft_ray/*") if (path / "__init__.py").exists()]
    assert len(packages) == len([name for name in LEVEL_OF if (ROOT / "srft_ray" / name).is_dir()])
    for package in packages:
        assert ast.get_docstring(ast.parse((package / "__init__.py").read_text())), (
            f"{package} has no docstring"
        )
    assert len(list(ROOT.glob("srft_ray/*.py"))) <= 8


def test_processes_that_compute_nothing_import_nothing_large():
    """The coordinator, and Ray's own processes that handle the stream."""
    light = ("data.late", "observe.series_events", "sync.coordinator")
    modules = ", ".join(f"srft_ray.{module}" for module in light)
    large = {"torch", "transformers", "vllm", "deepspeed", "pyarrow", "pandas"}
    found = "import sys; print(*sys.modules)"
    python = [sys.executable, "-c", f"import {modules}; {found}"]
    loaded = subprocess.run(python, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not large & set(loaded)


def test_algorithms_are_short_files():
    """A method is one readable file; the vocabulary that methods are made of is not much longer."""
    import algorithms

    lengths = {file.name: len(file.read_text().splitlines()) for file in ALGORITHMS}
    methods = {f"{cls.__module__.removeprefix('algorithms.')}.py" for cls in algorithms.REGISTRY.values()}
    assert max(lengths.values()) <= 200
    assert {name: lengths[name] for name in methods if lengths[name] > 80} == {}
