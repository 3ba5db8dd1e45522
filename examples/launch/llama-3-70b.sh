#!/usr/bin/env bash
# A Megatron-LM launch as people write them, with a flag misspelt: docs/howto/launch-files.md judges it.
set -euo pipefail

GPUS_PER_NODE=8
NNODES=${NNODES:-8}

MODEL_ARGS=(
  --num-layers 80
  --hidden-size 8192
  --ffn-hidden-size 28672
  --num-attention-heads 64
  --group-query-attention
  --num-query-groups 8
  --swiglu
  --normalization RMSNorm
  --disable-bias-linear
  --untie-embeddings-and-output-weights
)
TRAINING_ARGS="
  --micro-batch-size 1
  --global-batch-size $((2 * GPUS_PER_NODE * NNODES))
  --seq-length 8192
  --max-position-embeddings 8192
  --bf16
  --lr 1.5e-4
  --attention-dropout 0 --hidden-dropout 0
"

torchrun --nproc-per-node $GPUS_PER_NODE --nnodes $NNODES pretrain_gpt.py \
  "${MODEL_ARGS[@]}" $TRAINING_ARGS \
  --tensor-model-parallel-size 8 \
  --pipeline-model-parallel-size 4 \
  --sequence-parallel \
  --use-distributed-optimizer \
  --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 \
  --log-intervall 10
