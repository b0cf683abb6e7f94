"""The run folder that the tests of this room read; they copy it before changing it."""

import pytest

from .fake_run import make_run


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "dab-shapes")
