"""A lock is held by one process, until it is released or the process dies."""

import subprocess
import sys

from boxquery.locks import Lock, holder, is_locked

HOLD = """
import sys
from pathlib import Path
from boxquery.locks import Lock
lock = Lock.take(Path(sys.argv[1]))
print(lock is not None, flush=True)
sys.stdin.read()
"""


def started(path):
    return subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_lock_is_exclusive_until_it_is_released(tmp_path):
    path = tmp_path / "state" / "a.lock"
    assert not is_locked(path)
    first = Lock.take(path)
    assert first is not None
    assert is_locked(path)
    assert holder(path).startswith("process ")
    assert Lock.take(path) is None
    first.release()
    assert not is_locked(path)
    assert not list(path.parent.iterdir())
    assert Lock.take(path) is not None


def test_a_killed_process_loses_its_lock(tmp_path):
    path = tmp_path / "a.lock"
    process = started(path)
    assert process.stdout.readline().strip() == "True"
    assert is_locked(path)
    process.kill()
    process.communicate()
    assert path.exists()
    assert not is_locked(path)


def test_one_of_many_gets_it(tmp_path):
    several = [started(tmp_path / "a.lock") for _ in range(4)]
    taken = [process.stdout.readline().strip() for process in several]
    for process in several:
        process.communicate()
    assert sorted(taken) == ["False", "False", "False", "True"]
