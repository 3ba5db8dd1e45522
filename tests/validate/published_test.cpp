// The shipped file of published runs: read without a fault, most rows priced, errors within the figures that
// docs/accuracy.md states.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "validate/stats.h"

namespace tessera::validate {
namespace {

TEST(PublishedRuns, AreReadAndPredictedWithinTheStatedErrors) {
  const std::filesystem::path path =
      std::filesystem::path(TESSERA_SOURCE_DIR) / "validation/published_runs.csv";
  Problems problems;
  const std::vector<Row> rows = parse_rows(read_text(path), "published_runs.csv", problems);
  problems.throw_if_any();
  EXPECT_EQ(rows.size(), 6351U);
  const std::vector<Outcome> outcomes = run(rows, shipped_library(), step_model(), 2);
  std::int32_t counted = 0, predicted = 0;
  std::vector<double> dense;
  for (const Outcome& o : outcomes) {
    predicted += o.cost ? 1 : 0;
    if (!counts(o)) continue;
    ++counted;
    if (belongs(o, Target::dense_ampere_hopper)) dense.push_back(o.error());
  }
  EXPECT_GE(predicted, 5600);
  EXPECT_GE(counted, 1000);
  const ErrorStats s = error_stats(dense);
  EXPECT_TRUE(s.median < 0.15) << s.median;
  std::int32_t refused = 0;
  for (const ReasonCount& r : reasons(outcomes)) refused += r.rows;
  EXPECT_LT(refused, 800);
}

}  // namespace
}  // namespace tessera::validate
