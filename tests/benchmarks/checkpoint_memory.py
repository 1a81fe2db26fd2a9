"""How much memory loading a checkpoint takes, in a process of its own.

    python tests/benchmarks/checkpoint_memory.py [--experts 64] [--dtype float32] [--stored float32] [--int4]
        [--parts 4 [--fresh]] [--json]

- ``peak_ratio``: peak growth of the resident set while ``load_model`` runs, over the bytes of the loaded weights.
- ``spare_tensors``: what of that growth is beyond the weights, over the bytes of the largest stored tensor.
- ``whole_ratio``: that growth over the bytes of the whole model's weights, of which the first rank of ``--parts`` loads
  its part; with ``--fresh`` it draws first weights (``new_model``) and loads nothing.

The peak is the kernel's (VmHWM), reset before the load, after a first load of the tiny preset has imported everything.
Expect about half a minute, and 600 MiB on the disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.export import save_model  # noqa: E402
from model.checkpoint.file_names import CONFIG  # noqa: E402
from model.checkpoint.load import load_model  # noqa: E402
from model.network.config import ModelConfig, load_config, preset  # noqa: E402
from model.network.construction import build_on_meta  # noqa: E402
from model.network.expert_share import ExpertShare  # noqa: E402
from model.network.initial import new_model  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def wide_config(experts: int) -> ModelConfig:
    """The tiny preset with many routed experts, of three matrices of 2 MiB in each of three layers."""
    config = preset("tiny").model_copy(deep=True)
    config.text_config.n_routed_experts, config.text_config.moe_intermediate_size = experts, 4096
    return config


def write_wide(folder: Path, experts: int, stored: str = "float32", expert_precision: str = "full") -> int:
    """A checkpoint of ``wide_config``; returns the bytes of its largest tensor in float32."""
    model = new_model(wide_config(experts))
    save_model(model, folder, expert_precision, DTYPES[stored])
    text = model.config.text_config
    return 4 * max(text.hidden_size * text.moe_intermediate_size, text.hidden_size * text.vocab_size)


def whole_bytes(wide: Path) -> int:
    """Bytes of the whole model's weights in float32."""
    return 4 * sum(parameter.numel() for parameter in build_on_meta(load_config(wide / CONFIG)).parameters())


def measure(small: Path, wide: Path, dtype: str = "float32", parts: int = 1, fresh: bool = False) -> tuple[int, int]:
    """Bytes of the weights that ``load_model(wide)`` gives, and by how much the resident set of a new process grew.

    With ``parts``, of the first rank's part; with ``fresh``, of the weights that ``new_model`` draws for the configs in
    the two folders, which need nothing else.
    """
    command = [sys.executable, __file__, "--load", str(small), str(wide), "--dtype", dtype, "--parts", str(parts)]
    command += ["--fresh"] if fresh else []
    weights, growth = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(weights), int(growth)


def resident(key: str) -> int:
    """Bytes of VmRSS or VmHWM of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def build(folder: Path, dtype: torch.dtype, share: ExpertShare, fresh: bool) -> KimiK25:
    return new_model(load_config(folder / CONFIG), 0, share) if fresh else load_model(folder, dtype, share)


def load(small: Path, wide: Path, dtype: torch.dtype, share: ExpertShare, fresh: bool) -> None:
    """Print the bytes of the weights, and the growth."""
    build(small, dtype, share, fresh)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    before = resident("VmRSS")
    model = build(wide, dtype, share, fresh)
    growth = resident("VmHWM") - before
    print(sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()), growth)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=64, help="routed experts of a layer, 18 MiB of weights each")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights in memory")
    parser.add_argument("--stored", choices=DTYPES, default="float32", help="of the weights in the files")
    parser.add_argument("--int4", action="store_true", help="store the routed experts as INT4")
    parser.add_argument("--parts", type=int, default=1, help="ranks that divide the experts; the first is measured")
    parser.add_argument("--fresh", action="store_true", help="draw first weights instead of loading")
    parser.add_argument("--load", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if options.load:
        load(*options.load, DTYPES[options.dtype], ExpertShare(0, options.parts), options.fresh)
        return
    with tempfile.TemporaryDirectory() as name:
        small, wide = Path(name) / "small", Path(name) / "wide"
        precision = "int4" if options.int4 else "full"
        save_model(new_model(preset("tiny")), small, precision, DTYPES[options.stored])
        largest = write_wide(wide, options.experts, options.stored, precision)
        weights, growth = measure(small, wide, options.dtype, options.parts, options.fresh)
        whole = whole_bytes(wide)
        stored = sum(path.stat().st_size for path in wide.glob("*.safetensors"))
    figures = {
        "stored_mebibytes": stored / 2**20,
        "weights_mebibytes": weights / 2**20,
        "growth_mebibytes": growth / 2**20,
        "peak_ratio": growth / weights,
        "spare_tensors": (growth - weights) / largest,
        "whole_ratio": growth / whole,
    }
    for key, value in figures.items():
        print(f"{key:20} {value:10.3f}")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
