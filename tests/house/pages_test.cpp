// The pages that describe formats hold every word that the code knows.
#include <gtest/gtest.h>

#include "base/file.h"
#include "schedule/schedule.h"
#include "spec/job.h"

namespace tessera::house {
namespace {

std::string page(const char* name) {
  return read_text(std::filesystem::path(TESSERA_SOURCE_DIR) / "docs" / "formats" / name);
}

TEST(Pages, TheJobPageNamesEveryKeyOfAJob) {
  const std::string text = page("job.md");
  EXPECT_GT(spec::job_keys().size(), 30U);
  for (const std::string& key : spec::job_keys()) {
    EXPECT_NE(text.find("`" + key + "`"), std::string::npos) << key << " is missing in docs/formats/job.md";
  }
}

TEST(Pages, TheJobAndSchedulePagesNameEverySchedule) {
  for (const std::string& kind : schedule::kind_names()) {
    EXPECT_NE(page("job.md").find("`" + kind + "`"), std::string::npos) << kind << " in docs/formats/job.md";
    EXPECT_NE(page("schedule.md").find("`" + kind + "`"), std::string::npos)
        << kind << " in docs/formats/schedule.md";
  }
}

TEST(Pages, TheExampleOfTheJobPageIsAGoodJob) {
  const std::string text = page("job.md");
  const std::size_t begin = text.find("```yaml\n") + 8;
  std::string yaml = text.substr(begin, text.find("```", begin) - begin);
  yaml.replace(
      0, yaml.find('\n'),
      "model: {model_type: mixtral, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 4, "
      "num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 512, max_position_embeddings: 128, "
      "num_local_experts: 8, num_experts_per_tok: 2}");
  const spec::Job job = spec::parse_job(yaml, ".", "docs/formats/job.md", {});
  EXPECT_EQ(job.parallel.world_size(), 8);
}

}  // namespace
}  // namespace tessera::house
