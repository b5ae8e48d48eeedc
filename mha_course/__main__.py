"""``python3 -m mha_course``: the same as the command ``mha-course``.

This file keeps to the syntax of Python 3.6 and the standard library, so that an old Python ends in a sentence.
"""

import sys

OLDEST = (3, 11)  # pyproject.toml says the same; a test compares them


def too_old(version, found=""):
    """The sentence for a Python of this version, or "" if it is new enough.

    Args:
        version: (major, minor, ...), like sys.version_info.
        found: a command that starts a newer Python here, if there is one.
    """
    if tuple(version[:2]) >= OLDEST:
        return ""
    sentence = "mha_course needs Python {}.{} or newer, this is {}.{}: {}."
    if found:
        advice = "run it with the newer one that is here: " + found + " -m mha_course"
    else:
        advice = "install a newer one (from python.org, or with your system's package manager), then run this again"
    return sentence.format(OLDEST[0], OLDEST[1], version[0], version[1], advice)


def newer_python():
    """A command on this machine that starts a Python new enough, or ""."""
    import os
    import subprocess

    commands = [["py", "-3"]] if sys.platform == "win32" else []
    commands += [["python3.{}".format(minor)] for minor in (13, 12, 11, 14)] + [["python3"]]
    test = "import sys; sys.exit(sys.version_info < {!r})".format(OLDEST)
    for command in commands:
        try:
            with open(os.devnull, "w") as nothing:
                if subprocess.call([*command, "-c", test], stdout=nothing, stderr=nothing) == 0:
                    return " ".join(command)
        except OSError:
            pass  # not on this machine
    return ""


def main():
    """Check the Python, then hand over to the command line. Gives the exit code."""
    if too_old(sys.version_info):
        sys.stderr.write(too_old(sys.version_info, newer_python()) + "\n")
        return 1
    from mha_course import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
