// Which command of a script starts the training, and its arguments.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <optional>

#include "base/text.h"
#include "frameworks/shell.h"

namespace tessera::frameworks {

namespace {

bool is_flag(const ShellWord& w) {
  return w.text.size() > 2 && w.text.starts_with("--") &&
         std::isalpha(static_cast<unsigned char>(w.text[2])) != 0;
}

// A command in quotes, as of bash -c "...", taken apart.
std::vector<ShellWord> opened(const std::vector<ShellWord>& words) {
  std::vector<ShellWord> out;
  for (const ShellWord& w : words) {
    if (w.text.find(".py") == std::string::npos || w.text.find(" --") == std::string::npos) {
      out.push_back(w);
      continue;
    }
    std::string text = w.text;
    std::ranges::replace(text, '\n', ' ');
    std::ranges::replace(text, '\t', ' ');
    for (const std::string& part : split(text, ' ')) {
      if (part.empty() || part == "\\") continue;
      const bool lost = !w.unresolved.empty() && part.find(w.unresolved) != std::string::npos;
      out.push_back({part, w.line, lost ? w.unresolved : ""});
    }
  }
  return out;
}

std::size_t program_of(const std::vector<ShellWord>& words) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (!words[i].text.starts_with("-") && words[i].text.ends_with(".py") &&
        (i == 0 || words[0].text != "cp"))
      return i;
  }
  return words.size();
}

std::int32_t flags_behind(const std::vector<ShellWord>& words, std::size_t from) {
  std::int32_t n = 0;
  for (std::size_t i = from; i < words.size(); ++i) n += is_flag(words[i]) ? 1 : 0;
  return n;
}

// Of "--nproc-per-node 8", "--nnodes=4" in front of the program.
std::optional<std::int64_t> launcher_number(const std::vector<ShellWord>& words, std::size_t end,
                                            std::string_view name) {
  for (std::size_t i = 0; i < end; ++i) {
    std::string text = words[i].text;
    std::string value;
    if (const std::size_t equals = text.find('='); equals != std::string::npos) {
      value = text.substr(equals + 1);
      text.resize(equals);
    } else if (i + 1 < end) {
      value = words[i + 1].text;
    }
    std::ranges::replace(text, '_', '-');
    if (text != name) continue;
    std::int64_t out = 0;
    const auto [at, code] = std::from_chars(value.data(), value.data() + value.size(), out);
    if (code == std::errc() && at == value.data() + value.size() && out > 0 && out < (1 << 20)) return out;
  }
  return std::nullopt;
}

void add_arguments(const std::vector<ShellWord>& words, std::size_t from, LaunchLine& out) {
  std::optional<Argument> open;
  const auto close = [&] {
    if (open) out.arguments.add(std::move(*open));
    open.reset();
  };
  for (std::size_t i = from; i < words.size(); ++i) {
    const ShellWord& w = words[i];
    if (is_flag(w)) {
      close();
      const std::size_t equals = w.text.find('=');
      open = Argument{.name = w.text.substr(2, equals == std::string::npos ? equals : equals - 2),
                      .values = {},
                      .line = w.line};
      if (equals != std::string::npos) {
        open->values.push_back(w.text.substr(equals + 1));
        open->unresolved = w.unresolved;
      }
      continue;
    }
    const bool loose = !open || !open->values.empty();
    if (w.unresolved == "$@" || w.unresolved == "$*") continue;  // arguments of the script
    if (loose && !w.unresolved.empty() && w.text.size() <= w.unresolved.size() + 3) {
      out.notes.push_back(
          fmt::format("line {}: {} is set nowhere in the file: what it holds is not read", w.line, w.text));
    } else if (open) {
      open->values.push_back(w.text);
      if (open->unresolved.empty()) open->unresolved = w.unresolved;
    } else if (!w.text.empty()) {
      out.notes.push_back(fmt::format("line {}: \"{}\" is no flag, and not read", w.line, w.text));
    }
  }
  close();
}

}  // namespace

LaunchLine find_launch(const ShellScript& script, std::string_view file, Problems& problems) {
  LaunchLine out{.arguments = Arguments(std::string(file), "--"), .notes = {}};
  std::vector<std::vector<ShellWord>> launches;
  for (const ShellCommand& c : script.commands) {
    std::vector<ShellWord> words = opened(c.words);
    const std::size_t at = program_of(words);
    if (at < words.size() && flags_behind(words, at) >= 2) launches.push_back(std::move(words));
  }
  if (launches.empty()) {
    problems.add("no line starts a Python program with flags", std::string(file),
                 "give the script that runs pretrain_gpt.py, with its arguments in it or in variables of it");
    return out;
  }
  const auto same = [](const std::vector<ShellWord>& a, const std::vector<ShellWord>& b) {
    return std::ranges::equal(a, b, {}, &ShellWord::text, &ShellWord::text);
  };
  for (const auto& l : launches) {
    if (same(l, launches.front())) continue;
    problems.add(fmt::format("the file starts programs on lines {} and {}, with different arguments",
                             launches.front()[program_of(launches.front())].line, l[program_of(l)].line),
                 std::string(file), "keep one of them in the file");
    return out;
  }
  const std::vector<ShellWord>& words = launches.front();
  const std::size_t at = program_of(words);
  add_arguments(words, at + 1, out);
  const auto nodes = launcher_number(words, at, "--nnodes");
  auto each = launcher_number(words, at, "--nproc-per-node");
  if (!each) each = launcher_number(words, at, "--num-gpus");
  const auto total = nodes.value_or(launcher_number(words, at, "--num-nodes").value_or(0));
  if (each && total > 0 && *each * total < (1 << 20)) out.devices = static_cast<std::int32_t>(*each * total);
  std::vector<std::string> lines;
  for (const std::int32_t line : script.branches) lines.push_back(std::to_string(line));
  if (!lines.empty()) {
    out.notes.push_back(fmt::format("{} {}: branches and loops are read as if all of them ran",
                                    lines.size() == 1 ? "line" : "lines", join(lines, ", ")));
  }
  return out;
}

}  // namespace tessera::frameworks
