"""Run the pipeline up to the base model on a Slurm cluster: render a recipe into an sbatch script, or submit it.

    python -m flows.slurm recipes/cluster-7b.yaml --partition gpu > job.sh
    python -m flows.slurm recipes/cluster-7b.yaml --partition gpu --time 72:00:00 --submit

The job starts a Ray head and workers on its nodes and then the same command as everywhere, `dvc repro pretrain`, with
RAY_ADDRESS set. It has as many nodes as the recipe's `pretrain.workers` need. The project folder must be one that all
nodes see. A job that Slurm requeues goes on from the last checkpoint.
"""

import argparse
import math
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

PORT = 6379
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=gristmill-{name}
#SBATCH --partition={partition}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --exclusive
#SBATCH --time={time}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=gristmill-{name}-%j.log
set -euo pipefail

cd {folder}
export PATH={folder}/.venv/bin:$PATH
export RAY_USAGE_STATS_ENABLED=0 DVC_NO_ANALYTICS=1

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 --nodelist="${{hosts[0]}}" hostname --ip-address | awk '{{print $1}}')
export RAY_ADDRESS="$address:{port}"
# Without RAY_AUTH_MODE a driver that is given an address sends no token, and the head refuses it.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

# Every step but the command itself runs until the job ends; --overlap lets it share the head's node with Ray.
srun --overlap --nodes=1 --ntasks=1 --nodelist="${{hosts[0]}}" \\
    ray start --head --node-ip-address="$address" --port={port} --num-gpus={gpus} --block &
for host in "${{hosts[@]:1}}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$host" \\
        ray start --address="$RAY_ADDRESS" --num-gpus={gpus} --block &
done
python - <<'PYTHON'
import time
import ray
for attempt in range(60):
    try:
        ray.init(logging_level="ERROR")
        if sum(node["Alive"] for node in ray.nodes()) == {nodes}:
            break
        ray.shutdown()
    except ConnectionError:
        pass
    time.sleep(5)
else:
    raise SystemExit("the Ray cluster of {nodes} nodes did not come up within five minutes")
PYTHON

python -m stages.plumbing.recipe --recipe {name}
dvc repro pretrain
"""


class SlurmError(ValueError):
    """The recipe is not one for a cluster, or Slurm is not there."""


def render_script(recipe: Path, partition: str, gpus: int, time: str, folder: Path) -> str:
    """Return the sbatch script of a recipe; raise SlurmError when it trains on one machine only."""
    try:
        pretrain = yaml.safe_load(recipe.read_text(encoding="utf8"))["pretrain"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise SlurmError(f"{recipe}: not a recipe with a section `pretrain` ({error})") from error
    if pretrain.get("launcher") != "ray":
        raise SlurmError(f"{recipe}: pretrain.launcher must be ray, or the job would train on one of its nodes only")
    workers = pretrain.get("workers", 1)
    if workers > gpus and workers % gpus:
        raise SlurmError(f"{recipe}: pretrain.workers={workers} do not fill nodes of --gpus-per-node {gpus}")
    return SCRIPT.format(
        name=recipe.stem,
        partition=shlex.quote(partition),
        nodes=math.ceil(workers / gpus),
        gpus=min(gpus, workers),
        time=shlex.quote(time),
        folder=shlex.quote(str(folder)),
        port=PORT,
    )


def submit(script: str) -> str:
    """Hand the script to sbatch; return what it prints, the job's number."""
    try:
        done = subprocess.run(["sbatch"], input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise SlurmError("sbatch is not installed here: leave out --submit, and submit the script elsewhere") from error
    if done.returncode:
        raise SlurmError(f"sbatch refused the job: {done.stderr.strip()}")
    return done.stdout.strip()


def main(arguments: list[str] | None = None) -> int:
    """Print or submit the script; return the exit status."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m flows.slurm", description=__doc__, formatter_class=formatter)
    parser.add_argument("recipe", type=Path, help="a file of recipes/ with pretrain.launcher: ray")
    parser.add_argument("--partition", required=True, help="Slurm partition with the GPUs")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="GPUs of each node (default 8)")
    parser.add_argument("--time", default="24:00:00", help="limit of the job, as sbatch writes it (default 24:00:00)")
    parser.add_argument("--submit", action="store_true", help="call sbatch instead of printing the script")
    options = parser.parse_args(arguments)
    try:
        script = render_script(options.recipe, options.partition, options.gpus_per_node, options.time, Path.cwd())
        print(submit(script) if options.submit else script)
    except SlurmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
