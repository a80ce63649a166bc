"""The parts of the package stand on each other in one order, and nothing below needs what is above."""

import ast
import subprocess
import sys
from collections import deque
from functools import cache
from pathlib import Path

import pytest

import numprune

PACKAGE = Path(numprune.__file__).parent

ORDER = (
    ("errors.py", "files.py", "heap.py", "lazy.py", "linalg.py", "ranks.py", "vllm/", "waiting.py"),
    ("plan/",),
    ("models/",),
    ("generation/",),
    ("llamagen/",),
    ("slicing/__init__.py", "slicing/stream.py"),
    ("calibration/", "loading/"),
    ("fitting/", "scoring/", "slicing/"),
    ("allocation/",),
    ("pruning.py",),
    ("layerwise/",),
    ("evaluation/",),
    ("export/",),
    ("evaluation/engines/",),
    ("__init__.py",),
    ("__main__.py", "cli/", "ui/"),
)
"""From the bottom to the top. A file may import what stands beside or below it; the longest fitting name counts."""


def engine(file):
    """Everything but the page."""
    return not file.startswith("ui/")


def modules(package):
    """The files of a package by the dotted names they are imported under."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        parts = file.removesuffix(".py").removesuffix("__init__").strip("/")
        found[".".join([package.name, *filter(None, parts.split("/"))])] = file
    return found


def named(tree, module, is_package):
    """Every module a file names in its imports, wherever they stand: (module, names taken from it).

    Names of modules in plain strings count too: the package's own `__init__` imports by them.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            yield ".".join([*parent, *filter(None, [node.module])]), [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield node.value, []


@cache
def imports(package):
    """The files of the package that each of its files runs by its imports, and the other packages each names."""
    known, inner, outer = modules(package), {}, {}
    for module, file in known.items():
        inner[file], outer[file] = set(), set()
        is_package = file.endswith("__init__.py")
        for name, taken in named(ast.parse((package / file).read_text(encoding="utf8")), module, is_package):
            if name not in known:
                outer[file].add(name.split(".")[0])
                continue
            asked = [f"{name}.{each}" if f"{name}.{each}" in known else name for each in taken] or [name]
            for target in asked:
                parts = target.split(".")
                above = [".".join(parts[:end]) for end in range(1, len(parts))]
                # The packages a file lies in began to run before it did.
                ran = [each for each in above if not f"{module}.".startswith(f"{each}.")]
                inner[file] |= {known[each] for each in [*ran, target]}
        inner[file].discard(file)
    return inner, outer


def circle(graph):
    """The shortest way from a file back to itself, that file first and last; None when there is none."""
    return min(filter(None, (way_back(graph, file) for file in sorted(graph))), key=len, default=None)


def way_back(graph, start):
    ways, seen = deque([[start]]), set()
    while ways:
        way = ways.popleft()
        for file in sorted(graph[way[-1]] & graph.keys()):
            if file == start:
                return [*way, start]
            if file not in seen:
                seen.add(file)
                ways.append([*way, file])
    return None


def level(file):
    """How high a file stands in the order."""
    fitting = [(len(name), height) for height, names in enumerate(ORDER) for name in names if file.startswith(name)]
    assert fitting, f"{file} has no place in the order; give it one"
    return max(fitting)[1]


def test_no_file_imports_itself_by_way_of_others():
    inner, _ = imports(PACKAGE)
    way = circle(inner)
    assert way is None, "a circle: " + " imports ".join(way)


def test_every_file_imports_from_its_own_height_or_below():
    inner, _ = imports(PACKAGE)
    upward = [f"{file} imports {up}" for file in inner for up in sorted(inner[file]) if level(up) > level(file)]
    assert not upward, "; ".join(upward)


def test_no_tab_of_the_page_knows_the_page_or_another_tab():
    inner, _ = imports(PACKAGE)
    tabs = {file for file in inner if file.startswith("ui/tabs/") and file != "ui/tabs/__init__.py"}
    parts = {"ui/tabs/hub.py"}
    for file in tabs:
        assert not inner[file] & ({"ui/app.py"} | tabs - parts), file


def test_only_the_page_imports_gradio():
    _, outer = imports(PACKAGE)
    assert [file for file in outer if engine(file) and "gradio" in outer[file]] == []


def test_the_plan_is_data_without_torch():
    _, outer = imports(PACKAGE)
    assert [file for file in outer if file.startswith("plan/") and outer[file] & {"torch", "transformers"}] == []


def test_no_package_exports_a_function_under_the_name_of_the_file_it_is_in():
    """The function would stand in the way of the module: `numprune.part.name` could mean either."""
    known = modules(PACKAGE)
    hidden = [
        f"{module}.{name}"
        for module, file in known.items()
        if file.endswith("__init__.py")
        for source, taken in named(ast.parse((PACKAGE / file).read_text(encoding="utf8")), module, True)
        for name in taken
        if source == f"{module}.{name}"
    ]
    assert not hidden


def loaded_by(*names):
    """The packages in memory once these modules are imported in a fresh process."""
    code = f"import sys, {', '.join(names)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    return set(done.stdout.split())


def test_the_package_itself_waits_for_no_heavy_import():
    assert not loaded_by("numprune") & {"torch", "gradio"}


def test_the_plan_loads_no_torch():
    names = [name for name in modules(PACKAGE) if name.startswith("numprune.plan")]
    assert not loaded_by(*names) & {"torch", "transformers"}


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": set()}, None),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "ui": {"a"}}, ["a", "b", "c", "a"]),
    ],
)
def test_a_circle_is_found_and_spelled_out(graph, expected):
    assert circle(graph) == expected


def test_imports_are_seen_wherever_they_stand(tmp_path):
    """Under TYPE_CHECKING, in functions, relative ones and by name; and the packages that run with them."""
    package = tmp_path / "house"
    files = {
        "__init__.py": "LAZY = {'house.up.stairs': 'step'}",
        "ground.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.up.stairs import step",
        "up/__init__.py": "from .stairs import step",
        "up/stairs.py": "import gradio\ndef step():\n    from house import ground",
    }
    for file, text in files.items():
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).write_text(text)
    inner, outer = imports(package)
    assert inner == {
        "__init__.py": {"up/__init__.py", "up/stairs.py"},
        "ground.py": {"up/__init__.py", "up/stairs.py"},
        "up/__init__.py": {"up/stairs.py"},
        "up/stairs.py": {"ground.py"},
    }
    assert "gradio" in outer["up/stairs.py"]
    assert circle(inner) == ["ground.py", "up/stairs.py", "ground.py"]
