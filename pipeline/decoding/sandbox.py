"""What a process that reads untrusted files may still do: read files, compute, and answer over what it holds open.

`confine` takes from the calling process, for good, new privileges, the network, other programs and processes, changes to files,
and more open files than it needs. Linux only; what a kernel refuses is returned in words, so that it can be said.
"""

import ctypes
import errno
import math
import os
import platform
import resource
import struct
from collections.abc import Iterable
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
OPEN_FILES = 256
# Of each architecture: its audit number, the call `seccomp`, calls that open a file with the place of their flags among their
# arguments, and the calls that are refused. Numbers as in the kernel's tables (asm/unistd_64.h, asm-generic/unistd.h).
_NEW_EVERYWHERE = {
    **{"pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "pidfd_open": 434},
    **{"openat2": 437, "pidfd_getfd": 438, "process_madvise": 440, "fchmodat2": 452},
}
_CALLS: dict[str, tuple[int, int, dict[str, tuple[int, int]], dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        317,
        {"open": (2, 1), "openat": (257, 2)},
        {
            **_NEW_EVERYWHERE,
            **{"socket": 41, "connect": 42, "bind": 49, "listen": 50},
            **{"execve": 59, "execveat": 322},
            **{"kill": 62, "ptrace": 101, "rt_sigqueueinfo": 129, "tkill": 200, "rt_tgsigqueueinfo": 297},
            **{"process_vm_readv": 310, "process_vm_writev": 311, "perf_event_open": 298, "bpf": 321, "userfaultfd": 323},
            **{"unshare": 272, "setns": 308, "add_key": 248, "request_key": 249, "keyctl": 250},
            **{"truncate": 76, "ftruncate": 77, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "link": 86, "unlink": 87},
            **{"symlink": 88, "chmod": 90, "fchmod": 91, "chown": 92, "fchown": 93, "lchown": 94, "mknod": 133},
            **{"setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "mkdirat": 258, "mknodat": 259, "fchownat": 260},
            **{"unlinkat": 263, "renameat": 264, "linkat": 265, "symlinkat": 266, "fchmodat": 268, "utimensat": 280},
            **{"renameat2": 316},
        },
    ),
    "aarch64": (
        0xC00000B7,
        277,
        {"openat": (56, 2)},
        {
            **_NEW_EVERYWHERE,
            **{"socket": 198, "bind": 200, "listen": 201, "connect": 203, "execve": 221, "execveat": 281},
            **{"ptrace": 117, "kill": 129, "tkill": 130, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240},
            **{"process_vm_readv": 270, "process_vm_writev": 271, "perf_event_open": 241, "bpf": 280, "userfaultfd": 282},
            **{"unshare": 97, "setns": 268, "add_key": 217, "request_key": 218, "keyctl": 219},
            **{"setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "mknodat": 33, "mkdirat": 34, "unlinkat": 35, "symlinkat": 36},
            **{"linkat": 37, "renameat": 38, "truncate": 45, "ftruncate": 46, "fchmod": 52, "fchmodat": 53, "fchownat": 54},
            **{"fchown": 55, "utimensat": 88, "renameat2": 276},
        },
    ),
}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ, JGE, JSET, BPF_RET
_CALL, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # where they are in struct seccomp_data, in bytes; an argument has 8
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000  # calls of the 32-bit interface of x86-64 begin here
_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine(open_files: int = OPEN_FILES) -> list[str]:
    """Confine this process and all its threads; returns what could not be done, in words. Call it before anything untrusted.

    Refused calls fail with EPERM. Files that are already open for writing take no more bytes, standard output too.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes, libc.prctl.restype = [ctypes.c_int, *[ctypes.c_ulong] * 4], ctypes.c_int
    libc.syscall.argtypes, libc.syscall.restype = [ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p], ctypes.c_long
    failed = []
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, open_files)):
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        failed.append(f"new privileges are not ruled out: {os.strerror(ctypes.get_errno())}")
    if platform.machine() not in _CALLS:
        return [*failed, f"network, programs and changes to files are not closed on {platform.machine()}"]
    architecture, seccomp, opening, refused = _CALLS[platform.machine()]
    code = _filter(architecture, opening.values(), refused.values())
    program = _Program(len(code) // 8, code)
    if libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program)):
        failed.append(f"network, programs and changes to files are not closed: {os.strerror(ctypes.get_errno())}")
    return failed


def _filter(architecture: int, opening: Iterable[tuple[int, int]], refused: Iterable[int]) -> bytes:
    """A seccomp filter: EPERM for these calls, for opening otherwise than for reading, and for all of another architecture."""
    refuse = (_RETURN, 0, 0, _REFUSE)
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), refuse]
    lines += [(_LOAD, 0, 0, _CALL), (_AT_LEAST, 0, 1, _X32), refuse]
    for call in sorted(refused):
        lines += [(_EQUAL, 0, 1, call), refuse]
    for call, place in opening:  # both architectures have the low half of an argument first
        flags = _ARGUMENTS + 8 * place
        lines += [(_EQUAL, 0, 4, call), (_LOAD, 0, 0, flags), (_ANY_BIT, 0, 1, _CHANGES), refuse, (_RETURN, 0, 0, _ALLOW)]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def limit_memory(more: int) -> None:
    """Let this process take at most `more` bytes more than it has now, so that a decompression bomb ends only itself."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + more, resource.RLIM_INFINITY))


def limit_processor(more: float) -> None:
    """Let this process compute for at most `more` seconds more, of all its threads; SIGXCPU ends it then."""
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(spent + more), resource.RLIM_INFINITY))
