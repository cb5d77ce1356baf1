"""The machine below the loop: device, random states, ranks, gradients, signals."""
