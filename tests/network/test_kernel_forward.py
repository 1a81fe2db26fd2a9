"""A forward without gradients, by kernels, gives what the layers give."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from model.network import decoder as module
from model.network.config import TextConfig, preset
from model.network.decoder import Decoder
from model.network.documents import Documents
from model.network.forward_context import ForwardContext
from model.network.initial import new_model
from model.network.packed_attention import CHUNK, LONGEST
from model.network.yarn import extend_context
from tests.configs import YARN
from tests.drawn import draw, randomise
from tests.equality import distance

NARROW = ForwardContext(torch.bfloat16)
SHAPES: dict[str, dict[str, object]] = {
    "tiny": {},
    "yarn": {"rope_scaling": YARN},
    "unequal dims": {
        "num_attention_heads": 3, "q_lora_rank": 40, "kv_lora_rank": 56, "qk_nope_head_dim": 24, "qk_rope_head_dim": 8,
        "v_head_dim": 20, "num_experts_per_tok": 3, "n_shared_experts": 2, "routed_scaling_factor": 2.5,
    },
    "all dense": {"first_k_dense_replace": 3},
}  # fmt: skip
# Rows, tokens; the second is no multiple of a granule of rows, the third none of a chunk, the last has one token.
SIZES = [(4, 64), (3, 37), (2, CHUNK + 41), (1, 2 * CHUNK), (1, 1)]


def make(shape: str = "tiny") -> Decoder:
    config: TextConfig = preset("tiny").text_config.model_copy(update={"num_hidden_layers": 3, **SHAPES[shape]})
    decoder = Decoder(config)
    randomise(decoder, seed=3, std=0.1)
    return decoder.eval()


def inputs(rows: int, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Documents]:
    """Three documents in a row, where it is long enough."""
    x_BTD = draw(rows, tokens, 128, seed=rows * 1000 + tokens, dtype=dtype)
    ids_BT = torch.arange(tokens).mul(3).div(tokens, rounding_mode="floor").repeat(rows, 1)
    documents = Documents.of(ids_BT)
    return x_BTD, torch.arange(tokens) - documents.first_BT, documents


def by_layers(decoder: Decoder, *given: object) -> Tensor:
    """With gradients, which kernels do not compute."""
    with torch.enable_grad():
        return decoder(*given).detach()


@pytest.fixture
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry a forward by kernels."""
    seen: list[int] = []

    def noted(*given: object) -> Tensor:
        seen.append(1)
        return forward(*given)

    forward = module.forward_by_kernels
    monkeypatch.setattr(module, "forward_by_kernels", noted)
    return seen


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_the_layers_give(shape: str, size: tuple[int, int], by_kernels: list[int]) -> None:
    decoder, given = make(shape), inputs(*size)
    before = given[0].clone()
    expected = by_layers(decoder, *given, NARROW)
    assert not by_kernels
    with torch.no_grad():
        got = decoder(*given, NARROW)
    assert by_kernels == [1] and got.dtype == expected.dtype == torch.bfloat16 and expected.float().std() > 0.1
    assert torch.equal(given[0], before)
    assert distance(got, expected) < 0.005


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_in_wide_products_it_is_what_torchs_operators_give(
    size: tuple[int, int], by_kernels: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tensor, "float", Tensor.double)  # nothing rounds to less than the weights
    decoder, given = make("unequal dims").double(), inputs(*size, dtype=torch.float64)
    with torch.no_grad():
        expected = decoder(*given)
        got = decoder(*given, ForwardContext(torch.float64))
    assert by_kernels == [1]
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-11)


def test_experts_are_rounded_where_the_forward_rounds_them(by_kernels: list[int]) -> None:
    decoder, given = make(), inputs(2, 64)
    rounded = ForwardContext(torch.bfloat16, "int4")
    with torch.no_grad():
        plain = decoder(*given, NARROW)
        got, expected = decoder(*given, rounded), by_layers(decoder, *given, rounded)
    assert by_kernels == [1, 1]
    assert distance(got, expected) < 0.005 < 0.02 < distance(plain, expected)


def test_threads_run_at_once(by_kernels: list[int]) -> None:
    decoder, parts = make(), [inputs(4, 96 + 8 * number) for number in range(4)]

    def one(part: tuple[Tensor, Tensor, Documents]) -> Tensor:
        torch.set_num_threads(1)  # holds for the thread that calls it
        with torch.no_grad():
            return decoder(*part, NARROW)

    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(4) as pool:
        alone = list(first.map(one, parts))
        for got, expected in zip(pool.map(one, parts * 4), alone * 4, strict=True):
            assert torch.equal(got, expected)
    assert len(by_kernels) == 20


def test_a_context_that_became_longer_counts(by_kernels: list[int]) -> None:
    model, (x_BTD, *rest) = new_model(preset("tiny"), seed=3).eval(), inputs(2, 200)
    decoder = model.language_model.model
    randomise(decoder, seed=3, std=0.1)
    with torch.no_grad():
        short = decoder(x_BTD, *rest, NARROW)
        extend_context(model, 1024)
        got, expected = decoder(x_BTD, *rest, NARROW), by_layers(decoder, x_BTD, *rest, NARROW)
    assert by_kernels == [1, 1]
    assert distance(got, expected) < 0.005 < 0.1 < distance(short, expected)


def bias(decoder: Decoder) -> None:
    attention: nn.Module = decoder.layers[1].self_attn
    attention.o_proj.bias = nn.Parameter(torch.ones(128))


# Where a kernel would compute something else than the layers do, or read what it cannot.
OTHERS: dict[str, Callable[[Decoder], object]] = {
    "narrow experts": lambda decoder: decoder.layers[1].mlp.experts.bfloat16(),
    "a narrow projection": lambda decoder: decoder.layers[2].self_attn.o_proj.bfloat16(),
    "a narrow norm": lambda decoder: decoder.layers[0].self_attn.q_a_layernorm.bfloat16(),
    "a wide router": lambda decoder: decoder.layers[1].mlp.gate.double(),
    "a transposed projection": lambda decoder: setattr(
        decoder.layers[1].self_attn.o_proj, "weight", nn.Parameter(torch.randn(128, 128).T)
    ),
    "a bias": bias,
    "a hook": lambda decoder: decoder.layers[1].mlp.experts.register_forward_hook(lambda *given: given[-1] * 2),
    "a hook before": lambda decoder: decoder.layers[1].self_attn.register_forward_pre_hook(lambda *_: None),
    "a layer in training": lambda decoder: decoder.layers[2].train(),
}


@pytest.mark.parametrize("other", OTHERS)
def test_layers_are_used_for_weights_that_kernels_do_not_take_and_where_someone_looks(
    other: str, by_kernels: list[int]
) -> None:
    decoder, given = make(), inputs(2, 48)
    OTHERS[other](decoder)
    expected = by_layers(decoder, *given, NARROW)
    with torch.no_grad():
        got = decoder(*given, NARROW)
    assert not by_kernels and distance(got, expected) < 0.005


def test_positions_of_other_rows_are_an_error() -> None:
    decoder, (x_BTD, position_ids_BT, documents) = make(), inputs(2, 16)
    with pytest.raises(ValueError, match=r"positions are \[1, 16\], but documents have 2 rows of 16 tokens"):
        decoder(x_BTD, position_ids_BT[:1], documents)


def test_layers_are_used_where_something_is_learned_or_a_kernel_would_not_do(by_kernels: list[int]) -> None:
    decoder, given, long = make(), inputs(1, 16), inputs(1, LONGEST + 1)
    decoder(*given, NARROW)
    with torch.no_grad():
        decoder(*given)  # in the precision of the weights
        decoder(*long, NARROW)
        make().bfloat16()(given[0].bfloat16(), *given[1:], NARROW)
        decoder.train()(*given, NARROW)
        decoder.eval().layers[1].mlp.experts.group = lambda held, *tokens: held(*tokens)
        decoder(*given, NARROW)
    assert not by_kernels and decoder.layers[1].mlp.gate.load_E.sum() == 16 * 2
