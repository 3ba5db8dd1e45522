// A launch file read: which framework's it is, its arguments, what follows, what is left.
#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "frameworks/interpret.h"
#include "frameworks/shell.h"
#include "frameworks/toml.h"

namespace tessera::frameworks {

namespace {

using spec::Value;

constexpr std::string_view kLine = "tessera:";

bool ends(std::string_view file, std::string_view with) {
  return file.size() > with.size() && file.ends_with(with);
}

std::string_view first_text(std::string_view text) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = trim(text.substr(0, end));
    if (!line.empty() && (!line.starts_with("#") || line.starts_with("#!"))) return line;
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return {};
}

// "# tessera: parallel.schedule = "zb-h1"", a line each.
std::vector<Carried> carried_lines(std::string_view text) {
  std::vector<Carried> out;
  std::int32_t line = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view row = trim(text.substr(0, end));
    ++line;
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!row.starts_with("#")) continue;
    row = trim(row.substr(1));
    const std::size_t equals = row.find(" = ");
    if (!row.starts_with(kLine) || equals == std::string_view::npos || equals < kLine.size()) continue;
    out.push_back({std::string(trim(row.substr(kLine.size(), equals - kLine.size()))),
                   std::string(trim(row.substr(equals + 3))), line});
  }
  return out;
}

Value parse_configuration(std::string_view text, std::string_view file) {
  try {
    return spec::parse_yaml(text, file);  // knows the lines
  } catch (const Error& e) {
    if (e.kind() == ErrorKind::internal) throw;
  }
  return spec::parse_json(text, file);
}

// Arguments of the file, and what stands beside them.
struct Source {
  Arguments arguments;
  std::vector<Carried> carried;
  std::int32_t devices = 0;
  std::vector<std::string> notes;
};

Source from_script(std::string_view text, std::string_view file, Problems& problems) {
  const ShellScript script = parse_shell(text, file, problems);
  LaunchLine launch = find_launch(script, file, problems);
  return {.arguments = std::move(launch.arguments),
          .carried = carried_lines(text),
          .devices = launch.devices,
          .notes = std::move(launch.notes)};
}

Source from_toml(std::string_view text, std::string_view file) {
  Source out{.arguments = Arguments(std::string(file), ""), .carried = carried_lines(text), .notes = {}};
  add_leaves(parse_toml(text, file), "", out.arguments);
  return out;
}

Source from_json(std::string_view text, std::string_view file) {
  Value root = parse_configuration(text, file);
  if (root.kind != Value::Kind::map) {
    throw Error(ErrorKind::config, "the file is no JSON object", std::string(file),
                "give a DeepSpeed configuration");
  }
  if (const Value* format = root.find("format"); format != nullptr && format->text == "tessera-plan") {
    throw Error(ErrorKind::config, "the file is a plan of Tessera's own", std::string(file),
                "play it with tessera simulate, or write it for a framework with tessera emit");
  }
  Source out{.arguments = Arguments(std::string(file), ""), .carried = {}, .notes = {}};
  if (const Value* own = root.find("tessera"); own != nullptr) {
    for (const auto& [key, value] : own->members) {
      if (key == "about" || key == "notes") continue;
      out.carried.push_back({key, as_json(value), value.line});
    }
    std::erase_if(root.members, [](const Value::Member& m) { return m.first == "tessera"; });
  }
  add_leaves(root, "", out.arguments);
  return out;
}

Source source_of(Framework f, std::string_view text, std::string_view file, Problems& problems) {
  switch (f) {
    case Framework::torchtitan:
      return from_toml(text, file);
    case Framework::deepspeed:
      return from_json(text, file);
    case Framework::megatron:
      break;
    case Framework::megatron_bridge:
    case Framework::nemo:
      throw Error(ErrorKind::unsupported, fmt::format("files of {} are not read", title(f)),
                  std::string(file), "give a Megatron-LM script, a torchtitan TOML or a DeepSpeed JSON");
  }
  return from_script(text, file, problems);
}

// The keys of Tessera's own lines that are about the file, not of the launch.
struct Head {
  std::int32_t devices = 0;
  std::string practice;
};
Head take_head(std::vector<Carried>& carried, std::string_view file, Problems& problems) {
  Head out;
  for (const Carried& c : carried) {
    if (c.key == "devices") {
      Arguments one{std::string(file), ""};
      one.add({.name = "tessera: devices", .values = {c.value}, .line = c.line});
      out.devices = static_cast<std::int32_t>(
          std::clamp<std::int64_t>(one.integer("tessera: devices", problems).value_or(0), 0, 1 << 20));
    } else if (c.key == "practice") {
      out.practice = c.value;
      std::erase(out.practice, '"');
    }
  }
  std::erase_if(carried, [](const Carried& c) { return c.key == "devices" || c.key == "practice"; });
  return out;
}

void list_the_rest(const Source& source, Framework f, Reading& out) {
  const ArgumentList list = argument_list(f);
  const std::string dashes = f == Framework::megatron ? "--" : "";
  for (const Argument& a : source.arguments.list()) {
    if (list.has(a.name)) {
      if (!a.asked) out.not_priced.push_back({dashes + a.name, a.text(), a.line, ""});
      continue;
    }
    const std::string near = nearest(a.name, list.names);
    out.unknown.push_back({dashes + a.name, a.text(), a.line, near.empty() ? "" : dashes + near});
  }
}

}  // namespace

Framework detect(std::string_view text, std::string_view file) {
  const std::string_view first = first_text(text);
  if (ends(file, ".toml")) return Framework::torchtitan;
  if (ends(file, ".json") || first.starts_with("{")) return Framework::deepspeed;
  if (ends(file, ".sh") || ends(file, ".sbatch") || ends(file, ".slurm") || first.starts_with("#!"))
    return Framework::megatron;
  if (first.starts_with("[") && first.ends_with("]")) return Framework::torchtitan;
  if (text.find(".py") != std::string_view::npos && text.find("--") != std::string_view::npos &&
      !ends(file, ".yaml") && !ends(file, ".yml") && !ends(file, ".py"))
    return Framework::megatron;
  throw Error(ErrorKind::config, "the file is no launch file that Tessera reads", std::string(file),
              "give a Megatron-LM launch script (.sh), a torchtitan configuration (.toml) or a DeepSpeed "
              "configuration (.json)");
}

Reading read(std::string_view text, std::string_view file, const ReadOptions& options) {
  TESSERA_CHECK(options.model != nullptr, "a file is read for a model");
  Reading out;
  out.framework = detect(text, file);
  out.version = argument_list(out.framework).version;
  Problems problems;
  Source source = source_of(out.framework, text, file, problems);
  problems.throw_if_any();
  out.carried = source.carried;
  const Head head = take_head(source.carried, file, problems);
  const std::int32_t said = source.devices > 0 ? source.devices : head.devices;
  if (options.devices > 0 && said > 0 && said != options.devices) {
    problems.add(fmt::format("the file starts {} ranks, asked is for {}", said, options.devices),
                 std::string(file), "leave --devices out, or correct the file");
  }
  const std::string practice = !options.practice.empty() ? options.practice
                               : !head.practice.empty()  ? head.practice
                                                         : std::string(usual_practice(out.framework));
  Interpretation in{.launch = {.job = {}, .practice = graph::practice(practice), .machine = {}},
                    .devices = options.devices > 0 ? options.devices
                               : said > 0          ? said
                                                   : options.devices_otherwise,
                    .problems = problems,
                    .notes = std::move(source.notes)};
  in.launch.job.model = *options.model;
  in.launch.job.train.sequence_length = options.sequence_length;
  interpret(out.framework, source.arguments, source.carried, file, in);
  out.launch = std::move(in.launch);
  out.devices = out.launch.job.parallel.world_size();
  out.notes = std::move(in.notes);
  list_the_rest(source, out.framework, out);
  return out;
}

}  // namespace tessera::frameworks
