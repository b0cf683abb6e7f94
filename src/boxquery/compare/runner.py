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

from boxquery.compare.plan import Plan, Task
from boxquery.compare.results import finished, is_trained, is_worked_on, progress_of, run_folder, state_file, write_ending
from boxquery.compare.table import live_table
from boxquery.errors import UserError
from boxquery.locks import RUN_LOCK, Lock, is_locked
from boxquery.training.config import FILE, RunConfig

STATES, LOG = ("last.ckpt", "previous.ckpt"), ".log"
#: seconds between two looks at the processes, and those that a stopped one has to end
LOOK, GRACE = 0.5, 10.0


@dataclass
class _Job:
    """A run at work: first it is trained, then measured."""

    task: Task
    lock: Lock
    process: subprocess.Popen[bytes]
    measuring: bool
    #: where the output of this process begins in the log
    begin: int


class Runner:
    """Does what is left of a plan, ``jobs`` processes at a time.

    Args:
        folder: of the comparison.
        console: where progress is told.
    """

    def __init__(self, plan: Plan, folder: Path, jobs: int, console: Console):
        self.plan, self.folder, self.jobs, self.console = plan, folder, jobs, console
        self.left = [task for task in plan.tasks() if not finished(folder, task)]
        self.active: list[_Job] = []

    def run(self) -> None:
        """Return when nothing is left that this process could do; what another process works on is left to it."""
        table = Live(console=self.console, refresh_per_second=2, get_renderable=self._table) if self.console.is_terminal else None
        with table or contextlib.nullcontext(), _stopping():
            try:
                while self._start() or self.active:
                    time.sleep(LOOK)
                    self._look()
            finally:
                self._stop()

    def _table(self):
        return live_table([progress_of(self.folder, task) for task in self.plan.tasks()])

    def _start(self) -> bool:
        """Fill free places. False when nothing is left to start, now or later."""
        waiting = False
        for task in list(self.left):
            if len(self.active) >= self.jobs:
                return True
            if self.plan.minutes is not None and self._worth(task) is None and self._timed_now(task):
                waiting = True  # for what the minutes are worth, which another seed is finding out
                continue
            lock = take_lock(self.folder, task)
            if lock is None:
                continue
            self.left.remove(task)
            if finished(self.folder, task):
                lock.release()
                continue
            self._begin(task, lock)
        return waiting

    def _begin(self, task: Task, lock: Lock) -> None:
        run = run_folder(self.folder, task)
        write_ending(self.folder, task)
        trained = False
        if (run / FILE).exists():
            try:
                config = RunConfig.read(run)
            except UserError as error:
                return self._failed(task, lock, error.line())
            if not self.plan.fits(task, config):
                return self._failed(task, lock, f"{run} holds another run; remove it and compare again")
            trained = is_trained(run)
            if not trained and not any((run / name).is_file() for name in STATES):
                shutil.rmtree(run)  # it was stopped in its first epoch: nothing to go on from
        if trained:
            return self._launch(task, lock, [sys.executable, "-m", "boxquery.compare.measure", str(run)], True)
        words = ["train", self.plan.data, "--out", str(run), "--resume"] if run.exists() else self.plan.words(task, run, self._worth(task))
        self._launch(task, lock, [sys.executable, "-m", "boxquery", *words], False)

    def _launch(self, task: Task, lock: Lock, command: Sequence[str], measuring: bool) -> None:
        path = state_file(self.folder, task, LOG)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        with path.open("ab") as log:
            begin = log.tell()
            # a session of its own: Ctrl-C comes to this process alone, which then stops each child once
            process = subprocess.Popen(
                command, env={**os.environ, **threads}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.active.append(_Job(task, lock, process, measuring, begin))
        if not measuring:
            self._say(f"{task.name}: started")

    def _look(self) -> None:
        for job in list(self.active):
            status, memory = _ended(job.process)
            if status is None:
                continue
            self.active.remove(job)
            if memory and not job.measuring:
                write_ending(self.folder, job.task, memory=memory)
            if status:
                self._failed(job.task, job.lock, _reason(state_file(self.folder, job.task, LOG), job.begin, status))
            elif job.measuring:
                job.lock.release()
                self._say(f"{job.task.name}: done")
            else:
                run = str(run_folder(self.folder, job.task))
                self._launch(job.task, job.lock, [sys.executable, "-m", "boxquery.compare.measure", run], True)

    def _failed(self, task: Task, lock: Lock, reason: str) -> None:
        write_ending(self.folder, task, reason=reason)
        lock.release()
        self._say(f"{task.name}: failed: {reason}")

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False)

    def _stop(self) -> None:
        """End the children: each has finished an epoch or goes back to the last one when it is resumed."""
        jobs, self.active = self.active, []
        _interrupt([job.process for job in jobs])
        for job in jobs:
            job.lock.release()

    def _alike(self, task: Task) -> list[Task]:
        wanted = task.entry.settings()
        return [other for other in self.plan.tasks() if other != task and other.entry.settings() == wanted]

    def _worth(self, task: Task) -> RunConfig | None:
        """The configuration of a run of the same settings, in which minutes have become steps; None without minutes."""
        if self.plan.minutes is None:
            return None
        runs = [run_folder(self.folder, other) for other in self._alike(task)]
        known = [RunConfig.read(run) for run in runs if (run / FILE).exists()]
        return next((config for config in known if config.length.minutes is not None), None)

    def _timed_now(self, task: Task) -> bool:
        return any(is_worked_on(self.folder, other) for other in self._alike(task))


def take_lock(folder: Path, task: Task) -> Lock | None:
    """None where another process works on the run: another compare, or a training whose compare was killed."""
    if is_locked(run_folder(folder, task) / RUN_LOCK):
        return None
    return Lock.take(state_file(folder, task, ".lock"))


def adopt(plan: Plan, folder: Path, sources: Sequence[Path]) -> list[tuple[Task, Path]]:
    """Take over finished runs whose configuration is a planned one: a copy without the state to go on from. What was found where."""
    candidates = []
    for source in sources:
        if not source.is_dir():
            raise UserError(f"{source}: no such folder to adopt runs from")
        for path in sorted({source / FILE, *source.glob(f"*/{FILE}"), *source.glob(f"*/*/{FILE}")}):
            if path.is_file() and is_trained(path.parent):
                candidates.append((path.parent, RunConfig.read(path.parent)))
    taken: list[tuple[Task, Path]] = []
    for task in plan.tasks():
        target = run_folder(folder, task)
        if target.exists() or (lock := take_lock(folder, task)) is None:
            continue
        for run, config in candidates:
            if plan.fits(task, config) and run.resolve() not in {known.resolve() for _, known in taken}:
                beside = target.with_name(f".{target.name}.new")
                shutil.rmtree(beside, ignore_errors=True)
                shutil.copytree(run, beside, ignore=shutil.ignore_patterns(*STATES, "early", ".*"))
                beside.replace(target)
                taken.append((task, run))
                break
        lock.release()
    return taken


def _ended(process: subprocess.Popen[bytes]) -> tuple[int | None, int | None]:
    """(exit status, bytes of memory at its peak) of a process that has ended; (None, None) of one that has not."""
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


def _reason(log: Path, begin: int, status: int) -> str:
    """The last ``error:`` line of a process, else its last line."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    if errors:
        return errors[-1]
    ended = f"ended by signal {-status}" + (" (out of memory?)" if status == -9 else "") if status < 0 else f"status {status}"
    return f"{ended}: {lines[-1]}" if lines else ended


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM, and a terminal that is closed, stop like Ctrl-C: the children must not be left behind."""

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
