"""The exercises, declared: one file per lesson, each with a ``LESSON``.

To add a lesson's exercises, put a file beside the others; nothing else has to know.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil

from mha_course.checking.exercise import Exercise, Lesson, Question


@functools.cache
def lessons() -> tuple[Lesson, ...]:
    """All declared lessons, in the order of their numbers."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            found.append(importlib.import_module(f"{__name__}.{module.name}").LESSON)
    return tuple(sorted(found, key=lambda lesson: lesson.folder))


@functools.cache
def _by_name() -> dict[str, Exercise | Question]:
    names: dict[str, Exercise | Question] = {}
    for lesson in lessons():
        for item in (*lesson.exercises, *lesson.questions):
            if item.name in names:
                raise ValueError(f"{lesson.folder}: there are two exercises named {item.name!r}; rename one")
            names[item.name] = item
    return names


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
        raise KeyError(f"there is no exercise called {name!r}.{hint}") from None
