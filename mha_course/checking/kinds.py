"""What an outcome, a failure or a difference can be: states that code depends on, each with one name.

They are strings, so that they print, compare and cross a process boundary as they are.
"""

from enum import StrEnum


class Status(StrEnum):
    """The outcome of one check."""

    RIGHT = "right"
    WRONG = "wrong"
    NOT_WRITTEN = "not written"
    BORROWED = "borrowed"
    BROKEN = "broken"  # the check itself stumbled: nothing is known about the answer


class FailureKind(StrEnum):
    """How a call of an answer failed."""

    RAISED = "raised"
    NOT_WRITTEN = "not written"
    TOO_SLOW = "too slow"
    PARAMETERS = "parameters"  # the state dict does not fit
    SWITCHED_OFF = "switched off"  # something ready-made was called that is switched off while this is marked
    # on the pretended GPU
    MIXED = "mixed"  # a tensor on the CPU met one on the GPU
    ATTRIBUTE = "attribute"  # the same, and it is a module's plain attribute
    WAITS = "waits"  # the host needs a number's value
    ROUND_TRIP = "round trip"  # to the CPU and back


class DifferenceKind(StrEnum):
    """In what way an answer is not what was expected."""

    RAISED = "raised"
    NOT_WRITTEN = "not written"
    TOO_SLOW = "too slow"
    PARAMETERS = "parameters"
    ACCEPTED = "accepted"  # it should have refused this input
    STRUCTURE = "structure"
    TYPE = "type"
    SUBCLASS = "subclass"
    SHAPE = "shape"
    DEVICE = "device"
    DTYPE = "dtype"
    NOT_FINITE = "not finite"
    VALUES = "values"
    CHANGED = "changed"  # it wrote into its inputs
    TOO_LARGE = "too large"
    DETACHED = "detached"
    GRADIENTS = "gradients"
