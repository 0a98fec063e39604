#!/usr/bin/env bash
# What to run first on a lent GPU that reaches no network.
#
#   bench/bare_gpu.sh [checks] [figures] [encoders]      default: checks figures
#
# checks    the tests of the GPU kernels with compiled kernels, then memcheck of compute-sanitizer: about 2 minutes
# figures   limits, one caption among 100,000 images, the host's part, all pairs of 1,000 x 5,000: about 5 minutes
# encoders  onnxruntime's CUDA provider: its tests, and encoding by every backend: about 4 minutes
#
# It needs Python 3.11, nvidia-smi, the compiled core (`make core`, or an installed package), and of Python's packages
#   figures   torch, triton, cuda-python, numpy, click, filelock, onnxruntime (tests/bench/test_gpu.py holds it to these)
#   checks    also pytest, pytest-xdist, hypothesis, safetensors and onnx, onnx-ir, onnxscript, which tests/conftest.py
#             imports; and compute-sanitizer of the CUDA toolkit, without which memcheck.txt says that it is missing
#   encoders  also polygraphy and onnxruntime-gpu in place of onnxruntime
# Where Triton is older than 3.7.1, kernels that another machine compiled: CHAN_COMPILED, see bench/gpu_kernels.py.
# Wheels of what is missing may lie in .whl/. Results go to $OUT, out/gpu by default. Galleries are made while the checks
# run.
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-$PWD/out/gpu} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
python=${PYTHON:-python3} cases=${CASES:-/tmp/chan-cases} images=${IMAGES:-100000} site=${SITE:-/tmp/chan-site}
mkdir -p "$OUT" .link "$site" && ln -sfn .. .link/chan_rt
[ -d .whl ] && "$python" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" .whl/*.whl
if ! "$python" -c 'import importlib.metadata as m; m.version("chan-rt")' 2> /dev/null; then  # the exporter asks for it
  mkdir -p "$site/chan_rt-0.dist-info"
  printf 'Metadata-Version: 2.1\nName: chan-rt\nVersion: %s\n' "$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
    > "$site/chan_rt-0.dist-info/METADATA"
fi
export PYTHONPATH=$PWD/.link:$site${PYTHONPATH:+:$PYTHONPATH}
tests() { timeout "$1" "$python" -m pytest -q -p no:cacheprovider -W default --tb=short "${@:2}"; }
step() { echo "== $(date +%T) $*"; }

checks() {
  local folder=tests/runtime/gallery files=()
  for name in decide resident_levels gpu_queries self_test resident overlap; do files+=("$folder/test_$name.py"); done
  step "kernels"
  CHAN_TEST_KERNELS=cuda tests 240 -n 8 -m 'not gpu' "${files[@]}" 2>&1 | tee "$OUT/kernels.txt" | tail -25 | cut -c1-300
  step "galleries"
  tests 120 -n 8 -m gpu "$folder"/test_*.py 2>&1 | tee "$OUT/galleries.txt" | tail -12 | cut -c1-300
  step "memcheck"
  local alike='(true_row and 7-None) or (true_scores and LSE) or (bounds_are_above and 1024-LSE) or (weighed and 200)'
  # cuda-python asks the driver for functions that it does not have: no error of ours
  CHAN_TEST_KERNELS=cuda timeout 90 compute-sanitizer --tool memcheck --report-api-errors no --print-limit 20 \
    "$python" -m pytest -q -p no:cacheprovider -W default --tb=line "${files[@]:0:4}" \
    -k "$alike or (codes_are and zero) or (truth_pass and 200)" > "$OUT/memcheck.txt" 2>&1
  tail -5 "$OUT/memcheck.txt"
}

figures() {
  local bench=("$python" -m chan_rt.bench.gpu --cases "$cases" --images "$images" --seconds 2 --minutes 4)
  local which=(--candidates 'this, triton int8' --candidates 'torch eager float' --candidates 'torch int8')
  step "one caption"
  timeout 240 "${bench[@]}" --only limits,search,host "${which[@]}" --out "$OUT/search.json" 2>&1 | tee "$OUT/search.txt"
  step "all pairs"
  timeout 180 "${bench[@]}" --only all-pairs "${which[@]}" --out "$OUT/pairs.json" 2>&1 | tee "$OUT/pairs.txt"
}

encoders() {
  step "onnxruntime"
  tests 150 -m gpu tests/runtime/test_onnxruntime_{cuda,on_device}.py tests/export/parity/test_run.py 2>&1 |
    tee "$OUT/onnxruntime.txt" | tail -12 | cut -c1-300
  step "backends"
  timeout 240 "$python" -m chan_rt.bench.gpu --only backends --seconds 1 --out "$OUT/backends.json" 2>&1 |
    tee "$OUT/backends.txt" | cut -c1-1000
}

"$python" -c 'import sys; from chan_rt.runtime.gpu import examine_gpu
found = examine_gpu(); print(*found.gpus, f"CUDA {found.cuda}, driver {found.driver}"); sys.exit(found.problem)' || exit
nvidia-smi > "$OUT/smi.txt"
[ $# -gt 0 ] || set -- checks figures
if [ -z "${CHAN_COMPILED:-}" ] && [ "$*" != encoders ]; then
  export CHAN_COMPILED=$OUT/../compiled
  step "compiling"
  "$python" -c 'import pathlib, sys; from chan_rt.bench.gpu_kernels import compile_all
from chan_rt.runtime.gpu import examine_gpu
compile_all(pathlib.Path(sys.argv[1]), examine_gpu().gpus[0].architecture)' "$CHAN_COMPILED" || exit
fi
case " $* " in
*" figures "*)
  nice "$python" -c 'import pathlib, sys; from chan_rt.bench.gpu import keep_cases
keep_cases(pathlib.Path(sys.argv[1]), int(sys.argv[2]))' "$cases" "$images" > "$OUT/cases.txt" 2>&1 &
  making=$!
  ;;
esac
for what in "$@"; do
  case $what in
  checks | encoders) "$what" ;;
  figures) wait "$making" && cat "$OUT/cases.txt" && figures ;;
  *) echo "bare_gpu.sh: unknown: $what" >&2 && exit 2 ;;
  esac
done
step "done: $OUT"
