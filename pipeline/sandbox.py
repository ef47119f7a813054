"""What a process that reads untrusted files may still do: little.

`confine` takes from the calling process, for good, new privileges, the network, other programs, files written and more files open
than it needs. Linux only; what a kernel refuses is returned in words, so that it can be said.
"""

import ctypes
import errno
import os
import platform
import resource
import struct

PR_SET_NO_NEW_PRIVS = 38
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
OPEN_FILES = 256
# Of the calls that are refused: numbers by architecture, as in the kernel's tables (asm/unistd_64.h, asm-generic/unistd.h).
_CALLS = {
    "x86_64": (
        0xC000003E,
        317,
        {
            "socket": 41,
            "connect": 42,
            "bind": 49,
            "listen": 50,
            "execve": 59,
            "execveat": 322,
            "ptrace": 101,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
            "io_uring_setup": 425,
            "pidfd_getfd": 438,
        },
    ),
    "aarch64": (
        0xC00000B7,
        277,
        {
            "socket": 198,
            "bind": 200,
            "listen": 201,
            "connect": 203,
            "execve": 221,
            "execveat": 281,
            "ptrace": 117,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
            "io_uring_setup": 425,
            "pidfd_getfd": 438,
        },
    ),
}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of a filter: BPF_LD|W|ABS, BPF_JMP|JEQ, JGE, BPF_RET
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000  # calls of the 32-bit interface of x86-64 begin here


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine(open_files: int = OPEN_FILES) -> list[str]:
    """Confine this process and all its threads; returns what could not be done, in words. Call it before anything untrusted."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes, libc.prctl.restype = [ctypes.c_int, *[ctypes.c_ulong] * 4], ctypes.c_int
    libc.syscall.argtypes, libc.syscall.restype = [ctypes.c_long, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p], ctypes.c_long
    failed = []
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, open_files))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        failed.append(f"new privileges are not ruled out: {os.strerror(ctypes.get_errno())}")
    if platform.machine() not in _CALLS:
        return [*failed, f"network and programs are not closed on {platform.machine()}"]
    architecture, seccomp, calls = _CALLS[platform.machine()]
    code = _filter(architecture, sorted(calls.values()))
    program = _Program(len(code) // 8, code)
    if libc.syscall(seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program)):
        failed.append(f"network and programs are not closed: {os.strerror(ctypes.get_errno())}")
    return failed


def _filter(architecture: int, refused: list[int]) -> bytes:
    """A seccomp filter: these calls, and all of another architecture or interface, give EPERM."""
    checks = len(refused) + 1
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 0, checks + 2, architecture), (_LOAD, 0, 0, 0), (_AT_LEAST, checks, 0, _X32)]
    lines += [(_EQUAL, checks - 1 - place, 0, number) for place, number in enumerate(refused)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
