"""What the kernel is asked for so that a verifier can do no harm. Linux system calls through ctypes.

Everywhere: limits on memory, CPU, files and file size; no new privileges and no capabilities; SIGKILL when
the supervisor dies; an environment of few variables; a temporary working directory, emptied after each item.

Where the kernel allows namespaces (to root, or to a user who may create user namespaces): no network; a file
system that is read-only but for the temporary directory, a tmpfs of limited size; processes that see and
signal none outside of their worker, and that the kernel ends with their worker.

Not prevented: reading files that this user may read, and connecting to this user's sockets in the file
system. Where namespaces are refused: the network, writing files, signals to this user's other processes.

Processes: the supervisor counts them and ends a worker that has too many, but a fork bomb may outrun it. So
in namespaces from Linux 6.14 on the kernel limits each worker to PROCESS_IDS. RLIMIT_NPROC counts all threads
of the user, Ray's too, and does not bind root: it is a last resort, far above what there is now. For root on
an older kernel or without namespaces, only the supervisor's count stands against a fork bomb.
"""

import ctypes
import os
import re
import resource
import signal
import struct
import tempfile
from contextlib import suppress

MIB = 2**20
FILES_MIB = 256  # of a worker's temporary directory, and of one file
OPEN_FILES = 512
PROCESS_IDS = 512  # processes and threads of one worker's namespace; the kernel's least is 301
SPARE_PROCESSES = 1024  # of the user, beyond all processes and threads that the machine has now
SHARED_MEMORY = "/dev/shm"

_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
_CLONE_NEWPID, _CLONE_NEWNET = 0x20000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4
_MS_NOSUID_NODEV = 2 | 4
_CAPABILITY_VERSION_3 = 0x20080522
_SYS_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_MOUNT_ATTR_RDONLY, _MS_PRIVATE = 1, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def adopt_orphans() -> None:
    """From now on, what a descendant of this process detaches becomes a child of this process."""
    _call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def enter_namespaces(network: bool) -> str | None:
    """Cut this process and its future children off. None, or why the kernel refuses and nothing changed."""
    # Tried in a process that ends: half a namespace cannot be left again.
    for with_user in (False, True):
        refusal = _try_in_child(with_user, network)
        if refusal is None:
            _enter(with_user, network)
            return None
    return refusal


def _try_in_child(with_user: bool, network: bool) -> str | None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _enter(with_user, network)
            enter_process_namespace()
        except OSError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        refusal = file.read().decode()
    os.waitpid(pid, 0)
    return refusal or None


def _enter(with_user: bool, network: bool) -> None:
    user, group = os.geteuid(), os.getegid()
    flags = _CLONE_NEWNS | _CLONE_NEWIPC
    flags |= 0 if network else _CLONE_NEWNET
    _call("unshare", flags | (_CLONE_NEWUSER if with_user else 0))
    if with_user:
        # The same user inside as outside. The kernel wants setgroups to be given up before groups are mapped.
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    read_only = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, _MS_PRIVATE, 0)
    _call("syscall", _SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, read_only, len(read_only))
    mount_tmpfs(SHARED_MEMORY, 1)


def mount_tmpfs(path: str, size_mib: int) -> None:
    """An empty file system in memory, which ends with the namespace."""
    options = f"size={size_mib}m,mode=0700".encode()
    _call("mount", b"tmpfs", path.encode(), b"tmpfs", _MS_NOSUID_NODEV, options)


def enter_process_namespace() -> None:
    """The next child that this process forks is the first of a process namespace: all in it die with it."""
    _call("unshare", _CLONE_NEWPID)


def settle_process_namespace() -> None:
    """In its first process: let /proc show only this namespace, and limit how many processes it can hold.

    The limit is the kernel's own, so that no fork bomb can outrun it. Where this is refused, nothing changes.
    """
    with suppress(OSError):
        _call("unshare", _CLONE_NEWNS)
        _call("mount", b"proc", b"/proc", b"proc", _MS_NOSUID_NODEV, None)
        # Before Linux 6.14 this file is the whole machine's.
        if _kernel_version() >= (6, 14):
            with open("/proc/sys/kernel/pid_max", "w") as file:
                file.write(str(PROCESS_IDS))


def _kernel_version() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(re.match(r"\d+", minor).group())


def confine(directory: str, memory_mb: int, cpu_s: int) -> None:
    """Limit this process and what it starts, for good. Memory is on top of what the imports took."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.chdir(directory)
    os.environ.update({"HOME": directory, "TMPDIR": directory})
    tempfile.tempdir = directory
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, used + memory_mb * MIB)
    _limit(resource.RLIMIT_CPU, cpu_s)
    _limit(resource.RLIMIT_FSIZE, FILES_MIB * MIB)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    _limit(resource.RLIMIT_CORE, 0)
    with open("/proc/loadavg") as loadavg:
        tasks = int(loadavg.read().split()[3].partition("/")[2])
    _limit(resource.RLIMIT_NPROC, tasks + SPARE_PROCESSES)
    # If the machine runs out of memory, its kernel is to end verifiers first.
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
    _drop_privileges()


def hide_memory() -> None:
    """From now on, no other process without capabilities may read, write or trace this one."""
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def memory_is_hidden() -> bool:
    return _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0) == 0


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _drop_privileges() -> None:
    """No capability, now or after an exec: as root, mounts and limits could be undone otherwise."""
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _call("capset", header, bytes(24))
