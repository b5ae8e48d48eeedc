"""Imports nbformat without what takes it a second and is not used.

nbformat imports jsonschema, which imports rfc3987_syntax if it is there: a grammar, made anew in every process, for
addresses in other alphabets. No notebook's schema asks for one. jsonschema goes without where it is not installed.
"""

import sys

if "jsonschema" not in sys.modules and "rfc3987_syntax" not in sys.modules:
    sys.modules["rfc3987_syntax"] = (
        None  # not installed, that is: https://docs.python.org/3/reference/import.html
    )
    try:
        import nbformat  # noqa: F401
    finally:
        del sys.modules["rfc3987_syntax"]
