"""Before a training: the machine, the network, and what time and memory it will take."""
