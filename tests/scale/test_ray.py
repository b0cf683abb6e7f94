"""A real Ray cluster of this machine with two workers: what it does equals what this process does, and what dies loses nothing."""

import json

import pytest
import yaml

from boxquery.cli import run as command_line
from boxquery.cluster import ray_cluster
from boxquery.compare.results import RESULTS
from tests.compare.test_runner import PLAN, command_of
from tests.data.writers import drawn, write_coco
from tests.training.runs import rows, scenes


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster(2) as ray:
        yield ray


@pytest.mark.slow
def test_a_comparison_on_a_cluster(cluster, tmp_path):
    """One run trains and is measured, the other fails for the reason that it always has."""
    data = write_coco(tmp_path / "scenes", drawn(scenes()))
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(PLAN, sort_keys=False))
    out = tmp_path / "out"
    assert command_line([*command_of(data, tmp_path / "plan.yaml", out), "--engine", "ray"]) == 0
    found = json.loads((out / RESULTS).read_text())
    assert {run["label"]: run["status"] for run in found["runs"]} == {"one": "finished", "broken": "failed"}
    assert "no_such_net" in next(run["reason"] for run in found["runs"] if run["label"] == "broken")
    assert len(rows(out / "runs/one-0")) == 3
    assert not list((out / "state").glob("*.lock"))
    assert cluster.cluster_resources()["CPU"] == 2
