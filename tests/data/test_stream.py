from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from model.data.families import FAMILIES
from model.data.folder import DataFolder
from model.data.packing import Batch, fill_fraction
from model.data.shards import write_shard
from model.data.stream import MISFITS, FamilyShards, MixtureStream, StreamState
from model.errors import MoonflowError
from tests.corpus import small_tokenizer

WEIGHTS = {"recall": 5.0, "fact_qa": 3.0, "digit_string": 2.0}
Open = Callable[[StreamState | None], MixtureStream]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    """Three families in two shards each."""
    folder = tmp_path_factory.mktemp("data")
    small_tokenizer().save(folder)
    families = {}
    for name in WEIGHTS:
        entries = []
        for number in range(2):
            shard = f"{name}-{number}.tar"
            samples = [FAMILIES[name].sample(0, "train", number * 30 + i) for i in range(30)]
            (folder / shard).write_bytes(write_shard(samples))
            entries.append({"shard": shard, "samples": 30})
        families[name] = {"train": entries, "eval": []}
    (folder / "index.json").write_text(json.dumps({"families": families, "image": {}}))
    return DataFolder(folder)


def opened(data: DataFolder, seed: int = 0, weights: dict[str, float] = WEIGHTS, tokens_per_row: int = 256) -> Open:
    return data.mixture(weights, tokens_per_row=tokens_per_row, rows=3, seed=seed)


def same(a: Batch, b: Batch) -> bool:
    for name, value in vars(a).items():
        other = getattr(b, name)
        equal = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        if not equal:
            return False
    return True


def saved(state: StreamState) -> StreamState:
    """As a checkpoint gives it back."""
    return StreamState(**json.loads(json.dumps(vars(state))))


def test_rows_are_filled(data):
    stream = opened(data)(None)
    assert fill_fraction([stream.next_batch() for _ in range(20)]) >= 0.95
    assert stream.skipped == 0 and len(stream.waiting) <= MISFITS


def test_no_family_runs_ahead_of_its_share_by_more_than_a_sample(data):
    stream = opened(data)(None)
    longest = 0
    for batch in (stream.next_batch() for _ in range(15)):
        longest = max(longest, int(batch.position_ids_BT.max()) + 1)
        total = sum(stream.tokens.values())
        for name, weight in WEIGHTS.items():
            assert stream.tokens[name] <= weight / 10 * total + longest
    shares = {name: tokens / total for name, tokens in stream.tokens.items()}
    assert shares == pytest.approx({name: weight / 10 for name, weight in WEIGHTS.items()}, abs=0.02)


def test_a_family_of_weight_zero_is_not_read(data):
    stream = opened(data, weights={"recall": 1.0, "digit_string": 0.0})(None)
    assert stream.next_batch().pixel_values is None and set(stream.taken) == {"recall"}


def test_an_unknown_family_is_an_error(data):
    with pytest.raises(MoonflowError, match="no train shards of family 'poetry'"):
        opened(data, weights={"poetry": 1.0})


def test_every_sample_comes_once_an_epoch_in_an_order_that_differs(data):
    entries = data.index["families"]["recall"]["train"]
    family = FamilyShards(data.path, entries, seed=1)
    first, second = ([family[60 * epoch + n].key for n in range(60)] for epoch in range(2))
    assert sorted(first) == sorted(second) == sorted(sample.key for sample in data.samples("recall", "train"))
    assert first != second
    assert [FamilyShards(data.path, entries, seed=1)[n].key for n in range(60)] == first
    assert [FamilyShards(data.path, entries, seed=2)[n].key for n in range(60)] != first


def test_resumes_from_every_state_with_the_same_batches(data):
    run = list(opened(data)(None).batches(6))
    assert any(state.waiting for _, state in run)
    for done in range(1, 6):
        resumed = list(opened(data)(saved(run[done - 1][1])).batches(6 - done))
        for (batch, state), (expected, expected_state) in zip(resumed, run[done:], strict=True):
            assert same(batch, expected)
            assert state == expected_state


def test_the_seed_decides_the_order(data):
    assert same(opened(data, seed=1)(None).next_batch(), opened(data, seed=1)(None).next_batch())
    assert not same(opened(data, seed=1)(None).next_batch(), opened(data, seed=2)(None).next_batch())


def test_no_sample_is_lost_or_repeated_between_batches(data):
    stream, texts = opened(data)(None), []
    for _ in range(8):
        batch = stream.next_batch()
        for row in range(3):
            for document in range(int(batch.document_ids_BT[row].max()) + 1):
                chosen = batch.document_ids_BT[row] == document
                texts.append(batch.input_ids_BT[row][chosen].tolist())
    drawn = {(name, n) for name, taken in stream.taken.items() for n in range(taken)}
    used = drawn - {reference for reference, _ in stream.waiting}
    expected = [stream.tokenize(stream.families[name][n]).input_ids.tolist() for name, n in used]
    assert sorted(texts) == sorted(expected)


def recall_lengths(data: DataFolder) -> list[int]:
    tokenize = opened(data)(None).tokenize
    return sorted(len(tokenize(sample).input_ids) for sample in data.samples("recall", "train"))


def test_samples_longer_than_a_row_are_counted_and_left_out(data):
    limit = recall_lengths(data)[-1] - 1
    stream = opened(data, weights={"recall": 1.0}, tokens_per_row=limit)(None)
    while stream.taken["recall"] < 60:
        stream.next_batch()
    seen = [stream.families["recall"][n] for n in range(stream.taken["recall"])]
    assert stream.skipped == sum(len(stream.tokenize(sample).input_ids) > limit for sample in seen) > 0


@pytest.mark.timeout(10)
def test_a_mixture_of_which_no_sample_fits_is_an_error(data):
    stream = opened(data, weights={"recall": 1.0}, tokens_per_row=recall_lengths(data)[0] - 1)(None)
    with pytest.raises(MoonflowError, match="fit"):
        stream.next_batch()


def test_a_damaged_shard_is_named(tmp_path):
    small_tokenizer().save(tmp_path)
    shard = tmp_path / "recall-0.tar"
    shard.write_bytes(write_shard(FAMILIES["recall"].sample(0, "train", n) for n in range(3))[:2000])
    index = {"families": {"recall": {"train": [{"shard": shard.name, "samples": 3}]}}, "image": {}}
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(MoonflowError, match="recall-0.tar"):
        next(opened(DataFolder(tmp_path), weights={"recall": 1.0})(None).batches(3))


@pytest.mark.parametrize("damage", ["missing", "not json"])
def test_a_damaged_index_is_named(tmp_path, damage):
    small_tokenizer().save(tmp_path)
    if damage == "not json":
        (tmp_path / "index.json").write_text("{")
    with pytest.raises(MoonflowError, match=f"{tmp_path}/index.json"):
        DataFolder(tmp_path)
