#!/bin/bash
# Train on several machines without a scheduler. Start it on each machine with its number as NODE; MASTER has NODE=0.
#
#     NODES=2 NODE=0 PROCESSES=8 MASTER=10.0.0.1 benchmarks/cluster/torchrun.sh \
#         fit --model M.yaml --data D.yaml --trainer T.yaml --out runs/R
#
# The arguments are those of `zoo fit` or another verb that trains. Variables, with their defaults: NODES machines (1);
# PROCESSES per machine, one for each GPU (1); MASTER, an address of the first machine (127.0.0.1); PORT, a free port
# there (29500); PYTHON, the interpreter (python). All machines need the same file system. On machines with several
# networks, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME select the interface.
set -euo pipefail

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NODES:-1}" --node_rank "${NODE:-0}" --nproc_per_node "${PROCESSES:-1}" \
    --rdzv_backend static --master_addr "${MASTER:-127.0.0.1}" --master_port "${PORT:-29500}" \
    -m zoo.cli "$@" \
    --trainer.num_nodes "${NODES:-1}" --trainer.devices "${PROCESSES:-1}" --trainer.strategy ddp
