"""What ``from mha_course import check, doctor, measuring`` gives a learner's process while it is marked: nothing.

The marks are made on the other side. Practice cells that call ``check()`` run on.
"""

from __future__ import annotations


class CheckFailed(Exception):
    """As in practice; never raised here."""


class NotYetWritten(CheckFailed):
    """As in practice; never raised here."""


def check(*answers: object, **named: object) -> None:
    """Marks are made elsewhere."""


def report(*_anything: object, **_more: object) -> list[str]:
    """The doctor has no complaints: this machine is the instructor's."""
    return []
