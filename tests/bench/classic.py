"""The classic MNIST program as people write it: torchvision, a DataLoader, Adam 1e-3, batch 64, test after each epoch.

python tests/bench/classic.py DATA                            five epochs; DATA/MNIST/raw holds the decompressed files
python tests/bench/classic.py DATA --until 99 --json FILE     until the test accuracy is reached, at most 20 epochs

The network is that of PyTorch's own example (pytorch/examples, mnist/main.py). It imports nothing of dlcli.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms


class Net(nn.Module):
    """images (B, 1, 28, 28) float32 normalised -> log-probabilities (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = self.dropout1(F.max_pool2d(x, 2))
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        return F.log_softmax(self.fc2(self.dropout2(x)), dim=1)


def loader(data: Path, *, train: bool) -> DataLoader:
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    dataset = datasets.MNIST(str(data), train=train, download=True, transform=transform)
    return DataLoader(dataset, batch_size=64 if train else 1000, shuffle=train)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    optimizer.zero_grad()
    loss = F.nll_loss(model(x), y)
    loss.backward()
    optimizer.step()
    return loss


@torch.no_grad()
def accuracy(model: nn.Module, batches: DataLoader) -> float:
    """In percent."""
    model.eval()
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in batches)
    model.train()
    return 100 * right / len(batches.dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, help="default: 5, or at most 20 with --until")
    parser.add_argument("--steps", type=int, help="of an epoch; default: all")
    parser.add_argument("--until", type=float, help="test accuracy in percent to stop at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the result there")
    options = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    train, test = loader(options.data, train=True), loader(options.data, train=False)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    epochs = []
    for epoch in range(1, 1 + (options.epochs or (20 if options.until else 5))):
        for number, (x, y) in enumerate(islice(train, options.steps)):
            loss = step(model, optimizer, x, y)
            if number % 100 == 0:
                print(f"epoch {epoch}  {number:4}/{len(train)}  loss {loss.item():.4f}", flush=True)
        epochs.append({"epoch": epoch, "accuracy": accuracy(model, test), "cpu_s": time.process_time()})
        print(
            f"epoch {epoch}  test accuracy {epochs[-1]['accuracy']:.2f} %  CPU {epochs[-1]['cpu_s']:.1f} s", flush=True
        )
        if options.until and epochs[-1]["accuracy"] >= options.until:
            break
    if options.json:
        facts = {"seed": options.seed, "threads": options.threads, "until": options.until, "torch": torch.__version__}
        result = facts | {"cpu_s": time.process_time(), "wall_s": time.monotonic() - began, "epochs": epochs}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
