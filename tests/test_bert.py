"""BERT and DistilBERT: transformers' own networks with random weights are the oracles, read as a user's folder is."""

from __future__ import annotations

import json
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from faults import Forge, differences, events, num_lines, outcome, run_of
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlcli.config import compose_command
from dlcli.config.folders import options, packaged_conf
from dlcli.datasets.files.sentence_files import Notes, read_rows
from dlcli.datasets.sentences import find_sst2
from dlcli.datasets.tokens.pretrained_tokenizer import PretrainedTokenizer
from dlcli.errors import ConfigError, DataError
from dlcli.optimizers.freezing import Freezing
from dlcli.tasks.task import Task
from dlcli.training import build, completing
from dlcli.training.allow_list import Builder
from dlcli.training.pretrained import load_pretrained

KINDS = ("bert", "distilbert")
SIZES = (
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.ffn_size=64",
    "model.max_positions=64",
)
PLAIN = ("tracker=none", "runtime.threads=1", "runtime.device=cpu", "trainer.log_every=1", "dataset.max_length=64")
GOOD, BAD = ("great", "wonderful", "charming", "moving"), ("awful", "dull", "tedious", "clumsy")
OLD_NAMES, GREEK = re.compile(r"(?<=LayerNorm\.)(weight|bias)"), {"weight": "gamma", "bias": "beta"}
GRADUAL = """
parameter_groups:
  head: {match: "head.*"}
  pooler: {match: "pooler.*"}
  late: {match: "blocks.1.*", lr: 0.0001, from_epoch: 2}
  rest: {match: "*", from_epoch: never}
"""


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its own, as it imports what it finds
        return pytest.importorskip("transformers", reason="needs transformers: pip install 'dlcli[text]'")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 reviews, in each of which one word says what it is worth."""
    chance, lines = random.Random(0), []
    for _ in range(300):
        words = chance.choices(("the", "film", "is", "of", "people", "and", "a", "city"), k=chance.randint(1, 20))
        label, telling = chance.choice((("positive", GOOD), ("negative", BAD)))
        words.insert(chance.randrange(len(words) + 1), chance.choice(telling))
        lines.append(f"{' '.join(words)}\t{label}\n")
    path = tmp_path_factory.mktemp("bert") / "reviews.tsv"
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def folders(transformers: ModuleType, reviews: Path) -> dict[str, Path]:
    """A folder of each kind, as save_pretrained writes it, with a tokenizer of the reviews."""
    texts = [line.partition("\t")[0] for line in reviews.read_text().splitlines()]
    return {kind: save_pretrained(transformers, kind, reviews.parent / kind, texts, 200) for kind in KINDS}


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


def save_pretrained(transformers: ModuleType, kind: str, folder: Path, texts: list[str], num_tokens: int) -> Path:
    folder.mkdir()
    num_tokens = train_word_pieces(texts, num_tokens, folder / "tokenizer.json")
    torch.manual_seed(0)
    shared = {"vocab_size": num_tokens, "max_position_embeddings": 64, "num_labels": 2}
    if kind == "bert":
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        network = transformers.BertForSequenceClassification(transformers.BertConfig(**shared, **sizes))
    else:
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
        network = transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(**shared, **sizes))
    for parameter in network.parameters():  # biases and norms are 0 and 1 at first: any may stand in for another
        parameter.data += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    return folder


def train_word_pieces(texts: list[str], size: int, path: Path) -> int:
    """Uncased, as BERT's are; the number of tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.enable_padding(length=40)  # what a file may bring along, and what nobody asks it for
    backend.enable_truncation(20)
    backend.save(str(path))
    return backend.get_vocab_size()


def composed(folder: Path, *words: str, experiment: str = "sst2_distilbert") -> dict[str, Any]:
    """The config of a run that begins with the folder's weights."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    choices = (f"model={kind}", *SIZES, "dataset.max_length=64", f"trainer.pretrained={folder}")
    return completing.settle(compose_command([experiment, *choices, *words]).tree, Path("outputs"))


def loaded(folder: Path, *words: str) -> tuple[Task, str]:
    tree = composed(folder, *words)
    torch.manual_seed(1)
    task = build.build_task(Builder.for_search(), tree)
    return task.eval(), load_pretrained(task, tree)


def changed(folder: Path, copy: Path, **config: Any) -> Path:
    """A copy of a folder with another config.json."""
    shutil.copytree(folder, copy)
    known = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(known | config))
    return copy


# ---------------------------------------------------------------------------------------------------- the same network


@pytest.fixture
def batch(folders: dict[str, Path]) -> tuple[Tensor, Tensor]:
    """Tokens (4, L) of sentences of other lengths, padded with 0, and the lengths."""
    texts = ["great", "a film of people and a city is dull", "", "Unheard-of charm!"]
    ids = PretrainedTokenizer.read(folders["bert"]).encode_batch(texts)
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in ids], True), torch.tensor([*map(len, ids)])


@pytest.mark.parametrize("kind", KINDS)
def test_logits_equal_those_of_transformers(
    transformers: ModuleType, folders: dict[str, Path], batch: tuple[Tensor, Tensor], kind: str
) -> None:
    task, told = loaded(folders[kind])
    assert "nothing starts fresh" in told
    oracle = transformers.AutoModelForSequenceClassification.from_pretrained(folders[kind]).eval()
    tokens_BL, lengths_B = batch
    mask_BL = torch.arange(tokens_BL.shape[1]) < lengths_B[:, None]
    with torch.no_grad():
        wanted = oracle(input_ids=tokens_BL, attention_mask=mask_BL.long()).logits
        torch.testing.assert_close(task.get_submodule("model")(*batch), wanted)
    assert wanted.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_sizes_are_those_of_transformers(transformers: ModuleType, kind: str) -> None:
    tree = compose_command(["sst2_transformer", f"model={kind}", "dataset.num_tokens=30522"]).tree
    task = build.build_meta_task(Builder.for_search(), tree)
    config, network = {
        "bert": (transformers.BertConfig, transformers.BertForSequenceClassification),
        "distilbert": (transformers.DistilBertConfig, transformers.DistilBertForSequenceClassification),
    }[kind]
    with torch.device("meta"):
        wanted = sum(p.numel() for p in network(config(num_labels=2)).parameters())
    assert sum(p.numel() for p in task.parameters()) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_that_of_the_regularization_and_padding_changes_nothing(
    folders: dict[str, Path], batch: tuple[Tensor, Tensor], kind: str
) -> None:
    model = loaded(folders[kind])[0].get_submodule("model")
    tokens_BL, lengths_B = batch
    longer_BL = torch.nn.functional.pad(tokens_BL, (0, 9), value=7)
    torch.testing.assert_close(model(longer_BL, lengths_B), model(tokens_BL, lengths_B))
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert rates["dropout"] == rates["blocks.0.drop"] == 0.1
    model.train()
    assert not model(tokens_BL, lengths_B).equal(model(tokens_BL, lengths_B))


def test_attention_can_be_asked_for(folders: dict[str, Path], batch: tuple[Tensor, Tensor]) -> None:
    tokens_BL, lengths_B = batch
    for weights_BHLL in loaded(folders["bert"])[0].get_submodule("model").attention(tokens_BL, lengths_B):
        assert weights_BHLL.shape == (4, 2, tokens_BL.shape[1], tokens_BL.shape[1])
        torch.testing.assert_close(weights_BHLL.sum(3), torch.ones(weights_BHLL.shape[:3]))
        assert not weights_BHLL[2, :, :, lengths_B[2] :].any()


# ------------------------------------------------------------------------------------------------------ weights to take


def test_weights_without_a_head_give_a_fresh_one(folders: dict[str, Path], tmp_path: Path) -> None:
    """As a pretrained BERT comes: with the heads it was pretrained with, and gamma and beta in its layer norms."""
    folder = changed(folders["bert"], tmp_path / "bert")
    weights = load_file(folder / "model.safetensors")
    weights = {name: t for name, t in weights.items() if not name.startswith("classifier.")}
    renamed = {OLD_NAMES.sub(lambda found: GREEK[found[0]], name): t for name, t in weights.items()}
    assert len(renamed.keys() - weights.keys()) == 10
    save_file(renamed | {"cls.predictions.bias": torch.zeros(9)}, folder / "model.safetensors")
    task, told = loaded(folder)
    assert "2 start fresh: head.weight, head.bias" in told
    norm = weights["bert.encoder.layer.1.output.LayerNorm.weight"]
    assert task.get_parameter("model.blocks.1.norm2.weight").equal(norm)


@pytest.mark.parametrize(
    ("config", "words", "told", "hint"),
    [
        (
            {"dim": 48, "n_layers": 3},
            (),
            "hidden size 48 (not 32), num layers 3 (not 2)",
            "model.hidden_size=48 model.num_layers=3",
        ),
        ({}, ("model=bert",), "is a distilbert; the model is another", "model=distilbert"),
        ({}, ("dataset.num_tokens=9999",), "(not 9999)", "dataset.num_tokens="),
        ({"model_type": "roberta"}, (), "is a roberta", "distilbert"),
        ({}, ("dataset=sst2",), "dataset.tokenizer_file names none", "dataset.tokenizer_file="),
        ({"activation": "relu"}, (), "activation relu", ""),
    ],
)
def test_another_network_is_refused_before_anything_starts(
    folders: dict[str, Path], tmp_path: Path, config: dict, words: tuple[str, ...], told: str, hint: str
) -> None:
    folder = changed(folders["distilbert"], tmp_path / "changed", **config)
    choices = ("sst2_distilbert", *SIZES, "dataset.max_length=64", f"trainer.pretrained={folder}")
    with pytest.raises(ConfigError) as caught:
        completing.settle(compose_command([*choices, *words]).tree, tmp_path)
    assert told in caught.value.message and hint in (caught.value.hint or "")


def test_only_whole_safetensors_are_read(folders: dict[str, Path], tmp_path: Path) -> None:
    pickled = changed(folders["bert"], tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"holds no model\.safetensors; other formats are not read"):
        loaded(pickled)
    cut = changed(folders["bert"], tmp_path / "cut")
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(DataError, match="cannot be read"):
        loaded(cut)
    lacking = changed(folders["bert"], tmp_path / "lacking")
    weights = {n: t for n, t in load_file(lacking / "model.safetensors").items() if "layer.1.attention.self" not in n}
    save_file(weights, lacking / "model.safetensors")
    with pytest.raises(
        DataError,
        match=r"6 of the pretrained weights are missing or have other shapes: blocks\.1\.attention\.q\.weight",
    ):
        loaded(lacking)


def test_a_sentence_may_not_be_longer_than_there_are_positions(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.max_length=65 is more than model\.max_positions=64"):
        loaded(folders["bert"], "dataset.max_length=65")


# ------------------------------------------------------------------------------------------------------------ tokenizer


def test_tokens_are_those_of_transformers(transformers: ModuleType, folders: dict[str, Path]) -> None:
    tokenizer = PretrainedTokenizer.read(folders["bert"] / "tokenizer.json")
    oracle = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folders["bert"] / "tokenizer.json"), pad_token="[PAD]"
    )
    texts = ["A great FILM", "", "unheard of \u00e9clat, of people " * 20]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids == oracle(text, truncation=False, padding=False)["input_ids"]
        assert tokenizer.cut(ids, 64) == oracle(text, truncation=True, max_length=64, padding=False)["input_ids"]
    assert len(tokenizer) == len(oracle) and len(PretrainedTokenizer(tokenizer.to_json(), 300)) == 300
    (ids,) = tokenizer.encode_batch(["a [SEP] in the text \udcff"])
    assert ids.count(3) == 1, "its sign in a text is text"


def with_id(processor: dict[str, Any], number: int) -> dict[str, Any]:
    """A template whose last special token has another id."""
    changed = json.loads(json.dumps(processor))
    for special in changed["special_tokens"].values():
        special["ids"] = [number]
    return changed


def test_a_tokenizer_of_another_kind_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    known = json.loads((folders["bert"] / "tokenizer.json").read_text())
    for change, told in (
        ({"post_processor": None}, "adds 0 special tokens"),
        ({"model": {"type": "unheard of"}}, "its model is unheard of"),
        ({"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}}, "normalizer is Replace"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "normalizer is Precompiled"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}}, "pre_tokenizer is Split"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace"}]}}, "normalizer is Replace"),
        ({"post_processor": with_id(known["post_processor"], 4_000_000)}, "a special token has the id 4000000"),
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(known | change))
        with pytest.raises(DataError, match=told):
            PretrainedTokenizer.read(tmp_path)
    with pytest.raises(DataError, match="there is no tokenizer"):
        PretrainedTokenizer.read(tmp_path / "none")


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_a_vocabulary_without_its_own_unknown_token_is_refused_before_training(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    folder = changed(folders["distilbert"], tmp_path / "changed")
    known = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = {token: i for token, i in known["model"]["vocab"].items() if token != "[UNK]"}
    known["model"] |= {"type": kind, "vocab": vocabulary}
    (folder / "tokenizer.json").write_text(json.dumps(known))
    with pytest.raises(DataError, match=r"become \[UNK\], which is not in its vocabulary") as caught:
        composed(folder, f"dataset.tokenizer_file={folder}", "dataset.num_tokens=null")
    assert str(folder / "tokenizer.json") in caught.value.message
    assert "published with the weights" in (caught.value.hint or "")


def test_without_a_pretrained_network_the_experiment_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        completing.settle(compose_command(["sst2_distilbert"]).tree, tmp_path)
    assert "trainer.pretrained=FOLDER" in str(caught.value.hint)


def test_without_network_a_name_says_how_to_get_it_here(forge: Forge, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    words = ("sst2_distilbert", "trainer.pretrained=hf://distilbert/distilbert-base-uncased", "tracker=none")
    child = forge.run("train", *words, cwd=tmp_path, **offline)
    assert child.code == 5, child.stderr
    assert "hf://distilbert/distilbert-base-uncased cannot be fetched" in child.stderr
    assert "trainer.pretrained=FOLDER" in child.stderr and not (tmp_path / "outputs").exists()


# ---------------------------------------------------------------------------------------------------------- fine-tuning


def test_biases_and_layer_norms_do_not_decay_and_the_rate_falls_in_a_straight_line(
    transformers: ModuleType, folders: dict[str, Path]
) -> None:
    tree = composed(folders["bert"])
    task = build.build_task(Builder.for_search(), tree)
    network, names = task.get_submodule("model"), {id(p): name for name, p in task.named_parameters()}
    optimizer = build.build_optimizers(Builder.for_search(), tree, task, plain_runtime())["model"]
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    kept = {
        f"model.{name}.{leaf}"
        for name, m in network.named_modules()
        for leaf, _ in m.named_parameters(recurse=False)
        if isinstance(m, torch.nn.LayerNorm) or leaf == "bias"
    }
    assert decayed == set(names.values()) - kept and len(kept) > 10
    from dlcli.optimizers.schedules import Position

    schedule, oracle = build.build_schedule(Builder.for_search(), tree), transformers.get_linear_schedule_with_warmup
    theirs = oracle(torch.optim.SGD(network.parameters(), lr=1.0), 500, 2000).lr_lambdas[0]
    for step in (0, 100, 499, 500, 1000, 1999):  # theirs begins a warm-up at 0: a step that changes nothing
        wanted = theirs(step + 1) if step < 500 else theirs(step)
        assert schedule(Position(step, 2000, 700)) == pytest.approx(wanted), step


@pytest.fixture(scope="module")
def gradual(reviews: Path) -> str:
    """The experiment with other parameter groups: a user's own file."""
    path = reviews.parent / "gradual.yaml"
    known = options("experiment", [packaged_conf()])["sst2_distilbert"].read_text()
    path.write_text(known.partition("parameter_groups:")[0] + GRADUAL)
    return str(path)


def plain_runtime() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(device=torch.device("cpu"), precision="fp32")


def test_layers_rest_thaw_and_learn_at_rates_of_their_own(folders: dict[str, Path], gradual: str) -> None:
    tree = composed(folders["distilbert"], "optimizer.lr=0.01", experiment=gradual)
    task = build.build_task(Builder.for_search(), tree)
    network = task.get_submodule("model")
    optimizer = build.build_optimizers(Builder.for_search(), tree, task, plain_runtime(), steps_per_epoch=10)["model"]
    rates = {name: g["lr"] for g in optimizer.param_groups for name, p in network.named_parameters()
             if any(p is q for q in g["params"])}  # fmt: skip
    assert rates["head.weight"] == 0.01 and rates["blocks.1.attention.q.weight"] == 1e-4
    assert "tokens.weight" not in rates and "blocks.0.norm1.bias" not in rates
    freezing, moved = Freezing(network, optimizer.param_groups), {}
    for step in (0, 9, 10):
        freezing.at(step)
        moved[step] = {name.partition(".")[0] + name[6:8] * name.startswith("blocks")
                       for name, p in network.named_parameters() if p.requires_grad}  # fmt: skip
    assert moved == {0: {"head", "pooler"}, 9: {"head", "pooler"}, 10: {"head", "pooler", "blocks.1"}}


@pytest.fixture(scope="module")
def words(folders: dict[str, Path], reviews: Path, gradual: str) -> tuple[str, ...]:
    """A run on the reviews that thaws a block in its second epoch, and saves in the middle of epochs of 14 steps."""
    folder = folders["distilbert"]
    return (
        gradual, "dataset=sentences", f"dataset.path={reviews}", f"trainer.pretrained={folder}", *SIZES,
        f"dataset.tokenizer_file={folder}", *PLAIN, "dataset.batch_size=16",
        "trainer.epochs=3", "trainer.save_every=4", "schedule.warmup=5", "optimizer.lr=0.003",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(forge: Forge, words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    child = forge.run("train", *words, cwd=folder)
    assert child.code == 0, child.stderr
    return run_of(folder)


def test_what_rests_stays_as_it_was_pretrained(run: Path, folders: dict[str, Path]) -> None:
    before = load_file(folders["distilbert"] / "model.safetensors")
    after = load_file(run / "checkpoints" / "last" / "model.safetensors")
    theirs = "distilbert.transformer.layer.{}.ffn.lin1.weight"
    assert after["model.blocks.0.feed_forward.up.weight"].equal(before[theirs.format(0)])
    assert not after["model.blocks.1.feed_forward.up.weight"].equal(before[theirs.format(1)])
    assert not after["model.pooler.weight"].equal(before["pre_classifier.weight"])


def test_killed_in_the_middle_of_an_epoch(forge: Forge, words: tuple[str, ...], run: Path, tmp_path: Path) -> None:
    child = forge.start("train", *words, cwd=tmp_path)
    assert child.wait_for_lines(num_lines(run) * 2 // 3) and child.kill()
    resumed = forge.run("resume", "latest", cwd=tmp_path)
    assert resumed.code == 0, resumed.stderr
    assert differences(outcome(run_of(tmp_path)), outcome(run)) == []


def test_sentiments_are_answered_without_the_folder_it_began_with(run: Path, forge: Forge, tmp_path: Path) -> None:
    child = forge.run("predict", "a great film", "DULL " * 90, "--run", str(run), "--json", cwd=tmp_path)
    assert child.code == 0, child.stderr
    for answer in map(json.loads, child.stdout.splitlines()):
        assert answer["sentiment"] == answer["class"] in ("positive", "negative")
        assert answer["confidence"] == answer["probabilities"][answer["sentiment"]] >= 0.5
        assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_sst2_is_learnt_from_random_weights(
    transformers: ModuleType, forge: Forge, tmp_path: Path, data_root: Path
) -> None:
    texts = [fields[0] for _, fields in read_rows(find_sst2("sentences/train", str(data_root)), Notes())]
    folder = save_pretrained(transformers, "distilbert", tmp_path / "tiny", texts, 3000)
    child = forge.run(
        "train", "sst2_distilbert", "dataset=sst2_sentences", f"dataset.root={data_root}", *SIZES, *PLAIN,
        f"trainer.pretrained={folder}", f"dataset.tokenizer_file={folder}", "dataset.num_tokens=null",
        "optimizer.lr=0.003", "schedule.warmup=50", "trainer.epochs=2", cwd=tmp_path,
    )  # fmt: skip
    assert child.code == 0, child.stderr
    majority = 912 / 1821
    assert events(run_of(tmp_path), "run_finished")[-1]["metrics"]["test/accuracy"] > majority + 0.15
