"""The rendered sbatch script is sound bash with the recipe's sizes. No test submits a job: there is no Slurm here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.slurm import SlurmError, main, render_script

RECIPE = "pretrain: {launcher: ray, workers: 64}\n"


def write_recipe(folder: Path, text: str = RECIPE) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return path


def test_script_is_sound_bash_and_holds_the_sizes(tmp_path):
    script = render_script(write_recipe(tmp_path), "gpu", 8, "72:00:00", Path("/shared/my project"))
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    for option in ("--partition=gpu", "--nodes=8", "--gpus-per-node=8", "--time=72:00:00", "--requeue"):
        assert f"#SBATCH {option}" in lines
    assert "cd '/shared/my project'" in lines
    assert 'export RAY_ADDRESS="$address:6379"' in lines
    assert any(line.startswith("export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=") for line in lines)
    assert "ray start --head" in script
    assert "ray start --address" in script
    assert lines[-2:] == ["python -m stages.plumbing.recipe --recipe cluster", "dvc repro pretrain"]
    embedded = script.split("<<'PYTHON'\n")[1].split("\nPYTHON\n")[0]
    compile(embedded, "embedded", "exec")


def test_script_runs_its_steps_in_order(tmp_path):
    """Every command of the script is a stub that writes down how it was called; two nodes of eight."""
    script = render_script(write_recipe(tmp_path, RECIPE.replace("64", "16")), "gpu", 8, "1:00:00", tmp_path)
    stubs, calls = tmp_path / ".venv" / "bin", tmp_path / "calls"
    stubs.mkdir(parents=True)
    for name in ("srun", "python", "dvc"):
        (stubs / name).write_text(
            f'#!/bin/bash\necho "{name} $*" >> {calls}\n[[ "$*" != *hostname* ]] || echo 10.0.0.1\n'
        )
    (stubs / "scontrol").write_text("#!/bin/bash\nprintf 'one\\ntwo\\n'\n")
    for stub in stubs.iterdir():
        stub.chmod(0o755)
    environment = {**os.environ, "SLURM_JOB_NODELIST": "[one-two]"}
    subprocess.run(["bash"], input=script + "wait\n", text=True, check=True, env=environment, timeout=30)
    called = calls.read_text()
    assert called.index("python -\n") < called.index("python -m stages.plumbing.recipe") < called.index("dvc repro")
    assert "--nodelist=one ray start --head --node-ip-address=10.0.0.1 --port=6379" in called
    assert "--nodelist=two ray start --address=10.0.0.1:6379 --num-gpus=8 --block" in called


@pytest.mark.parametrize(
    "text, message",
    [
        ("pretrain: {launcher: local}", "launcher must be ray"),
        ("pretrain: {launcher: ray, workers: 12}", "workers=12 do not fill nodes of --gpus-per-node 8"),
        ("sft: {}", "not a recipe with a section `pretrain`"),
        ("[", "not a recipe"),
    ],
)
def test_other_recipes_are_refused(tmp_path, text, message):
    with pytest.raises(SlurmError, match=message):
        render_script(write_recipe(tmp_path, text), "gpu", 8, "1:00:00", tmp_path)


def test_submission_without_slurm_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(write_recipe(tmp_path)), "--partition", "gpu", "--submit"]) == 1
    assert "sbatch is not installed here" in capsys.readouterr().err


def test_submission_hands_the_script_to_sbatch(tmp_path, monkeypatch, capsys):
    (tmp_path / "sbatch").write_text("#!/bin/bash\ngrep -q 'dvc repro pretrain' && echo Submitted batch job 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert main([str(write_recipe(tmp_path)), "--partition", "gpu", "--submit"]) == 0
    assert capsys.readouterr().out == "Submitted batch job 7\n"


def test_help(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "flows.slurm", "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0
    assert "--gpus-per-node" in done.stdout
