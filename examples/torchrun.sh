#!/usr/bin/env bash
# One machine, all its GPUs: RECIPE PACKED-FOLDER OUT. Run it again to go on where it was.
#
#   examples/torchrun.sh phi-1-small packed/ base/
#
# A worker that dies is started again, three times at most, from the last checkpoint. Ctrl-C,
# SIGTERM and SIGUSR1 save first; torchrun itself then ends with code 1.
set -euo pipefail
recipe=$1 data=$2 out=$3
# Without the driver's tool, one process on the CPU.
gpus=$({ nvidia-smi --list-gpus 2>/dev/null || true; } | wc -l)

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}
# torchrun would else hand a restarted worker the addresses of dead ones (pytorch issue 135712).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# How long torchrun waits for a save before it kills; torch 2.11 has no such setting: 30 seconds.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}

exec torchrun --standalone --nproc-per-node "$((gpus > 0 ? gpus : 1))" --max-restarts 3 \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m hornbook train "$recipe" --data "$data" --out "$out"
