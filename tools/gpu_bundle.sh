#!/usr/bin/env bash
# gpu_bundle.sh BUILD FOLDER: a folder with all that a machine with a GPU needs to test and measure this build, where
# the CUDA toolkit's libraries are installed but no packages: programs, their other libraries, inputs, jobs, run.sh.
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
build=$1
folder=$2
[[ ! -e $folder ]] || { printf 'gpu_bundle: %s exists\n  mend: give a new folder\n' "$folder" >&2; exit 2; }
programs=(tessera test_kernels test_cudalib test_exec)
mkdir -p "$folder"/{bin,lib,jobs}
for program in "${programs[@]}"; do
  strip -o "$folder/bin/$program" "$build/$program"
done
# All but the C library's and the toolkit's own.
ldd "${programs[@]/#/$build/}" | awk '$3 ~ /^\// { print $3 }' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libcublas|libcublasLt|libcudnn[a-z_]*|libnccl|libnvrtc[a-z-]*|libcuda)\.so' |
  xargs -I{} cp -L {} "$folder/lib/"
mkdir -p "$folder/source/tests/golden"
cp -r "$root/tests/golden/hf" "$folder/source/tests/golden/"
cp "$root"/examples/gpu/*.yaml "$folder/jobs/"
cp "$root/bench/gpu/torch_step.py" "$folder/"
cp "$root/tools/gpu_run.sh" "$folder/run.sh"
printf '%s\n' "$root" >"$folder/source_path" # where the tests look for their inputs
du -sh "$folder" | cut -f1
