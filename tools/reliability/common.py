"""What the harnesses share: results, and child processes whose end is judged."""

from __future__ import annotations

import importlib
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from basicsr_classpruning.cli import main

# What the command imports when it needs it: here once, and not in every child.
for _module in (
    'basicsr_classpruning.pipeline',
    'basicsr_classpruning.inference.files',
    'mmengine.analysis',
    'spandrel',
):
    importlib.import_module(_module)

GIB = 2**30
PREFIXES = ('classpruning: error: ', 'failed: ')
"""Beginnings of the line that says what was wrong."""


@dataclass
class Row:
    """One kind of attempt, and how often it went well."""

    what: str
    tried: int = 0
    lost: list[str] = field(default_factory=list)
    """A line for each attempt that did not end as it should."""

    def add(self, complaint: str = '') -> None:
        """Counts one attempt; it was lost if there is something to complain of."""
        self.tried += 1
        if complaint:
            self.lost.append(complaint)


@dataclass
class Result:
    """What a harness found."""

    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured besides, in words of the documentation."""
    skipped: list[str] = field(default_factory=list)
    """What this machine does not allow to try, and why."""

    def row(self, what: str) -> Row:
        """The row of that name, made where there is none."""
        for row in self.rows:
            if row.what == what:
                return row
        self.rows.append(Row(what))
        return self.rows[-1]


@dataclass(frozen=True)
class Outcome:
    """How a child process ended."""

    status: int
    """Exit status; negative: the signal that ended it."""
    output: str
    """Standard output and error."""
    seconds: float
    """Wall clock."""
    computing: float
    """Seconds of processor time."""
    peak: int
    """Largest resident memory, in bytes."""
    timed_out: bool = False

    @property
    def complaint(self) -> str:
        """What is wrong with this end, in one line; empty for a success and for an error of one clear line."""
        lines = self.output.strip().splitlines() or ['']
        if self.timed_out:
            return f'still running after {self.seconds:.0f} s: {lines[-1]}'
        if self.status < 0:
            return f'ended by {signal.Signals(-self.status).name}: {lines[-1]}'
        if 'Traceback' in self.output or 'Logging error' in self.output:
            return f'a traceback: {lines[-1]}'
        if self.status not in (0, 1, 2):
            return f'exit status {self.status}: {lines[-1]}'
        if self.status and not self.error:
            return f'exit status {self.status} without a clear line: {lines[-1]}'
        if self.error.startswith(PREFIXES[0]) and lines[-1] != self.error:
            return f'more than one line: {self.error} … {lines[-1]}'
        return ''

    @property
    def error(self) -> str:
        """The line that says what was wrong; empty where there is none."""
        lines = [line for line in self.output.splitlines() if line.startswith(PREFIXES)]
        return lines[-1] if lines else ''


class Child:
    """A fork of this process, so that nothing has to be imported again.

    Args:
        work: runs in the child and returns its exit status.
        memory: limit of its address space in bytes; None for no limit.
    """

    def __init__(self, work: Callable[[], int], memory: int | None = None) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 — read when the child has ended
        self._start = time.perf_counter()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._run(work, memory))
        self._pidfd = os.pidfd_open(self.pid)

    def _run(self, work: Callable[[], int], memory: int | None) -> int:
        try:
            os.setsid()
            os.dup2(self._output.fileno(), 1)
            os.dup2(self._output.fileno(), 2)
            if memory is not None:
                resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            return work()
        except SystemExit as leave:
            return leave.code if isinstance(leave.code, int) else 1
        except BaseException:
            traceback.print_exc()
            return 70
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def kill(self) -> None:
        """Ends the child, and what it started, at once."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 300) -> Outcome:
        """Waits for the end; kills the child after ``timeout`` seconds."""
        ended, _, _ = select.select([self._pidfd], [], [], timeout)
        if not ended:
            self.kill()
        os.close(self._pidfd)
        _, status, usage = os.wait4(self.pid, 0)
        seconds = time.perf_counter() - self._start
        self._output.seek(0)
        output = self._output.read().decode(errors='replace')
        self._output.close()
        return Outcome(
            os.waitstatus_to_exitcode(status),
            output,
            seconds,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * 1024,
            not ended,
        )


def classpruning(*arguments: object, timeout: float = 300, memory: int | None = None) -> Outcome:
    """Runs the ``classpruning`` command in a child."""
    return Child(lambda: main([str(argument) for argument in arguments]), memory).wait(timeout)
