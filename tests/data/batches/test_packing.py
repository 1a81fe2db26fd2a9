from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.batches.packing import RowPacker, pack
from model.data.samples.tokenize import TokenizedSample
from model.network.batch import Batch

PAD = 1023
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def make(length: int, number: int, image: bool = False) -> TokenizedSample:
    """A sample whose every token tells its number and place."""
    ids = torch.arange(length) + number * 1000
    mask = torch.from_numpy(np.random.default_rng(number).random(length) < 0.6)
    pixels = torch.full((4, 3, 14, 14), float(number)) if image else None
    return TokenizedSample(ids, mask, pixels, [(1, 2, 2)] if image else [])


def rows_of(batch: Batch) -> list[list[tuple[int, list[int], list[int]]]]:
    """(document, tokens, positions) of each run of one document id in each row; padding left out."""
    rows = []
    for ids, positions, documents in zip(batch.input_ids_BT, batch.position_ids_BT, batch.document_ids_BT, strict=True):
        runs: list[tuple[int, list[int], list[int]]] = []
        for token, position, document in zip(ids.tolist(), positions.tolist(), documents.tolist(), strict=True):
            if document == -1:
                assert token == PAD and position == 0
                continue
            if not runs or runs[-1][0] != document:
                runs.append((document, [], []))
            runs[-1][1].append(token)
            runs[-1][2].append(position)
        rows.append(runs)
    return rows


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_every_document_is_there_once_whole_and_apart_from_the_others(lengths):
    samples = [make(length, number) for number, length in enumerate(lengths)]
    batch = pack(samples, PAD, tokens_per_row=40)
    found = [run for row in rows_of(batch) for run in row]
    assert sorted(tokens for _, tokens, _ in found) == sorted(sample.input_ids.tolist() for sample in samples)
    assert all(positions == list(range(len(tokens))) for _, tokens, positions in found)
    for row in rows_of(batch):
        assert [document for document, _, _ in row] == list(range(len(row)))
    assert batch.tokens == sum(lengths)


@settings(max_examples=60, deadline=None)
@given(LENGTHS)
def test_every_target_is_the_next_token_of_its_own_document(lengths):
    samples = [make(length, number) for number, length in enumerate(lengths)]
    batch = pack(samples, PAD, tokens_per_row=40)
    flat = batch.input_ids_BT.flatten()
    got: dict[int, list[tuple[int, int]]] = {}
    for position, target, number in zip(
        batch.target_positions_N.tolist(), batch.targets_N.tolist(), batch.sample_N.tolist(), strict=True
    ):
        got.setdefault(number, []).append((int(flat[position]), target))
    for number, sample in enumerate(samples):
        ids, mask = sample.input_ids.tolist(), sample.loss_mask.tolist()
        assert got.get(number, []) == [(ids[i - 1], ids[i]) for i in range(1, len(ids)) if mask[i]]
    assert (batch.target_positions_N.diff() > 0).all()


def test_media_stand_in_the_order_of_the_rows():
    samples = [make(9, 0, image=True), make(20, 1), make(11, 2, image=True), make(15, 3, image=True)]
    batch = pack(samples, PAD, tokens_per_row=24)
    order = [tokens[0] // 1000 for row in rows_of(batch) for _, tokens, _ in row if tokens[0] // 1000 != 1]
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [float(number) for number in order for _ in range(4)]
    assert batch.grid_thws == [(1, 2, 2)] * 3
    assert torch.equal(batch.vision_N, batch.sample_N != 1)


def test_text_alone_has_no_pixels():
    batch = pack([make(5, 0), make(7, 1)], PAD)
    assert batch.pixel_values is None and batch.grid_thws == [] and not batch.vision_N.any()
    assert batch.input_ids_BT.shape == (2, 7)


def test_a_packer_takes_the_first_row_with_room_and_refuses_what_fits_nowhere():
    packer = RowPacker(10, 2)
    assert packer.add(make(7, 0)) and packer.add(make(6, 1)) and packer.add(make(3, 2)) and packer.add(make(4, 3))
    assert not packer.add(make(1, 4))
    batch = packer.batch(PAD)
    assert [[tokens[0] // 1000 for _, tokens, _ in row] for row in rows_of(batch)] == [[0, 2], [1, 3]]
    assert batch.tokens == batch.input_ids_BT.numel() == 20


def test_tokens_are_the_positions_that_are_not_padding():
    batch = pack([make(10, 0), make(5, 1)], PAD)
    assert batch.tokens == 15 and batch.input_ids_BT.numel() == 20
