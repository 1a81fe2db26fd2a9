from __future__ import annotations

import errno
import io
import json
from collections.abc import Callable
from typing import BinaryIO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.boundary.errors import MoonflowError
from model.data.batches.folder import DataFolder
from model.data.batches.maker import BatchMaker
from model.data.batches.stream import MixtureStream, StreamState
from model.data.families import FAMILIES
from model.data.order.family_order import FamilyShards
from model.data.order.lengths import measure, write_lengths
from model.data.order.planner import Planner
from model.data.order.schedule import Schedule, fusion
from model.data.samples.shard_source import LocalShards
from model.data.samples.shards import Shard
from model.data.samples.tokenize import tokenize
from model.network.batch import Batch
from tests.corpus import small_tokenizer
from tests.equality import different_fields
from tests.tiny_folders import write_training_folder

WEIGHTS = {"recall": 5.0, "fact_qa": 3.0, "digit_string": 2.0}
ROWS, TOKENS = 6, 256
Open = Callable[[StreamState | None], MixtureStream]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """Three families in two shards each."""
    return DataFolder(write_training_folder(tmp_path_factory.mktemp("data"), WEIGHTS, 30, shards=2))


@pytest.fixture(scope="module")
def whole(data: DataFolder) -> list[tuple[Batch, StreamState]]:
    """A run that nothing disturbed."""
    return list(opened(data)(None).batches(10))


def opened(data: DataFolder, seed: int = 0, weights: dict[str, float] | Schedule = WEIGHTS, **shape: int) -> Open:
    return data.mixture(weights, **{"tokens_per_row": TOKENS, "rows": ROWS, "seed": seed, **shape})


def families_of(stream: MixtureStream) -> dict[str, FamilyShards]:
    return BatchMaker(stream.recipe, None).families


def same(a: Batch, b: Batch) -> bool:
    return not different_fields(a, b)


def saved(state: StreamState) -> StreamState:
    """As a checkpoint gives it back."""
    return StreamState(**json.loads(json.dumps(vars(state))))


def documents(batch: Batch) -> list[list[list[int]]]:
    """The tokens of each document, row by row."""
    rows = []
    for ids, numbers in zip(batch.input_ids_BT, batch.document_ids_BT, strict=True):
        rows.append([ids[numbers == number].tolist() for number in range(int(numbers.max()) + 1)])
    return rows


def test_no_family_runs_ahead_of_its_share_by_more_than_a_sample_or_two(data):
    stream = opened(data)(None)
    for _ in range(15):
        stream.next_batch()
        tokens = stream.state().tokens
        for name, weight in WEIGHTS.items():
            assert abs(tokens[name] - weight / 10 * sum(tokens.values())) <= 200
    assert stream.figures()["data/vision_share"] == pytest.approx(0.2, abs=0.01)
    assert stream.figures()["data/fill"] >= 0.95 and stream.figures()["data/skipped"] == 0


def test_the_figures_are_those_of_the_batches(data, whole):
    stream = opened(data)(None)
    batches = [stream.next_batch() for _ in range(10)]
    assert stream.figures()["data/fill"] == pytest.approx(sum(batch.tokens for batch in batches) / (10 * ROWS * TOKENS))
    vision = 0
    for batch in batches:
        for row in documents(batch):
            vision += sum(len(ids) for ids in row if small_tokenizer().media_pad_id in ids)
    assert stream.state().vision == vision
    assert stream.state() == whole[-1][1]


def test_a_family_of_weight_zero_is_not_read(data):
    stream = opened(data, weights={"recall": 1.0, "digit_string": 0.0})(None)
    assert stream.next_batch().pixel_values is None and set(stream.state().taken) == {"recall"}


def test_an_unknown_family_is_an_error(data):
    with pytest.raises(MoonflowError, match="no train shards of family 'poetry'"):
        opened(data, weights={"poetry": 1.0})


def test_every_sample_comes_once_an_epoch_in_an_order_that_differs(data):
    family = data.family("recall", seed=1)
    first, second = ([family[60 * epoch + n].key for n in range(60)] for epoch in range(2))
    assert sorted(first) == sorted(second) == sorted(sample.key for sample in data.samples("recall", "train"))
    assert first != second
    assert [data.family("recall", seed=1)[n].key for n in range(60)] == first
    assert [data.family("recall", seed=2)[n].key for n in range(60)] != first


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 6])), min_size=1, max_size=4))
def test_a_resumed_run_goes_on_as_the_unbroken_one_on_any_number_of_ranks(data, whole, parts):
    """Killed after some batches, resumed on another number of ranks, several times: the same rows in the same order."""
    state, done = None, 0
    for count, ranks in parts:
        count = min(count, len(whole) - done)
        streams = [opened(data)(state and saved(state)) for _ in range(ranks)]
        for expected, expected_state in whole[done : done + count]:
            given = [stream.next_batch(rank, ranks) for rank, stream in enumerate(streams)]
            assert torch.equal(torch.cat([batch.input_ids_BT for batch in given]), expected.input_ids_BT)
            assert torch.equal(torch.cat([batch.document_ids_BT for batch in given]), expected.document_ids_BT)
            assert sum((batch.keys for batch in given), ()) == expected.keys
            assert torch.equal(torch.cat([batch.targets_N for batch in given]), expected.targets_N)
            pixels = [batch.pixel_values for batch in given if batch.pixel_values is not None]
            assert torch.equal(torch.cat(pixels), expected.pixel_values)
            assert all(stream.state() == expected_state for stream in streams)
        state, done = expected_state, done + count
        if done == len(whole):
            break


def test_resumes_from_every_state_with_the_same_batches(data, whole):
    assert any(state.passed for _, state in whole)
    for done in range(1, 10):
        resumed = list(opened(data)(saved(whole[done - 1][1])).batches(10 - done))
        for (batch, state), (expected, expected_state) in zip(resumed, whole[done:], strict=True):
            assert same(batch, expected)
            assert state == expected_state


def test_rows_that_do_not_divide_among_the_ranks_are_refused(data):
    with pytest.raises(MoonflowError, match="6 rows .* 4 ranks"):
        opened(data)(None).next_batch(0, 4)


def test_the_seed_decides_the_order(data):
    assert same(opened(data, seed=1)(None).next_batch(), opened(data, seed=1)(None).next_batch())
    assert not same(opened(data, seed=1)(None).next_batch(), opened(data, seed=2)(None).next_batch())


def test_every_sample_is_there_once_whole_and_under_its_key(data, whole):
    """No sample is lost or repeated between batches, none is cut by a row's border, its image least of all."""
    state = whole[-1][1]
    taken = {(name, n) for name, taken in state.taken.items() for n in range(taken)}
    waiting = {(name, n) for name, passed in state.passed.items() for n in passed}
    families = families_of(opened(data)(None))
    expected: dict[str, list[list[int]]] = {}
    for name, n in taken - waiting:
        sample = families[name][n]
        ids = tokenize(sample, data.tokenizer, data.image_config).input_ids.tolist()
        expected.setdefault(sample.key, []).append(ids)
    found: dict[str, list[list[int]]] = {}
    for batch, _ in whole:
        rows = [ids for row in documents(batch) for ids in row]
        assert len(rows) == len(batch.keys)
        pads = sum(ids.count(data.tokenizer.media_pad_id) for ids in rows)
        assert pads == sum(h * w // 4 for _, h, w in batch.grid_thws)
        for key, ids in zip(batch.keys, rows, strict=True):
            found.setdefault(key, []).append(ids)
    assert {key: sorted(ids) for key, ids in found.items()} == {key: sorted(ids) for key, ids in expected.items()}


def test_prefetched_batches_are_the_same(data, whole):
    stream = opened(data)(None)
    for (batch, state), (expected, expected_state) in zip(stream.batches(8, prefetch=True), whole[:8], strict=True):
        assert same(batch, expected) and state == expected_state == stream.state()
    assert stream.figures()["data/fill"] >= 0.95
    # Here and in the worker, in turns and by rank, from where the other stopped.
    assert same(stream.next_batch(), whole[8][0])
    resumed = opened(data)(whole[7][1])
    ((batch, state),) = resumed.batches(1, rank=1, ranks=2, prefetch=True)
    assert torch.equal(batch.input_ids_BT, whole[8][0].input_ids_BT[3:]) and state == whole[8][1] == resumed.state()


def test_the_position_is_that_of_the_batch_given_out_not_of_those_made_ahead(data, whole):
    """A trainer that stops in the middle saves what it has trained on, and goes on from there."""
    stream = opened(data)(None)
    batches = stream.batches(10, prefetch=True)
    for (_, expected), (_, state) in zip(whole[:3], batches, strict=False):
        assert state == expected == stream.state()
    batches.close()
    assert stream.state() == whole[2][1]
    assert same(stream.next_batch(), whole[3][0])


def test_a_schedule_gives_its_budget(data):
    text = {"recall": 5.0, "fact_qa": 3.0}
    for share, start in ((0.1, 0.0), (0.2, 0.5), (0.5, 0.8)):
        schedule = fusion(share, start, text, [(0.0, {"digit_string": 1.0})])
        families = families_of(opened(data, weights=schedule, steps=200)(None))
        planner = Planner(families, schedule, tokens_per_row=TOKENS, rows=ROWS, steps=200, state=None)
        shares = []
        for _ in range(200):
            before = planner.vision, sum(planner.tokens.values())
            planner.next()
            shares.append((planner.vision - before[0]) / (sum(planner.tokens.values()) - before[1]))
        assert planner.vision / sum(planner.tokens.values()) == pytest.approx(0.1, rel=0.005)
        assert sum(shares[: round(start * 200)]) == 0
        assert sum(shares[round(start * 200) :]) / (200 - round(start * 200)) == pytest.approx(share, rel=0.02)


def test_a_schedule_that_changes_needs_the_runs_length(data):
    with pytest.raises(MoonflowError, match="number of steps"):
        opened(data, weights=Schedule([(0.0, {"recall": 1}), (0.5, {"fact_qa": 1})]))


def recall_lengths(data: DataFolder) -> list[int]:
    return sorted(int(n) for entry in data.entries("recall", "train") for n in data.lengths(entry)[:, 0])


def test_samples_longer_than_a_row_are_counted_and_left_out(data):
    limit = recall_lengths(data)[-3] - 1
    stream = opened(data, weights={"recall": 1.0}, tokens_per_row=limit)(None)
    while stream.state().taken["recall"] < 60:
        assert stream.next_batch().tokens
    recall = families_of(stream)["recall"]
    seen = [recall.tokens(n)[0] for n in range(stream.state().taken["recall"])]
    assert stream.figures()["data/skipped"] == sum(tokens > limit for tokens in seen) >= 3


def test_a_mixture_of_which_no_sample_fits_is_an_error(data):
    with pytest.raises(MoonflowError, match="fit"):
        opened(data, weights={"recall": 1.0}, tokens_per_row=recall_lengths(data)[0] - 1)(None)


@pytest.mark.parametrize("prefetch", [False, True])
def test_too_many_samples_that_cannot_be_read_are_an_error_that_names_one(tmp_path, prefetch, capfd):
    data = DataFolder(write_training_folder(tmp_path, ("recall",), 30, shards=2))
    opened(data, weights={"recall": 1.0})(None)  # measured while it was sound
    for number in range(2):
        shard = tmp_path / "train" / f"recall-{number:05d}.tar"
        shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(MoonflowError, match=r"recall-\d+.tar") as error:
        list(opened(data, weights={"recall": 1.0})(None).batches(3, prefetch=prefetch))
    assert "\n" not in str(error.value)


def test_a_sample_that_cannot_be_read_leaves_padding_and_moves_nothing(tmp_path, whole, capfd):
    data = DataFolder(write_training_folder(tmp_path, WEIGHTS, 30, shards=2))
    opened(data)(None)  # measured while it was sound
    shard = tmp_path / "train" / "digit_string-00001.tar"
    intact = shard.read_bytes()
    at = intact.index(b"\x89PNG", len(intact) // 2)
    shard.write_bytes(intact[: at + 40] + bytes(60) + intact[at + 100 :])
    (lost,) = [
        sample.key for sample in data.samples("digit_string", "train") if bytes(60) in sample.media.get("png", b"")
    ]
    stream = opened(data)(None)
    for expected, state in whole:
        batch = stream.next_batch()
        assert stream.state() == state
        kept = batch.document_ids_BT >= 0
        assert torch.equal(batch.input_ids_BT[kept], expected.input_ids_BT[kept])
        gone = (expected.document_ids_BT >= 0) & ~kept
        assert gone.any() == (lost in expected.keys)
        assert set(expected.keys) - set(batch.keys) == ({lost} & set(expected.keys))
    assert stream.figures()["data/broken"] >= 1
    assert capfd.readouterr().err.count(lost) == 1


class FailingDisk(LocalShards):
    """Can read every header, but not what stands in one sample."""

    def open(self, shard: str) -> BinaryIO:
        content = super().open(shard).read()
        at = content.find(UNREADABLE)

        class Opened(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                if at >= 0 and self.tell() <= at < self.tell() + (size or 0):
                    raise OSError(errno.EIO, "Input/output error")
                return super().read(size)

        return Opened(content)


UNREADABLE = FAMILIES["recall"].sample(0, "train", 7).segments[0]["text"].split("\n")[0].encode()


def test_a_sample_on_a_failing_disk_is_left_out_and_named(tmp_path, capfd):
    folder = write_training_folder(tmp_path, ("recall",), 30, shards=2)
    sound = DataFolder(folder)
    write_lengths(folder, {entry["shard"]: sound.lengths(entry) for entry in sound.entries("recall", "train")})
    data = DataFolder(folder, FailingDisk(folder))
    name = "train/recall-00000.tar"
    shard = Shard(data.source.open(name), name)
    lengths, problems = measure(shard, 30, data.tokenizer, data.image_config)
    assert lengths[:, 0].astype(bool).sum() == 29 and len(problems) == 1
    assert f"{name}, sample 7: OSError: [Errno 5]" in problems[0]
    stream = opened(data, weights={"recall": 1.0})(None)
    keys = {key for batch, _ in stream.batches(6, prefetch=False) for key in batch.keys}
    assert len(keys) == 59 and stream.figures()["data/broken"] >= 1
    assert capfd.readouterr().err.count("sample 7: OSError") == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"families": []}', "[" * 100_000])
def test_a_damaged_index_is_named(tmp_path, damage):
    small_tokenizer().save(tmp_path)
    if damage:
        (tmp_path / "index.json").write_text(damage)
    with pytest.raises(MoonflowError, match=f"{tmp_path}/index.json"):
        DataFolder(tmp_path)
