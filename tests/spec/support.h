// Texts and searches that the spec tests share.
#pragma once
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "spec/job.h"
#include "spec/model.h"

namespace tessera::test {

inline std::string data_file(std::string_view name) {
  return read_text(fmt::format("{}/tests/data/files/{}", TESSERA_SOURCE_DIR, name));
}

inline std::string shipped_model(std::string_view name) {
  return read_text(fmt::format("{}/src/spec/models/{}.json", TESSERA_SOURCE_DIR, name));
}

inline std::string replaced(std::string text, std::string_view from, std::string_view to) {
  const auto at = text.find(from);
  if (at == std::string::npos) throw std::runtime_error(fmt::format("\"{}\" is not in the text", from));
  return text.replace(at, from.size(), to);
}

inline std::string listed(const std::vector<Problem>& problems) {
  std::string out;
  for (const Problem& p : problems) out += fmt::format("[{} | {} | {}]\n", p.what, p.where, p.mend);
  return out;
}

// One problem holds all three parts.
inline testing::AssertionResult reports(const std::vector<Problem>& problems, std::string_view what,
                                        std::string_view where, std::string_view mend) {
  for (const Problem& p : problems) {
    if (p.what.find(what) != std::string::npos && p.where.find(where) != std::string::npos &&
        p.mend.find(mend) != std::string::npos) {
      return testing::AssertionSuccess();
    }
  }
  return testing::AssertionFailure() << "no problem says \"" << what << "\" at \"" << where
                                     << "\" with mend \"" << mend << "\" among\n"
                                     << listed(problems);
}

// As `tessera train` reads it: with the limits of the engine.
inline std::vector<Problem> job_problems(std::string_view yaml, const std::vector<std::string>& flags = {},
                                         spec::JobUse use = spec::JobUse::train) {
  try {
    (void)spec::parse_job(yaml, ".", "job.yaml", flags, use);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    return e.problems();
  }
  return {};
}

// Between one and three edits: a byte changed, dropped, doubled, or the end cut off.
inline std::string mutated(std::string text, std::uint64_t seed) {
  const std::uint64_t stream = stream_of("mutation");
  const std::uint64_t edits = 1 + uniform_below(3, seed, stream, 0);
  constexpr std::string_view kBytes =
      "{}[]:,-#&*!|>'\"%@` \n\t\\~.0123456789eE+nulltruefalse\x01\x7f\xc3\xff";
  for (std::uint64_t i = 0; i < edits && !text.empty(); ++i) {
    const std::size_t at = uniform_below(text.size(), seed, stream, 4 * i + 1);
    const char byte = kBytes[uniform_below(kBytes.size(), seed, stream, 4 * i + 2)];
    switch (uniform_below(5, seed, stream, 4 * i + 3)) {
      case 0:
        text[at] = byte;
        break;
      case 1:
        text.erase(at, 1);
        break;
      case 2:
        text.insert(at, 1, byte);
        break;
      case 3:
        text.insert(at, text.substr(at / 2, 20));
        break;
      default:
        text.resize(at);
    }
  }
  return text;
}

}  // namespace tessera::test
