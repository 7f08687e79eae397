#!/usr/bin/env bash
# On a machine with a GPU: build for it, test, check with compute-sanitizer, bench; under 9 minutes, nothing downloaded.
#
#   bash bench/gpu.sh              the stages below; the exit status is 1 if any failed, 3 without a GPU
#   bash bench/gpu.sh --dry-run    says what it would run, and where something is missing
#   bash bench/gpu.sh tests bench  only these stages (a build is made first where $WORK holds none)
#
# Results go to $OUT (default bench/results), folder <gpu>: <date>.json, the bench's measurements; <date>-check.json;
# <date>.log, the output of all stages. Environment: PYTHON, OUT, WORK (build and install folder), BUDGET (seconds in
# all, default 520).
# Needs a Python with torch, numpy, pytest, scikit-build-core, pybind11, cmake and ninja, and nvcc (on PATH or in
# CUDA_HOME, /usr/local/cuda); pytest-xdist, where it is there, runs tests in parallel. One GPU is used.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
BUDGET=${BUDGET:-520}
ALL_STAGES=(build check tests memcheck bench racecheck initcheck)
DRY_RUN=0
STAGES=()
for argument in "$@"; do
  case $argument in
    --dry-run) DRY_RUN=1 ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *)
      if [[ " ${ALL_STAGES[*]} " != *" $argument "* ]]; then
        echo "unknown stage '$argument'; stages: ${ALL_STAGES[*]}" >&2
        exit 2
      fi
      STAGES+=("$argument") ;;
  esac
done
((${#STAGES[@]})) || STAGES=("${ALL_STAGES[@]}")

GPU=$(nvidia-smi --query-gpu=name --format=csv,noheader -i 0 2>/dev/null | head -n 1) || GPU=
CAPABILITY=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader -i 0 2>/dev/null | head -n 1 | tr -d '. ') || CAPABILITY=
[[ $CAPABILITY =~ ^[0-9]+$ ]] || GPU=
NAME=$(printf '%s' "${GPU:-none}" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
if [[ -z $GPU ]] || ((DRY_RUN)); then
  WORK=${WORK:-${TMPDIR:-/tmp}/fokker-gpu}
else
  if [[ -z ${WORK:-} ]]; then
    WORK=$(mktemp -d "${TMPDIR:-/tmp}/fokker-gpu.XXXXXX")
    trap 'rm -rf "$WORK"' EXIT
  fi
  mkdir -p "$OUT/$NAME" "$WORK"
fi
RESULTS=$( (cd "$OUT/$NAME" 2>/dev/null && pwd) || printf '%s' "$OUT/$NAME")
DATE=$(date -u +%Y-%m-%d)
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
LOG=$RESULTS/$DATE.log
SITE=$WORK/site
export PYTHONPATH=$SITE PYTHONUNBUFFERED=1 CUDA_VISIBLE_DEVICES=0 PIP_DISABLE_PIP_VERSION_CHECK=1
cores=$(nproc 2>/dev/null || echo 2)
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$cores}

# Every op once with its gradients, on small inputs: what the sanitizers watch.
write_sanitizer_script() {
  cat >"$WORK/all_ops.py" <<'PY'
"""Calls every op of the case table on the CUDA backend, with first and second derivatives, on small inputs.

Stops after the seconds given as an argument, between two calls, and says how far it came.
"""

import sys
import time

import torch
from fokker.cases import CASES

import fokker

end = time.monotonic() + float(sys.argv[1])


def step(case, dtype, size):
    args = case.make(size, dtype, torch.Generator().manual_seed(1))
    args = tuple(a.cuda() if isinstance(a, torch.Tensor) else a for a in args)
    case.call(*args)
    if dtype not in (torch.float32, torch.float64) or not case.gradients:
        return
    leaves = [a.detach().requires_grad_() if i in case.gradients else a for i, a in enumerate(args)]
    out = case.call(*leaves)
    inputs = [leaves[i] for i in case.gradients]
    twice = case.order > 1
    grads = torch.autograd.grad(out.sum(), inputs, create_graph=twice, allow_unused=True)
    grads = [g for g in grads if g is not None and g.requires_grad]
    if twice and grads:
        torch.autograd.grad(sum(g.sum() for g in grads), inputs, allow_unused=True)


# One dtype and size of every op before the next: where time runs out, each op has been seen.
plan = [
    (case, dtype, size)
    for size in (37, 300, 1)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    for case in CASES.values()
    if "cuda" in case.backends and dtype in case.tolerance
]
assert plan, "no op has the CUDA backend"
calls = 0
with fokker.use_backend("cuda"):
    for case, dtype, size in plan:
        if time.monotonic() > end and calls:
            break
        step(case, dtype, size)
        calls += 1
torch.cuda.synchronize()
print(f"{calls} of {len(plan)} calls")
PY
}

stage_build() {
  # The package goes to a folder of its own: the Python at hand stays as it is.
  FOKKER_CUDA=ON FOKKER_CUDA_ARCHS="$CAPABILITY-real" FOKKER_EMU=OFF "$PYTHON" -m pip install --no-build-isolation \
    --no-deps --upgrade --target "$SITE" --config-settings=build-dir="$WORK/build" . || return 1
  "$PYTHON" -m fokker info &&
    "$PYTHON" -c 'import fokker, sys; why = fokker.available_backends()["cuda"]; print("cuda:", why); sys.exit(why != "ok")'
}
# What runs on the GPU: every op on it, in graphs and on streams first, then the families' own tests there.
stage_tests() {
  local workers=()
  if "$PYTHON" -c 'import xdist' 2>/dev/null; then workers=(-n "$((cores > 8 ? 8 : cores))" --dist worksteal); fi
  "$PYTHON" -m pytest tests/test_gpu.py tests/test_ops.py tests -q --maxfail=20 -p no:cacheprovider -m "not slow" \
    -k "cuda or triton" --durations=10 "${workers[@]}"
}
sanitizer() {
  # No caching allocator: with it one allocation holds many tensors, and an overrun stays inside. What is left of the
  # stage after $1 seconds is for starting up and for the report.
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "${@:2}" --error-exitcode 9 "$PYTHON" "$WORK/all_ops.py" "$1"
}
stage_memcheck() { sanitizer 25 memcheck --kernel-name kernel_substring=fokker; }
stage_racecheck() { sanitizer 20 racecheck --kernel-name kernel_substring=fokker; }
# All kernels: memory that torch's own kernels set is set.
stage_initcheck() { sanitizer 15 initcheck; }
stage_check() { "$PYTHON" -m fokker check --backend cuda --json "$RESULTS/$DATE-check.json"; }
stage_bench() { "$PYTHON" -m fokker bench --json "$RESULTS/$DATE.json"; }

# Seconds each stage may take; what an earlier one leaves does not carry over, so the sum stays below BUDGET.
limit_of() {
  case $1 in
    build) echo 160 ;; tests) echo 120 ;; memcheck) echo 50 ;; racecheck) echo 45 ;; initcheck) echo 40 ;;
    check) echo 45 ;; bench) echo 60 ;;
  esac
}
# Why a stage cannot run here; empty if it can.
missing_for() {
  if [[ -z $GPU ]]; then echo "no GPU"; return; fi
  case $1 in
    build) command -v nvcc >/dev/null || echo "no nvcc" ;;
    memcheck | racecheck | initcheck) command -v compute-sanitizer >/dev/null || echo "no compute-sanitizer" ;;
  esac
}

# `timeout` runs a command, not a function: the stage runs in a shell that reads this file's functions.
export -f sanitizer stage_build stage_tests stage_memcheck stage_racecheck stage_initcheck stage_check stage_bench
export PYTHON WORK SITE CAPABILITY RESULTS DATE cores

status=0
summary=()
run_stage() {
  local stage=$1 why begin=$SECONDS seconds left rc=0
  why=$(missing_for "$stage")
  left=$((BUDGET - SECONDS))
  seconds=$(limit_of "$stage")
  ((seconds > left)) && seconds=$left
  if [[ -z $why ]] && ((seconds < 5)); then why="no time left"; fi
  if [[ -n $why ]]; then
    summary+=("$stage: skipped: $why")
    # A tool that is missing is no failure of fokker's; without a GPU, or out of time, nothing was shown.
    [[ $why == "no compute-sanitizer" ]] || status=1
  elif ((DRY_RUN)); then
    summary+=("$stage: would run, at most $seconds s")
  else
    echo "==== $stage" >>"$LOG"
    timeout --kill-after=10 "$seconds" bash -c "stage_$stage" >"$WORK/$stage.log" 2>&1 || rc=$?
    cat "$WORK/$stage.log" >>"$LOG"
    case $rc in
      0) summary+=("$stage: ok, $((SECONDS - begin)) s") ;;
      124 | 137) summary+=("$stage: FAILED, stopped after $((SECONDS - begin)) s"); status=1 ;;
      *) summary+=("$stage: FAILED with $rc, $((SECONDS - begin)) s"); status=1 ;;
    esac
    ((rc == 0)) || tail -n 25 "$WORK/$stage.log"
  fi
  echo "== ${summary[-1]}"
}

echo "GPU: ${GPU:-none}${CAPABILITY:+ (sm_$CAPABILITY)}; results in $RESULTS; build in $WORK"
if [[ -n $GPU ]] && ((!DRY_RUN)); then
  write_sanitizer_script
  { date -u; nvidia-smi; } >"$LOG" 2>&1 || true
  # A later stage alone still needs the build.
  if [[ ! -d $SITE/fokker && " ${STAGES[*]} " != *" build "* ]]; then STAGES=(build "${STAGES[@]}"); fi
fi
for stage in "${STAGES[@]}"; do run_stage "$stage"; done

if [[ -n $GPU ]] && ((!DRY_RUN)); then printf '%s\n' "${summary[@]}" "total: $SECONDS s" >>"$LOG"; fi
echo "total: $SECONDS s"
if ((DRY_RUN)); then exit 0; fi
if [[ -z $GPU ]]; then exit 3; fi
exit "$status"
