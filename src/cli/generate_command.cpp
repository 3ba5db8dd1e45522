// tessera generate: continues prompts. Text goes to standard output, speed to standard error; with --json a
// line a prompt and a summary.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/inference_flags.h"
#include "comm/thread_world.h"
#include "data/text_stream.h"
#include "exec/generator.h"
#include "kernels/peak.h"
#include "place/formats.h"

namespace tessera::cli {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

constexpr std::int64_t kMostAtOnce = 8;  // sequences, where --batch does not say

struct Prompt {
  std::string text;
  std::string where;  // for messages
};

// A prompt a line, blank lines left out; with a { in front of the first: JSON lines with the key "prompt".
void read_prompts(const std::string& path, std::vector<Prompt>& prompts, Problems& problems) {
  if (!fs::is_regular_file(path)) {
    problems.add("there is no such file", "--prompts: " + path, "give a file with a prompt a line");
    return;
  }
  std::int64_t number = 0;
  bool json = false, first = true;
  for (std::string line : split(read_text(path), '\n')) {
    ++number;
    if (line.ends_with('\r')) line.pop_back();
    if (line.find_first_not_of(" \t") == std::string::npos) continue;
    if (std::exchange(first, false)) json = line.starts_with('{');
    const std::string where = fmt::format("{}, line {}", path, number);
    if (!json) {
      prompts.push_back({line, where});
      continue;
    }
    const Json j = Json::parse(line, nullptr, false);
    if (!j.is_object() || j.size() != 1 || !j.contains("prompt") || !j["prompt"].is_string()) {
      problems.add("this line is not a JSON object with the one key \"prompt\"", where,
                   "write {\"prompt\": \"...\"} on each line, or plain text on all of them");
      continue;
    }
    prompts.push_back({j["prompt"].get<std::string>(), where});
  }
  if (first) problems.add("the file holds no prompt", "--prompts: " + path, "write a prompt a line");
}

std::vector<Prompt> prompts_of(const GenerateFlags& f, Problems& problems) {
  std::vector<Prompt> prompts;
  for (std::size_t i = 0; i < f.prompts.size(); ++i)
    prompts.push_back({f.prompts[i], f.prompts.size() > 1 ? fmt::format("--prompt {}", i + 1) : "--prompt"});
  if (!f.prompts_file.empty()) read_prompts(f.prompts_file, prompts, problems);
  if (f.prompts.empty() && f.prompts_file.empty())
    problems.add("there is no prompt", "--prompt", "give --prompt TEXT, or --prompts FILE");
  return prompts;
}

// What is wrong whatever the model is.
void check_flags(const GenerateFlags& f, Problems& problems) {
  const auto wrong = [&](bool bad, std::string what, const char* where, const char* mend) {
    if (bad) problems.add(std::move(what), where, mend);
  };
  wrong(!(f.temperature >= 0.0), fmt::format("temperature {} is not a number of 0 or more", f.temperature),
        "--temperature", "use 0 for the likeliest token, about 0.8 for variety");
  wrong(!(f.top_p > 0.0 && f.top_p <= 1.0), fmt::format("top-p {} is not above 0 and at most 1", f.top_p),
        "--top-p", "use 1 for all tokens, about 0.9 for the likely ones");
  const std::int64_t most = std::numeric_limits<std::int32_t>::max();
  wrong(f.top_k < 0 || f.top_k > most, fmt::format("top-k {} is not a number of candidates", f.top_k),
        "--top-k", "use 0 for all tokens, or for example 40");
  wrong(f.max_new_tokens < 0 || f.max_new_tokens > most, fmt::format("{} new tokens", f.max_new_tokens),
        "--max-new-tokens", "use 0 or more");
  wrong(f.context < 0, fmt::format("a context of {} tokens", f.context), "--context",
        "use 0 for the model's positions");
  wrong(f.batch < 0 || f.batch > 4096, fmt::format("{} sequences at once", f.batch), "--batch",
        "use 1 to 4096, or 0 to leave it to Tessera");
  wrong(f.chunk < 1 || f.chunk > (1 << 20), fmt::format("chunks of {} tokens", f.chunk), "--chunk",
        "use for example 256");
  wrong(std::ranges::find(f.stop, "") != f.stop.end(), "an empty text to stop at", "--stop",
        "give the text that ends a sequence");
}

// The text of one prompt as it grows, cut at the first stop text.
class Story {
 public:
  Story(const data::Tokenizer& tokenizer, const std::vector<std::int32_t>& prompt,
        const std::vector<std::string>& stops)
      : stream_(tokenizer, prompt), stops_(stops) {}

  // False when a stop text is complete.
  bool add(std::int32_t token) { return take(stream_.add(token)); }
  void finish() {
    if (!stopped_) (void)take(stream_.finish());
  }
  [[nodiscard]] const std::string& text() const { return text_; }
  // What nothing to come can cut off any more and was not handed out yet.
  [[nodiscard]] std::string fresh(bool all) {
    std::size_t end = text_.size();
    if (!all && !stopped_) end -= std::min(end, begun());
    std::string out = text_.substr(given_, std::max(end, given_) - given_);
    given_ = std::max(end, given_);
    return out;
  }

 private:
  bool take(const std::string& piece) {
    std::size_t longest = 0;
    for (const std::string& s : stops_) longest = std::max(longest, s.size());
    const std::size_t from = text_.size() - std::min(text_.size(), longest);
    text_ += piece;
    std::size_t cut = std::string::npos;
    for (const std::string& s : stops_) cut = std::min(cut, text_.find(s, from));
    if (cut == std::string::npos) return true;
    text_.resize(cut);
    stopped_ = true;
    return false;
  }
  // Bytes at the end that may be the beginning of a stop text.
  [[nodiscard]] std::size_t begun() const {
    std::size_t most = 0;
    for (const std::string& s : stops_) {
      for (std::size_t n = std::min(s.size() - 1, text_.size()); n > most; --n) {
        if (std::string_view(text_).ends_with(std::string_view(s).substr(0, n))) most = n;
      }
    }
    return most;
  }
  data::TextStream stream_;
  const std::vector<std::string>& stops_;
  std::string text_;
  std::size_t given_ = 0;
  bool stopped_ = false;
};

std::vector<std::int32_t> encode(const data::Tokenizer& tokenizer, const Prompt& prompt,
                                 std::optional<std::int32_t> begin, Problems& problems) {
  std::vector<std::int32_t> ids;
  if (begin) ids.push_back(*begin);
  try {
    const std::vector<std::int32_t> text = tokenizer.encode(prompt.text);
    ids.insert(ids.end(), text.begin(), text.end());
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) problems.add(p.what, prompt.where + ": " + p.where, p.mend);
    return ids;
  }
  if (ids.empty()) problems.add("the prompt holds no token", prompt.where, "give some text to continue");
  return ids;
}

std::vector<exec::Request> requests_of(const GenerateFlags& f, const std::vector<Prompt>& prompts,
                                       const data::Tokenizer& tokenizer, std::int64_t vocab,
                                       Problems& problems) {
  std::vector<std::int32_t> stop_ids = f.stop_ids;
  for (const std::int32_t id : stop_ids) {
    if (id < 0 || id >= vocab)
      problems.add(fmt::format("token id {} is outside of the vocabulary of {}", id, vocab), "--stop-id",
                   fmt::format("use 0 to {}", vocab - 1));
  }
  if (!f.ignore_end && tokenizer.eos_id()) stop_ids.push_back(*tokenizer.eos_id());
  if (f.begin && !tokenizer.bos_id())
    problems.add("the tokenizer has no begin-of-text token", "--begin", "leave the flag out");
  std::vector<exec::Request> requests;
  for (const Prompt& p : prompts) {
    requests.push_back({.prompt = encode(tokenizer, p, f.begin ? tokenizer.bos_id() : std::nullopt, problems),
                        .sampling = {.max_new_tokens = f.max_new_tokens,
                                     .temperature = f.temperature,
                                     .top_k = static_cast<std::int32_t>(f.top_k),
                                     .top_p = f.top_p,
                                     .seed = f.seed},
                        .stop_ids = stop_ids});
  }
  return requests;
}

// 0: as many as the longest prompt and its text need, at most the model's positions.
std::int64_t context_of(const GenerateFlags& f, const Weights& w, const std::vector<exec::Request>& requests,
                        Problems& problems) {
  const std::int64_t positions = w.model.max_position_embeddings;
  if (f.context > positions) {
    problems.add(
        fmt::format("a context of {} tokens is longer than the model's {} positions", f.context, positions),
        "--context", fmt::format("use up to {}, or 0", positions));
  }
  const std::int64_t most = f.context > 0 ? f.context : positions;
  std::int64_t needed = 1;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const std::int64_t tokens = std::ssize(requests[i].prompt);
    needed = std::max(needed, tokens + f.max_new_tokens);
    if (tokens < most || f.slide) continue;
    problems.add(
        fmt::format("the prompt has {} tokens, and prompt and text together may have {}", tokens, most),
        fmt::format("prompt {}", i + 1),
        f.context > 0 && f.context < positions ? "shorten it, or raise --context"
                                               : "shorten it, or let --slide forget its beginning");
  }
  return std::min(most, std::max<std::int64_t>(needed, 2));
}

// Of all ranks reading at once.
double read_bandwidth(std::int32_t ranks) {
  comm::ThreadWorld world({.size = ranks});
  std::vector<double> each(static_cast<std::size_t>(ranks), 0.0);
  world.run([&](Rank rank) {
    each[static_cast<std::size_t>(rank.value)] =
        kernels::measure_peaks(kernels::Bandwidth::measure).read.value;
  });
  double sum = 0.0;
  for (const double b : each) sum += b;
  return sum;
}

// Expert of each slot, MoE layer by MoE layer; empty without the flag.
std::vector<std::vector<std::int32_t>> slots_of(const GenerateFlags& f, const spec::ModelSpec& model) {
  if (f.placement.empty()) return {};
  const std::string where = "--placement " + f.placement;
  if (!model.moe) {
    throw Error(ErrorKind::config, "the model has no experts to place", where, "leave the flag out");
  }
  spec::ModelSpec main = model;
  main.num_nextn_predict_layers = 0;
  return place::read_placement(f.placement, {.machine = {.nodes = 0, .gpus = f.ranks.ep, .slots = 0},
                                             .num_experts = model.moe->num_experts,
                                             .layers = spec::moe_layers(main)})
      .maps;
}

double rate(std::int64_t tokens, Seconds time) {
  return time.value > 0.0 ? static_cast<double>(tokens) / time.value : 0.0;
}

// bandwidth: bytes per second, 0: not measured.
Json summary_of(const exec::Generator& generator, double bandwidth) {
  const exec::GenerationSpeed& s = generator.speed();
  Json j;
  j["prefill_tokens"] = s.prefill_tokens;
  j["prefill_tokens_per_s"] = rate(s.prefill_tokens, s.prefill);
  j["decode_tokens"] = s.decode_tokens;
  j["decode_tokens_per_s"] = rate(s.decode_tokens, s.decode);
  j["ranks"] = generator.num_ranks();
  j["context"] = generator.context();
  j["active_bytes_per_token"] = generator.bytes_per_token(0);
  if (bandwidth > 0.0) {
    j["read_bandwidth_GB_per_s"] = bandwidth * 1e-9;
    if (s.single.value > 0.0) j["share_of_bandwidth"] = s.single_bytes / s.single.value / bandwidth;
  }
  return Json{{"summary", j}};
}

void print_speed(const exec::Generator& generator, double bandwidth) {
  const exec::GenerationSpeed& s = generator.speed();
  std::fprintf(stderr, "prefill %lld tokens, %.1f tokens/s; decode %lld tokens, %.1f tokens/s; %d rank%s\n",
               static_cast<long long>(s.prefill_tokens), rate(s.prefill_tokens, s.prefill),
               static_cast<long long>(s.decode_tokens), rate(s.decode_tokens, s.decode),
               generator.num_ranks(), generator.num_ranks() == 1 ? "" : "s");
  if (!(bandwidth > 0.0)) return;
  std::fprintf(stderr, "memory: %.1f GB/s read bandwidth", bandwidth * 1e-9);
  if (s.single.value > 0.0) {
    std::fprintf(stderr, "; one sequence alone read %.1f GB/s, %.0f%% of it",
                 s.single_bytes / s.single.value * 1e-9, 100.0 * s.single_bytes / s.single.value / bandwidth);
  }
  std::fprintf(stderr, "\n");
}

void print_result(const Prompt& prompt, const std::string& text, const exec::Completion& c, bool json,
                  bool many) {
  if (json) {
    const Json j = {{"prompt", prompt.text},
                    {"text", text},
                    {"tokens", c.tokens},
                    {"finish", std::string(exec::name(c.finish))}};
    std::printf("%s\n", j.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return;
  }
  std::printf("%s%s\n", prompt.text.c_str(), text.c_str());
  if (many) std::printf("\n");
}

}  // namespace

int generate(const GenerateFlags& f, const Terminal& terminal) {
  require_one_process("generate");
  Problems problems;
  check_folder(f.checkpoint, problems);
  check_flags(f, problems);
  const spec::ParallelSpec parallel = parallel_of(f.ranks, problems);
  const std::vector<Prompt> prompts = prompts_of(f, problems);
  if (f.bandwidth && f.ranks.device != "cpu") {
    problems.add("the bandwidth is measured of the CPU's memory alone", "--bandwidth",
                 "leave it out with --device cuda");
  }
  problems.throw_if_any();
  const InferenceDevice device = device_of(f.ranks);
  const Weights loaded = open_weights(f.checkpoint);
  const data::Tokenizer tokenizer = tokenizer_of(f.tokenizer, f.checkpoint, loaded);
  std::vector<exec::Request> requests = requests_of(f, prompts, tokenizer, loaded.model.vocab_size, problems);
  const std::int64_t context = context_of(f, loaded, requests, problems);
  problems.throw_if_any();

  const std::vector<std::vector<std::int32_t>> slots = slots_of(f, loaded.model);
  std::vector<Story> stories;
  for (const exec::Request& r : requests) stories.emplace_back(tokenizer, r.prompt, f.stop);
  const bool live = terminal.interactive && !f.json && requests.size() == 1;
  std::vector<exec::Completion> done;
  std::optional<exec::Generator> generator;
  in_terms_of_flags([&] {
    const std::int64_t batch =
        f.batch > 0 ? f.batch : std::min<std::int64_t>(std::ssize(requests), kMostAtOnce);
    generator.emplace(
        loaded.model, *loaded.source,
        exec::GeneratorOptions{.parallel = parallel,
                               .dtype = device.dtype,
                               .context = context,
                               .batch = static_cast<std::int32_t>(batch),
                               .chunk = f.chunk,
                               .when_full = f.slide ? exec::WhenFull::slide : exec::WhenFull::stop,
                               .expert_of_slot = slots,
                               .compute = device.compute});
    if (live) std::printf("%s", prompts[0].text.c_str());
    done = generator->run(requests, [&](std::size_t request, std::int32_t token) {
      const bool go_on = stories[request].add(token);
      if (live) {
        std::printf("%s", stories[request].fresh(false).c_str());
        std::fflush(stdout);
      }
      return go_on;
    });
  });
  for (Story& s : stories) s.finish();
  if (live) std::printf("%s\n", stories[0].fresh(true).c_str());
  for (std::size_t i = 0; i < prompts.size() && !live; ++i)
    print_result(prompts[i], stories[i].text(), done[i], f.json, prompts.size() > 1);
  std::fflush(stdout);
  for (std::size_t i = 0; i < done.size(); ++i) {
    if (done[i].finish != exec::Finish::context) continue;
    warn(fmt::format("prompt {} ends where the context of {} tokens is full (--slide goes on)", i + 1,
                     context));
  }
  const double bandwidth = f.bandwidth ? read_bandwidth(generator->num_ranks()) : 0.0;
  if (f.json) {
    std::printf("%s\n", summary_of(*generator, bandwidth).dump().c_str());
  } else {
    print_speed(*generator, bandwidth);
  }
  return 0;
}

}  // namespace tessera::cli
