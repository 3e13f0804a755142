#!/bin/bash
# For `sbatch examples/cluster/slurm.sh my.yaml run.dir=/shared/runs`: Ray on the nodes of one job, and `srft-ray train` on it.
# Replace the #SBATCH lines to fit your cluster, and PROJECT: this repository after `make setup`, on storage that all nodes see.
# Words after the script are those of `srft-ray train`. A run that is preempted, or reaches the time limit, writes a checkpoint and
# is queued again; the same command then continues it.
#SBATCH --job-name=srft-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail

PROJECT=${PROJECT:-$HOME/srft-ray}
PORT=${PORT:-6379} # not 10002 to 19999, which are for Ray's workers
# shellcheck disable=SC1091
for stack in .venv .venv-gpu; do  # the last one that is there
  [ -e "$PROJECT/$stack/bin/activate" ] && source "$PROJECT/$stack/bin/activate"
done
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
[ "$RAY_AUTH_MODE" = token ] && ray get-auth-token --generate > /dev/null # in ~/.ray, which the nodes share
# Slurm may signal the nodes too: they then stay until the run has written its checkpoint.
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=270

mapfile -t NODES < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="${NODES[0]}" hostname --ip-address)
HEAD=${HEAD%% *}
RESOURCES=(--num-cpus="${SLURM_CPUS_PER_TASK:-1}" --num-gpus="${SLURM_GPUS_ON_NODE:-0}")

on() { # on NODE COMMAND…: the command as a step of its own with all of the node
  srun --overlap --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --nodelist="$1" "${@:2}"
}

nodes_alive() {
  timeout 60 python -c 'import ray; ray.init(log_to_driver=False, logging_level=40); print(sum(node["Alive"] for node in ray.nodes()))' 2> /dev/null || echo 0
}

trap 'scontrol requeue "$SLURM_JOB_ID"; exit 0' TERM # nothing to save yet
export RAY_ADDRESS=$HEAD:$PORT
on "${NODES[0]}" ray start --head --block --node-ip-address="$HEAD" --port="$PORT" --disable-usage-stats "${RESOURCES[@]}" &
head=$!
for node in "${NODES[@]:1}"; do
  on "$node" ray start --block --address="$RAY_ADDRESS" --disable-usage-stats "${RESOURCES[@]}" &
done
until [ "$(nodes_alive)" -ge "${#NODES[@]}" ] || [ "$SECONDS" -ge 600 ]; do # elastic runs can do with the nodes that have come
  kill -0 "$head" # ends the job if the head node did not start
  sleep 5
done

preempted=
srft-ray train "$@" &
train=$!
trap 'preempted=1; kill -TERM "$train" 2> /dev/null || true' TERM
code=0
wait "$train" || code=$?
while kill -0 "$train" 2> /dev/null; do # a signal ends `wait`, but not the run
  code=0
  wait "$train" || code=$?
done
if [ -n "$preempted" ] && [ "$code" -eq 0 ]; then
  echo "preempted: the run is queued again and continues from its checkpoint"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
