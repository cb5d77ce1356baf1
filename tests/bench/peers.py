"""CPU time per step of other runners, and of dlcli, against the same bare loop.

The network is an MLP 784-64-10 at batch 64 with SGD, one thread: so small that what a runner adds is seen. Every runner
has a process of its own on a pseudo-terminal, is set up as its documentation does it, and asks for the same ready
batches. `Batches` hands them out, and after every STEPS of them does as many steps of the bare loop in between, timed
apart: so both sides take turns within one call of the runner's own `fit`, and neither start nor end is counted.

python -m tests.bench.peers NAME      one of them; the JSON goes to the file $RESULT, else to the screen

A new peer is one function here that trains `net()` on the `Batches` it is given, and one line in PEERS.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.bench.measure import Failed, give_result, ratios, result_of, spread, table

STEPS = 150  # of one block
PAIRS = 15
DISTINCT = 100  # batches, 20 MB


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=0.01)


def bare_step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = F.cross_entropy(network(x), y)
    loss.backward()
    optimizer.step()
    return loss


class Batches(Dataset):
    """Ready batches (images (64, 1, 28, 28) float32, labels (64,) int64), in turn with the bare loop.

    To iterate over, or to be indexed in any order: it counts the calls. as_dict: {"images", "labels"} instead.
    """

    def __init__(self, *, as_dict: bool = False) -> None:
        random = torch.Generator().manual_seed(0)
        images = torch.randn(DISTINCT, 64, 1, 28, 28, generator=random)
        labels = torch.randint(10, (DISTINCT, 64), generator=random)
        self.pairs = list(zip(images.unbind(), labels.unbind(), strict=True))
        self.given = [{"images": x, "labels": y} for x, y in self.pairs] if as_dict else self.pairs
        self.taken, self.started = 0, 0.0
        self.bare_us: list[float] = []  # one more than of the runner's
        self.runner_us: list[float] = []
        self.network = net()
        self.optimizer = sgd(self.network)

    def __len__(self) -> int:
        return STEPS * (PAIRS + 1) + 8  # one block warms up; the rest is for who fetches ahead

    def __getitem__(self, index: int) -> Any:
        if self.taken % STEPS == 0:
            self._turn()
        self.taken += 1
        return self.given[self.taken % DISTINCT]

    def __iter__(self) -> Iterator[Any]:
        return map(self.__getitem__, range(len(self)))

    def _turn(self) -> None:
        """The end of a block of the runner's, a block of the bare loop, the start of the next."""
        now = time.process_time()
        if self.taken:
            self.runner_us.append((now - self.started) / STEPS * 1e6)
        gc.collect()
        start = time.process_time()
        with torch.enable_grad():
            for step in range(STEPS):
                bare_step(self.network, self.optimizer, *self.pairs[step % DISTINCT])
        self.bare_us.append((time.process_time() - start) / STEPS * 1e6)
        gc.collect()
        self.started = time.process_time()

    def loader(self) -> DataLoader:
        """For those who take nothing else. One "example" is a whole batch: MMEngine wants a sampler to be there."""
        return DataLoader(self, batch_size=1, collate_fn=the_only)

    def result(self) -> dict[str, list[float]]:
        """Without the first pair; each of the runner's blocks beside the mean of the bare ones around it."""
        if len(self.runner_us) < PAIRS:
            raise SystemExit(f"it took {self.taken} batches of {len(self)}")
        around = [(before + after) / 2 for before, after in zip(self.bare_us, self.bare_us[1:], strict=False)]
        return {"runner_us": self.runner_us[1:], "bare_us": around[1 : len(self.runner_us)]}


def the_only(batches: list[Any]) -> Any:
    return batches[0]


# ----------------------------------------------------------------------------------------------------- without a runner


def bare(batches: Batches) -> None:
    network = net()
    optimizer = sgd(network)
    for x, y in batches:
        bare_step(network, optimizer, x, y)


def bare_loader(batches: Batches) -> None:
    network = net()
    optimizer = sgd(network)
    for x, y in batches.loader():
        bare_step(network, optimizer, x, y)


def bare_rich(batches: Batches) -> None:
    from rich.progress import Progress

    network = net()
    optimizer = sgd(network)
    with Progress() as progress:  # draws itself 10 times a second
        bar = progress.add_task("training", total=len(batches))
        for x, y in batches:
            bare_step(network, optimizer, x, y)
            progress.advance(bar)


def dlcli(batches: Batches) -> None:
    """All that a user has by default: Rich table on a terminal, events, W&B offline, train accuracy, NaN guard."""
    from dlcli.config import compose_command
    from tests.bench.overhead import TINY, reporting

    tree = compose_command([*TINY, f"trainer.max_steps={len(batches)}"]).tree
    with tempfile.TemporaryDirectory() as folder, reporting(tree, Path(folder)) as training:
        training.train_source = Given(training.train_source, batches)
        training.run()


class Given:
    """A train source of dlcli's that gives the batches it is handed."""

    def __init__(self, source: Any, batches: Batches) -> None:
        self._source, self._batches = source, batches

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def from_step(self, step: int) -> Iterator[list[Any]]:
        from dlcli.datasets.batches.examples import Batch

        index = torch.arange(64)
        for x, y in self._batches:
            yield [Batch(x, y, index)]


# ------------------------------------------------------------------------------------------------------------ the peers


def ignite(batches: Batches) -> None:
    from ignite.engine import create_supervised_trainer

    network = net()
    create_supervised_trainer(network, sgd(network), F.cross_entropy).run(batches, max_epochs=1)


def fabric(batches: Batches) -> None:
    from lightning.fabric import Fabric

    runner = Fabric(accelerator="cpu", devices=1)
    network = net()
    network, optimizer = runner.setup(network, sgd(network))
    for x, y in batches:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        runner.backward(loss)
        optimizer.step()


def skorch(batches: Batches) -> None:
    import skorch

    runner = skorch.NeuralNetClassifier(
        net(), criterion=nn.CrossEntropyLoss, optimizer=torch.optim.SGD, lr=0.01, max_epochs=1, train_split=None,
        iterator_train=lambda dataset, **settings: dataset, classes=list(range(10)),
    )  # fmt: skip
    runner.fit(batches, y=None)


def accelerate(batches: Batches) -> None:
    from accelerate import Accelerator

    runner = Accelerator(cpu=True)
    network = net()
    network, optimizer, loader = runner.prepare(network, sgd(network), batches.loader())
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), y)
        runner.backward(loss)
        optimizer.step()


def mmengine(batches: Batches) -> None:
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.network = net()

        def forward(self, images: Tensor, labels: Tensor, mode: str = "loss") -> dict[str, Tensor]:
            return {"loss": F.cross_entropy(self.network(images), labels)}

    Runner(
        Model(), work_dir="mmengine", train_dataloader=batches.loader(), train_cfg={"by_epoch": True, "max_epochs": 1},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
    ).train()  # fmt: skip


def lightning(batches: Batches, *, log: bool = False, **settings: Any) -> None:
    import lightning as L

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = net()

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, y = batch
            loss = F.cross_entropy(self.network(x), y)
            if log:
                self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.network)

    L.Trainer(max_epochs=1, accelerator="cpu", devices=1, **settings).fit(Module(), batches)


def lightning_barebones(batches: Batches) -> None:
    lightning(batches, barebones=True)


def lightning_quiet(batches: Batches) -> None:
    lightning(batches, logger=False, enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)


def lightning_bar(batches: Batches) -> None:
    lightning(batches, logger=False, enable_checkpointing=False)


def lightning_full(batches: Batches) -> None:
    from lightning.pytorch.loggers import CSVLogger

    lightning(batches, log=True, logger=CSVLogger("lightning"))


def fastai(batches: Batches) -> None:
    from fastai.callback import progress  # noqa: F401  (gives learners their bar, and no_bar)
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import SGD

    runner = Learner(DataLoaders(batches, []), net(), loss_func=F.cross_entropy, opt_func=SGD, lr=0.01)
    with runner.no_bar(), runner.no_logging():
        runner.fit(1)


def transformers(batches: Batches, *, bar: bool = False) -> None:
    from transformers import Trainer, TrainingArguments

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = net()

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.network(images)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Ready(Trainer):
        def get_train_dataloader(self) -> DataLoader:
            return batches.loader()

    settings = TrainingArguments(
        "transformers", max_steps=len(batches), use_cpu=True, optim="sgd", learning_rate=0.01, max_grad_norm=0.0,
        lr_scheduler_type="constant", report_to="none", save_strategy="no", disable_tqdm=not bar,
    )  # fmt: skip
    Ready(Model(), settings, train_dataset=batches).train()


def transformers_bar(batches: Batches) -> None:
    transformers(batches, bar=True)


def keras(batches: Batches, *, bar: bool = False) -> None:
    import keras
    from keras import layers

    model = keras.Sequential(
        [keras.Input((1, 28, 28)), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.01), loss=loss)
    model.fit(batches.loader(), epochs=1, verbose=1 if bar else 0)


def keras_bar(batches: Batches) -> None:
    keras(batches, bar=True)


AS_DICT = (transformers, transformers_bar)
PEERS = {  # function -> (what the table says, the package whose version it shows)
    bare: ("noise floor: the bare loop itself", "torch"),
    bare_loader: ("bare loop that takes the ready batches from a DataLoader", "torch"),
    bare_rich: ("bare loop with a Rich bar at 10 Hz", "rich"),
    dlcli: ("**dlcli**: table on a terminal, events, W&B offline, train accuracy, NaN guard", "dlcli"),
    ignite: ("Ignite", "pytorch-ignite"),
    fabric: ("Lightning Fabric", "lightning"),
    skorch: ("skorch", "skorch"),
    accelerate: ("Accelerate", "accelerate"),
    mmengine: ("MMEngine Runner", "mmengine-lite"),
    lightning_barebones: ("Lightning Trainer, bare-bones", "lightning"),
    lightning_quiet: ("Lightning Trainer, no bar, no logger", "lightning"),
    lightning_bar: ("Lightning Trainer with its bar", "lightning"),
    lightning_full: ("Lightning Trainer with bar, CSV log, checkpoint", "lightning"),
    fastai: ("fastai, no bar", "fastai"),
    transformers: ("Hugging Face Trainer, no bar", "transformers"),
    transformers_bar: ("Hugging Face Trainer with its bar", "transformers"),
    keras: ("Keras on torch, no bar", "keras"),
    keras_bar: ("Keras on torch with its bar", "keras"),
}


def version(package: str) -> str:
    names = (package, package.removesuffix("-lite"))  # mmengine is also published whole
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def measured(name: str) -> dict[str, list[float]] | str:
    """The result of one peer's process, or why there is none."""
    try:
        return result_of("tests.bench.peers", name, KERAS_BACKEND="torch", HF_HUB_OFFLINE="1")
    except Failed as error:
        return str(error)


def run() -> str:
    """CPU time per step of every peer, and of dlcli, against the bare loop on the same ready batches."""
    rows, missing = [], []
    for peer, (what, package) in PEERS.items():
        found = measured(peer.__name__)
        label = (what, f"{package} {version(package)}".strip())
        if isinstance(found, str):
            missing.append((*label, f"missing: {found}", "", "", ""))
            continue
        runner, beside = found["runner_us"], found["bare_us"]
        extra = statistics.median(a - b for a, b in zip(runner, beside, strict=True))
        us = [f"{statistics.median(side):.0f}" for side in (runner, beside)]
        rows.append(
            (
                statistics.median(ratios(runner, beside)),
                (*label, spread(ratios(runner, beside), 2), *us, f"{extra:.0f}"),
            )
        )
    told = f"{PAIRS} paired blocks of {STEPS} steps, MLP 784-64-10, batch 64, SGD, one thread, ready batches; CPU time."
    head = ("", "version", "x bare: median (least to most)", "us per step", "bare us", "extra us")
    return f"{told}\n\n" + table(head, [row for _, row in sorted(rows)] + missing)


def main(name: str) -> None:
    torch.set_num_threads(1)
    peer = next((peer for peer in PEERS if peer.__name__ == name), None)
    if peer is None:
        sys.exit(f"no such peer: {name} ({', '.join(peer.__name__ for peer in PEERS)})")
    batches = Batches(as_dict=peer in AS_DICT)
    peer(batches)
    if "RESULT" in os.environ:
        give_result(batches.result())
    else:
        found = batches.result()
        print(spread(ratios(found["runner_us"], found["bare_us"])), "x bare")


if __name__ == "__main__":
    main(sys.argv[1])
