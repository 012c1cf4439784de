"""The launchers in `examples/`: shells take them, and the commands in them are ours."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import hornbook.commands.runs  # noqa: F401 (registers the command)
from hornbook.commands.shared import app

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").iterdir())


def test_there_are_three() -> None:
    assert [path.name for path in EXAMPLES] == ["skypilot.yaml", "slurm.sbatch", "torchrun.sh"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(("cards", "processes"), [(None, 1), (0, 1), (3, 3)])
def test_one_process_a_gpu_and_one_without_the_driver(
    tmp_path: Path, cards: int | None, processes: int
) -> None:
    for name in ("bash", "env", "wc", "seq"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/usr/bin/env bash\necho "$@"\n')
    torchrun.chmod(0o755)
    if cards is not None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/usr/bin/env bash\nseq {cards}\n")
        tool.chmod(0o755)
    script = Path(__file__).parents[2] / "examples" / "torchrun.sh"
    done = subprocess.run(
        [str(shutil.which("bash")), str(script), "demo", "packed", "out"],
        env={"PATH": str(tmp_path)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"--nproc-per-node {processes} " in done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_shell_and_command_line_are_sound(path: Path) -> None:
    text = path.read_text()
    shell = text
    if path.suffix == ".yaml":
        yaml = pytest.importorskip("yaml")
        task = yaml.safe_load(text)
        shell = task["setup"] + task["run"]
    done = subprocess.run(["bash", "-n"], input=shell, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    words = re.search(r"-m hornbook (train .*)", shell)
    assert words is not None
    tokens = words[1].removesuffix(" || true").replace('"', "").split()
    command, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    assert command.__name__ == "train"
    assert set(bound.arguments) == {"recipe", "data", "out"}
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in shell
