"""What the tests over real processes on a GPU share: paths, and figures that are shown at the end though nothing failed.

They need Python's standard library and pytest alone, because a machine with a GPU may have nothing else. PHALANX_TEST_DEVICE=cpu runs them
without a GPU, for those who write them; no such run says anything about a GPU.
"""

import os
import sys
import tempfile

import pytest

TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [TESTS, os.path.join(os.path.dirname(TESTS), "models", "train_demo")]

MEASURED = pytest.StashKey()


def pytest_configure(config):
    config.stash[MEASURED] = []


@pytest.fixture
def measured(request):
    """measured("text") adds a line to the report."""
    return lambda text: request.config.stash[MEASURED].append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter, config):
    for line in config.stash[MEASURED]:
        terminalreporter.write_line(f"measured: {line}")


def pytest_sessionstart(session):
    """Without a GPU every test would fail in the same words: once is enough."""
    from harness import DEMO, Failed, Process
    from serving import DEVICE
    try:
        with tempfile.TemporaryDirectory() as folder:
            Process("phalanx-worker", "--model", DEMO, "--listen", f"unix:{folder}/w.sock", "--device", DEVICE, "--kv-cache-memory-bytes",
                    "268435456").kill()
    except Failed as failed:
        pytest.exit(f"no worker starts with --device {DEVICE}: {failed}", returncode=3)
