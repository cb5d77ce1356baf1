"""What fights over-fitting outside the networks: penalties in the loss, averages of the weights, early stopping."""
