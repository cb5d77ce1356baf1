"""A network of two layers, tanh hidden units and a sigmoid output, with hand-written backpropagation.

(Rumelhart, Hinton and Williams 1986.)

    network = TwoLayerNetwork.draw(num_inputs=2, num_hidden=4, rng=np.random.default_rng(0))
    losses = network.train(x_BD, y_B)

The standard start is weights of 0.01 * N(0, 1), biases of zero, a learning rate of 0.01 and 1,000 epochs. So small a
start is near a saddle, where every gradient is nearly zero: the network leaves it only if a straight line already
separates the classes well. On data like xor it does not leave it at all; with a larger scale and rate it does.

Letters: B examples, D inputs, H hidden units, K outputs (here 1).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from dlcli.lessons.scratch.activations import Array, sigmoid
from dlcli.lessons.scratch.neuron import cross_entropy


@dataclass
class TwoLayerNetwork:
    w1_DH: Array
    b1_H: Array
    w2_HK: Array
    b2_K: Array

    @classmethod
    def draw(
        cls, num_inputs: int, num_hidden: int, rng: np.random.Generator, *, scale: float = 0.01
    ) -> TwoLayerNetwork:
        """Draws weights of scale * N(0, 1): with all zeros, every hidden unit would stay the same. Biases are zero."""
        return cls(
            w1_DH=scale * rng.standard_normal((num_inputs, num_hidden)),
            b1_H=np.zeros(num_hidden),
            w2_HK=scale * rng.standard_normal((num_hidden, 1)),
            b2_K=np.zeros(1),
        )

    def forward(self, x_BD: Array) -> tuple[Array, Array]:
        """The hidden values (B, H) and the sums of the output (B, K)."""
        hidden_BH = np.tanh(x_BD @ self.w1_DH + self.b1_H)  # (B, D) @ (D, H) + (H,) -> (B, H)
        z_BK = hidden_BH @ self.w2_HK + self.b2_K  # (B, H) @ (H, K) + (K,) -> (B, K)
        return hidden_BH, z_BK

    def predict(self, x_BD: Array) -> Array:
        """The probability of class 1, (B,)."""
        return sigmoid(self.forward(x_BD)[1])[:, 0]

    def loss(self, x_BD: Array, y_B: Array) -> float:
        return cross_entropy(self.forward(x_BD)[1][:, 0], y_B)

    def gradients(self, x_BD: Array, y_B: Array) -> TwoLayerNetwork:
        """The gradients of the mean cross-entropy, by the chain rule from the output back; shaped like the network."""
        hidden_BH, z_BK = self.forward(x_BD)
        dz2_BK = (sigmoid(z_BK) - y_B[:, None]) / len(y_B)  # (B, K): cross-entropy and sigmoid in one
        dw2_HK = hidden_BH.T @ dz2_BK  # (H, B) @ (B, K) -> (H, K)
        db2_K = dz2_BK.sum(axis=0)  # (B, K) -> (K,)
        dhidden_BH = dz2_BK @ self.w2_HK.T  # (B, K) @ (K, H) -> (B, H)
        dz1_BH = dhidden_BH * (1 - hidden_BH**2)  # the slope of tanh
        dw1_DH = x_BD.T @ dz1_BH  # (D, B) @ (B, H) -> (D, H)
        db1_H = dz1_BH.sum(axis=0)  # (B, H) -> (H,)
        return TwoLayerNetwork(dw1_DH, db1_H, dw2_HK, db2_K)

    def train(self, x_BD: Array, y_B: Array, *, lr: float = 0.01, epochs: int = 1000) -> list[float]:
        """Gradient descent on all examples at once; returns the loss before each epoch and after the last."""
        losses = [self.loss(x_BD, y_B)]
        for _ in range(epochs):
            slopes = self.gradients(x_BD, y_B)
            self.w1_DH = self.w1_DH - lr * slopes.w1_DH
            self.b1_H = self.b1_H - lr * slopes.b1_H
            self.w2_HK = self.w2_HK - lr * slopes.w2_HK
            self.b2_K = self.b2_K - lr * slopes.b2_K
            losses.append(self.loss(x_BD, y_B))
        return losses


def numerical_gradients(network: TwoLayerNetwork, x_BD: Array, y_B: Array, *, step: float = 1e-5) -> TwoLayerNetwork:
    """The same by definition: move one number a little up and down and see how the loss changes.

    It is right to about nine digits and needs two passes per weight: use it to check, never to train.
    """
    found = {}
    for field in fields(network):
        values = getattr(network, field.name)  # the network's own array, restored after each look
        slopes = np.zeros_like(values)
        for place in np.ndindex(values.shape):
            kept = values[place]
            values[place] = kept + step
            above = network.loss(x_BD, y_B)
            values[place] = kept - step
            below = network.loss(x_BD, y_B)
            values[place] = kept
            slopes[place] = (above - below) / (2 * step)
        found[field.name] = slopes
    return TwoLayerNetwork(**found)
