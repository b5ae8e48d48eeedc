"""Which of the reference's functions a learner's process is lent.

An exercise may build on earlier ones (``builds_on``), a learner may go on with the reference's, and a lesson's
own cells import what earlier lessons were about. So those functions, with what they call themselves, enter the
process as source text, and every other name is there only to say that it is switched off. An exercise of the very
lesson enters only a process in which that one is not asked, but what builds on it (see `score`).
"""

from __future__ import annotations

import ast
import contextlib
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def imported(sources: Iterable[str]) -> set[str]:
    """Names that released cells import from the reference."""
    names: set[str] = set()
    for source in sources:
        with contextlib.suppress(SyntaxError):
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.ImportFrom) and node.module == "mha_course.reference":
                    names |= {alias.name for alias in node.names}
    return names


@functools.cache
def _modules() -> dict[str, ast.Module]:
    """The reference's files, parsed, by stem."""
    import mha_course.reference as reference

    files = sorted(file for folder in reference.__path__ for file in Path(folder).glob("*.py"))
    return {
        path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in files if path.stem != "__init__"
    }


def _names(node: ast.stmt) -> list[str]:
    """What one statement of a file's outermost level defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


@functools.cache
def _homes() -> dict[str, str]:
    """For each name that the reference defines, the stem of its file."""
    return {name: stem for stem, tree in _modules().items() for node in tree.body for name in _names(node)}


def has(name: str) -> bool:
    """Whether the reference has something of this name."""
    return name in _homes()


def comes_along(names: Iterable[str]) -> set[str]:
    """All that enters a process together with these: who is lent one of them could find the others there."""
    needed: dict[str, set[str]] = {}
    for name in filter(has, names):
        _collect(_homes()[name], name, needed, [])
    return set().union(*needed.values())


def loan(names: Iterable[str]) -> dict[str, Any]:
    """What `worker` needs to provide these functions of the reference and no other.

    Args:
        names: functions or classes; those that the reference does not have are left out.
    """
    homes = _homes()
    needed: dict[str, set[str]] = {}
    order: list[str] = []
    allowed = [(homes[name], name) for name in dict.fromkeys(names) if name in homes]
    for stem, name in allowed:
        _collect(stem, name, needed, order)
    everything = {
        stem: [n for n, home in homes.items() if home == stem and n != "__all__"] for stem in _modules()
    }
    public = [name for stem in everything for name in everything[stem] if not name.startswith("_")]
    return {
        "allowed": allowed,
        "sources": {stem: _source(stem, needed[stem]) for stem in order},
        "switched_off": public,
        "modules": everything,
    }


def _collect(stem: str, name: str, needed: dict[str, set[str]], order: list[str]) -> None:
    """Note a name and everything it uses, in the order in which files must be loaded."""
    if name in needed.setdefault(stem, set()):
        return
    needed[stem].add(name)
    tree = _modules()[stem]
    imported = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
    for node in tree.body:
        if name not in _names(node):
            continue
        for used in {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}:
            if _homes().get(used) == stem and used != "__all__":
                _collect(stem, used, needed, order)
            elif used in imported and imported[used][0] in _modules():
                needed[stem].add(used)
                _collect(*imported[used], needed, order)
    if stem in order:
        order.remove(stem)
    order.append(stem)


def _source(stem: str, names: set[str]) -> str:
    """A file's text with only these names in it."""
    body: list[ast.stmt] = []
    for node in _modules()[stem].body:
        if isinstance(node, ast.ImportFrom) and node.level:
            kept = [alias for alias in node.names if (alias.asname or alias.name) in names]
            if kept:
                body.append(ast.ImportFrom(node.module, kept, node.level))
        elif isinstance(node, (ast.Import, ast.ImportFrom)) or set(_names(node)) & names:
            body.append(node)
    return ast.unparse(ast.Module(body, []))
