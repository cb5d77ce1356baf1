"""One artificial neuron: a weighted sum, a bias, a sigmoid; trained by gradient descent on the cross-entropy.

    neuron = Neuron.draw(num_inputs=2, rng=np.random.default_rng(0))
    losses = neuron.train(x_BD, y_B)
    accuracy(neuron.predict(x_BD), y_B)

It draws one straight line through the plane, so it learns every set of two classes that a line separates
(Rosenblatt 1958) and no other. Letters: B examples, D inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlcli.lessons.scratch.activations import Array, sigmoid


@dataclass
class Neuron:
    w_D: Array
    b: float

    @classmethod
    def draw(cls, num_inputs: int, rng: np.random.Generator) -> Neuron:
        """Draws weights and bias from N(0, 1)."""
        return cls(w_D=rng.standard_normal(num_inputs), b=float(rng.standard_normal()))

    def sums(self, x_BD: Array) -> Array:
        """z = w.x + b for each example, (B,)."""
        return x_BD @ self.w_D + self.b  # (B, D) @ (D,) + () -> (B,)

    def predict(self, x_BD: Array) -> Array:
        """The probability of class 1, (B,)."""
        return sigmoid(self.sums(x_BD))

    def gradients(self, x_BD: Array, y_B: Array) -> tuple[Array, float]:
        """The gradients of the mean cross-entropy with respect to w and b."""
        p_B = self.predict(x_BD)
        dz_B = (p_B - y_B) / len(y_B)  # slopes of cross-entropy and sigmoid multiplied: all but this cancels
        dw_D = dz_B @ x_BD  # (B,) @ (B, D) -> (D,)
        db = dz_B.sum()  # (B,) -> ()
        return dw_D, float(db)

    def train(self, x_BD: Array, y_B: Array, *, lr: float = 1.0, epochs: int = 200) -> list[float]:
        """Gradient descent on all examples at once; returns the loss before each epoch and after the last."""
        losses = [cross_entropy(self.sums(x_BD), y_B)]
        for _ in range(epochs):
            dw_D, db = self.gradients(x_BD, y_B)
            self.w_D = self.w_D - lr * dw_D
            self.b = self.b - lr * db
            losses.append(cross_entropy(self.sums(x_BD), y_B))
        return losses


def cross_entropy(z_B: Array, y_B: Array) -> float:
    """The mean of -log(probability of the true class), in nats; y_B holds 0 and 1.

    Computed from the sums, not from the probabilities: log(1 - p) is minus infinity if p was rounded to 1.
    """
    return float(np.mean(np.logaddexp(0.0, z_B) - y_B * z_B))  # -y log s(z) - (1 - y) log(1 - s(z))


def accuracy(p_B: Array, y_B: Array) -> float:
    """The share of examples whose probability is on the right side of 0.5."""
    return float(np.mean((p_B > 0.5) == (y_B > 0.5)))
