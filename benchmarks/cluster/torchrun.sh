#!/bin/bash
# Train on several machines without a scheduler: started on each of them, NODE being its number and 0 that of MASTER.
#
#     NODES=2 NODE=0 PROCESSES=8 MASTER=10.0.0.1 benchmarks/cluster/torchrun.sh \
#         fit --model M.yaml --data D.yaml --trainer T.yaml --out runs/R
#
# The arguments are those of `zoo`; a verb that trains. There are NODES machines (1) with PROCESSES processes each (1),
# one for each GPU. MASTER is an address of the first machine (127.0.0.1), PORT a free port there (29500). All machines
# see the same folders. Where one has several networks, NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name the interface to
# take. PYTHON is the interpreter (python).
set -euo pipefail

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes "${NODES:-1}" --node_rank "${NODE:-0}" --nproc_per_node "${PROCESSES:-1}" \
    --rdzv_backend static --master_addr "${MASTER:-127.0.0.1}" --master_port "${PORT:-29500}" \
    -m zoo.cli "$@" \
    --trainer.num_nodes "${NODES:-1}" --trainer.devices "${PROCESSES:-1}" --trainer.strategy ddp
