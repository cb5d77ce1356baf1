"""The lessons of `dlcli learn TOPIC` about dlcli/scratch: one file per topic, NumPy only.

    lesson.py      the parts of a lesson: tables, charts, notes, a picture, the command that does it for real
    showing.py     prints a lesson: Rich on a terminal, plain text in a pipe, JSON lines
    charts.py      curves made of characters
    drawing.py     the common parts of the pictures

No topic imports torch; matplotlib is imported when a picture is drawn.
"""

TOPICS = {
    "neuron": "one neuron draws a straight line between two classes",
    "activations": "sigmoid, tanh, ReLU and leaky ReLU: curves, slopes, strengths, weaknesses",
    "backprop": "a network of two layers learns by the chain rule, and when it does not",
    "optimizers": "SGD, momentum, Nesterov, RMSprop and Adam go down the same valley",
    "regularization": "dropout, batch normalization, L1 and L2 against learning by heart",
}
