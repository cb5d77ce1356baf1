"""dlcli: a command-line runner for deep-learning experiments."""

from pathlib import Path

__version__ = "0.2.0"
PACKAGE = Path(__file__).resolve().parent  # the folder of the code, wherever a module of it is moved
