#include "explain/pricing.h"

#include "search/refine.h"
#include "search/search.h"

namespace tessera::explain {

Priced price(const cost::Setup& setup, const cost::Candidate& c) {
  Priced p{.invalid = cost::why_invalid(setup, c)};
  if (p.invalid.empty() && cost::num_microbatches(setup.work, c) == 0) {
    p.invalid = "the micro-batches of a replica do not come out whole";
  }
  if (!p.invalid.empty()) return p;
  cost::StepModel model(setup);
  p.cost = search::simulated_parts(setup)(c, model.predict(c));
  p.fits = p.cost.memory.reserved() <= search::usable_memory(setup);
  return p;
}

}  // namespace tessera::explain
