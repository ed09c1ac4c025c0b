#!/bin/bash
# Train on several machines under SLURM. The arguments are those of `zoo`; a verb that trains. Submit it where you would
# run `zoo`; what the cluster wants to know is said to sbatch, which also overrules the lines below:
#
#     sbatch --partition gpu --time 12:00:00 --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 \
#         benchmarks/cluster/slurm.sh fit --model M.yaml --data D.yaml --trainer T.yaml --out runs/R
#
# There is one task for each GPU. 180 s before its time is up the training is told to save itself and to queue again; with
# --out it goes on from there. What went wrong goes into the log. PYTHON is the interpreter (python).
#SBATCH --job-name=zoo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=3
#SBATCH --requeue
#SBATCH --signal=USR1@180
#SBATCH --output=slurm_%j.log
#SBATCH --open-mode=append
set -euo pipefail

export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun does not take it over from sbatch
# The first process writes on when the others have ended: --wait=0. None waits for one that has failed.
exec srun --wait=0 --kill-on-bad-exit=1 "${PYTHON:-python}" -m zoo.cli "$@" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp
