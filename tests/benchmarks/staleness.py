"""Rounds of RL that are rolled out while the one before is learned from, compared with rounds that take turns.

    python tests/benchmarks/staleness.py [--rounds 6] [--wait SECONDS] [--repeats 3] [--json]

The loop is the real one (``model.rl.trainer``), with the preset tiny, eight short episodes a round, MuonClip, and a
push of the weights over HTTP after each round. The replica is **a stand-in**: moonflow's own engine behind SGLang's
API, in this process, which waits after each token. The wait stands for a device of the replica's own: it takes time and
no processor. The waits of a round are as long as an update by default, which is the best case for a staleness of 1;
with ``--wait`` they are longer or shorter. So ``wall_ratio`` says what the overlap saves of the time of a round, and
nothing of a real SGLang, of the embedded engine, or of what the policy learns.

The sides take turns; medians count. Expect a minute on two idle CPU cores.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.export import save_model  # noqa: E402
from model.codec.tokenizer import Tokenizer  # noqa: E402
from model.network.config import preset  # noqa: E402
from model.network.initial import new_model  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402
from model.rollout.sglang_pool import SGLangPool  # noqa: E402
from tests.corpus import small_tokenizer  # noqa: E402
from tests.rl.rounds import SETTINGS, trainer  # noqa: E402
from tests.sglang_replica import SGLangReplica  # noqa: E402
from tests.step_services import FolderServices  # noqa: E402

TOKENS = 6  # of an episode
ROUND = SETTINGS.prompts_per_iteration * SETTINGS.samples_per_prompt  # episodes


def run(replica: SGLangReplica, tokenizer: Tokenizer, folder: Path, rounds: int, staleness: int) -> dict[str, float]:
    """Seconds of the run from its second round on, and its mean figures."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer.save(folder / "tokenizer")
    services, reported = FolderServices(folder), list[float]()
    services.on_update = lambda step: reported.append(time.perf_counter())
    settings = replace(SETTINGS, iterations=rounds, checkpoint_every=0, max_staleness=staleness)
    pool = SGLangPool([replica.url], tokenizer.media_pad_id)
    rl = trainer(tokenizer, folder / "tokenizer", services, settings, engine=pool)

    async def publish(policy: KimiK25) -> None:
        weights = folder / f"weights-{rl.published}"
        save_model(policy, weights)
        await pool.update_weights(weights)

    rl.publish = publish
    rl.train()
    later = [row for step, row in services.logged.items() if step > 1]
    mean = {name: statistics.fmean(row.get(name, 0.0) for row in later)
            for name in ("seconds/rollout", "seconds/train", "staleness/mean")}  # fmt: skip
    return {"seconds": reported[-1] - reported[0], **mean}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that a round waits; 0 = those of an update")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    tokenizer = small_tokenizer()
    with tempfile.TemporaryDirectory() as root:
        start = Path(root) / "start"
        save_model(new_model(preset("tiny"), seed=3), start)
        with SGLangReplica(start) as replica:
            work = Path(root) / "run"
            warm = run(replica, tokenizer, work, 3, 0)  # kernels are compiled, and an update is timed
            wait = arguments.wait or warm["seconds/train"]
            replica.token_s = wait / (ROUND * TOKENS)
            sides: dict[int, list[dict[str, float]]] = {0: [], 1: []}
            for _ in range(arguments.repeats):
                for staleness, found in sides.items():
                    found.append(run(replica, tokenizer, work, arguments.rounds, staleness))
    middle = {f"staleness_{n}": _medians(found) for n, found in sides.items()}
    result = {
        "benchmark": "staleness",
        "rounds": arguments.rounds,
        "wait_s": wait,
        **middle,
        "wall_ratio": middle["staleness_1"]["seconds"] / middle["staleness_0"]["seconds"],
    }
    if not arguments.json:
        for name, value in result.items():
            print(f"{name:16} {value}")
    print(json.dumps(result))


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


if __name__ == "__main__":
    main()
