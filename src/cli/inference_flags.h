// What generate and eval share: ranks from flags, the tokenizer of a checkpoint, and errors in terms of
// flags.
#pragma once
#include <functional>
#include <string>

#include "cli/commands.h"
#include "cli/weights.h"
#include "data/tokenizer.h"
#include "exec/compute.h"
#include "spec/job.h"

namespace tessera::cli {

// dp 0: the fewest replicas of the dense layers that ep * etp ranks need.
[[nodiscard]] spec::ParallelSpec parallel_of(const RankFlags& flags, Problems& problems);

// What the ranks compute on, and in which type. Error{unsupported} where there is no GPU; {config} for a type
// that the device does not compute in.
struct InferenceDevice {
  exec::Compute compute;
  tensor::DType dtype = tensor::DType::f32;
};
[[nodiscard]] InferenceDevice device_of(const RankFlags& flags);

// Adds the fault of a checkpoint argument that is no folder.
void check_folder(const std::string& checkpoint, Problems& problems);

// The flag's, or what lies in the checkpoint's folder.
[[nodiscard]] data::Tokenizer tokenizer_of(const std::string& flag, const std::string& checkpoint,
                                           const Weights& weights);

// Runs body; places of a job in its errors become the flags they came from ("parallel.tp": "--tp").
void in_terms_of_flags(const std::function<void()>& body);

}  // namespace tessera::cli
