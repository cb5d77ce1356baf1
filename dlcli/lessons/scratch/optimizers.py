"""Optimizers: how a gradient becomes a step. One object per array of weights, which may have any shape.

    optimizer = Adam()
    w = optimizer.step(w, gradient)      the new weights; the object keeps the optimizer's state

Each docstring says how the textbook form, which is used here, differs from `torch.optim`'s.
"""

from __future__ import annotations

import numpy as np

from dlcli.lessons.scratch.activations import Array


class SGD:
    """Straight down the slope: w - lr * g (Robbins and Monro 1951). torch.optim.SGD is the same."""

    rule = "w = w - lr g"
    memory = 0  # numbers remembered per weight

    def __init__(self, lr: float = 0.01):
        self.lr = lr

    def step(self, w: Array, g: Array) -> Array:
        return w - self.lr * g


class Momentum:
    """A running mean of the gradients instead of the last one (Polyak 1964, as lectures write it).

    torch.optim.SGD(momentum=beta) adds the whole gradient to its sum, not (1 - beta) of it: its steps are
    1 / (1 - beta) times as long, ten times at 0.9. The path is the same with torch's lr = (1 - beta) * lr.
    """

    rule = "v = β v + (1 - β) g,  w = w - lr v"
    memory = 1

    def __init__(self, lr: float = 0.01, beta: float = 0.9):
        self.lr, self.beta = lr, beta
        self.v: Array | float = 0.0

    def step(self, w: Array, g: Array) -> Array:
        self.v = self.beta * self.v + (1 - self.beta) * g
        return w - self.lr * self.v


class Nesterov:
    """Momentum whose gradient is taken at the point where the momentum leads (Nesterov 1983, Sutskever et al. 2013).

    The textbook steps to w - lr * beta * v first and takes the gradient there. Here, as in torch.optim.SGD with
    nesterov=True, the weights are that look-ahead point, so that no second point is needed. (1 - beta) as in Momentum:
    torch's lr is (1 - beta) times this one.
    """

    rule = "v = β v + (1 - β) g,  w = w - lr (β v + (1 - β) g)"
    memory = 1

    def __init__(self, lr: float = 0.01, beta: float = 0.9):
        self.lr, self.beta = lr, beta
        self.v: Array | float = 0.0

    def step(self, w: Array, g: Array) -> Array:
        self.v = self.beta * self.v + (1 - self.beta) * g
        return w - self.lr * (self.beta * self.v + (1 - self.beta) * g)


class RMSprop:
    """Each weight's step divided by the usual size of its gradient (Hinton's lecture 6e, 2012).

    The lecture's decay is 0.9, torch.optim.RMSprop's default alpha is 0.99; otherwise they are the same.
    """

    rule = "s = ρ s + (1 - ρ) g²,  w = w - lr g / (√s + ε)"
    memory = 1

    def __init__(self, lr: float = 0.01, decay: float = 0.9, eps: float = 1e-8):
        self.lr, self.decay, self.eps = lr, decay, eps
        self.s: Array | float = 0.0

    def step(self, w: Array, g: Array) -> Array:
        self.s = self.decay * self.s + (1 - self.decay) * g**2
        return w - self.lr * g / (np.sqrt(self.s) + self.eps)


class Adam:
    """Momentum and RMSprop together, both corrected for their start at zero (Kingma and Ba 2015, algorithm 1).

    torch.optim.Adam is the same. The paper's faster form (its section 2) adds eps before the correction, as Keras does:
    then eps counts for more in the first steps.
    """

    rule = "m, s = means of g, g²;  w = w - lr m̂ / (√ŝ + ε)"
    memory = 2

    def __init__(self, lr: float = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps
        self.m: Array | float = 0.0
        self.s: Array | float = 0.0
        self.t = 0

    def step(self, w: Array, g: Array) -> Array:
        self.t += 1
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.s = self.beta2 * self.s + (1 - self.beta2) * g**2
        m_hat = self.m / (1 - self.beta1**self.t)  # after t gradients, the mean holds only a share of 1 - beta^t
        s_hat = self.s / (1 - self.beta2**self.t)
        return w - self.lr * m_hat / (np.sqrt(s_hat) + self.eps)


Optimizer = SGD | Momentum | Nesterov | RMSprop | Adam
