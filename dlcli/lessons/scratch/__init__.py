"""The foundations from scratch, in NumPy alone: every line shows its shapes, every gradient is derived by hand.

    activations.py      sigmoid, tanh, ReLU, leaky ReLU and their slopes
    neuron.py           one neuron: a weighted sum and a sigmoid, trained by gradient descent
    backprop.py         a network of two layers, backpropagation written out
    optimizers.py       SGD, momentum, Nesterov, RMSprop, Adam
    regularization.py   dropout, batch normalization, L1 and L2
    data.py             points in the plane to learn from

`dlcli learn TOPIC` runs them. The tests hold them against PyTorch, and PyTorch's parts against them.

A name ends with its shape: B examples, D inputs, H hidden units, K outputs; `w_DH` is a matrix of D rows and H columns.
A name that begins with d is a gradient: `dw_DH` is how the loss changes with each entry of `w_DH`.
"""
