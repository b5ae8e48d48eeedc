"""The exercises, declared: one file per lesson, each with a ``LESSON``.

To add a lesson's exercises, put a file beside the others; nothing else has to know.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from mha_course.checking.exercise import Exercise, Lesson, Question


@functools.cache
def _loaded() -> tuple[tuple[Lesson, ...], dict[str, Exception]]:
    """The lessons, and what went wrong with files that cannot be loaded: one of them must not stop the others."""
    found, broken = [], {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        try:
            found.append(importlib.import_module(f"{__name__}.{module.name}").LESSON)
        except Exception as error:
            broken[module.name] = error
    return tuple(sorted(found, key=lambda lesson: lesson.folder)), broken


def lessons() -> tuple[Lesson, ...]:
    """All declared lessons, in the order of their numbers."""
    return _loaded()[0]


def broken() -> dict[str, Exception]:
    """Files of exercises that cannot be loaded, and why; empty when all is well."""
    return _loaded()[1]


@functools.cache
def _by_name() -> dict[str, Exercise | Question]:
    names: dict[str, Exercise | Question] = {}
    for lesson in lessons():
        for item in (*lesson.exercises, *lesson.questions):
            if item.name in names:
                raise ValueError(f"{lesson.folder}: there are two exercises named {item.name!r}; rename one")
            names[item.name] = item
    for item in names.values():
        if missing := [name for name in getattr(item, "builds_on", ()) if name not in names]:
            raise ValueError(f"{item.name} builds on {' and '.join(missing)}, which no lesson has")
    return names


def forget() -> None:
    """Look at the files again at the next question (after one was added)."""
    _loaded.cache_clear()
    _by_name.cache_clear()


def find(name: str) -> Exercise | Question:
    """The exercise or question of that name.

    Raises:
        KeyError: no exercise is called so; the message names those that sound alike.
    """
    try:
        return _by_name()[name]
    except KeyError:
        import difflib

        close = difflib.get_close_matches(name, _by_name(), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        for file, error in broken().items():
            hint += f" (exercises/{file}.py cannot be loaded: {type(error).__name__}: {error})"
        raise KeyError(f"there is no exercise called {name!r}.{hint}") from None
