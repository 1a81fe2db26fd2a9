"""Sandbox isolation: what the kernel refuses to a process that runs programs of a policy (source: ours).

Such a process is assumed to be hostile. The main layer is a seccomp filter, which needs no privilege: the process
computes, allocates memory, and reads and writes the one socket that it has. Whatever machine code it runs, it cannot
reach files, the network, other processes or further sockets. More layers are added where the machine grants them:

    - limits of memory, processor time, descriptors (none), processes (none) and file size (none);
    - Landlock: no path, no TCP port, no signal, trace or abstract socket outside of the process itself;
    - a user id per session if the server is root, and no capability in any case;
    - namespaces of network, System V and POSIX IPC and processes around the server (root, or user namespaces);
    - no memory dump and no tracing (PR_SET_DUMPABLE 0), and death with the server (PR_SET_PDEATHSIG).

Not covered: kernel bugs in the system calls that remain, and side channels. Against these, run the pods under gVisor
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

FIRST_UID, UIDS = 200_000, 100_000  # user ids of sessions, outside the ranges of people and services (ours)

# The system calls that a warm session makes, measured: it reads and writes its socket, allocates, tells the time.
ALLOWED = (
    "read", "write", "brk", "munmap", "mremap", "madvise", "futex", "rt_sigreturn",
    "restart_syscall", "setitimer", "getrusage", "clock_gettime", "gettimeofday", "getrandom", "sched_yield",
    "exit", "exit_group",
)  # fmt: skip
# No honest program makes these: the process is killed at once. All other calls fail with EPERM, so that a library that
# merely tries something goes on (NumPy asks for the number of cores, Python looks for a module).
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
class Isolation:
    """The layers that this machine has; ``str`` lists them.

    Attributes:
        seccomp: why there is no filter; "" if there is one.
        landlock: version of its interface; 0 if there is none.
        namespaces: whether the server has its own namespaces of network, IPC and processes.
        user_ids: whether each session has its own user id.
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


def enter_namespaces() -> bool:
    """Give later children new network, IPC and process namespaces; returns False if the kernel refuses them."""
    uid, gid = os.getuid(), os.getgid()
    flags = _CLONE_NEWNET | _CLONE_NEWPID | _CLONE_NEWIPC
    if uid == 0 and _libc.unshare(flags) == 0:
        return True
    if uid == 0 or _libc.unshare(flags | _CLONE_NEWUSER) != 0:
        return False
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        # Without these maps this user has no name in the namespace, which is no reason to give the namespace up.
        with suppress(OSError), open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return True


def forbid_tracing() -> None:
    """Keep other processes of this user from reading or tracing this process and its children; dump no core."""
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def die_with(parent: int) -> None:
    """The kernel kills this process when the thread that forked it ends; at once if ``parent`` has ended already."""
    _checked(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:
        os._exit(1)


class Confinement:
    """The layers, which the server prepares once and each session's process then applies to itself."""

    def __init__(self, namespaces: bool) -> None:
        self._server = os.getpid()
        self._filter, missing = _compile_filter()
        self._ruleset, landlock = _landlock()
        with open("/proc/self/statm") as statm:
            self._idle_bytes = int(statm.read().split()[0]) * resource.getpagesize()
        self.isolation = Isolation(missing, landlock, namespaces, os.geteuid() == 0 and _may_change_ids())

    def without_filter(self, why: str) -> None:
        """Continue without the filter, because this machine does not load one."""
        self._filter = None
        self.isolation = replace(self.isolation, seccomp=why)

    def enter(self, connection: int, *, memory_mb: int, session_cpu_s: float, number: int) -> None:
        """Give up everything but one descriptor, for the rest of this process's life.

        Args:
            connection: the descriptor that is kept; it becomes 0.
            memory_mb: MiB that this process may allocate beyond what the idle server has.
            session_cpu_s: processor seconds of this process, rounded up to whole seconds.
            number: the session's number, from which a root server's sessions get their user ids.

        Raises:
            OSError: a layer cannot be applied.
        """
        os.dup2(connection, 0)
        if self._ruleset >= 0:
            os.dup2(self._ruleset, 1)
        _close_from(2 if self._ruleset >= 0 else 1)
        cpu = math.ceil(session_cpu_s)
        for what, soft, hard in (
            (resource.RLIMIT_AS, *[self._idle_bytes + memory_mb * 2**20] * 2),
            (resource.RLIMIT_CPU, cpu, cpu + 1),  # first SIGXCPU, which says why; then SIGKILL
            (resource.RLIMIT_FSIZE, 0, 0),
            (resource.RLIMIT_CORE, 0, 0),
            (resource.RLIMIT_NPROC, 0, 0),
            (resource.RLIMIT_NOFILE, 0, 0),
        ):
            _, most = resource.getrlimit(what)
            hard = hard if most == resource.RLIM_INFINITY else min(hard, most)
            resource.setrlimit(what, (min(soft, hard), hard))
        if self.isolation.user_ids:
            _become(FIRST_UID + number % UIDS)
        _checked(_libc.capset(_CAPABILITIES_OF_SELF, bytes(24)), "capset")  # a user namespace gives all of them
        # These two come now because a change of ids resets them.
        die_with(self._server)
        forbid_tracing()
        _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
        if self._ruleset >= 0:
            _checked(_libc.syscall(_LANDLOCK_RESTRICT_SELF, 1, 0), "Landlock")
            os.close(1)
        if self._filter is not None:
            self._filter.load()


def _compile_filter() -> tuple[Any, str]:
    """The filter and ""; or None and why there is none."""
    try:
        import pyseccomp as seccomp
    except (ImportError, RuntimeError, OSError):  # RuntimeError: pyseccomp finds no libseccomp
        return None, "libseccomp is not installed (Debian: apt install libseccomp2)"
    rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
    try:
        rules.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
        rules.set_attr(seccomp.Attr.CTL_OPTIMIZE, 2)  # as a tree: a call costs a handful of comparisons
        for name in ALLOWED:
            rules.add_rule(seccomp.ALLOW, name)
        for name in ("mmap", "mprotect"):
            rules.add_rule(seccomp.ALLOW, name, seccomp.Arg(2, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0))
        rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0))  # of the process itself
    except OSError as error:  # libseccomp asks the kernel first
        return None, f"the kernel takes no seccomp filter ({error.strerror})"
    for name in FATAL:
        with suppress(OSError, ValueError):  # this libseccomp or processor does not know it: EPERM is enough
            rules.add_rule(seccomp.KILL_PROCESS, name)
    return rules, ""


def _landlock() -> tuple[int, int]:
    """A descriptor of rules that grant nothing, and the version of the interface; (-1, 0) without Landlock."""
    version = _libc.syscall(_LANDLOCK_CREATE_RULESET, None, 0, 1)
    if version < 1:
        return -1, 0
    paths, ports, scopes = _LANDLOCK_PATHS.get(version, 16), 2 if version >= 4 else 0, 2 if version >= 6 else 0
    handled = struct.pack("QQQ", 2**paths - 1, 2**ports - 1, 2**scopes - 1)
    handled = handled[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _libc.syscall(_LANDLOCK_CREATE_RULESET, handled, len(handled), 0)
    return _checked(ruleset, "Landlock"), version


def _may_change_ids() -> bool:
    """Whether root may become another user here and kill what that user runs: some containers forbid it."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _become(FIRST_UID)
            os.write(theirs, b"1")
            time.sleep(1)  # the parent kills it before this ends
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
    """Close every descriptor whose number is ``first`` or higher."""
    if _libc.syscall(_CLOSE_RANGE, first, 2**32 - 1, 0) < 0:  # Linux before 5.9
        for name in os.listdir("/proc/self/fd"):
            if int(name) >= first:
                with suppress(OSError):  # the one that lists the folder
                    os.close(int(name))


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result
