// What a model asks of the devices that serve it: bytes to hold and bytes to read for a token, in bf16. A
// floor: decoding reads weights and the cache of keys and values once a token, at the bandwidth of the data
// sheet, and nothing else takes time. Pure, thread safe.
//
//   const Serving s = serving(model, calibration, 80e9, {.batch = 64, .context = 8192});
//   s.devices;  s.seconds_alone;  s.seconds_batch;
#pragma once
#include <cstdint>

#include "cost/calibration.h"
#include "spec/model.h"

namespace tessera::explain {

struct ServingOptions {
  std::int64_t batch = 64;      // sequences at once
  std::int64_t context = 8192;  // tokens of each
};

struct Serving {
  double weight_bytes = 0;    // of all parameters
  double cache_bytes = 0;     // keys and values of the batch at its context
  double cache_of_token = 0;  // that one token more of one sequence adds, while no window is full
  // The fewest, a power of two, whose usable memory holds weights and cache of the batch. Both floors are of
  // that many, sharing the reading evenly.
  std::int32_t devices = 1;
  double read_alone = 0, read_batch = 0;        // bytes for the next token of one sequence, of all
  double seconds_alone = 0, seconds_batch = 0;  // floor of that step
  double experts_touched = 0;                   // of a layer by the batch, in the mean; 0: no experts
  // Device seconds of one token of the batch.
  [[nodiscard]] double device_seconds(std::int64_t batch) const {
    return seconds_batch * devices / static_cast<double>(batch);
  }
};

// Routing of the batch is even: a token of the batch misses an expert with probability 1 - k / E, so
// E (1 - (1 - k / E)^batch) are touched. The table of embeddings is not read but for a row, a tied one is the
// head. A window or chunk of attention bounds the cache of its layers; MLA keeps its latent and the rotary
// key.
[[nodiscard]] Serving serving(const spec::ModelSpec& m, const cost::Calibration& c, double usable_bytes,
                              const ServingOptions& options);

}  // namespace tessera::explain
