#!/usr/bin/env bash
# The whole way on real images: train three ways, export, evaluate and predict with the ensemble.
# Usage: TL_SHARED=FOLDER benchmarks/cartoons.sh OUT     (FOLDER holds data/pacs-cartoon and weights/)
set -euo pipefail
out=${1:?folder for runs and models}
export TL_WEIGHTS_DIR=$TL_SHARED/weights
data=$TL_SHARED/data/pacs-cartoon

tl train "$data/splits.csv" --method features --out "$out/features"
tl train "$data/splits.csv" --method finetune --epochs 6 --batch-size 16 --lr 0.02 --augment light --label-smoothing 0.1 \
  --out "$out/finetune"
tl train "$data/splits.csv" --method scratch --epochs 20 --out "$out/scratch"
for run in scratch features finetune; do
  tl export "$out/$run" -o "$out/$run.onnx"
done
tl evaluate "$data/splits.csv" --split test --ensemble "$out"/{scratch,features,finetune}.onnx
for run in scratch features finetune; do
  tl predict "$data" --model "$out/$run.onnx" -o "$out/$run.csv"
done
tl predict "$data" --ensemble "$out"/{scratch,features,finetune}.onnx -o "$out/ensemble.csv"
