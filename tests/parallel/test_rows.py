from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.batches.packing import pack
from model.data.samples.tokenize import TokenizedSample
from model.network.batch import GridTHW
from model.network.config import preset
from model.parallel.rows import media_of_rows, rows_of
from tests.drawn import PAD, rows_together
from tests.equality import different_fields

CONFIG = preset("tiny")
GRIDS: tuple[GridTHW, ...] = ((1, 2, 2), (1, 4, 6), (3, 4, 4))


def sample(number: int, parts: list[int | GridTHW]) -> TokenizedSample:
    """Text of the lengths given, whose every token tells its number, and media whose pixels do."""
    ids = [[number] * part if isinstance(part, int) else [PAD] * (part[1] * part[2] // 4) for part in parts]
    input_ids = torch.tensor([token for piece in ids for token in piece])
    grids = [part for part in parts if not isinstance(part, int)]
    pixels = [torch.full((t * h * w, 3, 14, 14), number + 0.01 * place) for place, (t, h, w) in enumerate(grids)]
    return TokenizedSample(input_ids, input_ids != PAD, torch.cat(pixels) if pixels else None, grids)


DOCUMENTS = st.lists(st.lists(st.one_of(st.integers(1, 12), st.sampled_from(GRIDS)), min_size=1, max_size=4),
                     min_size=1, max_size=12)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.data())
def test_rows_put_together_again_are_the_batch(documents: list[list[int | GridTHW]], draw: st.DataObject) -> None:
    batch = pack([sample(number, parts) for number, parts in enumerate(documents)], CONFIG.pad_token_id, 40)
    rows = len(batch.input_ids_BT)
    inner = draw.draw(st.sets(st.integers(1, rows - 1))) if rows > 1 else set()
    bounds = [0, *sorted(inner), rows]
    parts = [rows_of(batch, start, end, CONFIG) for start, end in zip(bounds, bounds[1:], strict=False)]
    assert different_fields(rows_together(parts), batch) == []
    for part in parts:  # each is a batch of its own: what it holds belongs to its rows
        tokens = part.input_ids_BT.flatten()
        assert torch.equal(tokens[part.target_positions_N + 1], part.targets_N)
        pads = sum(h * w // 4 for _, h, w in part.grid_thws)
        assert pads == int((tokens == PAD).sum())
        pixels = [] if part.pixel_values is None else part.pixel_values[:, 0, 0, 0].int().tolist()
        assert len(pixels) == sum(t * h * w for t, h, w in part.grid_thws)
        written = {int(token) for token in tokens.unique() if token < len(documents)}
        shown = {number for number, parts in enumerate(documents) if all(isinstance(one, tuple) for one in parts)}
        assert set(pixels) <= written | shown


def test_a_part_without_media_has_no_pixels() -> None:
    batch = pack([sample(0, [30, (1, 2, 2)]), sample(1, [30]), sample(2, [20, (1, 4, 6), 2])], CONFIG.pad_token_id)
    assert [len(batch.grid_thws[held]) for held in media_of_rows(batch, CONFIG)] == [1, 0, 1]
    middle, last = rows_of(batch, 1, 2, CONFIG), rows_of(batch, 2, 3, CONFIG)
    assert middle.pixel_values is None and middle.grid_thws == []
    assert last.pixel_values is not None and last.pixel_values.shape[0] == 24 and last.grid_thws == [(1, 4, 6)]
    assert last.keys == batch.keys and set(last.sample_N.tolist()) == {2}


def test_media_that_do_not_fit_their_rows_are_refused() -> None:
    batch = pack([sample(0, [9, (1, 4, 4)]), sample(1, [(1, 4, 4), 9])], CONFIG.pad_token_id)
    assert len(batch.input_ids_BT) == 2
    for wrong in ([(1, 4, 6), (1, 2, 2), (1, 2, 2)], [(1, 4, 4)] * 3, [(1, 4, 4)]):
        with pytest.raises(ValueError, match="media"):
            rows_of(replace(batch, grid_thws=wrong), 0, 1, CONFIG)
