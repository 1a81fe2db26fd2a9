"""What an INT4 export costs in held-out loss, after plain fine-tuning and after quantisation-aware fine-tuning.

    python tests/benchmarks/int4_quality.py [--seeds 3] [--steps 600] [--sft-steps 200] [--json]

A model learns facts about real countries and elements from sentences. From there it learns twice, on the same batches,
to answer questions about them: with full-precision experts and with ``expert_precision`` int4. Both models are exported
as INT4 and imported again. A loss is the cross-entropy per token of the answers to held-out questions (a third phrasing
of each fact), computed in float32. ``loss_increase_ptq`` and ``loss_increase_qat`` are what the two INT4 models lose
compared with the plainly fine-tuned model before rounding; ``loss_increase_qat_own`` compares the quantisation-aware
one with its own float weights.

The model is the tiny preset at a quarter of its width. In the tiny preset itself, after 600 steps of the text mixture,
rounding costs 0.001 of 0.73 nats, less than the difference of two fine-tunings: a network that is trained for minutes
does not need four bits of its weights. Two fine-tunings differ here too, by 0.02 nats, so look at the spread and not at
one seed. The figures are means and spreads over seeds. Expect about a minute per seed on one CPU core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2]))

from model.checkpoint.export import save_model  # noqa: E402
from model.checkpoint.load import load_model  # noqa: E402
from model.codec.chat import encode_chat  # noqa: E402
from model.codec.tokenizer import Tokenizer  # noqa: E402
from model.data.batches.packing import RowPacker  # noqa: E402
from model.data.families.entities import entities  # noqa: E402
from model.data.families.facts import FIELDS, QUESTIONS, SENTENCES  # noqa: E402
from model.data.samples.tokenize import TokenizedSample  # noqa: E402
from model.network.batch import Batch  # noqa: E402
from model.network.config import ModelConfig, preset  # noqa: E402
from model.network.initial import new_model  # noqa: E402
from model.network.multimodal import KimiK25  # noqa: E402
from model.optimizer.optimization import Optimization  # noqa: E402
from model.train.engine import PlainEngine  # noqa: E402
from tests.training import take_step  # noqa: E402

RATE, SFT_RATE = 1.2e-2, 1e-3  # the second is zero_vision_sft's
ROWS, TOKENS = 8, 256
HELD_OUT = 500  # questions


def narrow() -> ModelConfig:
    """The tiny preset, made so small that it must use every weight; 24,576 of them are in the routed experts."""
    config = preset("tiny").model_copy(deep=True)
    text = config.text_config
    text.hidden_size = text.intermediate_size = text.moe_intermediate_size = text.q_lora_rank = text.kv_lora_rank = 32
    text.num_attention_heads = text.num_key_value_heads = 2
    text.num_hidden_layers, text.n_routed_experts = 3, 4
    config.vision_config.text_hidden_size, config.vision_config.vt_num_hidden_layers = 32, 1
    return config


class Facts:
    """(name, field, value) of every training country and element, as sentences and as questions with answers."""

    def __init__(self) -> None:
        self.facts = [
            (entity.name, FIELDS[key], value)
            for kind in ("country", "element")
            for entity in entities(kind, "train")  # type: ignore[arg-type]
            for key, value in entity.attributes.items()
        ]
        texts = [sentence.format(field=f, name=n, value=v) for n, f, v in self.facts for sentence in SENTENCES]
        texts += [question.format(field=f, name=n) for n, f, _ in self.facts for question in QUESTIONS]
        self.tokenizer = Tokenizer.train([*texts, *(f"user assistant {v}" for _, _, v in self.facts)], 768)
        self.sentences = [self._sentence(text) for text in texts[: 2 * len(self.facts)]]
        # A different phrasing is held out for each fact, in turn.
        asked = [
            (number, phrasing, self._question(*fact, QUESTIONS[phrasing]))
            for number, fact in enumerate(self.facts)
            for phrasing in range(len(QUESTIONS))
        ]
        self.questions = [sample for number, phrasing, sample in asked if number % len(QUESTIONS) != phrasing]
        held_out = [sample for number, phrasing, sample in asked if number % len(QUESTIONS) == phrasing]
        self.held_out = held_out[:: max(1, len(held_out) // HELD_OUT)]

    def _sentence(self, text: str) -> TokenizedSample:
        ids = torch.tensor([*self.tokenizer.encode(text), self.tokenizer.eos_id])
        return TokenizedSample(ids, torch.ones(len(ids), dtype=torch.bool), None, [])

    def _question(self, name: str, field: str, value: str, phrasing: str) -> TokenizedSample:
        messages = [
            {"role": "user", "content": phrasing.format(field=field, name=name)},
            {"role": "assistant", "content": value},
        ]
        chat = encode_chat(messages, [], self.tokenizer)
        return TokenizedSample(torch.tensor(chat.ids), torch.tensor(chat.loss), None, [])

    def batches(self, samples: Sequence[TokenizedSample], count: int, seed: int) -> Iterator[Batch]:
        """``count`` batches with every sample once per epoch, in a seeded order."""
        rng = np.random.default_rng(seed)
        packer, made = RowPacker(TOKENS, ROWS), 0
        while True:
            for index in rng.permutation(len(samples)):
                if not packer.add(samples[index]):
                    yield packer.batch(self.tokenizer.pad_id)
                    made += 1
                    if made == count:
                        return
                    packer = RowPacker(TOKENS, ROWS)
                    packer.add(samples[index])


@torch.no_grad()
def loss(model: KimiK25, samples: Sequence[TokenizedSample], pad_id: int) -> float:
    """Cross-entropy in nats per answer token, in float32."""
    model.eval()
    total = count = 0.0
    for start in range(0, len(samples), 64):
        packer = RowPacker(TOKENS, 16)
        assert all(packer.add(sample) for sample in samples[start : start + 64])
        packer.rows = [row for row in packer.rows if row]
        batch = packer.batch(pad_id)
        total += float(F.cross_entropy(model(batch), batch.targets_N, reduction="sum"))
        count += len(batch.targets_N)
    return total / count


def train(model: KimiK25, settings: Optimization, batches: Iterator[Batch]) -> KimiK25:
    """Train a model in place; returns it."""
    model.train()
    engine = PlainEngine(model, settings)
    for step, batch in enumerate(batches):
        take_step(engine, batch, step)
    return model


def twin(model: KimiK25) -> KimiK25:
    other = new_model(model.config)
    other.load_state_dict(model.state_dict())
    return other


def through_int4(model: KimiK25, folder: Path) -> KimiK25:
    save_model(model, folder, expert_precision="int4")
    return load_model(folder)


def settings(steps: int, rate: float, precision: str = "full") -> Optimization:
    return Optimization(steps, rate, products="bfloat16", expert_precision=precision)


def measure(seed: int, facts: Facts, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    pretrained = train(
        new_model(narrow(), seed=seed), settings(options.steps, RATE),
        facts.batches(facts.sentences, options.steps, seed),
    )  # fmt: skip
    plain, aware = (
        train(
            twin(pretrained), settings(options.sft_steps, SFT_RATE, precision),
            facts.batches(facts.questions, options.sft_steps, seed),
        )
        for precision in ("full", "int4")
    )  # fmt: skip
    models = {
        "loss_full": plain,
        "loss_int4": through_int4(plain, folder / "plain"),
        "loss_qat_full": aware,
        "loss_qat_int4": through_int4(aware, folder / "aware"),
    }
    row = {name: loss(model, facts.held_out, facts.tokenizer.pad_id) for name, model in models.items()}
    row["loss_increase_ptq"] = row["loss_int4"] - row["loss_full"]
    row["loss_increase_qat"] = row["loss_qat_int4"] - row["loss_full"]
    row["loss_increase_qat_own"] = row["loss_qat_int4"] - row["loss_qat_full"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600, help="of pre-training")
    parser.add_argument("--sft-steps", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON object")
    options = parser.parse_args()
    torch.set_num_threads(1)
    facts, rows = Facts(), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            row = measure(seed, facts, options, Path(folder))
            rows.append(row)
            if not options.json:
                print(f"seed {seed}  " + "  ".join(f"{key} {value:.4f}" for key, value in row.items()), flush=True)
    means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
    spreads = {
        f"{key}_spread": round(statistics.pstdev(row[key] for row in rows), 4)
        for key in ("loss_increase_ptq", "loss_increase_qat", "loss_increase_qat_own")
    }
    result: dict[str, object] = {"benchmark": "int4_quality", "seeds": options.seeds, "steps": options.steps,
                                 "sft_steps": options.sft_steps}  # fmt: skip
    result |= {key: round(value, 4) for key, value in means.items()} | spreads
    result["ratio"] = round(means["loss_increase_qat"] / means["loss_increase_ptq"], 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
