"""Ways to keep a network from learning its examples by heart: dropout, batch normalization, L1 and L2 penalties.

Letters: B examples, D inputs of the layer.
"""

from __future__ import annotations

import numpy as np

from dlcli.lessons.scratch.activations import Array

# ------------------------------------------------------------------------------------------------------------- dropout


def dropout_mask(shape: tuple[int, ...], rate: float, rng: np.random.Generator) -> Array:
    """A mask: 0 with probability `rate`, 1 / (1 - rate) otherwise; rate in [0, 1) (Srivastava et al. 2014).

    In training: forward x * mask, backward dx = dy * mask with the same mask. In evaluation there is no mask, since its
    mean is 1. This is "inverted" dropout; the paper itself scales the weights in evaluation instead.
    """
    return (rng.random(shape) >= rate) / (1 - rate)


# ------------------------------------------------------------------------------------------------- batch normalization


class BatchNorm:
    """Each input brought to mean 0 and variance 1 over the batch, then scaled and shifted (Ioffe and Szegedy 2015).

    In evaluation the running statistics replace the batch's, so that an answer does not depend on the other examples.
    momentum: the share of the newest batch in them, as in torch.nn.BatchNorm1d; Keras counts the other way.
    """

    def __init__(self, num_inputs: int, *, momentum: float = 0.1, eps: float = 1e-5):
        self.gamma_D, self.beta_D = np.ones(num_inputs), np.zeros(num_inputs)
        self.running_mean_D, self.running_var_D = np.zeros(num_inputs), np.ones(num_inputs)
        self.momentum, self.eps = momentum, eps

    def forward(self, x_BD: Array, *, training: bool) -> Array:
        mean_D, var_D = self.running_mean_D, self.running_var_D
        if training:
            mean_D, var_D = x_BD.mean(axis=0), x_BD.var(axis=0)  # (B, D) -> (D,); the mean over B, not B - 1
            self._remember(mean_D, var_D, num_examples=len(x_BD))
        self._std_D = np.sqrt(var_D + self.eps)
        self._normal_BD = (x_BD - mean_D) / self._std_D  # (B, D) - (D,) -> (B, D)
        return self.gamma_D * self._normal_BD + self.beta_D

    def _remember(self, mean_D: Array, var_D: Array, *, num_examples: int) -> None:
        unbiased_D = var_D * num_examples / (num_examples - 1)  # a batch's own variance is too small by this much
        self.running_mean_D = (1 - self.momentum) * self.running_mean_D + self.momentum * mean_D
        self.running_var_D = (1 - self.momentum) * self.running_var_D + self.momentum * unbiased_D

    def backward(self, dy_BD: Array) -> tuple[Array, Array, Array]:
        """dx, dgamma, dbeta after a forward pass in training, whose mean and variance moved with x too."""
        dgamma_D = (dy_BD * self._normal_BD).sum(axis=0)  # (B, D) -> (D,)
        dbeta_D = dy_BD.sum(axis=0)  # (B, D) -> (D,)
        dnormal_BD = dy_BD * self.gamma_D
        # The parts that would only move the batch's mean or variance are removed from the gradient: these stay 0 and 1.
        of_mean_D = dnormal_BD.mean(axis=0)
        of_var_D = (dnormal_BD * self._normal_BD).mean(axis=0)
        dx_BD = (dnormal_BD - of_mean_D - self._normal_BD * of_var_D) / self._std_D
        return dx_BD, dgamma_D, dbeta_D


# ----------------------------------------------------------------------------------------------------------- penalties


def l1(w: Array, strength: float) -> tuple[float, Array]:
    """strength * sum |w| and its gradient: every weight is pulled to 0 by the same force (Tibshirani 1996)."""
    return strength * float(np.abs(w).sum()), strength * np.sign(w)  # at w = 0 the pull is 0, as in PyTorch


def l2(w: Array, strength: float) -> tuple[float, Array]:
    """strength / 2 * sum w^2 and its gradient: a weight is pulled in proportion to itself (Hoerl and Kennard 1970).

    With the half, strength is what torch.optim.SGD calls weight_decay.
    """
    return strength / 2 * float((w**2).sum()), strength * w
