"""What a run cost: wall seconds, CPU seconds and peak memory of every process that took part.

Read from `/proc` (Linux). The high-water mark of a process's memory is reset before each run, so
that a peak belongs to the run that made it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MIB = 1 << 20
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """Of the processes of one role during one run: CPU of all, the highest peak of any."""

    cpu_seconds: float
    peak_mib: float


@dataclass
class Run:
    """One timed repetition: wall time and the cost of each process by role."""

    seconds: float = 0.0
    costs: dict[str, Cost] = field(default_factory=dict)


def cpu_seconds(pid: int) -> float:
    """User and system time of a live process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mib(pid: int) -> float:
    """Highest resident size since the last `reset_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / MIB
    return float("nan")


def recycle_pages(folder: Path, size: int) -> None:
    """Write `size` bytes and delete them, so that the kernel has as many pages to give at once.

    A virtual machine may hand idle memory back to its host; to get a page from there costs up to
    ten times what writing it costs, and would be all that is seen of whoever needs it first.
    """
    path = folder / "pages"
    block = bytes(1 << 20)
    with path.open("wb") as out:
        for _ in range(size >> 20):
            out.write(block)
    path.unlink()


def reset_peak(pid: int) -> None:
    with contextlib.suppress(PermissionError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextlib.contextmanager
def timed(daemons: Mapping[str, Sequence[int]]) -> Iterator[Run]:
    """Time the body; `daemons` maps a role to the pids of processes that live throughout.

    CPU time of commands the body runs and waits for is reported under the role "command".
    """
    run = Run()
    before = {role: sum(map(cpu_seconds, pids)) for role, pids in daemons.items()}
    for pids in daemons.values():
        for pid in pids:
            reset_peak(pid)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    yield run
    run.seconds = time.perf_counter() - started
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = now.ru_utime + now.ru_stime - children.ru_utime - children.ru_stime
    # ru_maxrss of waited-for children is a maximum over all of them ever: not this run's.
    run.costs["command"] = Cost(spent, float("nan"))
    for role, pids in daemons.items():
        spent = sum(map(cpu_seconds, pids)) - before[role]
        run.costs[role] = Cost(spent, max(map(peak_mib, pids)))


@dataclass
class Result:
    """One row of the table: repetitions of the same work."""

    name: str
    bytes: int
    runs: list[Run] = field(default_factory=list)

    @contextlib.contextmanager
    def run(self, daemons: Mapping[str, Sequence[int]]) -> Iterator[None]:
        """Time the body as one more repetition, see `timed`."""
        with timed(daemons) as run:
            yield
        self.runs.append(run)

    @property
    def median_seconds(self) -> float:
        return statistics.median(run.seconds for run in self.runs)

    @property
    def rate(self) -> float:
        """MB/s (10^6 bytes) of the median run."""
        return self.bytes / 1e6 / self.median_seconds

    @property
    def spread(self) -> float:
        """Slowest run over fastest: the noise of this machine during this row."""
        return max(r.seconds for r in self.runs) / min(r.seconds for r in self.runs)

    def cpu_per_gib(self, role: str) -> float | None:
        """Median CPU seconds per GiB of content for one role."""
        spent = [run.costs[role].cpu_seconds for run in self.runs if role in run.costs]
        return statistics.median(spent) / (self.bytes / (1 << 30)) if spent else None

    def peak(self, role: str) -> float | None:
        """Highest memory of a role over all runs, MiB."""
        peaks = [run.costs[role].peak_mib for run in self.runs if role in run.costs]
        return max(peaks) if peaks else None


def repeat(
    name: str,
    size: int,
    times: int,
    daemons: Mapping[str, Sequence[int]],
    work: Callable[[int], None],
    between: Callable[[int], None] = lambda _: None,
) -> Result:
    """Run `work(i)` `times` times; `between(i)` prepares each run and is not timed."""
    runs = []
    for number in range(times):
        between(number)
        with timed(daemons) as run:
            work(number)
        runs.append(run)
    return Result(name, size, runs)
