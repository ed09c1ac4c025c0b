#!/usr/bin/env bash
# Everything that needs a GPU, in under 8 minutes: tests, speed against torchvision, loading, training, costs.
#
#   benchmarks/gpu.sh OUT                          # on a machine with a GPU
#   benchmarks/gpu.sh OUT --device cpu --smoke     # every part at tiny sizes, for trying the script itself
#
# Options: --data DATA, a data file or a folder to train on (the built-in shapes without it); --budget "--minutes 2", of
# each training; --only "PART PART", parts by name. Each part has a time limit and its own file in OUT; a part that fails
# loses nothing of the others. The table of all parts is printed last. Python is $PYTHON (python3).
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out=${1:?usage: benchmarks/gpu.sh OUT [--device cpu] [--smoke] [--data DATA] [--budget BUDGET] [--only PARTS]}
shift
device=cuda smoke="" data="" only="" given_budget=()
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2; shift 2 ;;
        --smoke) smoke=1; shift ;;
        --data) data=$2; shift 2 ;;
        --budget) read -ra given_budget <<< "$2"; shift 2 ;;
        --only) only=$2; shift 2 ;;
        *) echo "gpu.sh: unknown argument $1" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$root" || exit 1
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
status=0
results=()

part() { # name, seconds, command...
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    if [ -n "$only" ] && [[ " $only " != *" $name "* ]]; then return; fi
    echo "== $name"
    timeout --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1
    code=$?
    [ $code -eq 0 ] || { status=1; tail -n 40 "$out/$name.log"; }
    results+=("$(printf '%-16s exit %-3s %4d s' "$name" $code $((SECONDS - start)))")
}

if [ -n "$smoke" ]; then
    sizes=(--trunk resnet18 --size 64 --batch 2) rounds=(--rounds 1) budget=(--images 16) minutes=9 workers=2 repeats=1 processes=2
    precision=32-true
else
    sizes=(--trunk resnet50 --size 800 --batch 16) rounds=(--rounds 5) budget=(--minutes 1) minutes=1
    workers=$(nproc) repeats=64 processes=8
    precision=bf16-mixed
fi
accelerator=$([ "$device" = cuda ] && echo gpu || echo cpu)
models=(configs/models/retinanet_r18.yaml configs/models/faster_rcnn_r18.yaml)
cat > "$out/trainer.yaml" <<YAML
accelerator: $accelerator
devices: 1
precision: $precision
max_epochs: 1000
YAML

[ ${#given_budget[@]} -eq 0 ] || budget=("${given_budget[@]}")

part tests $((minutes * 100)) "$python" -m pytest -v -m gpu -n "$processes" --tb short tests/test_device_sync.py tests/test_gpu.py
part training $((minutes * 200)) "$python" -m zoo.cli compare --models "${models[@]}" ${data:+--data "$data"} \
    --trainer "$out/trainer.yaml" "${budget[@]}" --out "$out/runs" --trainer.check_val_every_n_epoch 10
[ ! -f "$out/runs/report.md" ] || cp "$out/runs/report.html" "$out/runs/report.md" "$out/runs/results.json" "$out/"
for model in retinanet faster_rcnn; do
    part "step_$model" $((minutes * 110)) "$python" benchmarks/train_step.py --device "$device" "${sizes[@]}" \
        "${rounds[@]}" --models $model --ladder --out "$out/step_$model.md"
    part "profile_$model" $((minutes * 60)) "$python" benchmarks/step_profile.py --device "$device" "${sizes[@]}" \
        --models $model --out "$out/profile_$model.md"
done
part inference $((minutes * 60)) "$python" benchmarks/inference.py --device "$device" "${sizes[@]}" "${rounds[@]}" \
    --out "$out/inference.md"
part loading $((minutes * 60)) "$python" benchmarks/data_loading.py --skip-json --workers "$workers" --repeats "$repeats" --rounds 2

echo
for file in "$out"/{step,profile}_*.md "$out"/{inference,report}.md; do grep -hs '^|' "$file" || true; done | cut -c1-200
grep -h 'images/s' "$out/loading.log" 2> /dev/null
printf '%s\n' "${results[@]}"
exit $status
