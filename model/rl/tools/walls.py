"""What the kernel refuses to a process that runs programs of a policy; such a process is taken to be hostile.

The wall is a seccomp filter: after it a process computes, allocates, and reads and writes the one socket it has. There
is no way left to files, network, other processes or further sockets, whatever machine code it runs. The filter needs
no privilege. The others stand behind it, each where the machine grants it:

    - limits of memory, processor time, descriptors (none), processes (none) and file size (none);
    - Landlock: no path, no TCP port, no signal, trace or abstract socket beyond the process itself;
    - a user id per session where the server is root, and no capability in any case;
    - namespaces of network, System V and POSIX IPC and processes around the server (root, or user namespaces);
    - no memory dump and no tracing (PR_SET_DUMPABLE 0), and death with the server (PR_SET_PDEATHSIG).

Not covered: bugs of the kernel in what is left, and side channels. For these, run the pods under gVisor
(``runtime_class`` of a task's placement).
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import resource
import signal
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

FIRST_UID, UIDS = 200_000, 100_000  # of sessions: outside the ranges of people and services (ours)

# System calls that a warm session makes, measured: it reads and writes its socket, allocates, and tells the time.
ALLOWED = (
    "read", "write", "brk", "munmap", "mremap", "madvise", "futex", "rt_sigreturn",
    "restart_syscall", "setitimer", "getrusage", "clock_gettime", "gettimeofday", "getrandom", "sched_yield",
    "exit", "exit_group",
)  # fmt: skip
# No program of good faith makes these: the process is killed at once. All others fail with EPERM, and a library that
# merely tries something (numpy asks for the number of cores, Python looks for a module) goes on.
FATAL = (
    "fork", "vfork", "clone", "clone3", "execve", "execveat", "ptrace", "process_vm_readv", "process_vm_writev",
    "process_madvise", "process_mrelease", "kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open",
    "pidfd_getfd", "pidfd_send_signal", "kcmp", "socket", "socketpair", "connect", "bind", "listen", "accept",
    "accept4", "sendmsg", "sendmmsg", "recvmsg", "recvmmsg", "shmget", "shmat", "shmctl", "semget", "semop", "semctl",
    "msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink", "memfd_create", "memfd_secret", "add_key",
    "request_key", "keyctl", "bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter",
    "io_uring_register", "io_setup", "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "open_tree",
    "move_mount", "fsopen", "fsmount", "mknod", "mknodat", "open_by_handle_at", "name_to_handle_at", "init_module",
    "finit_module", "delete_module", "kexec_load", "reboot", "swapon", "personality", "modify_ldt", "setuid", "setgid",
    "setresuid", "setresgid", "setgroups", "capset", "seccomp",
)  # fmt: skip

_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWPID, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x20000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
# The same on every architecture.
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF, _CLOSE_RANGE = 444, 446, 436
_CAPABILITIES_OF_SELF = struct.pack("Ii", 0x20080522, 0)  # version 3, this process
_LANDLOCK_PATHS = {1: 13, 2: 14, 3: 15, 4: 15}  # number of rights to paths by version; from 5 on 16
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Walls:
    """What holds on this machine.

    Attributes:
        seccomp: why there is no filter, or "" where there is one.
        landlock: version of its interface; 0 = none.
        namespaces: whether network, IPC and processes are the server's own.
        user_ids: whether each session has a user id of its own.
    """

    seccomp: str
    landlock: int
    namespaces: bool
    user_ids: bool

    def __str__(self) -> str:
        found = (
            (not self.seccomp, "seccomp"),
            (self.landlock, f"Landlock {self.landlock}"),
            (self.namespaces, "namespaces"),
            (self.user_ids, "a user id per session"),
        )
        return ", ".join(name for there, name in found if there) or "none"


def isolate() -> bool:
    """New network, IPC and process namespaces for the children to come; False where the kernel refuses them."""
    uid, gid = os.getuid(), os.getgid()
    flags = _CLONE_NEWNET | _CLONE_NEWPID | _CLONE_NEWIPC
    if uid == 0 and _libc.unshare(flags) == 0:
        return True
    if uid == 0 or _libc.unshare(flags | _CLONE_NEWUSER) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        # Without them this user has no name in the namespace, which is no reason to do without it.
        with suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def hide() -> None:
    """No other process of this user may read or trace this one and its children, and no core is dumped."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def die_with(parent: int) -> None:
    """The kernel kills this process when the thread that forked it ends; at once if ``parent`` has ended already."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


class Confinement:
    """The walls that the server prepares once, and that each session's process then puts around itself."""

    def __init__(self, namespaces: bool) -> None:
        self._server = os.getpid()
        self._filter, missing = _compile_filter()
        self._ruleset, landlock = _landlock()
        with open("/proc/self/statm") as statm:
            self._idle_bytes = int(statm.read().split()[0]) * resource.getpagesize()
        self.walls = Walls(missing, landlock, namespaces, os.geteuid() == 0 and _may_change_ids())

    def without_filter(self, why: str) -> None:
        """Go on without the filter, which this machine does not let one load."""
        self._filter = None
        self.walls = replace(self.walls, seccomp=why)

    def enter(self, connection: int, *, memory_mb: int, session_cpu_s: float, number: int) -> None:
        """Give up everything but the descriptor ``connection``, which becomes 0. Raises OSError if a wall fails.

        ``number`` is the session's: sessions of a root server have user ids of their own.
        """
        os.dup2(connection, 0)
        if self._ruleset >= 0:
            os.dup2(self._ruleset, 1)
        _close_from(2 if self._ruleset >= 0 else 1)
        cpu = math.ceil(session_cpu_s)
        for what, soft, hard in (
            (resource.RLIMIT_AS, *[self._idle_bytes + memory_mb * 2**20] * 2),
            (resource.RLIMIT_CPU, cpu, cpu + 1),  # SIGXCPU, which tells why; then SIGKILL
            (resource.RLIMIT_FSIZE, 0, 0),
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_NPROC, 0, 0),
            (resource.RLIMIT_NOFILE, 0, 0),
        ):
            _, most = resource.getrlimit(what)
            hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
            resource.setrlimit(what, (min(soft, hard), hard))
        if self.walls.user_ids:
            _become(FIRST_UID + number % UIDS)
        _checked(_libc.capset(_CAPABILITIES_OF_SELF, bytes(24)), "capset")  # a user namespace gives all of them
        # A change of ids takes the next two back.
        die_with(self._server)
        hide()
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
        if self._ruleset >= 0:
            _checked(_libc.syscall(_LANDLOCK_RESTRICT_SELF, 1, 0), "Landlock")
            os.close(1)
        if self._filter is not None:
            self._filter.load()


def _compile_filter() -> tuple[Any, str]:
    """The filter, or None and why there is none."""
    try:
        import pyseccomp as seccomp
    except (ImportError, RuntimeError, OSError):  # RuntimeError: it finds no libseccomp
        return None, "libseccomp is not installed (Debian: apt install libseccomp2)"
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    try:
        rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
        rules.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)  # a tree: a call costs a handful of comparisons
        for name in ALLOWED:
            rules.add_rule(seccomp.ALLOW, name)
        for name in ("mmap", "mprotect"):
            rules.add_rule(seccomp.ALLOW, name, seccomp.Arg(2, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0))
        rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0))  # its own limits
    except OSError as error:  # libseccomp asks the kernel first
        return None, f"the kernel takes no seccomp filter ({error.strerror})"
    for name in FATAL:
        with suppress(OSError, ValueError):  # a name that this libseccomp or processor does not know: EPERM will do
            rules.add_rule(seccomp.KILL_PROCESS, name)
    return rules, ""


def _landlock() -> tuple[int, int]:
    """A descriptor of rules that grant nothing, and the interface's version; (-1, 0) where there is no Landlock."""
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return -1, 0
    paths, ports, scopes = _LANDLOCK_PATHS.get(version, 16), 2 if version >= 4 else 0, 2 if version >= 6 else 0
    handled = struct.pack("QQQ", 2**paths - 1, 2**ports - 1, 2**scopes - 1)
    handled = handled[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, handled, len(handled), 0)
    return _checked(ruleset, "Landlock"), version


def _may_change_ids() -> bool:
    """Whether root may become another user here, and end what that user runs: not so in every container."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _become(FIRST_UID)
            os.write(theirs, b"1")
            time.sleep(1)  # killed meanwhile
        os._exit(0)
    os.close(theirs)
    try:
        if changed := os.read(ours, 1) == b"1":
            os.kill(child, signal.SIGKILL)
    except PermissionError:
        changed = False
    os.close(ours)
    os.waitpid(child, 0)
    return changed


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _close_from(first: int) -> None:
    """Close every descriptor from ``first`` on, however high."""
    if _libc.syscall(_CLOSE_RANGE, first, 2**32 - 1, 0) < 0:  # Linux before 5.9
        for name in os.listdir("/proc/self/fd"):
            if int(name) >= first:
                with suppress(OSError):  # the listing's own
                    os.close(int(name))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
