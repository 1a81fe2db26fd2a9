from __future__ import annotations

import json

import pytest

from model.boundary.errors import MoonflowError
from model.checkpoint.export import export, save_model, save_part
from model.checkpoint.file_names import CONFIG, FILES, INDEX, WEIGHTS, weights_file
from model.checkpoint.load import load_image_config, load_model
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from model.network.config import load_config
from model.network.expert_share import ExpertShare
from model.parallel.expert_parallel import is_expert
from tests.corpus import corpus
from tests.equality import part_of, same_tensors
from tests.tiny_folders import tiny_tokenizer


def test_an_export_has_every_file_of_a_checkpoint(model, tmp_path):
    export(model, tiny_tokenizer(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, WEIGHTS}
    assert load_image_config(tmp_path) == ImageConfig()
    custom = ImageConfig(in_patch_limit=64)
    save_model(model, tmp_path, image_config=custom)
    assert load_image_config(tmp_path) == custom
    save_model(model, tmp_path, image_config=ImageConfig(patch_size=16))
    with pytest.raises(MoonflowError, match="patches of 16 pixels, 2 x 2 to a token, but config.json says 14, 2 x 2"):
        load_image_config(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(MoonflowError, match="preprocessor_config.json gives no usable media_proc_cfg"):
        load_image_config(tmp_path)


def test_a_model_is_exported_with_its_own_tokenizer_only(model, tmp_path):
    with pytest.raises(MoonflowError, match="the model has"):
        export(model, Tokenizer.train(corpus(), ranks=700), tmp_path)


@pytest.mark.parametrize("parts", [1, 4])
def test_parts_that_ranks_write_are_one_checkpoint(model, tmp_path, parts):
    for number in range(parts):
        share = ExpertShare(number, parts)
        mine = part_of(model.state_dict(), model.config, share)
        mine = {name: value for name, value in mine.items() if number == 0 or is_expert(name)}
        save_part(model.config, mine, tmp_path / "parts", share)
    save_model(model, tmp_path / "one")
    assert same_tensors(load_model(tmp_path / "parts").state_dict(), model.state_dict())
    assert load_config(tmp_path / "parts" / CONFIG) == load_config(tmp_path / "one" / CONFIG)
    names = {path.name for path in (tmp_path / "parts").iterdir()}
    plain = {path.name for path in (tmp_path / "one").iterdir()}
    assert names - plain == ({INDEX, *(weights_file(number, 4) for number in range(4))} if parts == 4 else set())
    assert plain - names == ({WEIGHTS} if parts == 4 else set())
    if parts == 4:
        size = json.loads((tmp_path / "parts" / INDEX).read_text())["metadata"]["total_size"]
        assert size == sum(value.nbytes for value in model.state_dict().values())
