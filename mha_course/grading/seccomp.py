"""Calls of the kernel that a learner's process cannot make: a filter (seccomp) that it cannot take off again.

It is inherited by everything that the process starts. Linux on x86-64 and 64-bit ARM; elsewhere nothing happens.
How such a filter is written: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

NAMESPACES = ("unshare", "setns", "mount", "clone", "clone3")
OTHERS = ("ptrace", "process_vm_readv", "process_vm_writev", "bpf", "io_uring_setup", "userfaultfd")
PROGRAMS = ("execve", "execveat")
NUMBERS = {  # the architecture's, then of each call
    "x86_64": (
        0xC000003E,
        dict(zip(NAMESPACES, (272, 308, 165, 56, 435)))
        | dict(zip(OTHERS, (101, 310, 311, 321, 425, 323)))
        | dict(zip(PROGRAMS, (59, 322))),
    ),
    "aarch64": (
        0xC00000B7,
        dict(zip(NAMESPACES, (97, 268, 40, 220, 435)))
        | dict(zip(OTHERS, (117, 270, 271, 280, 425, 282)))
        | dict(zip(PROGRAMS, (221, 281))),
    ),
}
NEW_NAMESPACES = 0x7E020000  # flags of clone: user, mount, network and the others
LOAD, EQUAL, ABOVE, ANY_BIT, GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def refuse(calls: tuple[str, ...]) -> bool:
    """From now on these calls fail, in this process and all that it starts. Whether the kernel agreed.

    Args:
        calls: names, of those above. Of "clone" only what makes namespaces; "clone3" is as if there were none, so that
            the C library takes "clone".
    """
    architecture, numbers = NUMBERS.get(platform.machine(), (0, {}))
    if sys.platform != "linux" or not numbers:
        return False
    lines = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (GIVE, 0, 0, REFUSE)]
    lines += [
        (LOAD, 0, 0, 0),
        (ABOVE, 0, 1, 0x40000000),
        (GIVE, 0, 0, REFUSE),
    ]  # x86-64's calls by other numbers
    for name in calls:
        if name == "clone":
            flags = [
                (LOAD, 0, 0, 16),
                (ANY_BIT, 0, 1, NEW_NAMESPACES),
                (GIVE, 0, 0, REFUSE),
                (GIVE, 0, 0, ALLOW),
            ]
            lines += [(EQUAL, 0, len(flags), numbers[name]), *flags]
        else:
            lines += [(EQUAL, 0, 1, numbers[name]), (GIVE, 0, 0, UNKNOWN if name == "clone3" else REFUSE)]
    lines.append((GIVE, 0, 0, ALLOW))
    program = b"".join(struct.pack("HBBI", *line) for line in lines)
    kept = ctypes.create_string_buffer(program, len(program))
    filter_ = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(kept))
    libc = ctypes.CDLL(None)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, without which no filter is taken
    return libc.prctl(22, 2, filter_, 0, 0) == 0  # PR_SET_SECCOMP, by a filter
