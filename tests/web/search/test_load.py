"""benchmarks/serve_load.py, as people run it: many clients, an index that is replaced meanwhile."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "serve_load.py"


def load(*words: str) -> dict[str, Any]:
    """What it prints at last."""
    done = subprocess.run(
        [sys.executable, BENCHMARK, *words], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def require_right(found: dict[str, Any], replaced: int) -> None:
    assert found["wrong"] == 0 and found["broken"] == 0, found["first_wrong"]
    assert set(found["statuses"]) <= {"200", "201"}, found["refusals"]
    assert found["refusals"] == []
    assert found["checked"] == found["requests"] > 0
    assert found["changes"]["replaced"] == replaced
    assert found["changes"]["added"] > 0 and found["changes"]["removed"] > 0
    assert found["states_answered"] > replaced
    assert len(found["asked"]) >= 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_32_clients_for_a_minute_get_no_wrong_answer() -> None:
    words = ["--replace", "3", "--clients", "32", "--images", "5000", "--seconds", "60"]
    found = load(*words)
    require_right(found, 3)
    memory = found["memory_mib"]
    assert max(memory) - memory[0] < 700
    assert len(found["memory_least_mib"]) == 4


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory from /proc")
def test_text_searches_under_load_are_right(tmp_path: Path) -> None:
    """With a small CLIP: words alone, and mixed with images."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16,
                       "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2,
                     "layers": 2},
    }  # fmt: skip
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config))
    found = load(
        "--replace", "1", "--clients", "4", "--images", "5000", "--seconds", "15",
        "--open-clip", str(tmp_path / "tiny-clip.json"),
    )  # fmt: skip
    require_right(found, 1)
    assert found["asked"]["text"] > 0 and found["asked"]["photo+text"] > 0
