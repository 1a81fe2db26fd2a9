from __future__ import annotations

import pytest

from model.boundary.errors import MoonflowError
from model.checkpoint.export import export, save_model
from model.checkpoint.file_names import FILES, WEIGHTS
from model.checkpoint.load import load_image_config
from model.codec.image import ImageConfig
from model.codec.tokenizer import Tokenizer
from tests.corpus import corpus
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
