"""Processes of this machine, described so that another process can tell later whether they have ended."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt

MACHINES_NAMESPACE = "pid:[4026531836]"  # the namespace of process ids outside containers, on every Linux machine


class Process(BaseModel):
    """A process: its host, its id there, and when it started, in a form that is only good for comparing.

    `started` is empty on systems without /proc.
    """

    model_config = ConfigDict(frozen=True)

    host: str
    pid: PositiveInt
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """Return the process that has this id on this host."""
        return cls(host=this_host(), pid=pid, started=_started(pid))

    @property
    def is_gone(self) -> bool:
        """Whether the process is known to have ended; of a process of another host nothing is known."""
        if self.host != this_host():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # a process of another user has the id
            pass
        started = _started(self.pid)
        return bool(started and self.started) and started != self.started


def this_host() -> str:
    """Return a name of the machine or container in which a process id means the same process.

    A machine keeps it when it restarts, a container does not: nobody can tell it from a second container that was given
    the same host name.
    """
    machine, boot = _read("/etc/machine-id"), _read("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    pids = f"{namespace.readlink()}" if namespace.is_symlink() else ""
    place = machine if machine and pids == MACHINES_NAMESPACE else f"{boot} {pids}"
    return f"{socket.gethostname()} {place}".strip()


def _started(pid: int) -> str:
    """The boot of the machine and the clock tick at which the process started; empty if they cannot be read."""
    stat = _read(f"/proc/{pid}/stat")
    if not stat:
        return ""
    fields = stat.rpartition(")")[2].split()  # the name before may contain anything
    state, ticks = fields[0], fields[19]
    return "ended" if state in "ZX" else f"{_read('/proc/sys/kernel/random/boot_id')} {ticks}"


def _read(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # another system has no such file, or the process ended or is hidden from us
        return ""
