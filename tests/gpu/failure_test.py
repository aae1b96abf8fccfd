"""What goes wrong at the start says what helps."""

import pytest

from harness import DEMO, Failed, Process
from serving import DEVICE

pytestmark = pytest.mark.skipif(DEVICE == "cpu", reason="about GPUs")


def start(tmp_path, *flags, env=None):
    with pytest.raises(Failed) as failed:
        Process("phalanx-worker", "--model", DEMO, "--listen", f"unix:{tmp_path}/w.sock", "--device", "cuda", *flags, env=env).kill()
    return str(failed.value)


def test_more_kv_cache_than_memory(tmp_path):
    # The worker takes no more than its sequences can use: let that be more than any card has.
    said = start(tmp_path, "--kv-cache-memory-bytes", str(1 << 42), "--max-num-seqs", "8192", "--dtype", "float32")
    assert "--kv-cache-memory-bytes" in said and "memory" in said, said


def test_a_share_of_memory_that_holds_nothing(tmp_path):
    said = start(tmp_path, "--gpu-memory-utilization", "0.00001")
    assert "--gpu-memory-utilization" in said, said


def test_a_hidden_card(tmp_path):
    said = start(tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert "--device cuda" in said and "GPU" in said, said


def test_a_plugin_that_is_none(tmp_path):
    plugin = tmp_path / "none.so"
    plugin.write_text("no shared object")
    said = start(tmp_path, env={"PHALANX_CUDA_PLUGIN": str(plugin)})
    assert str(plugin) in said, said
