"""Imports in processes of their own: the memory that they take, and what is left when they are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.boundary.errors import MoonflowError
from model.checkpoint.importing import LocalFolder, import_checkpoint
from model.checkpoint.load import load_model
from tests.checkpoint.released_source import QUANTIZATION, Released, draw, text_shapes, vision_shapes, write

ROOT = Path(__file__).parents[2]

MEASURE = """
import sys
from pathlib import Path
from model.checkpoint.importing import LocalFolder, import_checkpoint
from tests.benchmarks.checkpoint_memory import resident

small, wide, out = (Path(given) for given in sys.argv[1:])
import_checkpoint(LocalFolder(small), out / "small")
Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
before = resident("VmRSS")
import_checkpoint(LocalFolder(wide), out / "wide")
print(resident("VmHWM") - before)
"""

STALL = """
import sys, time
from pathlib import Path
from model.checkpoint import importing
from model.checkpoint.importing import LocalFolder, import_checkpoint

importing.SHARD_BYTES = (20_000, 20_000)

class Stalling(LocalFolder):
    def open(self, name):
        if name.startswith("model-00003"):
            print("half", flush=True)
            time.sleep(600)
        return super().open(name)

import_checkpoint(Stalling(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def wide_source(int4: bool) -> Released:
    """Many routed experts, whose weights only have to be finite."""
    released = Released()
    text = released.config["text_config"]
    text |= {"n_routed_experts": 96, "moe_intermediate_size": 2048}
    if int4:
        text["quantization_config"] = QUANTIZATION
    generator = torch.Generator().manual_seed(0)
    for name, shape in (text_shapes(text) | vision_shapes(released.config["vision_config"])).items():
        if not int4 or ".mlp.experts." not in name:
            released.tensors[name] = torch.randn(shape, generator=generator).bfloat16()
            continue
        rows, columns = shape
        words = torch.randint(-(2**31), 2**31, (rows, columns // 8), generator=generator, dtype=torch.int32)
        scale = torch.rand(rows, columns // 32, generator=generator).bfloat16()
        parts = {"packed": words, "scale": scale, "shape": torch.tensor(shape, dtype=torch.int32)}
        released.tensors |= {f"{name}_{part}": tensor for part, tensor in parts.items()}
    return released


@pytest.mark.slow
@pytest.mark.parametrize(("int4", "shards"), [(True, 2), (False, 5)])
def test_an_import_takes_the_memory_of_two_of_the_source_s_files(int4: bool, shards: int, tmp_path: Path) -> None:
    """75 million weights: 150 MB in bfloat16, 42 MB in INT4."""
    write(tmp_path / "small", draw("int4" if int4 else "bfloat16"))
    write(tmp_path / "wide", wide_source(int4), shards)
    largest = max(path.stat().st_size for path in (tmp_path / "wide").glob("*.safetensors"))
    assert largest > 16 << 20
    command = [sys.executable, "-c", MEASURE, tmp_path / "small", tmp_path / "wide", tmp_path / "out"]
    ran = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, cwd=ROOT)
    growth = int(ran.stdout)
    written = sum(path.stat().st_size for path in (tmp_path / "out" / "wide").glob("*.safetensors"))
    assert written > 140e6
    assert growth < 2 * largest, f"{growth:,} bytes for files of {largest:,}"  # seen: 1.8 times


@pytest.mark.slow
def test_a_killed_import_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    source, out = write(tmp_path / "source", draw("int4")), tmp_path / "out"
    command = [sys.executable, "-c", STALL, str(source), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    left = tmp_path / "out.unfinished"
    assert not out.exists() and len(list(left.glob("*.unfinished"))) > 2
    assert not list(left.glob("*.safetensors*")) and not (left / "config.json").exists()
    with pytest.raises(MoonflowError, match="no model config"):
        load_model(left)
    import_checkpoint(LocalFolder(source), out)
    assert load_model(out) is not None and not left.exists()
