"""How the package is built, in numbers: its folders, the imports between them, files and functions.

python -m tests.structure [--root quantdraft]

Prints modules and folders at the root, lines by folder, imports between folders, imports that point
up by the order in `tests/layout.txt` (where there is one), circles, and the sizes of files and
functions. The last line is one JSON object. All imports count: also those inside functions and
those for type checking.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "quantdraft"
LAYOUT_FILE = Path(__file__).with_name("layout.txt")

Imports = dict[str, set[str]]  # module -> modules, as paths without `.py`: "judge/acceptance"


@dataclass(frozen=True, slots=True)
class Layout:
    """The declared order: what a folder holds, top to bottom, and what it may import."""

    entries: Mapping[str, tuple[str, ...]]  # folder -> its modules and folders; "" is the root
    may_import: Mapping[str, tuple[str, ...]]  # folder at the root -> folders, or modules in them

    def modules(self) -> set[str]:
        """Every module that has a place."""
        return {
            f"{folder}/{entry}".lstrip("/")
            for folder, entries in self.entries.items()
            for entry in entries
            if f"{folder}/{entry}".lstrip("/") not in self.entries
        }

    def fault(self, module: str, imported: str) -> str | None:
        """Why the import is not allowed, or None."""
        steps = list(zip(module.split("/"), imported.split("/"), strict=False))
        depth = next((i for i, (a, b) in enumerate(steps) if a != b), len(steps) - 1)
        folder = "/".join(module.split("/")[:depth])
        order = self.entries.get(folder, ())
        upper, lower = steps[depth]
        if upper not in order or lower not in order:
            return "has no place"
        if order.index(upper) >= order.index(lower):
            return "points up"
        allowed = self.may_import.get(upper)
        if folder or lower not in self.may_import or allowed is None:
            return None
        return None if any(is_within(imported, place) for place in allowed) else "is not allowed"


def is_within(module: str, place: str) -> bool:
    """True for the place itself and for whatever lies in it."""
    return module == place or module.startswith(f"{place}/")


def read_layout(path: Path = LAYOUT_FILE) -> Layout:
    """The order in the file; its first lines say how it is written."""
    entries: dict[str, tuple[str, ...]] = {}
    may_import: dict[str, tuple[str, ...]] = {}
    root: list[str] = []
    folder = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not line.startswith(" "):
            root.append(words[0].rstrip(":"))
            if words[0].endswith(":"):
                folder = root[-1]
                may_import[folder] = tuple(words[1:])
                entries[folder] = ()
        elif words[0].endswith("/:"):
            inner = f"{folder}/{words[0][:-2]}"
            entries[inner] = entries.get(inner, ()) + tuple(words[1:])
        else:
            entries[folder] += tuple(word.rstrip("/") for word in words)
    return Layout(entries | {"": tuple(root)}, may_import)


def module_files(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module by its path without `.py`."""
    files = sorted(package.rglob("*.py"))
    return {file.relative_to(package).with_suffix("").as_posix(): file for file in files}


def imports_of(files: Mapping[str, Path]) -> Imports:
    """What each module imports of the package."""
    return {module: set(_imported(files, path)) - {module} for module, path in files.items()}


def imported_names(path: Path, inside_functions: bool = True) -> Iterator[tuple[str, str]]:
    """Every import of a file: the module's dotted name, and the name taken from it or ''."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if is_function and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        waiting += ast.iter_child_nodes(node)


def _imported(files: Mapping[str, Path], path: Path) -> Iterator[str]:
    for name, taken in imported_names(path):
        root, *steps = name.split(".")
        if root != "quantdraft":
            continue
        places = ["/".join([*steps, taken]), "/".join(steps), "/".join([*steps, "__init__"])]
        yield from [place for place in places if place in files][:1]


def upward(imports: Imports, layout: Layout) -> list[str]:
    """Every import that the layout does not allow, as a sentence."""
    return [
        f"{module} imports {each}: it {fault}"
        for module, imported in sorted(imports.items())
        for each in sorted(imported)
        if (fault := layout.fault(module, each)) is not None
    ]


def circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of more than one that import each other, directly or by way of others."""
    reached = {each: _reached(imports, each) for each in imports}
    found = {
        tuple(sorted(b for b in reached[a] if a in reached.get(b, ())))
        for a in imports
        if a in reached[a]
    }
    return [list(each) for each in sorted(found)]


def _reached(imports: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(imports.get(start, ()))
    while waiting:
        each = waiting.pop()
        if each not in seen:
            seen.add(each)
            waiting += imports.get(each, ())
    return seen


def rooms(imports: Imports) -> dict[str, set[str]]:
    """The same between what lies at the root: folders as wholes, and single modules."""
    found: dict[str, set[str]] = {}
    for module, imported in imports.items():
        room = module.split("/")[0]
        others = {each.split("/")[0] for each in imported}
        found.setdefault(room, set()).update(others - {room})
    return found


def functions_in(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def is_annotated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True where every argument but self and cls, and what is returned, has its type."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    typed = all(a.annotation is not None for a in named if a.arg not in {"self", "cls"})
    return typed and function.returns is not None


def documented(path: Path) -> tuple[int, int]:
    """How many public classes and functions have a docstring, and how many there are."""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = [
        node
        for parent in ast.walk(tree)
        if isinstance(parent, ast.Module | ast.ClassDef)
        for node in parent.body
        if isinstance(node, kinds) and not node.name.startswith("_")
    ]
    return sum(ast.get_docstring(node) is not None for node in public), len(public)


def sizes(lengths: Mapping[str, int]) -> dict[str, Any]:
    """Median, 90th percentile, and the longest by name."""
    values = sorted(lengths.values())
    longest = max(lengths, key=lambda name: lengths[name])
    return {
        "num": len(values),
        "median": statistics.median(values),
        "p90": values[int(0.9 * (len(values) - 1))],
        "max": lengths[longest],
        "longest": longest,
    }


def structure(package: Path = PACKAGE, layout: Layout | None = None) -> dict[str, Any]:
    """All numbers, as plain JSON values."""
    files = module_files(package)
    imports = imports_of(files)
    between = rooms(imports)
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in files.items()}
    by_folder: Counter[str] = Counter()
    for name, count in lines.items():
        by_folder[name.split("/")[0] if "/" in name else "."] += count
    functions = [(name, each) for name, path in files.items() for each in functions_in(path)]
    docstrings = [documented(path) for path in files.values()]
    return {
        "modules_at_root": sum("/" not in name for name in files),
        "folders_at_root": len({name.split("/")[0] for name in files if "/" in name}),
        "files": sizes(lines),
        "lines": sum(lines.values()),
        "lines_by_folder": dict(by_folder.most_common()),
        "functions": sizes(
            {
                f"{name}:{each.name}:{each.lineno}": (each.end_lineno or 0) - each.lineno + 1
                for name, each in functions
            }
        ),
        "annotated": _share(sum(is_annotated(each) for _, each in functions), len(functions)),
        "docstrings": _share(*(sum(column) for column in zip(*docstrings, strict=True))),
        "arrows_between_rooms": sum(len(others) for others in between.values()),
        "circles_of_modules": circles(imports),
        "circles_of_rooms": circles(between),
        "upward": None if layout is None else upward(imports, layout),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0


def arrows(between: Mapping[str, set[str]], folders: Sequence[str]) -> Iterator[str]:
    """A line a folder: what of the root it imports."""
    for folder in folders:
        yield f"  {folder}: {', '.join(sorted(between[folder])) or 'nothing'}"


def main() -> None:
    """Print what a reader looks for, then the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=PACKAGE, help="the package's directory")
    root = parser.parse_args().root
    layout = read_layout() if LAYOUT_FILE.exists() else None
    found = structure(root, layout)
    print(f"{found['modules_at_root']} modules and {found['folders_at_root']} folders at the root")
    print(f"{found['lines']:,} lines in {found['files']['num']} files; by folder:")
    for folder, count in found["lines_by_folder"].items():
        print(f"  {folder}: {count:,}")
    for what in ("files", "functions"):
        each = found[what]
        print(
            f"{what}: median {each['median']:g} lines, 90 % under {each['p90']}, "
            f"longest {each['max']} ({each['longest']})"
        )
    print(f"annotated {found['annotated']:.1%}, public docstrings {found['docstrings']:.1%}")
    between = rooms(imports_of(module_files(root)))
    print(f"{found['arrows_between_rooms']} arrows between what lies at the root; of its folders:")
    print("\n".join(arrows(between, [f for f in found["lines_by_folder"] if f != "."])))
    for what in ("circles_of_modules", "circles_of_rooms"):
        print(f"{what.replace('_', ' ')}: {len(found[what])}")
        for circle in found[what]:
            print(f"  {' '.join(circle)}")
    if found["upward"] is None:
        print("imports that point up: no order is declared")
    else:
        print("\n  ".join([f"imports that point up: {len(found['upward'])}", *found["upward"]]))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
