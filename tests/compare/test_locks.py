"""One run is done by one process; what a dead one had is taken over, what a living one has is not."""

import json
import os
import platform
import subprocess
import sys

from boxquery.compare.locks import STALE, Claim, claimed


def test_a_claim_is_exclusive_until_it_is_released(tmp_path):
    path = tmp_path / "state" / "a.claim"
    first = Claim.take(path)
    assert first is not None
    assert claimed(path)
    assert Claim.take(path) is None
    assert first.renew()
    first.release()
    assert not claimed(path)
    assert Claim.take(path) is not None
    assert [p.name for p in path.parent.iterdir()] == ["a.claim"]


def test_a_dead_process_loses_its_claim_and_its_living_child_keeps_it(tmp_path):
    path = tmp_path / "a.claim"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    known = {"token": "x", "host": platform.node(), "process": gone.pid, "child": os.getpid()}
    path.write_text(json.dumps(known))
    assert Claim.take(path) is None
    path.write_text(json.dumps({**known, "child": None}))
    assert not claimed(path)
    claim = Claim.take(path)
    assert claim is not None
    assert claim.held()


def test_another_machines_claim_is_stale_when_nobody_renews_it(tmp_path):
    path = tmp_path / "a.claim"
    path.write_text(json.dumps({"token": "x", "host": "elsewhere", "process": os.getpid(), "child": None}))
    assert Claim.take(path) is None
    old = path.stat().st_mtime - STALE - 10
    os.utime(path, (old, old))
    claim = Claim.take(path)
    assert claim is not None
    path.write_text(json.dumps({"token": "y", "host": "elsewhere"}))
    assert not claim.renew()
    claim.release()
    assert path.exists()


def test_one_of_many_gets_it(tmp_path):
    code = (
        "import sys; from pathlib import Path; from boxquery.compare.locks import Claim; print(Claim.take(Path(sys.argv[1])) is not None)"
    )
    code += "; sys.stdout.flush(); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "a.claim")]
    several = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = [process.stdout.readline().strip() for process in several]
    for process in several:
        process.communicate()
    assert sorted(told) == ["False", "False", "False", "True"]
