"""A course on multi-head attention: build it yourself, have it checked, understand why.

    from mha_course import check, plots

Importing this package costs nothing: torch and everything else is loaded when it is first needed. This file and
``__main__.py`` keep to the syntax of Python 3.6, so that an old Python can still say what is wrong with it.
"""

import importlib
import sys

__version__ = "0.1.0"

# The public names, and the module each comes from ("" = the name is itself a module of this package).
_PLACES = {
    "check": "tutor",
    "CheckFailed": "tutor",
    "NotYetWritten": "tutor",
    "plots": "",
    "reference": "",
}

__all__ = ["__version__", *sorted(_PLACES)]


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))
    place = _PLACES[name]
    try:
        module = importlib.import_module(__name__ + "." + (place or name))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == __name__:
            raise
        message = "mha_course needs {}, which this Python ({}) does not have. To see what to do, run: {}"
        command = "python3 -m mha_course doctor"
        raise ImportError(message.format(error.name, sys.executable, command)) from None
    value = getattr(module, name) if place else module
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(_PLACES))
