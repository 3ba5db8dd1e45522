// Where the engine's tokens come from: sequences in one global order that does not depend on the layout.
#pragma once
#include <cstdint>
#include <span>

namespace tessera::exec {

class BatchSource {
 public:
  virtual ~BatchSource() = default;
  // Inputs and targets of sequence `index` of the order [seq each]; target t is the token after input t,
  // below 0 = ignored.
  // Thread safe; does not allocate.
  virtual void fill(std::int64_t index, std::span<std::int32_t> ids,
                    std::span<std::int32_t> targets) const = 0;
  // Targets that count among sequences [first, first + count).
  [[nodiscard]] virtual std::int64_t num_targets(std::int64_t first, std::int64_t count) const = 0;
};

}  // namespace tessera::exec
