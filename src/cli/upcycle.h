// `tessera convert --upcycle`: a dense model in, a mixture of experts out.
#pragma once
#include <string_view>

#include "ckpt/upcycle.h"
#include "cli/commands.h"

namespace tessera::cli {

// "experts=8,top_k=2,noise=0.01,seed=1", each key at most once. Error{config} with all problems.
[[nodiscard]] ckpt::UpcycleOptions parse_upcycle(std::string_view text);

// Writes the Hugging Face folder flags.to, which does not exist yet.
int upcycle(const ConvertFlags& flags);

}  // namespace tessera::cli
