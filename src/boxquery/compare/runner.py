"""The runs of a comparison, each a ``boxquery train`` in a process of its own with one thread. Imports no torch.

In DIR: ``runs/NAME`` is the run folder; ``state/NAME.lock`` is held by the process that works on it, ``.log`` is what it printed, ``.json``
how it ended.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live

from boxquery.compare.plan import ComparisonPlan, PlannedRun
from boxquery.compare.results import finished, is_trained, is_worked_on, progress_of, run_folder, state_file, write_ending
from boxquery.compare.table import live_table
from boxquery.errors import UserError
from boxquery.locks import RUN_LOCK, Lock, is_locked
from boxquery.training.config import FILE, RunConfig

STATES, LOG = ("last.ckpt", "previous.ckpt"), ".log"
#: seconds from one check of the processes to the next, and those that a stopped one has to end
POLL, GRACE = 0.5, 10.0


@dataclass
class _Job:
    """A process that trains or measures a run."""

    planned: PlannedRun
    lock: Lock
    process: subprocess.Popen[bytes]
    measuring: bool
    #: where its output begins in the log
    log_start: int


class Runner:
    """Trains and measures the runs of a plan that are left, ``jobs`` processes at a time.

    Args:
        folder: of the comparison.
        console: where progress is printed.
    """

    def __init__(self, plan: ComparisonPlan, folder: Path, jobs: int, console: Console):
        self.plan, self.folder, self.jobs, self.console = plan, folder, jobs, console
        self.left = [planned for planned in plan.runs() if not finished(folder, planned)]
        self.active: list[_Job] = []

    def run(self) -> None:
        """Return when no run is left, except those that other processes work on."""
        table = Live(console=self.console, refresh_per_second=2, get_renderable=self._table) if self.console.is_terminal else None
        with table or contextlib.nullcontext(), stopping():
            try:
                while self._start() or self.active:
                    time.sleep(POLL)
                    self._check()
            finally:
                self._stop()

    def _table(self):
        return live_table([progress_of(self.folder, planned) for planned in self.plan.runs()])

    def _start(self) -> bool:
        """Start as many runs as there is room for. False if none is left to start, now or later."""
        waiting = False
        for planned in list(self.left):
            if len(self.active) >= self.jobs:
                return True
            if self.plan.minutes is not None and self._timed_run(planned) is None and self._being_timed(planned):
                waiting = True  # for the number of steps, which another seed is timing
                continue
            lock = take_lock(self.folder, planned)
            if lock is None:
                continue
            self.left.remove(planned)
            if finished(self.folder, planned):
                lock.release()
                continue
            self._begin(planned, lock)
        return waiting

    def _begin(self, planned: PlannedRun, lock: Lock) -> None:
        run = run_folder(self.folder, planned)
        write_ending(self.folder, planned)
        if (run / FILE).exists():
            try:
                config = RunConfig.read(run)
            except UserError as error:
                return self._failed(planned, lock, error.line())
            if not self.plan.fits(planned, config):
                return self._failed(planned, lock, f"{run} holds another run; remove it and compare again")
            if is_trained(run):
                return self._launch(planned, lock, measuring=True)
            if not any((run / name).is_file() for name in STATES):
                shutil.rmtree(run)  # stopped in its first epoch: there is nothing to resume
        self._launch(planned, lock)
        self._print(f"{planned.name}: started")

    def _launch(self, planned: PlannedRun, lock: Lock, *, measuring: bool = False) -> None:
        run = run_folder(self.folder, planned)
        if measuring:
            command = ["boxquery.compare.measure", str(run)]
        elif run.exists():
            command = ["boxquery", "train", self.plan.data, "--out", str(run), "--resume"]
        else:
            command = ["boxquery", *self.plan.command_line(planned, run, self._timed_run(planned))]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with state_file(self.folder, planned, LOG).open("ab") as log:
            log_start = log.tell()
            # a session of its own: Ctrl-C reaches this process alone, which then stops each child once
            process = subprocess.Popen(
                [sys.executable, "-m", *command], env={**os.environ, **threads},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.active.append(_Job(planned, lock, process, measuring, log_start))

    def _check(self) -> None:
        for job in list(self.active):
            status, memory = _ended(job.process)
            if status is None:
                continue
            self.active.remove(job)
            if memory and not job.measuring:
                write_ending(self.folder, job.planned, memory=memory)
            if status:
                self._failed(job.planned, job.lock, _reason(state_file(self.folder, job.planned, LOG), job.log_start, status))
            elif job.measuring:
                job.lock.release()
                self._print(f"{job.planned.name}: done")
            else:
                self._launch(job.planned, job.lock, measuring=True)

    def _failed(self, planned: PlannedRun, lock: Lock, reason: str) -> None:
        write_ending(self.folder, planned, reason=reason)
        lock.release()
        self._print(f"{planned.name}: failed: {reason}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)

    def _stop(self) -> None:
        """Stop the processes; a run resumes from its last finished epoch."""
        jobs, self.active = self.active, []
        _interrupt([job.process for job in jobs])
        for job in jobs:
            job.lock.release()

    def _other_seeds(self, planned: PlannedRun) -> list[PlannedRun]:
        wanted = planned.entry.settings()
        return [other for other in self.plan.runs() if other != planned and other.entry.settings() == wanted]

    def _timed_run(self, planned: PlannedRun) -> RunConfig | None:
        """The configuration of a run with the same settings but for the seed, whose minutes have become steps; None without minutes."""
        if self.plan.minutes is None:
            return None
        runs = [run_folder(self.folder, other) for other in self._other_seeds(planned)]
        known = [RunConfig.read(run) for run in runs if (run / FILE).exists()]
        return next((config for config in known if config.length.minutes is not None), None)

    def _being_timed(self, planned: PlannedRun) -> bool:
        return any(is_worked_on(self.folder, other) for other in self._other_seeds(planned))


def take_lock(folder: Path, planned: PlannedRun) -> Lock | None:
    """None where another process works on the run: another compare, or a training whose compare was killed."""
    if is_locked(run_folder(folder, planned) / RUN_LOCK):
        return None
    return Lock.take(state_file(folder, planned, ".lock"))


def adopt(plan: ComparisonPlan, folder: Path, sources: Sequence[Path]) -> list[tuple[PlannedRun, Path]]:
    """Copy finished runs with the configuration of a planned one, without their training state; returns which came from where."""
    candidates = []
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source}: no such folder to adopt runs from")
        for path in sorted({source / FILE, *source.glob(f"*/{FILE}"), *source.glob(f"*/*/{FILE}")}):
            if path.is_file() and is_trained(path.parent):
                candidates.append((path.parent, RunConfig.read(path.parent)))
    taken: list[tuple[PlannedRun, Path]] = []
    for planned in plan.runs():
        target = run_folder(folder, planned)
        if target.exists() or (lock := take_lock(folder, planned)) is None:
            continue
        for run, config in candidates:
            if plan.fits(planned, config) and run.resolve() not in {known.resolve() for _, known in taken}:
                beside = target.with_name(f".{target.name}.new")
                shutil.rmtree(beside, ignore_errors=True)
                shutil.copytree(run, beside, ignore=shutil.ignore_patterns(*STATES, "early", ".*"))
                beside.replace(target)
                taken.append((planned, run))
                break
        lock.release()
    return taken


def _ended(process: subprocess.Popen[bytes]) -> tuple[int | None, int | None]:
    """Exit status and peak memory in bytes of a process that has ended; (None, None) before."""
    if not hasattr(os, "wait4"):
        return process.poll(), None
    if process.returncode is not None:
        return process.returncode, None
    pid, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not pid:
        return None, None
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _interrupt(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
    until = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _reason(log: Path, start: int, status: int) -> str:
    """The last ``error:`` line of a process, else its last line."""
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if errors:
        return errors[-1]
    ended = f"ended by signal {-status}" + (" (out of memory?)" if status == -9 else "") if status < 0 else f"status {status}"
    return f"{ended}: {lines[-1]}" if lines else ended


@contextlib.contextmanager
def stopping() -> Iterator[None]:
    """SIGTERM and a closed terminal act like Ctrl-C, so that no process is left behind."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(name, stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
