// tessera train --rebalance: where experts go in the middle of a run, asked of src/place, and what is said of
// it.
#pragma once
#include <string>
#include <vector>

#include "cli/commands.h"
#include "exec/rebalancer.h"
#include "spec/job.h"

namespace tessera::cli {

// Names the slots of the experts, which a run that moves them needs. Error{config} for a model without
// experts or with all of them on one rank, and flags that need --rebalance.
void prepare_rebalancing(spec::Job& job, const TrainFlags& flags);

// The load of the ranks as even as place::Method::balance makes it, with at most flags.most_moved of a
// layer's slots; a layer whose fullest rank would gain less than 2 % stays.
[[nodiscard]] exec::Rebalancing rebalancing_of(const spec::Job& job, const TrainFlags& flags);

// "after step 40, 12 experts went to another rank; the fullest rank had 1.42 times the mean, now 1.05"
[[nodiscard]] std::string describe(const exec::ExpertMove& move);
[[nodiscard]] std::string describe(const std::vector<exec::ExpertMove>& moves);  // of a whole run; "": none

}  // namespace tessera::cli
