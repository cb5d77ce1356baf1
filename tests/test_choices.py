"""What `runtime=auto` measures and chooses, and that nothing else changes by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from program import QUICK, dlcli, events_of
from safetensors.torch import load_file

from dlcli.models.mnist_net import MnistNet
from dlcli.runtime.device import Runtime
from dlcli.tasks.classification import Classification
from dlcli.training import loop
from dlcli.training.autotune import Cost, Timer, choose
from dlcli.training.eval_batch import bytes_per_example, eval_batch_size

CPU = torch.device("cpu")
OPEN = {"threads": "auto", "channels_last": "auto", "precision": "auto"}


class Told(Timer):
    """Takes the times of a step from a table: what is chosen follows from them alone."""

    def __init__(self, seconds: dict[tuple[str, bool, int], float]):
        self.table, self.measured = seconds, {}

    def _measure(self, runtime: Runtime) -> Cost:
        seconds = self.table[runtime.precision, runtime.channels_last, runtime.threads]
        return Cost(seconds, seconds)


def test_what_the_config_settles_is_not_measured() -> None:
    runtime = Runtime(CPU, "fp32", 1)
    settled = {"threads": 1, "channels_last": False, "precision": "fp32"}
    assert choose(runtime, settled, Told({}), 10**9) == (runtime, "")


def test_the_fastest_way_is_chosen_by_its_time() -> None:
    times = {("fp32", False, 1): 0.02, ("fp32", False, 4): 0.04, ("fp32", True, 1): 0.019, ("bf16", True, 1): 0.01}
    chosen, why = choose(Runtime(CPU, "fp32", 4), OPEN, Told(times), 10**6)
    assert (chosen.precision, chosen.channels_last, chosen.threads) == ("bf16", True, 1)
    assert why.startswith("bf16, channels-last, 1 thread: 10.0 ms a step") and "fp32, 4 threads 40.0 ms" in why


def test_a_small_gain_is_not_worth_other_bits() -> None:
    times = {("fp32", False, 1): 0.02, ("fp32", False, 4): 0.019, ("fp32", True, 1): 0.019, ("bf16", True, 1): 0.018}
    chosen, _ = choose(Runtime(CPU, "fp32", 4), OPEN, Told(times), 10**6)
    assert chosen == Runtime(CPU, "fp32", 1)


def test_a_short_run_is_left_as_it_is() -> None:
    chosen, why = choose(Runtime(CPU, "fp32", 4), OPEN, Told({("fp32", False, 1): 0.001}), 5)
    assert chosen == Runtime(CPU, "fp32", 1) and "too short" in why


def test_measuring_changes_neither_the_task_nor_the_random_numbers() -> None:
    torch.manual_seed(0)
    task = Classification(MnistNet(num_classes=10, image_shape=[1, 8, 8], dropout=0.5))
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    state = torch.get_rng_state()

    def steps(copy: Any, runtime: Runtime) -> Iterator[loop.StepDone]:
        from dlcli.datasets.batches.examples import Batch

        labels = torch.zeros(4, dtype=torch.int64)
        optimizer = torch.optim.SGD(copy.parameters(), lr=1.0)
        batch = Batch(torch.randn(4, 1, 8, 8), labels, labels)
        return loop.train(copy, iter(lambda: [batch], None), {"model": optimizer}, autocast=runtime.autocast())

    Timer(task, steps).seconds(Runtime(CPU, "bf16", torch.get_num_threads(), channels_last=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())


def test_the_choice_is_recorded_and_a_resume_takes_it_over(tmp_path: Path) -> None:
    words = (*QUICK, "model=simple_cnn", "model.channels=[8]", "model.hidden=[]", "runtime.precision=bf16")
    words = (*words, "runtime.channels_last=true", "optimizer=momentum", "name=cnn")
    done = dlcli("train", *words, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    prepared = next(e for e in events_of(done.stdout) if e["event"] == "run_prepared")
    assert (prepared["precision"], prepared["channels_last"], prepared["threads"]) == ("bf16", True, 1)
    assert dlcli("resume", "cnn", "trainer.epochs=3", cwd=tmp_path).returncode == 0
    longer = dlcli("train", *words[:-1], "trainer.epochs=3", "--json", cwd=tmp_path)
    runs = [Path(events_of(longer.stdout)[-1]["run"]), next((tmp_path / "outputs" / "digits").glob("*cnn"))]
    last = [load_file(run / "checkpoints" / "last" / "model.safetensors") for run in runs]
    assert all(tensor.is_contiguous() for tensor in last[0].values())
    assert last[0].keys() == last[1].keys()


def test_an_evaluation_takes_as_many_examples_as_fit() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(1_000, 5_000), torch.nn.ReLU(), torch.nn.Linear(5_000, 10))
    with torch.no_grad():
        found = bytes_per_example(network, lambda size: network(torch.zeros(size, 1_000)))
    assert found == 5_000 * 4  # of the widest layer's output; weights do not grow with the batch
    assert eval_batch_size(found, CPU) == 2_048
    assert eval_batch_size(10**12, CPU) == 1 and eval_batch_size(0.0, CPU) == 1_000


def test_where_time_went_adds_up(tmp_path: Path) -> None:
    done = dlcli("train", *QUICK, "--json", cwd=tmp_path)
    spent = events_of(done.stdout)[-1]["time"]
    assert list(spent) == ["start", "data", "device", "evaluation", "saving"]
    assert all(seconds >= 0 for seconds in spent.values()) and spent["device"] > 0
