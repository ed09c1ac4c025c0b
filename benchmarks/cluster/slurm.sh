#!/bin/bash
# Train on several machines under SLURM. The arguments are those of `zoo fit` or another verb that trains. Submit it in
# the folder in which you would run `zoo`; options of the cluster go to sbatch and override the #SBATCH lines below:
#
#     sbatch --partition gpu --time 12:00:00 --nodes 4 --ntasks-per-node 8 --gpus-per-node 8 \
#         benchmarks/cluster/slurm.sh fit --model M.yaml --data D.yaml --trainer T.yaml --out runs/R
#
# There is one task per GPU. 180 s before the time limit the training receives USR1, saves a checkpoint and requeues the
# job; with --out it resumes from there. Errors are in the log. PYTHON is the interpreter (default: python).
#SBATCH --job-name=zoo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=3
#SBATCH --requeue
#SBATCH --signal=USR1@180
#SBATCH --output=slurm_%j.log
#SBATCH --open-mode=append
set -euo pipefail

export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"  # srun does not inherit it from sbatch
# --wait=0: the first process still writes files when the others have ended. A failed process ends all others.
exec srun --wait=0 --kill-on-bad-exit=1 "${PYTHON:-python}" -m zoo.cli "$@" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.strategy ddp
