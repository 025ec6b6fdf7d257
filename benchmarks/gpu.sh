#!/usr/bin/env bash
# Everything that needs a CUDA GPU, in one go, on a machine with no more than Python, torch, torchvision and perhaps no
# package index. Stages take at most four minutes each; each writes its own files into OUT as it goes.
#
#   benchmarks/gpu.sh OUT [STAGE ...]        stages: setup models tests predict train half tensorrt (default: all, in order)
#
#   WHEELS    a folder of wheels for what is missing (an onnxruntime-gpu wheel may lie there in parts: ort-*.part and its
#             name in ort-name.txt). They go to SITE; the CPU wheel of onnxruntime is UNINSTALLED, since both together break
#             CUDA. Empty: use what is installed.
#   IMAGES    a folder of class folders of JPEGs (default: $TL_SHARED/data/pacs-cartoon).
#   DEVICE    cuda; cpu is a dry run that shows that the script works.
#   BACKBONES what is trained and measured; the first of them in the stages train and half, too. Dry runs take small ones.
#   WORK      where models and runs go (default: OUT/work).
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "$1" && cd "$1" && pwd); shift
stages=${*:-setup models tests predict train half tensorrt}
export DEVICE=${DEVICE:-cuda} WORK=${WORK:-$out/work} SITE=${SITE:-/tmp/site} WHEELS=${WHEELS:-}
images=${IMAGES:-${TL_SHARED:+$TL_SHARED/data/pacs-cartoon}}
export PYTHONPATH=$SITE:$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 NO_ALBUMENTATIONS_UPDATE=1 TL_CACHE_DIR=${TL_CACHE_DIR:-$WORK/cache}
python=${PYTHON:-python3}
backbones=${BACKBONES:-mobilenet_v2 resnet50 timm:efficientnet_lite0} first=${BACKBONES:-}; first=${first%% *}
epochs=3 count=12288 files=${FILES:-24576} rounds=${ROUNDS:-2} batches="64 128"
[ "$DEVICE" = cpu ] && { epochs=2 count=64 files=64 rounds=1 batches=8; }
mkdir -p "$WORK"
tl() { "$python" -m tl "$@"; }
is_cuda() { [ "$DEVICE" = cuda ]; }

setup() {
  if [ -n "$WHEELS" ]; then
    if [ -f "$WHEELS/ort-name.txt" ] && ls "$WHEELS"/ort-*.part >/dev/null 2>&1; then
      cat "$WHEELS"/ort-*.part > "/tmp/$(cat "$WHEELS/ort-name.txt")"
      "$python" -m pip uninstall -q -y onnxruntime
      "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$SITE" /tmp/onnxruntime_gpu-*.whl
    fi
    "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$SITE" "$WHEELS"/base/*.whl
  fi
  is_cuda && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  tl doctor --json
}

# One epoch each: their speed counts, not their accuracy.
models() {
  for name in $backbones; do
    short=${name#timm:}
    tl train "$images" --method scratch --backbone "$name" --weights none --epochs 1 --device "$DEVICE" \
      --out "$WORK/runs/$short" && tl export "$WORK/runs/$short" -o "$WORK/$short.onnx" &
    is_cuda || wait
  done
  wait
}

tests() {
  TL_TEST_DEVICE=$DEVICE "$python" -m pytest -p no:cacheprovider -q -m cuda -W ignore::DeprecationWarning tests/integration/test_cuda.py
}

predict() {
  for name in ${MODELS:-${backbones//timm:/}}; do
    # shellcheck disable=SC2086
    "$python" benchmarks/predict_cuda.py "$images" "$WORK/$name.onnx" --fp16 --device "$DEVICE" --count "$files" \
      --rounds "$rounds" --batches $batches
  done
}

train() {
  backbone=resnet50
  is_cuda || backbone=resnet18
  "$python" benchmarks/train_cuda.py "$images" --backbone "${first:-$backbone}" --device "$DEVICE" --count "$count" \
    --epochs "$epochs" --precision "$(is_cuda && echo bf16 || echo fp32)" --batch-size "$(is_cuda && echo 128 || echo 16)"
}

# fp16 through its gate, as a user exports it.
half() {
  weights=none method=scratch
  [ -n "${TL_WEIGHTS_DIR:-}" ] && weights=imagenet method=finetune
  tl train "$images" --backbone "${first:-mobilenet_v2}" --weights "$weights" --method "$method" \
    --epochs 2 --device "$DEVICE" --out "$WORK/runs/half" &&
    tl export "$WORK/runs/half" -o "$WORK/half.onnx" --precision fp16 --device "$DEVICE" --keep-slower \
      --min-agreement 0.9 --json && tl verify "$WORK/half.onnx" --device "$DEVICE"
}

tensorrt() {
  "$python" -c 'import ctypes; ctypes.CDLL("libnvinfer.so.10")' 2>/dev/null || echo "TensorRT is not here: nothing measured"
}

for stage in $stages; do
  echo "== $stage"
  export -f tl is_cuda "$stage"
  export python images out backbones first epochs count files rounds batches
  SECONDS=0
  timeout 240 bash -c "$stage" > "$out/$stage.txt" 2> "$out/$stage.err"
  echo "exit $? after $SECONDS s" | tee -a "$out/$stage.txt"
done
