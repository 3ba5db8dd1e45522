#!/usr/bin/env bash
# run.sh [FOLDER]: tests and measures the programs beside it on GPU 0 and writes a log of each part into FOLDER
# (default: results). Goes on after a failure; the exit code is 1 when any part failed.
set -uo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
out=${1:-results}
mkdir -p "$out"
cuda=${CUDA_HOME:-/usr/local/cuda}
export LD_LIBRARY_PATH="$here/lib:$cuda/lib64:$cuda/lib:${LD_LIBRARY_PATH:-}" TESSERA_REQUIRE_GPU=1
PATH="$here/bin:$cuda/bin:$PATH"

# The tests look for their inputs where they were built.
source_path=$(cat "$here/source_path")
linked=
if [[ ! -e $source_path ]]; then
  mkdir -p "$(dirname -- "$source_path")" && ln -s "$here/source" "$source_path" && linked=1
fi
trap '[[ -z $linked ]] || rm -f "$source_path"' EXIT

failed=0
# part NAME SECONDS COMMAND...
part() {
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  local word=good
  [[ $code == 0 ]] || word="FAILED ($code)"
  [[ $code == 124 || $code == 137 ]] && word="ran past $limit s"
  [[ $code == 0 ]] || failed=1
  printf '%-22s %-18s %4d s   %s\n' "$name" "$word" $((SECONDS - start)) \
    "$(grep -avE '^[[:space:]]*$' "$out/$name.log" | tail -1 | cut -c1-100)"
}

part versions 20 sh -c 'nvidia-smi && nvcc --version'
part kernels 240 test_kernels --gtest_filter='*/cuda_f*:*/cuda_bf16*:Cuda.*'
part libraries 120 test_cudalib --gtest_filter='OnGpu.*'
part training 180 test_exec --gtest_filter='GoldenGpu.*:NcclGpu.*'
if command -v compute-sanitizer >/dev/null; then
  part memcheck 240 compute-sanitizer --tool memcheck --error-exitcode 9 test_kernels --gtest_filter='*/cuda_bf16*'
  part racecheck 240 compute-sanitizer --tool racecheck --error-exitcode 9 test_kernels --gtest_filter='*/cuda_bf16*'
else
  echo 'memcheck, racecheck    left out: compute-sanitizer is not on the path'
fi
torch=
python3 -c 'import torch' 2>/dev/null && torch=1 || echo 'PyTorch                left out: python3 has no torch'
for job in "$here"/jobs/*.yaml; do
  name=$(basename "$job" .yaml)
  part "profile-$name" 120 tessera profile "$job" --device cuda --steps 10 --most 0
  part "json-$name" 120 tessera profile "$job" --device cuda --steps 50 --json
  [[ -z $torch ]] || part "torch-$name" 180 python3 "$here/torch_step.py" "$job"
done
exit $failed
