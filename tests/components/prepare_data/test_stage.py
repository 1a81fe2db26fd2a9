"""prepare_data: what it plans, and a whole run against a real object store, killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from components.prepare_data import user_data
from components.prepare_data.config import Config
from components.prepare_data.stage import (
    families,
    index_of,
    plan,
    texts_of,
    tokenizer_texts,
    train_counts,
    write,
)
from components.prepare_data.user_data import entries, summary, write_part
from components.runtime.checkpoints.manifest import Manifest
from components.runtime.datasets.user_data import parts_at
from components.runtime.step import run_step
from components.runtime.store.open_store import open_store
from model.boundary.errors import MoonflowError
from model.codec.image import ImageConfig, encode_png
from model.codec.tokenizer import Tokenizer
from model.data.batches.folder import DataFolder
from model.data.families import FAMILIES
from model.data.order.lengths import measure, read_lengths
from model.data.order.mixtures import MIXTURES, mixtures
from model.data.samples.shards import Shard
from model.data.samples.tokenize import tokenize
from model.data.user.user_data import UserSource
from pipelines.services import Services
from tests.data.user.odd import record, tar_of
from tests.shards import read_shard
from tests.waiting import happens

MADE = mixtures("short").made
SMALL = {"text_samples": 600, "image_samples": 150, "long_samples": 100, "eval_samples": 3, "samples_per_shard": 50}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_every_family_has_its_share(mixture: str) -> None:
    shares = mixtures(mixture)
    counts = train_counts(Config(mixture=mixture, text_samples=24_000, image_samples=8_000))
    assert tuple(counts) == shares.made
    assert abs(sum(counts[name] for name in shares.text_samples) - 24_000) < len(FAMILIES)
    assert abs(sum(counts[name] for name in shares.image_samples) - 8_000) < len(FAMILIES)
    assert sum(counts[name] for name in shares.long_samples) == Config().long_samples
    assert min(train_counts(Config(mixture=mixture, text_samples=100, image_samples=100)).values()) >= 1


@pytest.mark.parametrize("mixture", MIXTURES)
def test_only_what_a_mixture_makes_has_held_out_samples_and_teaches_the_tokenizer(mixture: str) -> None:
    config = Config(mixture=mixture, text_samples=100, image_samples=100, tokenizer_ranks=256)
    shards = list(plan(train_counts(config), eval_samples=3, samples_per_shard=50))
    for split in ("train", "eval"):
        assert {shard.family for shard in shards if shard.split == split} == set(mixtures(mixture).made)
    texts = set(tokenizer_texts(config))
    family = "stdlib_code" if mixture == "short" else "code_window"
    assert all(next(texts_of(FAMILIES[family].sample(0, "train", number))) in texts for number in range(100))


def test_shards_cover_every_sample_once() -> None:
    counts = {"recall": 120, "digit_string": 50}
    shards = list(plan(counts, eval_samples=7, samples_per_shard=50))
    covered = [(s.family, s.split, s.start + n) for s in shards for n in range(s.count)]
    assert len(set(covered)) == len(covered) == 120 + 50 + 2 * 7
    index = index_of(shards)
    assert [entry["samples"] for entry in index["recall"]["train"]] == [50, 50, 20]
    assert index["digit_string"]["eval"] == [{"shard": "eval/digit_string-00000.tar", "samples": 7}]


def test_a_shard_is_the_familys_samples(tmp_path: Path) -> None:
    (shard,) = (s for s in plan({"fact_qa": 30}, 5, 20) if s.split == "train" and s.number == 1)
    (tmp_path / "train").mkdir()
    assert write(shard, tmp_path, Config(seed=3)) == 10
    expected = [FAMILIES["fact_qa"].sample(3, "train", index) for index in range(20, 30)]
    assert list(read_shard(tmp_path / shard.name)) == expected


def test_who_can_choose_in_the_cold_start_of_a_swarm_mostly_works_alone_and_tasks_are_small_and_large() -> None:
    made = families(Config(mixture="swarm"))
    wide = [made["world_wide"].sample(0, "train", index) for index in range(60)]
    assert {sample.environment["parts"] for sample in wide} == {2, 3, 4, 8, 16}
    choosing = [sample for sample in wide if "search" in sample.tools]
    assert 0 < sum(sample.environment["mode"] == "swarm" for sample in choosing) < 9
    assert 25 < len(wide) - len(choosing) < 45  # orchestrators without other tools
    usual = families(Config(mixture="broad"))["world_wide"]
    assert 15 < sum(usual.sample(0, "train", index).environment["mode"] == "swarm" for index in range(60)) < 45


def test_another_seed_changes_the_training_samples_and_no_held_out_one(tmp_path: Path) -> None:
    for split in ("train", "eval"):
        shard = next(s for s in plan({"fact_qa": 20, "digit_string": 20}, 20, 20) if s.split == split)
        written = []
        for seed in (0, 1000):
            (tmp_path / f"{seed}" / split).mkdir(parents=True)
            write(shard, tmp_path / f"{seed}", Config(seed=seed))
            written.append((tmp_path / f"{seed}" / shard.name).read_bytes())
        assert (written[0] == written[1]) == (split == "eval")


def test_more_held_out_samples_of_a_family_leave_all_others_as_they_are(tmp_path: Path) -> None:
    counts = {"fact_qa": 30, "digit_string": 30}
    few, many = list(plan(counts, 3, 20)), list(plan(counts, 3, 20, {"digit_string": 5, "fact_qa": 2}))
    longer = next(shard for shard in many if (shard.split, shard.family) == ("eval", "digit_string"))
    assert [shard for shard in many if shard not in few] == [longer] and len(many) == len(few)
    shorter = next(shard for shard in few if shard.name == longer.name)
    kept = []
    for shard in (shorter, longer):
        (tmp_path / "eval").mkdir(exist_ok=True)
        write(shard, tmp_path, Config())
        kept.append(list(read_shard(tmp_path / shard.name)))
    assert kept[1][:3] == kept[0] and len(kept[1]) == 5


@pytest.mark.parametrize(
    ("counts", "told"),
    [
        ("digit_strin=600", "makes no 'digit_strin'; did you mean digit_string"),
        ("scene_box=600", "mixture short makes no 'scene_box'"),
        ("digit_string", "write family=count"),
        ("digit_string=many", "write family=count"),
        ("digit_string=0", "write family=count"),
        ("fact_qa=5,fact_qa=6", "two counts"),
    ],
)
def test_a_wrong_count_of_held_out_samples_is_one_line(counts: str, told: str) -> None:
    with pytest.raises(MoonflowError, match=told):
        Config.parse({"eval_samples_of": counts}, "mine.toml: [prepare_data]")


def test_names_cost_the_same_tokens_wherever_they_stand() -> None:
    """What makes copying learnable: a query and an answer repeat the question's very tokens."""
    tokenizer = Tokenizer.train(tokenizer_texts(Config()), 768)
    for index in range(100):
        sample = FAMILIES["wide_search"].sample(0, "eval", index)
        prompt = tokenizer.encode(sample.messages[0]["content"])
        final = tokenizer.encode(sample.messages[-1]["content"])
        for name, value in sample.answer.items():
            for text, inside in ((name, prompt), (name, final), (value, final)):
                tokens = tokenizer.encode(text)
                assert any(inside[i : i + len(tokens)] == tokens for i in range(len(inside))), (text, sample.key)


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with Services.start(tmp_path_factory.mktemp("run")) as running:
        yield running.environment


def pictures(folder: Path) -> Path:
    """Forty pictures, all but one with a text next to them."""
    folder.mkdir(exist_ok=True)
    for number in range(40):
        (folder / f"{number}.png").write_bytes(encode_png(np.full((28, 28, 3), number, np.uint8)))
        if number:
            (folder / f"{number}.txt").write_text(f"grey {number}")
    return folder


def chat(path: Path) -> Path:
    """Sixty conversations, one of them without an answer."""
    asked = [[{"role": "user", "content": f"how are you, {number}?"}] for number in range(60)]
    said = [[] if number == 7 else [{"role": "assistant", "content": "well"}] for number in range(60)]
    path.write_text("".join(json.dumps({"messages": [*a, *b]}) + "\n" for a, b in zip(asked, said, strict=True)))
    return path


def start(environment: dict[str, str], run_id: str, config: Mapping[str, object]) -> subprocess.Popen[bytes]:
    program = (
        "import json, sys\n"
        "from components.runtime.step import run_step\n"
        "if __name__ == '__main__': run_step('prepare_data', json.loads(sys.argv[1]))\n"
    )
    path = Path(environment["MOONFLOW_RUN_DIR"]) / "start_step.py"
    path.write_text(program)
    variables = {**os.environ, **environment, "MOONFLOW_RUN_ID": run_id, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen([sys.executable, str(path), json.dumps(config)], env=variables)


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.services
@pytest.mark.slow
def test_killed_in_the_middle_it_publishes_nothing_and_leaves_no_worker(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in services.items():
        monkeypatch.setenv(name, value)
    progress = Path(services["MOONFLOW_RUN_DIR"]) / "progress" / "prepare_data.json"

    step = start(services, "killed", {**SMALL, "text_samples": 60_000, "image_samples": 20_000})
    workers: list[int] = []
    while not (progress.exists() and json.loads(progress.read_text())["done"] > 0):
        assert step.poll() is None
        workers = children(step.pid) or workers
        time.sleep(0.05)
    workers = children(step.pid)
    assert workers
    step.send_signal(signal.SIGKILL)
    step.wait()
    assert happens(lambda: not any(running(pid) for pid in workers), 10)
    assert not list(open_store().list("killed/prepare_data/"))


@pytest.mark.slow
@pytest.mark.services
def test_the_same_data_comes_from_any_number_of_processes_and_trainers_can_read_it(
    services: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in services.items():
        monkeypatch.setenv(name, value)

    # Two whole runs, with two processes and with one, hold the same bytes.
    manifests: list[Manifest] = []
    for run_id, processes in (("first", 2), ("second", 1)):
        own = f"dots:2={pictures(tmp_path / 'dots')}, chat={chat(tmp_path / 'chat.jsonl')}"
        config = {**SMALL, "processes": processes, "sources": own}
        step = start(services, run_id, config)
        assert step.wait(120) == 0
        monkeypatch.setenv("MOONFLOW_RUN_ID", run_id)
        manifests.append(run_step("prepare_data", config))  # returns at once what is there
    first, second = ({f.name: f.sha256 for f in m.files if f.name != "metrics.jsonl"} for m in manifests)
    assert first == second
    assert manifests[0].kind == "data" and manifests[0].complete and len(manifests[0].tokenizer_sha256) == 64

    # What trainers will see of it.
    from components.runtime.checkpoints import manifest

    manifest.fetch(open_store(), manifests[0].uri, tmp_path)
    data = DataFolder(tmp_path)
    assert set(data.families()) == {*MADE, "dots", "chat"}
    stored = read_lengths(tmp_path)
    for family in data.families():
        for entry in data.entries(family, "train"):
            with (tmp_path / entry["shard"]).open("rb") as opened:
                lengths, problems = measure(Shard(opened, "again"), entry["samples"], data.tokenizer, ImageConfig())
            assert np.array_equal(stored[entry["shard"]], lengths) and not problems

    # The user's own family: the picture without a text is left out, the others join the vision mixture.
    dots = [sample for split in ("train", "eval") for sample in data.samples("dots", split)]
    assert len(dots) == 39 and len({sample.key for sample in dots}) == 39
    assert manifests[0].extra["own_left_out"] == 2
    assert data.with_user_families({"recall": 1.0}, {"photo": 1.0}) == ({"recall": 1.0}, {"photo": 1.0, "dots": 2.0})

    # The conversations: named by their lines, and in no mixture of pre-training.
    chats = {split: list(data.samples("chat", split)) for split in ("train", "eval")}
    keys = sorted(sample.key for split in chats.values() for sample in split)
    assert keys == [f"chat-00000-{number:08d}" for number in range(1, 61) if number != 8]
    assert chats["eval"] and not {s.source for s in chats["train"]} & {s.source for s in chats["eval"]}
    assert data.index["own"]["chat"]["conversations"] == ["chat.jsonl"]

    batch = data.mixture({"dots": 1.0, "recall": 1.0}, tokens_per_row=256, rows=1, seed=0)(None).next_batch()
    assert any(key.startswith("dots-00000-") for key in batch.keys)
    assert data.tokenizer.vocab_size == 1024
    for family in MADE:
        assert len(list(data.samples(family, "eval"))) == SMALL["eval_samples"]
        for sample in [*data.samples(family, "eval"), next(data.samples(family, "train"))]:
            assert 0 < len(tokenize(sample, data.tokenizer, data.image_config).input_ids) <= 1024


def test_a_source_of_which_too_much_is_useless_stops_the_step(tmp_path: Path) -> None:
    source = UserSource("dots", str(pictures(tmp_path / "dots")))
    for number in range(10):
        (tmp_path / "dots" / f"{number}.txt").write_text(" ")
    Tokenizer.train(["a"], 256).save(tmp_path)
    for split in ("train", "eval"):
        (tmp_path / split).mkdir()
    (part,) = parts_at(source.uri)
    written = write_part(part, "dots", 0, tmp_path, ImageConfig())
    with pytest.raises(MoonflowError, match=r"dots.*10 of 40 samples.*moonflow data check.*0\.txt is empty"):
        summary(source, [written])


def test_files_that_are_not_used_are_noted_and_do_not_stop_the_step(tmp_path: Path) -> None:
    source = UserSource("dots", str(pictures(tmp_path / "dots")))
    (tmp_path / "dots" / "0.txt").write_text("grey 0")
    for number in range(100):
        (tmp_path / "dots" / f"{number}.tif").write_bytes(b"x")
    os.mkfifo(tmp_path / "dots" / "fifo.png")
    Tokenizer.train(["a"], 256).save(tmp_path)
    for split in ("train", "eval"):
        (tmp_path / split).mkdir()
    parts = enumerate(parts_at(source.uri))
    written = [write_part(part, "dots", number, tmp_path, ImageConfig()) for number, part in parts]
    assert summary(source, written)["left_out"] == 1
    (one,) = written
    assert sum(map(len, one.lengths.values())) == 40
    assert len(one.problems) == 1 and "fifo.png is a FIFO" in one.problems[0]
    assert len(one.notes) == 1 and "100 files are not used" in one.notes[0]


def test_shards_of_odd_records_are_rewritten_without_them(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    texts = [(f"k{number}.json", record(f"k{number}")) for number in range(60)]
    odd = [("l.json", record("l", answer="\ud800")), ("m." + "x" * 240, b""), ("m.json", record("m")), ("n", b"")]
    (folder / "a.tar").write_bytes(tar_of(*texts, *odd))
    Tokenizer.train(["a"], 256).save(tmp_path)
    for split in ("train", "eval"):
        (tmp_path / split).mkdir()
    (part,) = parts_at(str(folder))
    written = write_part(part, "own", 0, tmp_path, ImageConfig())
    assert summary(UserSource("own", str(folder)), [written])["left_out"] == 2
    assert "l.json" in written.problems[0] and "sample m: ValueError: name is too long" in written.problems[1]
    assert len(written.notes) == 1 and written.notes[0].endswith("no sample: n")
    for (_, name), sizes in written.lengths.items():
        assert len(list(read_shard(tmp_path / name))) == len(sizes)


def test_bad_parameters_are_named() -> None:
    with pytest.raises(MoonflowError, match="text_samples"):
        Config.parse({"text_sample": 5}, "profile")
    with pytest.raises(MoonflowError, match="tokenizer_ranks"):
        Config.parse({"tokenizer_ranks": 10}, "profile")


def test_a_part_with_large_images_fills_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_data, "SHARD_BYTES", 5_000)
    source = UserSource("chat", str(chat(tmp_path / "chat.jsonl")))
    Tokenizer.train(["a"], 256).save(tmp_path)
    for split in ("train", "eval"):
        (tmp_path / split).mkdir()
    parts = parts_at(source.uri)
    written = [write_part(part, "chat", number, tmp_path, ImageConfig()) for number, part in enumerate(parts)]
    assert len(parts) == 1 and len(written[0].lengths) > 5
    names = [entry["shard"] for split in entries(written).values() for entry in split]
    samples = [sample for name in names for sample in read_shard(tmp_path / str(name))]
    assert sorted(int(sample.key[-8:]) for sample in samples) == [n for n in range(1, 61) if n != 8]
    assert sum(map(len, written[0].lengths.values())) == 59
