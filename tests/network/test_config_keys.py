"""config.json as other programs write it, and as they read ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from model.boundary.errors import MoonflowError
from model.network.config import RopeScaling, load_config, parse_config, preset
from model.network.config_keys import VISION_ALIASES
from tests.configs import changed

CONFIG = preset("tiny")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    CONFIG.save(tmp_path / "config.json")
    return tmp_path / "config.json"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"text_config": {}}, "text_config"),
        ({"surprise": 1}, "surprise"),
        ({"vision_config": {**CONFIG.model_dump()["vision_config"], "mm_hidden_size": 64}}, "mm_hidden_size"),
    ],
)
def test_a_wrong_config_is_named(path, change, complaint):
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(MoonflowError, match=f"{path}.*{complaint}"):
        load_config(path)


def test_the_vision_tower_has_its_sizes_under_both_families_of_keys(path):
    written = json.loads(path.read_text())["vision_config"]
    assert (written["hidden_size"], written["vt_hidden_size"]) == (CONFIG.vision_config.vt_hidden_size,) * 2
    assert all(written[alias] == written[key] for key, alias in VISION_ALIASES.items())
    assert set(VISION_ALIASES.values()) == {
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "pos_emb_height",
        "pos_emb_width",
        "pos_emb_time",
    }
    assert load_config(path) == CONFIG


def released_config() -> dict[str, Any]:
    """A config.json as the released one is written: raw keys, YARN, and what transformers 4 leaves in every file."""
    generic = {"return_dict": True, "output_attentions": False, "max_length": 20, "top_k": 50, "id2label": {"0": "a"}}
    generic |= {"_name_or_path": "", "bad_words_ids": None, "torchscript": False, "pruned_heads": {}, "num_beams": 1}
    k25 = preset("k25")
    text = k25.text_config.model_dump(exclude_none=True) | generic | {"model_type": "kimi_k2", "ep_size": 1}
    text |= {"pretraining_tp": 1, "torch_dtype": "bfloat16", "num_nextn_predict_layers": 0}
    text |= {"max_position_embeddings": 262144, "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}
    text["rope_scaling"] = {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 64.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn",
    }  # fmt: skip
    vision = k25.vision_config.model_dump() | {"_attn_implementation": "flash_attention_2"}
    raw = k25.model_dump(exclude={"text_config", "vision_config", "dtype", "quantization_config"})
    return raw | {"dtype": "bfloat16", "transformers_version": "4.56.2", "text_config": text, "vision_config": vision}


def test_a_released_config_is_read():
    config = parse_config(json.dumps(released_config()), "config.json")
    assert config.text_config.rope_scaling == RopeScaling(factor=64.0, original_max_position_embeddings=4096)
    assert config.text_config.softmax_scale == pytest.approx(192**-0.5 * (0.1 * math.log(64) + 1) ** 2)
    assert config.text_config.softmax_scale * 192**0.5 == pytest.approx(1.416**2, rel=1e-3)
    plain = preset("k25")
    same = {"rope_scaling": None, "max_position_embeddings": 4096, "model_type": "deepseek_v3"}
    assert config.text_config.model_copy(update=same) == plain.text_config
    assert config.vision_config == plain.vision_config and config.dtype == "bfloat16"


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("text_config", {"rope_interleave": False}, "rope_interleave is False, but this network has only True"),
        ("text_config", {"head_dim": 32}, "head_dim is 32"),
        ("text_config", {"n_group": 8}, "n_group"),
        ("text_config", {"topk_method": "greedy"}, "topk_method"),
        ("text_config", {"norm_topk_prob": False}, "norm_topk_prob"),
        ("text_config", {"scoring_func": "softmax"}, "scoring_func"),
        ("text_config", {"attention_bias": True}, "attention_bias"),
        ("text_config", {"num_key_value_heads": 2}, "MLA has no groups"),
        ("text_config", {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}}, "of type 'llama3'"),
        ("text_config", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, "rope_theta is 5.0"),
        (
            "text_config",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "mscale": 0.7}},
            "mscale must equal mscale_all_dim",
        ),
        (
            "text_config",
            {
                "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
                "rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
            },
            "rope_scaling is .* but rope_parameters is",
        ),
        ("vision_config", {"hidden_act": "relu"}, "hidden_act is relu"),
        ("vision_config", {"num_hidden_layers": 27}, "num_hidden_layers is 27, but vision_config.vt_num_hidden"),
        ("vision_config", {"surprise": 1}, "surprise"),
        ("vision_config", {"vt_num_attention_heads": 64, "num_attention_heads": 64}, "a multiple of 4"),
        ("", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("", {"image_token_id": 5}, "image_token_id is 5, but config.media_placeholder_token_id is 789"),
        ("", {"model_type": "kimi_vl"}, "model_type"),
    ],
)
def test_what_would_be_another_network_is_refused(path, part, change, told):
    raw = json.loads(path.read_text())
    (raw[part] if part else raw).update(change)
    path.write_text(json.dumps(raw))
    with pytest.raises(MoonflowError, match=told):
        load_config(path)


def test_yarn_is_written_and_read(tmp_path):
    scaling = RopeScaling(factor=4.0, original_max_position_embeddings=64)
    config = changed(CONFIG, {"rope_scaling": scaling})
    config.save(tmp_path / "config.json")
    assert load_config(tmp_path / "config.json") == config
    CONFIG.save(tmp_path / "config.json")
    assert "rope_scaling" not in json.loads((tmp_path / "config.json").read_text())["text_config"]
