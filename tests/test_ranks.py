"""Ranks: who they are, what they agree on, what becomes of them when one is lost. Two real gloo processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from program import REPOSITORY, environment
from program import real_dlcli as dlcli  # starts, signals and exit codes are the point here
from rank_checks import names, run_on_two_ranks
from torch import Tensor, nn

from dlcli.errors import EnvironmentFault
from dlcli.runtime.batch_norm import synchronise
from dlcli.runtime.gradients import flat_gradients
from dlcli.runtime.launch import Group, launch
from dlcli.runtime.ranks import Place, Ranks, SingleProcess
from dlcli.runtime.rendezvous import find_ranks, first_host, join_ranks, port_of

# ------------------------------------------------------------------------------------------- checks that both ranks run


def examples(count: int = 64) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 8, 8) and labels (count,)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 10


def network(*, batch_norm: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    norm = [nn.BatchNorm2d(4)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(1, 4, 3), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).to(dtype)


def backward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    loss = F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)
    loss.backward()
    return loss.detach()


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).float()


def assert_same_bits(ranks: Ranks, tensor: Tensor) -> None:
    found = ranks.gather(tensor.contiguous().view(torch.uint8).sum(dtype=torch.int64).item())
    found += [ranks.broadcast(tensor.flatten().tolist()) == tensor.flatten().tolist()]
    assert found[0] == found[1] and found[2]


def share(ranks: Ranks, first: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """The first examples for rank 0, the others for rank 1."""
    x, y = examples(count)
    return (x[:first], y[:first]) if ranks.rank == 0 else (x[first:], y[first:])


def averaged(ranks: Ranks, model: nn.Module, first: int) -> tuple[Tensor, Tensor]:
    """Gradient and mean loss of 64 examples, of which rank 0 has `first`."""
    x, y = share(ranks, first)
    loss = backward(model, x, y) if len(x) else torch.tensor(float("nan"))
    loss = ranks.average_gradients(model.parameters(), loss, len(x))
    return gradients(model), loss


def check_two_halves_have_the_gradient_of_the_whole(ranks: Ranks) -> None:
    for first in (32, 21, 0):
        whole, part = network(), network()
        expected = backward(whole, *examples())
        found, loss = averaged(ranks, part, first)
        torch.testing.assert_close(found, gradients(whole), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(loss, expected)
        assert_same_bits(ranks, found)


def check_gradients_of_no_examples_are_left_out_whatever_they_are(ranks: Ranks) -> None:
    whole, part = network(), network()
    backward(whole, *examples())
    backward(part, *examples())
    if ranks.rank == 1:
        for parameter in part.parameters():
            parameter.grad = torch.full_like(parameter, float("nan"))
    loss = ranks.average_gradients(part.parameters(), torch.tensor(float(ranks.rank)), 64 * (1 - ranks.rank))
    assert torch.equal(gradients(part), gradients(whole)) and loss == 0


def check_half_precision_is_summed_in_single(ranks: Ranks) -> None:
    model = network(dtype=torch.bfloat16)
    model.append(nn.Linear(10, 10, dtype=torch.float64))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 256.0 if ranks.rank == 0 else 1.0)
    ranks.average_gradients(model.parameters(), torch.tensor(1.0), 1)
    for parameter in model.parameters():
        assert parameter.grad is not None and parameter.grad.dtype == parameter.dtype
        assert torch.equal(parameter.grad, torch.full_like(parameter, 128.5))  # 257 is no bfloat16


def check_parameters_that_few_or_no_ranks_use(ranks: Ranks) -> None:
    parameters = [nn.Parameter(torch.zeros(3)) for _ in range(3)]
    for step in range(2):
        for parameter in parameters:
            parameter.grad = None
        parameters[0].grad = torch.ones(3)
        if ranks.rank == step:
            parameters[1].grad = torch.ones(3)
        ranks.average_gradients(parameters, torch.tensor(0.0), 4)
        assert [p.grad is None for p in parameters] == [False, False, True]
        assert parameters[1].grad is not None and parameters[1].grad.tolist() == [0.5] * 3


def check_a_loss_that_is_no_number_is_seen_by_all(ranks: Ranks) -> None:
    for bad in (float("nan"), float("inf")):
        model = network()
        backward(model, *examples())
        loss = ranks.average_gradients(model.parameters(), torch.tensor(bad if ranks.rank else 1.0), 32)
        assert not torch.isfinite(loss)


def check_gradients_keep_the_layout_of_their_parameters(ranks: Ranks) -> None:
    model = network().to(memory_format=torch.channels_last)
    averaged(ranks, model, 32)
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in model.parameters())


def check_numbers(ranks: Ranks) -> None:
    assert ranks.all_reduce([0.1, float(ranks.rank)]) == [0.2, 1.0]
    assert ranks.agree([float(ranks.rank), -float(ranks.rank)]) == [1.0, 0.0]
    assert ranks.broadcast({"rank": ranks.rank, "text": "ä" * (1 + ranks.rank)}) == {"rank": 0, "text": "ä"}
    assert ranks.gather([ranks.rank] * (1 + ranks.rank)) == [[0], [1, 1]]
    ranks.barrier()


def check_tensors_are_gathered_by_the_first(ranks: Ranks) -> None:
    own = {
        "a": torch.full((2 + ranks.rank,), float(ranks.rank), dtype=torch.bfloat16),
        "b": torch.arange(6).view(2, 3).T,
    }
    found = ranks.gather_tensors(own)
    assert len(found) == (2 if ranks.is_primary else 0)
    for rank, tensors in enumerate(found):
        assert tensors["a"].dtype == torch.bfloat16 and tensors["a"].tolist() == [rank] * (2 + rank)
        assert torch.equal(tensors["b"], own["b"])


def check_running_statistics_become_their_mean(ranks: Ranks) -> None:
    model = network(batch_norm=True)
    model.register_buffer("mask", torch.tensor([float("-inf"), 0.1]))
    model[1].running_mean.fill_(1.0 + ranks.rank)
    model[1].num_batches_tracked.fill_(5 + ranks.rank)
    ranks.average_buffers(model)
    assert model[1].running_mean.tolist() == [1.5] * 4 and model[1].num_batches_tracked == 6
    assert model.mask.tolist() == [float("-inf"), torch.tensor(0.1).item()]


def check_batch_norm_over_two_ranks_is_that_of_one(ranks: Ranks) -> None:
    for first in (32, 21, 0):
        whole, part = network(batch_norm=True), network(batch_norm=True)
        synchronise(part, ranks)
        assert part.state_dict().keys() == whole.state_dict().keys()
        for _ in range(2):
            for model in (whole, part):
                model.zero_grad()
            backward(whole, *examples())
            x, y = share(ranks, first)
            loss = backward(part, x, y) if len(x) else part(x).sum()
            if not len(x):
                loss.backward()  # no examples, but its part of the exchange
            ranks.average_gradients(part.parameters(), loss.detach(), len(x))
            torch.testing.assert_close(gradients(part), gradients(whole), rtol=1e-4, atol=1e-6)
            assert_same_bits(ranks, gradients(part))
        for name, buffer in whole.named_buffers():
            torch.testing.assert_close(part.get_buffer(name), buffer)
        whole.eval()
        part.eval()
        torch.testing.assert_close(part(examples()[0]), whole(examples()[0]))


def check_batch_norm_of_large_means_loses_no_digits(ranks: Ranks) -> None:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1)) + 1000
    whole, part = nn.Sequential(nn.BatchNorm1d(3)), nn.Sequential(nn.BatchNorm1d(3))
    synchronise(part, ranks)
    expected = whole.double()(x.double())
    rows = slice(0, 20) if ranks.rank == 0 else slice(20, 64)
    torch.testing.assert_close(part(x[rows]).double(), expected[rows], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return run_on_two_ranks(__file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", names(globals()))
def test_two_ranks(name: str, answers: dict[str, str]) -> None:
    assert answers[name] == ""


# ---------------------------------------------------------------------------------------------------------- one process


def test_alone_is_one_rank_that_changes_nothing() -> None:
    alone, loss = SingleProcess(), torch.tensor(1.0)
    assert alone.average_gradients([], loss, 3) is loss and alone.weigh(loss, 3) is loss
    assert (alone.all_reduce([1.0]), alone.agree([2.0]), alone.broadcast("x"), alone.gather(1)) == (
        [1.0],
        [2.0],
        "x",
        [1],
    )
    with alone.peer_faults():
        alone.barrier()
    alone.close()


def test_finding_ranks_imports_no_torch() -> None:
    found = "from dlcli.runtime import launch, rendezvous; rendezvous.find_ranks()"
    code = f"import sys; {found}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_JOB_ID": "4242", "SLURM_NTASKS": "3", "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
}  # fmt: skip


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, None),
        ({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}, None),
        (TORCHRUN, Place(1, 4, 1, "10.0.0.1", 29500)),
        (TORCHRUN | {"DLCLI_MASTER_LISTEN_FD": "7"}, Place(1, 4, 1, "10.0.0.1", 29500)),
        (TORCHRUN | {"RANK": "0", "DLCLI_MASTER_LISTEN_FD": "7"}, Place(0, 4, 1, "10.0.0.1", 29500, listen_fd=7)),
        (
            TORCHRUN | {"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            Place(1, 4, 1, "10.0.0.1", 29500, attempt=2, is_hosted=True),
        ),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (SLURM, Place(2, 3, 0, "gpu07", port_of(4242, 1))),
        (SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "4000"}, Place(2, 3, 0, "head", 4000)),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # srun --ntasks=1 within an allocation of three
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}, None),  # the batch script itself
        (SLURM | {"SLURM_STEP_ID": str(0xFFFFFFFA)}, None),  # salloc's interactive step
        (SLURM | TORCHRUN, Place(1, 4, 1, "10.0.0.1", 29500)),  # torchrun started by srun
    ],
)
def test_a_place_is_found_in_the_environment(env: dict[str, str], place: Place | None) -> None:
    assert find_ranks(env) == place


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"RANK": "0"}, "without WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"}, "without LOCAL_RANK"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4 of WORLD_SIZE=4"),
        (TORCHRUN | {"RANK": "-1"}, "RANK=-1"),
        (TORCHRUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two"),
        (TORCHRUN | {"MASTER_PORT": "0"}, "MASTER_PORT=0"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_LOCALID"}, "without SLURM_LOCALID"),
        (SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID=x"),
    ],
)
def test_half_a_place_is_a_fault_with_a_remedy(env: dict[str, str], said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said) as caught:
        find_ranks(env)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[03-12,20],m1", "n03"), ("r[0-1]n[4,7]-ib", "r0n4-ib"), ("a-b.c,d", "a-b.c")],
)
def test_the_first_host_of_slurms_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_gradients_that_come_late_on_a_gpu_are_a_fault() -> None:
    """On a GPU the parameters that take part are read once; here the reading is held back to show what follows."""
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    (flat,) = flat_gradients(parameters)
    flat.buffer = flat.buffer.to("meta")
    flat.taking_part = [True, False]
    parameters[1].grad = torch.ones(2)
    with pytest.raises(EnvironmentFault, match="first gradient after the first step"):
        flat._unpack(is_counted=True)


# ----------------------------------------------------------------------------------------------------------- lost ranks

LOST = """
import sys, threading, os, signal, time
import torch
from dlcli.runtime.rendezvous import find_ranks, join_ranks
ranks = join_ranks(find_ranks(), torch.device("cpu"), timeout_s=float(sys.argv[2]))
ranks.barrier()
if ranks.rank == 1 and sys.argv[1] == "hang":
    time.sleep(60)
if ranks.rank == 1:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()
try:
    while True:
        ranks.sum_in_place(torch.ones(1_000_000))
except Exception as error:
    print(type(error).__name__, error.code, error, error.hint, sep="|", flush=True)
    ranks.close()
"""


def lost(tmp_path: Path, *words: str, devices: int = 2) -> tuple[str, float]:
    """What rank 0 says when rank 1 is lost, and after how many seconds both have ended."""
    (tmp_path / "lost.py").write_text(LOST)
    said = tmp_path / "said"
    with said.open("w") as out, Redirected(out):
        group = Group([str(tmp_path / "lost.py"), *words], devices, {"PYTHONPATH": str(REPOSITORY)})
    start = time.monotonic()
    group.ranks[0].wait(timeout=60)
    taken = time.monotonic() - start
    group.ranks[1].kill()
    group.ranks[1].wait()
    return said.read_text(), taken


class Redirected:
    """Within the block, processes that are started write their stdout to a file."""

    def __init__(self, file: Any):
        self.file = file

    def __enter__(self) -> None:
        self.kept = os.dup(1)
        os.dup2(self.file.fileno(), 1)

    def __exit__(self, *_: object) -> None:
        os.dup2(self.kept, 1)
        os.close(self.kept)


def test_a_rank_killed_within_an_exchange_ends_the_other_at_once(tmp_path: Path) -> None:
    said, taken = lost(tmp_path, "kill", "600")
    assert said.startswith("EnvironmentFault|5|the other rank was lost") and "dlcli resume" in said
    assert taken < 40


def test_a_rank_that_answers_no_more_is_given_up_after_the_timeout(tmp_path: Path) -> None:
    said, _ = lost(tmp_path, "hang", "2")
    assert said.startswith("EnvironmentFault|5|the other rank was lost, or did not answer in time (this is rank 0)")


JOIN = """
import torch
from dlcli.runtime.ranks import Place; from dlcli.runtime.rendezvous import join_ranks
try:
    join_ranks(Place(int(__import__("sys").argv[1]), 2, 0, "127.0.0.1", 1), torch.device("cpu"), timeout_s=1)
except Exception as error:
    print(type(error).__name__, error, sep="|")
"""


def test_a_rank_whose_peers_never_come_says_so() -> None:
    command = [sys.executable, "-c", JOIN, "1"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.startswith("EnvironmentFault|rank 1 could not meet the other 1 at 127.0.0.1:1 in 1 s: "), done


# ------------------------------------------------------------------------------------------------------------ launching


def launched(tmp_path: Path, what: str, *, max_restarts: int = 0, **options: Any) -> subprocess.Popen[str]:
    """`launch` of two children without torch, in a process of its own."""
    child = Path(__file__).with_name("rank_child.py")
    code = (
        "import sys\n"
        "from dlcli.reporting.errors import print_error\n"
        "from dlcli.errors import DlcliError\n"
        "from dlcli.runtime.launch import launch\n"
        "try:\n"
        f"    sys.exit(launch([{what!r}], devices=2, max_restarts={max_restarts}, program=[{str(child)!r}]))\n"
        "except DlcliError as error:\n"
        "    print_error(error, stream=sys.stderr)\n"
        "    sys.exit(error.code)"
    )
    env = environment() | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, **options
    )


def wait_until(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


@pytest.mark.parametrize("code", [2, 5])
def test_a_users_error_ends_the_group_with_its_code_and_no_restart(tmp_path: Path, code: int) -> None:
    process = launched(tmp_path, f"exit={code}", max_restarts=3)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")
    assert not list(tmp_path.glob("started-*-1"))


def test_a_rank_that_is_killed_starts_all_again(tmp_path: Path) -> None:
    process = launched(tmp_path, "die=2", max_restarts=2)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert said.splitlines() == [
        "rank 1 of 2 was ended by SIGKILL; all ranks start again (1 of 2)",
        "rank 1 of 2 was ended by SIGKILL; all ranks start again (2 of 2)",
    ]
    started = sorted(path.name for path in tmp_path.glob("started-*"))
    assert started == [f"started-{rank}-{restart}" for rank in (0, 1) for restart in (0, 1, 2)]
    assert len({path.read_text() for path in tmp_path.glob("started-*")}) == 1, "one run id"


def test_a_rank_that_is_killed_without_restarts_is_told(tmp_path: Path) -> None:
    process = launched(tmp_path, "die=1")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "rank 1 of 2 was ended by SIGKILL" in said and "dlcli resume" in said and "Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("to_all", [False, True], ids=["launcher", "terminal"])
def test_a_signal_reaches_each_rank_once(tmp_path: Path, number: signal.Signals, to_all: bool) -> None:
    """Sent to the launcher, or to its process group as a terminal's Ctrl-C is."""
    process = launched(tmp_path, "wait", start_new_session=True)
    for rank in (0, 1):
        wait_until(tmp_path / f"ready-{rank}")
    os.killpg(process.pid, number) if to_all else process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, "")
    assert [(tmp_path / f"signals-{rank}").read_text() for rank in (0, 1)] == [str(int(number))] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells only on Linux")
def test_a_launcher_that_is_killed_leaves_no_orphans(tmp_path: Path) -> None:
    process = launched(tmp_path, "wait")
    for rank in (0, 1):
        wait_until(tmp_path / f"ready-{rank}")
    process.kill()
    process.communicate()
    for rank in (0, 1):
        wait_until(tmp_path / f"signals-{rank}")


def test_a_misspelt_setting_is_told_by_ranks_as_by_one_process(tmp_path: Path) -> None:
    code = (
        "import sys; from dlcli.runtime.launch import launch; sys.exit(launch(sys.argv[1:], devices=2, max_restarts=3))"
    )
    words = ["train", "digits", "optimizer.lrr=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == dlcli(*words, cwd=tmp_path).returncode == 2
    assert "optimizer.lr" in done.stderr and "Traceback" not in done.stderr


def test_the_launcher_imports_nothing_heavy() -> None:
    assert launch.__module__ == "dlcli.runtime.launch"
    code = "import sys, dlcli.runtime.launch; print(*sorted({'torch', 'numpy', 'typer', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.strip() == ""


@pytest.mark.gpu
def test_on_a_gpu_no_step_after_the_first_waits_for_the_device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", 0)
    ranks = join_ranks(Place(0, 1, 0, "127.0.0.1", 0), device)  # one rank is a group too: nccl wants a GPU for each
    try:
        model = network().to(device)
        x, y = (some.to(device) for some in examples())
        for step in range(3):
            model.zero_grad()
            loss = backward(model, x, y)
            expected = gradients(model)
            torch.cuda.set_sync_debug_mode("error" if step else "default")
            mean = ranks.average_gradients(model.parameters(), loss, 64)
            torch.cuda.set_sync_debug_mode("default")
            torch.testing.assert_close(gradients(model), expected)
            torch.testing.assert_close(mean, loss)
        assert ranks.broadcast({"a": 1}) == {"a": 1} and ranks.all_reduce([2.0]) == [2.0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
        ranks.close()
