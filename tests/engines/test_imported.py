"""From a checkpoint as released, over one step of training, to an INT4 export, and to stock vLLM and SGLang.

The engines' kernels for INT4 experts need a GPU. So they are given what the export stands for: its experts unpacked,
the rest as it is. Prompts are read with the released kind of tokenizer.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.export import export, quantise_checkpoint
from model.checkpoint.importing import LocalFolder, import_checkpoint
from model.checkpoint.load import load_model
from model.codec.tokenizer import Tokenizer
from model.data.batches.packing import pack
from model.network.quantization import fake_quantise
from model.optimizer.optimization import Optimization
from model.train.engine import PlainEngine
from tests.checkpoint.released_source import YARN, draw, write
from tests.drawn import sample
from tests.engines.chats import ask, assert_same
from tests.engines.checkpoint import CONTEXT, TEXT, VISION
from tests.engines.questions import own_answers, questions
from tests.engines.server import serving
from tests.training import take_step

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1800)]

SEED = 9  # of the weights: in no answer are the two likeliest tokens closer than 4.8e-4 nats


def trained_export(folder: Path) -> Path:
    """The INT4 export of a checkpoint that was imported and trained for one step with a text and an image."""
    scaling = YARN | {"original_max_position_embeddings": CONTEXT // 4}
    released = draw("int4", SEED, TEXT | {"rms_norm_eps": 1e-5, "rope_scaling": scaling}, VISION)
    source = write(folder / "source", released)
    import_checkpoint(LocalFolder(source), folder / "imported")
    tokenizer, model = Tokenizer.load(folder / "imported"), load_model(folder / "imported").train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    settings = Optimization.constant(1, 1e-3, expert_precision="int4")
    take_step(PlainEngine(model, settings), pack([sample(1, 60), sample(2, 9, (1, 4, 6), 12)], tokenizer.pad_id))
    assert all(not parameter.equal(before[name]) for name, parameter in model.named_parameters())
    export(model.eval(), tokenizer, folder / "int4")
    quantise_checkpoint(folder / "int4")
    return folder / "int4"


def unpacked(int4: Path, folder: Path) -> Path:
    """The same numbers with the experts unpacked."""
    model = load_model(int4)
    for name, parameter in model.named_parameters():
        assert ".mlp.experts." not in name or fake_quantise(parameter.detach()).equal(parameter), name
    export(model, Tokenizer.load(int4), folder)
    return folder


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_chats_are_answered_as_by_moonflow(engine: str, tmp_path: Path) -> None:
    int4 = trained_export(tmp_path)
    asked = questions(Tokenizer.load(int4))
    answers = own_answers(int4, [question.request for question in asked])
    assert all(len(answer.token_ids) == 64 and len(set(answer.token_ids)) > 32 for answer in answers)
    with serving(engine, unpacked(int4, tmp_path / "unpacked"), tmp_path / f"{engine}.log") as url:
        assert_same(asked, ask(url, asked), answers)
