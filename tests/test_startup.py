"""What a training leaves unimported: the way from the command to the first step is short because of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from program import QUICK, environment

CHILD = """
import sys
from dlcli.cli import main
sys.argv = ["dlcli", "train", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(*sorted(sys.modules), sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize(
    "words", [(), ("model=simple_cnn", "optimizer=nesterov", "dataset.num_workers=0")], ids=["mlp", "cnn"]
)
def test_training_imports_no_compiler(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-P", "-c", CHILD, *QUICK, "trainer.epochs=1", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules = set(done.stderr.split())
    assert "torch.optim" in modules
    assert not modules & {"torch._dynamo", "torch._inductor", "sympy", "torchvision", "wandb", "sklearn.svm"}
