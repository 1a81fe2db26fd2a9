"""transformers' own ``Kimi_K25ForConditionalGeneration`` reads what we export, and we read what it saves.

It loads the folder as any user would, by ``from_pretrained`` alone: no config of ours, no renaming of ours. Its loader
turns the released names into its own (q, k and v of the vision tower apart, their rotary columns regrouped; fc0 and fc1
as fc1 and fc2; the projector as in_proj and out_proj; experts stacked); its own config keys stand next to the released.

Where it differs from the released model and from us:

- The norms of the two latents have eps 1e-6 whatever ``rms_norm_eps`` says (so has the released remote code; vLLM,
  SGLang and we use ``rms_norm_eps``). With 1e-6 there is no difference; with 1e-5 one test sets it by hand.
- Pads of videos have an id of their own, past the vocabulary; in the released model, and here, all media share one pad.
- Its forward counts t*h*w/4 features for a chunk whose frames it has just pooled into h*w/4, and fails on every chunk
  of more than one frame; its tower fails on chunks of unequal frame counts in one call (5.23). The tower's and the
  projector's output for one chunk is right: it is handed to the decoder as ``mm_encoder_outputs``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Kimi_K25Config, Kimi_K25ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from model.checkpoint.export import export
from model.checkpoint.load import load_model
from model.network.batch import GridTHW
from model.network.config import RopeScaling
from model.network.documents import Documents
from model.network.multimodal import KimiK25
from tests.configs import changed
from tests.drawn import PAD, random_model, randomise, sample
from tests.interop.conftest import CONFIG
from tests.peers import same_latent_eps
from tests.tiny_folders import tiny_tokenizer

TOLERANCE = 1e-4
PROMPTS: dict[str, list[int | GridTHW]] = {
    "text": [40],
    "one image": [3, (1, 4, 6), 9],
    "several images": [2, (1, 2, 2), 4, (1, 8, 4), (1, 6, 18), 5, (1, 16, 16), 3],
    "a video chunk": [4, (4, 4, 6), 7],
    "two chunks, the last one short": [1, (4, 2, 8), 3, (2, 2, 8), 6],
}


def prompt(parts: list[int | GridTHW]) -> tuple[torch.Tensor, torch.Tensor | None, list[GridTHW]]:
    """Random tokens of the lengths given and random media of the grids given: ids [T], pixels [P, 3, 14, 14], grids."""
    made = sample(1, *parts)
    pixels = None if made.pixel_values is None else made.pixel_values * 2 - 1
    return made.input_ids, pixels, made.grid_thws


@torch.no_grad()
def ours(model: KimiK25, ids_T: torch.Tensor, pixels: torch.Tensor | None, grids: list[GridTHW]):
    """Logits [T, V], and the experts of every token in each mixture layer."""
    chosen: list[torch.Tensor] = []
    hooks = [
        router.register_forward_hook(lambda _, __, out: chosen.append(out[0].sort().values))
        for router in model.routers()
    ]
    x_BTD = model.embed(ids_T.unsqueeze(0), pixels, grids)
    positions, documents = torch.arange(len(ids_T)).unsqueeze(0), torch.zeros(1, len(ids_T), dtype=torch.long)
    hidden = model.language_model.model(x_BTD, positions, Documents.of(documents))
    for hook in hooks:
        hook.remove()
    return model.language_model.lm_head(hidden)[0], chosen


def encoded(native: torch.nn.Module, pixels: torch.Tensor, grids: list[GridTHW]) -> BaseModelOutputWithPooling:
    """What its tower and projector make of media, one after the other."""
    features = []
    for grid, patches in zip(grids, pixels.split([t * h * w for t, h, w in grids]), strict=True):
        merged = native.model.vision_tower(patches, grid_thw=torch.tensor([grid])).pooler_output
        features.append(native.model.mm_projector(merged).squeeze(1))
    return BaseModelOutputWithPooling(pooler_output=features)


@torch.no_grad()
def theirs(native: torch.nn.Module, ids_T: torch.Tensor, pixels: torch.Tensor | None, grids: list[GridTHW]):
    chosen: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, out: chosen.append(out[2].sort().values))
        for module in native.modules()
        if isinstance(module, DeepseekV3TopkRouter)
    ]
    media = {}
    if pixels is not None and all(t == 1 for t, _, _ in grids):
        media = {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}
    elif pixels is not None:
        ids_T = ids_T.masked_fill(ids_T == PAD, native.config.video_token_id)
        media = {"mm_encoder_outputs": {"video": encoded(native, pixels, grids)}}
    logits = native(input_ids=ids_T.unsqueeze(0), **media).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, chosen


def assert_same(model: KimiK25, native: torch.nn.Module, names: list[str] | None = None) -> None:
    for name in names or PROMPTS:
        inputs = prompt(PROMPTS[name])
        (got, our_experts), (expected, their_experts) = ours(model, *inputs), theirs(native, *inputs)
        assert 0.3 < expected.std() < 3, name
        assert (got - expected).abs().max() <= TOLERANCE, name
        assert len(our_experts) == len(list(model.routers()))
        for layer, (mine, other) in enumerate(zip(our_experts, their_experts, strict=True)):
            assert torch.equal(mine, other), (name, layer)


def from_pretrained(folder: Path) -> torch.nn.Module:
    native, report = Kimi_K25ForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return native.eval()


def test_it_gives_the_logits_and_experts_of_our_export(model, folder):
    assert_same(model, from_pretrained(folder))


def test_yarn_and_every_size_another(tmp_path):
    """A second shape, so that no value of config.json can come from a default: two dense layers, two shared experts."""
    yarn = RopeScaling(factor=4.0, original_max_position_embeddings=64)
    text = {"rope_scaling": yarn, "first_k_dense_replace": 2, "n_shared_experts": 2, "num_experts_per_tok": 3}
    text |= {"routed_scaling_factor": 1.3}
    vision = {"projector_ln_eps": 1e-3, "init_pos_emb_height": 8, "init_pos_emb_width": 8, "vt_num_attention_heads": 8}
    model = random_model(changed(CONFIG, text, vision), seed=3, std=0.06)
    export(model, tiny_tokenizer(), tmp_path)
    assert_same(model, from_pretrained(tmp_path), ["text", "several images", "a video chunk"])


def test_the_released_eps(tmp_path):
    model = random_model(changed(CONFIG, {"rms_norm_eps": 1e-5}), seed=3, std=0.06)
    export(model, tiny_tokenizer(), tmp_path)
    native = from_pretrained(tmp_path)
    same_latent_eps(native, model.config.text_config)
    assert_same(model, native, ["text", "one image"])


@torch.no_grad()
def test_an_image_and_a_video_in_one_prompt(model, folder):
    """We take media in reading order, transformers images and videos apart."""
    native = from_pretrained(folder)
    image, video = (1, 4, 6), (4, 2, 8)
    ids_T, pixels, _ = prompt([3, image, 4, video, 5])
    assert pixels is not None
    got, _ = ours(model, ids_T, pixels, [image, video])
    of_video = torch.where(ids_T == PAD)[0][6:]  # the image has six tokens
    with pytest.raises(RuntimeError, match="split_with_sizes"):  # the fault described above
        native.get_video_features(pixels[24:], torch.tensor([video]))
    expected = native(
        input_ids=ids_T.index_fill(0, of_video, native.config.video_token_id).unsqueeze(0),
        mm_encoder_outputs={
            "image": encoded(native, pixels[:24], [image]),
            "video": encoded(native, pixels[24:], [video]),
        },
    ).logits[0]
    assert (got - expected).abs().max() <= TOLERANCE


def test_what_it_saves_again_is_our_checkpoint(model, folder, tmp_path):
    """``save_pretrained`` writes neither the released names nor the released keys: both are read."""
    from_pretrained(folder).save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_a_checkpoint_made_by_transformers_alone(tmp_path):
    """Its own classes, its own config keys, bfloat16 and several files: imported, the logits are its own in float32."""
    rope = {"rope_theta": 10000.0, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    rope |= {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    config = Kimi_K25Config(
        text_config=dict(
            model_type="deepseek_v3", vocab_size=1024, hidden_size=96, intermediate_size=160, moe_intermediate_size=64,
            num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=3, n_routed_experts=8, n_shared_experts=1,
            num_experts_per_tok=3, n_group=1, topk_group=1, first_k_dense_replace=1, q_lora_rank=48, kv_lora_rank=64,
            qk_rope_head_dim=16, qk_nope_head_dim=32, v_head_dim=24, routed_scaling_factor=1.7, norm_topk_prob=True,
            max_position_embeddings=512, bos_token_id=768, eos_token_id=769, pad_token_id=1023, rope_parameters=rope,
            tie_word_embeddings=False,
        ),
        vision_config=dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                           pos_emb_height=8, pos_emb_width=8),
        projection_hidden_size=64, image_token_id=PAD, video_token_id=1024, vision_start_token_id=PAD - 3,
        vision_end_token_id=PAD - 1, tie_word_embeddings=False,
    )  # fmt: skip
    native = Kimi_K25ForConditionalGeneration(config)
    randomise(native, seed=11, std=0.08)
    biases = [module.e_score_correction_bias for module in native.modules() if isinstance(module, DeepseekV3TopkRouter)]
    for bias in biases:
        bias.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(5))
    native.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="500KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    imported = load_model(tmp_path)
    assert {parameter.dtype for parameter in imported.parameters()} == {torch.float32}
    assert imported.config.dtype == "bfloat16" and imported.config.text_config.rope_scaling.factor == 4.0
    assert_same(imported, from_pretrained(tmp_path))
