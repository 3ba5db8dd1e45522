// The search over the closed-form model of the cost room.
#include "search/search.h"

namespace tessera::search {

namespace {

class StepCoster final : public Coster {
 public:
  explicit StepCoster(const cost::Setup& setup) : model_(setup) {}
  std::string why_invalid(const cost::Candidate& c) override { return cost::why_invalid(model_.setup(), c); }
  cost::MemoryCost memory(const cost::Candidate& c) override { return model_.memory(c); }
  double lower_bound(const cost::Candidate& c) override { return model_.lower_bound(c); }
  double lowest_bound(const cost::Candidate& c) override { return model_.lowest_bound(c); }
  cost::StepCost predict(const cost::Candidate& c) override { return model_.predict(c); }

 private:
  cost::StepModel model_;
};

}  // namespace

CosterFactory closed_form(const cost::Setup& setup) {
  return [&setup] { return std::make_unique<StepCoster>(setup); };
}

Result search(const cost::Setup& setup, const Space& space, const Options& options) {
  return search(setup, space, options, closed_form(setup));
}

}  // namespace tessera::search
