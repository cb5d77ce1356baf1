"""`python -m tests.bench.by_hand TRIALS`: a search as one writes it by hand, `optuna` around a bare loop.

The network, data, batches, schedule and evaluations of `dlcli train digits`, over learning rate and dropout; nothing is
written, checked, resumed or shown.
"""

from __future__ import annotations

import math
import sys

import optuna
import torch
from torch import nn
from torch.nn import functional as F

EPOCHS, BATCH = 60, 64


def load() -> tuple[torch.Tensor, ...]:
    """Images (N, 64) float, labels (N,): 1,294 to train with, 144 to validate on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16 - 0.3049) / 0.3760
    labels = torch.tensor(digits.target)
    order = torch.randperm(1_438, generator=torch.Generator().manual_seed(0))
    return images[order[144:]], labels[order[144:]], images[order[:144]], labels[order[:144]]


def objective(trial: optuna.Trial, data: tuple[torch.Tensor, ...]) -> float:
    lr = trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.5)
    train_images, train_labels, val_images, val_labels = data
    torch.manual_seed(0)
    layers = [nn.Linear(64, 512), nn.ReLU(), nn.Dropout(dropout), nn.Linear(512, 256), nn.ReLU(), nn.Dropout(dropout)]
    network = nn.Sequential(*layers, nn.Linear(256, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=1e-4, fused=True)
    steps, step, best = EPOCHS * math.ceil(len(train_images) / BATCH), 0, math.inf
    for _ in range(EPOCHS):
        network.train()
        for rows in torch.randperm(len(train_images)).split(BATCH):
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            loss = F.cross_entropy(network(train_images[rows]), train_labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        network.eval()
        with torch.no_grad():
            best = min(best, F.cross_entropy(network(val_images), val_labels).item())
    return best


def main(trials: int) -> None:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    data = load()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: objective(trial, data), n_trials=trials)
    print(len(study.trials), study.best_value)


if __name__ == "__main__":
    main(int(sys.argv[1]))
