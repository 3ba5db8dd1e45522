// What `tessera place` prints: placements side by side, as a table or JSON. Inside of this room.
#pragma once
#include <string>
#include <vector>

#include "cli/place_command.h"
#include "place/candidates.h"
#include "place/evaluate.h"
#include "place/methods.h"

namespace tessera::cli {

// One placement over all layers. Means over the layers where nothing else is said.
struct PlaceRow {
  std::string name;
  double balance = 0.0, worst = 0.0;  // mean / max of the load of GPUs; of the worst layer
  double node_balance = 0.0;
  place::Traffic traffic;
  double moved = 0.0;       // slots of all layers
  double wasted = 0.0;      // slots of all layers
  place::Seconds3 seconds;  // of all layers together
  std::vector<place::LayerCost> layers;
};

struct PlaceReport {
  place::PlaceInput input, held_out;  // held_out: without layers when nothing is
  place::Wish wish;
  std::vector<PlaceRow> rows, held_rows;  // the last one is the result
  std::vector<place::Bounds> bounds;
  std::vector<place::FrontPoint> front;
  double off_home = 0.0;  // share of choices, of the method relaxed
  double seconds = 0.0;   // this program's, for the result
  std::string model, cluster;
};

[[nodiscard]] PlaceRow row_of(const place::Placement& placement, const std::string& name,
                              const place::PlaceInput& input, const place::Wish& wish);
void print_place(const PlaceReport& report, const PlaceFlags& flags, const report::Style& style);
void print_place_json(const PlaceReport& report);

}  // namespace tessera::cli
