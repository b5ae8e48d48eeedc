"""A bar for cells that take longer than a moment."""

from __future__ import annotations

import time
from collections.abc import Iterator


def progress_bar(steps: int, says: str = "") -> Iterator[int]:
    """Count 0, 1, … steps − 1, and show in the notebook how far it is. Nothing is written to stderr.

        for step in progress_bar(300, "training"):
            ...

    Args:
        steps: how many.
        says: what is going on, in a word or two.
    """
    shown = _Bar(steps, says)
    for step in range(steps):
        yield step
        shown.at(step + 1)


class _Bar:
    """In a notebook an HTML bar that is updated in place; elsewhere one line at the end."""

    def __init__(self, steps: int, says: str):
        self.steps, self.says, self.last, self.handle = steps, says, time.monotonic(), None
        try:
            from IPython import get_ipython
            from IPython.display import HTML, display
        except ImportError:
            return
        if get_ipython() is not None and hasattr(get_ipython(), "kernel"):
            self.html = HTML
            self.handle = display(self._drawn(0), display_id=True)

    def at(self, done: int) -> None:
        now, last = time.monotonic(), done == self.steps
        if now - self.last < 0.1 and not last:
            return
        self.last = now
        if self.handle is not None:
            self.handle.update(self._drawn(done))
        elif last:
            print(self._text(done))

    def _text(self, done: int) -> str:
        return f"{self.says or 'steps'}: {done} of {self.steps}"

    def _drawn(self, done: int):
        import html

        text = html.escape(self._text(done))
        return self.html(
            f'<label style="font-family:inherit">{text} <progress max="{self.steps}" value="{done}"></progress></label>'
        )
