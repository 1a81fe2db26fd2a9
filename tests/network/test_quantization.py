"""INT4 experts next to the formula in plain Python, to compressed-tensors itself and to transformers' import."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.boundary.errors import MoonflowError
from model.checkpoint.export import quantise_checkpoint, save_model
from model.checkpoint.file_names import CONFIG, INDEX, WEIGHTS
from model.checkpoint.load import load_model
from model.checkpoint.tensor_names import released_tensors
from model.data.batches.packing import pack
from model.network.batch import Batch
from model.network.config import load_config, preset
from model.network.construction import build_on_meta
from model.network.forward_context import ForwardContext
from model.network.initial import new_model
from model.network.moe import Experts
from model.network.multimodal import KimiK25
from model.network.quantization import (
    dequantise,
    fake_quantise,
    in_precision,
    packed_experts,
    quantise,
    unpack,
    unpacked_experts,
)
from model.network.quantization import pack as pack_levels
from model.network.served import as_served
from model.optimizer.optimization import Optimization
from model.train.engine import PlainEngine
from tests.drawn import random_model, randomise, sample
from tests.peers import same_latent_eps
from tests.training import batch_loss, take_step

TINY = preset("tiny")
SPREAD = [-8, -7, -1, 0, 1, 5, 6, 7]  # every nibble's extremes, and what order would show
EXPERT = "language_model.model.layers.2.mlp.experts.5.down_proj."


def draw_unevenly(*shape: int, seed: int = 0) -> torch.Tensor:
    """Rows and groups of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 10 ** torch.randn(*shape[:-1], 1, generator=generator)


@pytest.fixture(scope="module")
def model() -> KimiK25:
    return random_model(TINY, seed=7)


@pytest.fixture
def folder(model: KimiK25, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "int4", "int4")
    return tmp_path / "int4"


def words(seed: int = 0, count: int = 40) -> Batch:
    return pack([sample(seed, count)], TINY.pad_token_id)


def test_levels_and_values_by_hand():
    weight = draw_unevenly(3, 64)
    weight[1, 32:] = 0.0
    levels, scales = quantise(weight)
    values = dequantise(levels, scales)
    assert levels.shape == (3, 64) and levels.dtype == torch.int8 and scales.shape == (3, 2)
    for row in range(3):
        for column in range(64):
            group = weight[row, column // 32 * 32 : column // 32 * 32 + 32].tolist()
            scale = float(torch.tensor(max(map(abs, group)) / 7).bfloat16()) or 1.0
            assert float(scales[row, column // 32]) == scale
            assert int(levels[row, column]) == round(float(weight[row, column]) / scale)
            assert float(values[row, column]) == int(levels[row, column]) * scale
    assert torch.equal(values[1, 32:], torch.zeros(32))
    assert int(levels.min()) == -7 and int(levels.max()) == 7
    assert torch.equal(fake_quantise(weight), values)


def test_packing_by_hand():
    levels = torch.tensor([SPREAD * 2, [*reversed(SPREAD)] * 2], dtype=torch.int8)
    packed = pack_levels(levels)
    for row, numbers in enumerate(levels.tolist()):
        for word in range(2):
            bits = sum((level + 8) << (4 * place) for place, level in enumerate(numbers[8 * word : 8 * word + 8]))
            assert int(packed[row, word]) & 0xFFFFFFFF == bits
    assert torch.equal(unpack(packed), levels)


SCHEME = {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32, "strategy": "group", "symmetric": True}}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_compressed_tensors(dtype: torch.dtype):
    # It takes seconds to import, which collecting the tests should not.
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme

    config = QuantizationConfig(config_groups={"group_0": SCHEME}, format="pack-quantized")
    scheme = QuantizationScheme(**config.config_groups["group_0"].model_dump())
    theirs = BaseCompressor.get_value_from_registry("pack-quantized")
    weight = draw_unevenly(16, 96, seed=1).to(dtype)
    levels, scales = quantise(weight)
    assert scales.dtype == dtype
    packed = theirs.compress({"weight": weight.float(), "weight_scale": scales.float()}, scheme)
    assert torch.equal(packed["weight_packed"], pack_levels(levels))
    assert packed["weight_packed"].dtype == pack_levels(levels).dtype
    ours = packed_experts({EXPERT + "weight": weight})
    assert torch.equal(ours[EXPERT + "weight_shape"].long(), packed["weight_shape"].long())
    names = ("weight_packed", "weight_scale", "weight_shape")
    theirs_back = theirs.decompress({name: ours[EXPERT + name] for name in names}, scheme)["weight"]
    back = unpacked_experts(ours, "here")[EXPERT + "weight"]
    assert back.dtype == dtype and torch.equal(back, theirs_back)


def test_what_is_quantised_stays_as_it_is():
    weight = draw_unevenly(64, 256, seed=2)
    once = fake_quantise(weight)
    assert torch.equal(fake_quantise(once), once) and not torch.equal(once, weight)
    # Rounding moves a weight by half a scale at most; the bfloat16 scale may be 1/256 short of max / 7.
    peak = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
    assert ((once - weight).unflatten(-1, (-1, 32)).abs() <= peak / 7 * (0.5 + 7 / 256)).all()


def test_inputs_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(MoonflowError, match=r"groups of 32.*\[4, 48\].*moe_intermediate_size as multiples of 32"):
        quantise(torch.ones(4, 48))
    narrow = TINY.model_copy(deep=True)
    narrow.text_config.moe_intermediate_size = 40
    with pytest.raises(MoonflowError, match="multiples of 32"):
        packed_experts(released_tensors(new_model(narrow).state_dict()))


def test_the_gradient_goes_straight_through():
    weight = draw_unevenly(2, 8, 64).requires_grad_()
    cotangent = draw_unevenly(2, 8, 64, seed=3)
    (gradient,) = torch.autograd.grad(fake_quantise(weight), weight, cotangent)
    assert torch.equal(gradient, cotangent)


@pytest.mark.parametrize("products", [None, torch.bfloat16])
def test_training_sees_the_rounded_weights_and_moves_the_float_ones(products: torch.dtype | None):
    """Output, input gradient and weight gradient are those of experts that hold the rounded values themselves."""
    config = TINY.text_config
    ours, rounded = Experts(config), Experts(config)
    randomise(ours, seed=4)
    with torch.no_grad():
        rounded.gate_up_proj.copy_(fake_quantise(ours.gate_up_proj))
        rounded.down_proj.copy_(fake_quantise(ours.down_proj))
    tokens, chosen = draw_unevenly(24, config.hidden_size, seed=5).clamp(-3, 3), torch.arange(48).view(24, 2) % 8
    weights, cotangent = torch.rand(24, 2), draw_unevenly(24, config.hidden_size, seed=6).clamp(-3, 3)

    def run(experts: Experts, precision: str) -> list[torch.Tensor]:
        x = tokens.clone().requires_grad_()
        y = experts(x, weights, chosen, ForwardContext(products, precision))
        learned = (x, experts.gate_up_proj, experts.down_proj)
        return [y.detach(), *torch.autograd.grad(y, learned, cotangent.to(y.dtype))]

    for got, expected in zip(run(ours, "int4"), run(rounded, "full"), strict=True):
        assert torch.equal(got, expected)
    assert not torch.equal(run(ours, "full")[0], run(ours, "int4")[0])


def test_full_precision_leaves_a_weight_alone_and_only_known_precisions_are_taken():
    weight = draw_unevenly(1, 4, 32)
    assert in_precision(weight, "full") is weight
    assert torch.equal(in_precision(weight, "int4"), fake_quantise(weight)) and not torch.equal(
        fake_quantise(weight), weight
    )
    with pytest.raises(MoonflowError, match="'int8' is unknown; choose one of full, int4"):
        ForwardContext(expert_precision="int8")


def settings(precision: str) -> Optimization:
    return Optimization(4, 1e-2, warmup_steps=0, expert_precision=precision)


def test_the_served_model_is_what_training_sees_and_what_an_export_holds(folder):
    model = load_model(folder)  # quantised values: training must leave them
    take_step(PlainEngine(model.train(), settings("int4")), words())
    served = as_served(model, "int4")
    assert not served.training and model.training
    own, theirs = dict(model.named_parameters()), dict(served.named_parameters())
    assert own.keys() == theirs.keys()
    for name, parameter in own.items():
        assert (theirs[name] is parameter) == (".mlp.experts." not in name), name
        if ".mlp.experts." in name:
            assert torch.equal(theirs[name], fake_quantise(parameter.detach()))
            assert not torch.equal(theirs[name], parameter)
    batch = words(seed=1)
    with torch.no_grad():
        trained, _ = batch_loss(model.eval(), batch, context=ForwardContext(expert_precision="int4"))
        assert torch.equal(trained, batch_loss(served, batch)[0])
        assert not torch.equal(trained, batch_loss(model, batch)[0])
    save_model(model, folder, "int4")
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in served.state_dict().items())
    assert as_served(model, "full") is model


def test_a_step_of_aware_training_is_a_step_at_the_rounded_weights():
    """Same start, whose experts are quantised values: the first steps are the same. Later ones are not."""
    plain, aware = new_model(TINY, seed=1), new_model(TINY, seed=1)
    for made in (plain, aware):
        randomise(made, seed=8, std=0.05)
        made.load_state_dict(as_served(made, "int4").state_dict())
    losses = []
    for made, precision in ((plain, "full"), (aware, "int4")):
        engine = PlainEngine(made.train(), settings(precision))
        losses.append([take_step(engine, words(), n)["loss/total"] for n in range(3)])
    assert losses[0][0] == losses[1][0] and losses[0][2] != losses[1][2]
    assert all(math.isfinite(loss) for loss in losses[1])


def test_an_export_has_the_released_names_shapes_and_types(model, folder):
    full, written = released_tensors(model.state_dict()), load_file(folder / WEIGHTS)
    expected: dict[str, tuple[list[int], torch.dtype]] = {}
    for name, value in full.items():
        rows, columns = value.shape if value.ndim == 2 else (0, 0)
        if ".mlp.experts." not in name:
            expected[name] = (list(value.shape), torch.float32)
            continue
        expected[name + "_packed"] = ([rows, columns // 8], torch.int32)
        expected[name + "_scale"] = ([rows, columns // 32], torch.float32)
        expected[name + "_shape"] = ([2], torch.int32)
    assert {name: (list(value.shape), value.dtype) for name, value in written.items()} == expected
    assert (EXPERT + "weight_packed") in written and written[EXPERT + "weight_shape"].tolist() == [128, 128]


def test_the_released_shape_packs_to_the_released_sizes():
    """One layer of each kind of the 1T shape, with few of its experts, on the meta device."""
    config = preset("k25").model_copy(deep=True)
    config.text_config.num_hidden_layers, config.text_config.n_routed_experts = 2, 8
    config.vision_config.vt_num_hidden_layers = 1
    tensors = packed_experts(released_tensors(build_on_meta(config).state_dict()))
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    prefix = "language_model.model.layers.1.mlp.experts.7."
    assert [shapes[f"{prefix}gate_proj.{kind}"] for kind in ("weight_packed", "weight_scale", "weight_shape")] == [
        [2048, 7168 // 8], [2048, 7168 // 32], [2],
    ]  # fmt: skip
    assert shapes[f"{prefix}down_proj.weight_packed"] == [7168, 256]
    assert shapes["language_model.model.layers.0.mlp.down_proj.weight"] == [7168, 18432]


def test_config_json_says_how_compressed_tensors_is_to_read_it(folder):
    from compressed_tensors.quantization import QuantizationConfig

    raw = json.loads((folder / CONFIG).read_text())
    assert raw["quantization_config"] == raw["text_config"]["quantization_config"]
    theirs = QuantizationConfig(**raw["quantization_config"])
    assert theirs.format == "pack-quantized" and theirs.quantization_status == "compressed"
    assert theirs.ignore == [
        "lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", r"re:.*mlp\.(gate|up|gate_up|down)_proj.*",
    ]  # fmt: skip
    (group,) = theirs.config_groups.values()
    assert group.targets == ["Linear"] and group.input_activations is None
    weights = group.weights
    assert (weights.num_bits, weights.group_size, weights.strategy, weights.symmetric) == (4, 32, "group", True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_exported_comes_back_and_goes_out_again_the_same(model, tmp_path, dtype):
    save_model(model, tmp_path / "first", "int4", dtype)
    loaded = load_model(tmp_path / "first")
    tensors = loaded.state_dict()
    for name, value in as_served(model, "int4").state_dict().items():
        stored = value if name.endswith("e_score_correction_bias") else value.to(dtype).float()
        assert torch.equal(tensors[name], stored), name
    if dtype == torch.float32:
        save_model(loaded, tmp_path / "second", "int4")
        assert (tmp_path / "second" / WEIGHTS).read_bytes() == (tmp_path / "first" / WEIGHTS).read_bytes()
    save_model(loaded, tmp_path / "full")
    raw = json.loads((tmp_path / "full" / CONFIG).read_text())
    assert "quantization_config" not in raw and "quantization_config" not in raw["text_config"]
    again = load_model(tmp_path / "full").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in loaded.state_dict().items())


def test_a_checkpoint_folder_is_quantised_in_place_file_by_file(model, folder, tmp_path):
    save_model(model, tmp_path / "whole")
    quantise_checkpoint(tmp_path / "whole")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "whole" / name).read_bytes() == (folder / name).read_bytes()
    # The same weights in two files with an index.
    sharded = tmp_path / "sharded"
    save_model(model, sharded)
    tensors = load_file(sharded / WEIGHTS)
    (sharded / WEIGHTS).unlink()
    place = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(place.values()):
        save_file({name: tensors[name] for name in tensors if place[name] == file}, sharded / file)
    (sharded / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": place}))
    quantise_checkpoint(sharded)
    expected, loaded = load_model(folder).state_dict(), load_model(sharded).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in expected.items())
    assert set(json.loads((sharded / INDEX).read_text())["weight_map"]) == set(load_file(folder / WEIGHTS))
    assert not list(sharded.glob("*.int4"))


def test_weights_that_are_not_finite_are_not_exported(model, tmp_path):
    broken = as_served(model, "int4")
    with torch.no_grad():
        broken.language_model.model.layers[2].mlp.experts.down_proj[5, 0, 0] = math.inf
    with pytest.raises(MoonflowError, match=f"{EXPERT}weight holds values that are not finite"):
        save_model(broken, tmp_path, "int4")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(EXPERT + "weight_scale"), "weight_scale is missing"),
        (lambda t: t.pop(EXPERT + "weight_shape"), "weight_shape is missing"),
        (lambda t: t.pop(EXPERT + "weight_packed"), "weight"),
        (lambda t: t.update({EXPERT + "weight_shape": torch.tensor([128, 64])}), r"not INT4.*\[128, 64\]"),
        (lambda t: t.update({EXPERT + "weight_scale": torch.ones(128, 1)}), r"scales \[128, 1\].*groups of 32"),
        (lambda t: t.update({EXPERT + "weight_packed": torch.zeros(128, 16)}), "float32"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(folder, change, complaint):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(MoonflowError, match=f"{folder}.*{EXPERT}.*{complaint}"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("num_bits", 8), ("group_size", 128), ("symmetric", False), ("type", "float")]
)
def test_another_quantisation_is_refused(folder, key, value):
    raw = json.loads((folder / CONFIG).read_text())
    for place in (raw, raw["text_config"]):
        place["quantization_config"]["config_groups"]["group_0"]["weights"][key] = value
    (folder / CONFIG).write_text(json.dumps(raw))
    with pytest.raises(MoonflowError, match=f"{CONFIG} is not a usable model config.*{key}"):
        load_model(folder)


def test_the_released_place_in_the_config_is_read_and_a_contradiction_refused(folder):
    raw = json.loads((folder / CONFIG).read_text())
    del raw["quantization_config"]
    released = raw["text_config"]["quantization_config"]
    group = released["config_groups"]["group_0"]
    group["format"] = "pack-quantized"
    group["weights"] |= {"observer": "minmax", "actorder": None, "dynamic": False}
    (folder / CONFIG).write_text(json.dumps(raw))
    assert load_config(folder / CONFIG).quantization_config is not None
    (folder / CONFIG).write_text(json.dumps({**raw, "quantization_config": {**released, "ignore": []}}))
    with pytest.raises(MoonflowError, match="text_config.quantization_config differ"):
        load_config(folder / CONFIG)


@torch.no_grad()
def test_transformers_reads_the_export_with_the_same_logits(folder):
    transformers = pytest.importorskip("transformers", minversion="5.23")
    native, report = transformers.Kimi_K25ForConditionalGeneration.from_pretrained(
        folder,
        dtype=torch.float32,
        output_loading_info=True,
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    same_latent_eps(native, TINY.text_config)
    batch = words(seed=2)
    expected = native.eval()(input_ids=batch.input_ids_BT).logits[0, :-1]
    torch.testing.assert_close(load_model(folder)(batch), expected, atol=1e-4, rtol=1e-3)
