#include "data/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <new>
#include <utility>

#include "base/error.h"
#include "data/utf8.h"

namespace tessera::data {

namespace {
constexpr std::size_t kLongestPattern = 64 * 1024;
constexpr std::uint32_t kMostSteps = 10'000'000;  // of one match

struct FreeCode {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
};
struct FreeData {
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
struct FreeContext {
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
};
struct FreeCompileContext {
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
};

template <class T>
T* there(T* p) {
  if (p == nullptr) throw std::bad_alloc();
  return p;
}

PCRE2_SPTR units(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data());
}

std::string message_of(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

Error bad(std::string what, const std::string& where) {
  return {ErrorKind::config, std::move(what), where,
          "mend the pattern, or use a tokenizer with one of the published patterns"};
}
}  // namespace

struct SplitPattern::Scratch::Impl {
  std::unique_ptr<pcre2_match_data, FreeData> data{there(pcre2_match_data_create(1, nullptr))};
  std::unique_ptr<pcre2_match_context, FreeContext> context{there(pcre2_match_context_create(nullptr))};
};

SplitPattern::Scratch::Scratch() : impl_(std::make_unique<Impl>()) {
  pcre2_set_match_limit(impl_->context.get(), kMostSteps);
}
SplitPattern::Scratch::Scratch(Scratch&&) noexcept = default;
SplitPattern::Scratch::~Scratch() = default;

struct SplitPattern::Impl {
  Impl(const std::string& pattern, std::uint32_t options, std::string place) : where(std::move(place)) {
    if (first_invalid_utf8(pattern)) throw bad("the pattern is not UTF-8", where);
    if (pattern.size() > kLongestPattern) {
      throw bad(fmt::format("the pattern has {} bytes, more than {}", pattern.size(), kLongestPattern),
                where);
    }
    const std::unique_ptr<pcre2_compile_context, FreeCompileContext> context(
        there(pcre2_compile_context_create(nullptr)));
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int code_number = 0;
    PCRE2_SIZE at = 0;
    code.reset(
        pcre2_compile(units(pattern), pattern.size(), options | PCRE2_UTF, &code_number, &at, context.get()));
    if (!code) {
      throw bad(fmt::format("the pattern is wrong at byte {}: {}", at, message_of(code_number)), where);
    }
    std::uint32_t can_be_empty = 0;
    pcre2_pattern_info(code.get(), PCRE2_INFO_MATCHEMPTY, &can_be_empty);
    if (can_be_empty != 0) throw bad("the pattern can match the empty text", where);
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // where there is none, the interpreter does it
  }

  std::unique_ptr<pcre2_code, FreeCode> code;
  std::string where;
};

SplitPattern::SplitPattern(std::unique_ptr<const Impl> impl) : impl_(std::move(impl)) {}
SplitPattern::SplitPattern(SplitPattern&&) noexcept = default;
SplitPattern& SplitPattern::operator=(SplitPattern&&) noexcept = default;
SplitPattern::~SplitPattern() = default;

SplitPattern SplitPattern::regex(std::string_view pattern, std::string where) {
  const std::string rewritten = to_pcre2(pattern, where);
  return SplitPattern(
      std::make_unique<Impl>(rewritten, PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, std::move(where)));
}

SplitPattern SplitPattern::literal(std::string_view text, std::string where) {
  return SplitPattern(std::make_unique<Impl>(std::string(text), PCRE2_LITERAL, std::move(where)));
}

std::optional<SplitPattern::Range> SplitPattern::find(std::string_view text, std::size_t from,
                                                      Scratch& scratch) const {
  pcre2_match_data* data = scratch.impl_->data.get();
  const auto match = [&](std::uint32_t options) {
    return pcre2_match(impl_->code.get(), units(text), text.size(), from, PCRE2_NO_UTF_CHECK | options, data,
                       scratch.impl_->context.get());
  };
  int rc = match(0);
  // The compiled code has a small stack of its own; the interpreter takes from the heap.
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = match(PCRE2_NO_JIT);
  if (rc == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (rc < 0) {
    throw bad(
        fmt::format("the pattern gave up at byte {} of a text of {}: {}", from, text.size(), message_of(rc)),
        impl_->where);
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data);
  return Range{ends[0], ends[1]};
}

}  // namespace tessera::data
