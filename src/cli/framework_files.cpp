#include "cli/framework_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "cli/explain_plan.h"
#include "explain/pricing.h"
#include "plan/plan.h"
#include "report/numbers.h"
#include "search/space.h"
#include "spec/presets.h"

namespace tessera::cli {

namespace {

using frameworks::Framework;
using frameworks::Listed;
using frameworks::Reading;
using Json = nlohmann::ordered_json;

bool is_default(const std::string& practice) {
  return practice == graph::kDefaultPractice;
}

// A number that both the flag and the file say.
template <class T>
void agree(const char* flag, T& asked, T of_file, T unsaid, const std::string& file, Problems& problems) {
  if (asked != unsaid && asked != of_file) {
    problems.add(fmt::format("{} is {}, the file says {}", flag, asked, of_file), file,
                 fmt::format("leave {} out, or correct the file", flag));
  }
  asked = of_file;
}

// The layout in the setup as the file runs it.
cost::Setup as_it_stands(const cost::Setup& setup, const Reading& r) {
  cost::Setup out = setup;
  out.practice = r.launch.practice;
  return out;
}

cost::Candidate candidate_of(const Reading& r) {
  cost::Candidate c = cost::from_job(r.launch.job);
  c.zero_group = r.launch.machine.zero_group;
  return c;
}

struct Change {
  std::string text;
  double seconds = 0;  // of the file's way over the plan's
};
// What of the software the file sets otherwise than the plan takes it, each alone.
std::vector<Change> changes_of(const cost::Setup& setup, const Reading& r) {
  std::vector<Change> out;
  const cost::Candidate c = candidate_of(r);
  const double base = explain::price(setup, c).seconds();
  const auto add = [&](const graph::Practice& theirs, std::string text) {
    cost::Setup other = setup;
    other.practice = theirs;
    out.push_back({std::move(text), explain::price(other, c).seconds() - base});
  };
  for (const frameworks::Switch& s : frameworks::switches()) {
    const bool theirs = r.launch.practice.*s.member;
    if (theirs == setup.practice.*s.member) continue;
    graph::Practice p = setup.practice;
    p.*s.member = theirs;
    const std::string_view argument = frameworks::argument_of(r.framework, s.name);
    add(p, fmt::format("{}: {}{}", theirs ? "on" : "off", s.on,
                       argument.empty() ? "" : fmt::format(" ({})", argument)));
  }
  const auto size = [&](const char* what, std::int32_t graph::Practice::*member) {
    if (r.launch.practice.*member == setup.practice.*member) return;
    graph::Practice p = setup.practice;
    p.*member = r.launch.practice.*member;
    add(p, fmt::format("{} bytes an element of {}, not {}", p.*member, what, setup.practice.*member));
  };
  size("gradients", &graph::Practice::gradient_bytes);
  size("gradients on the wire", &graph::Practice::gradient_reduce_bytes);
  size("optimizer state", &graph::Practice::optimizer_bytes);
  std::ranges::stable_sort(out, [](const Change& a, const Change& b) { return a.seconds > b.seconds; });
  return out;
}

std::string gigabytes(double bytes) {
  return report::fixed(bytes / 1e9, 1) + " GB";
}

std::string listed(const std::vector<Listed>& list) {
  std::vector<std::string> words;
  for (const Listed& l : list) {
    words.push_back(fmt::format("{} (line {}){}", l.name, l.line,
                                l.near.empty() ? "" : fmt::format(", did you mean {}?", l.near)));
  }
  return join(words, ", ");
}

bool same_stages(const cost::Setup& setup, const Reading& r) {
  return cost::to_job(setup, candidate_of(r)).parallel.stage_layers == r.launch.job.parallel.stage_layers;
}

std::vector<std::string> notes_of(const cost::Setup& setup, const Reading& r) {
  std::vector<std::string> notes = r.notes;
  if (same_stages(setup, r)) return notes;
  const std::vector<std::int32_t>& layers = r.launch.job.parallel.stage_layers;
  notes.push_back(fmt::format(
      "the layers of its stages ({}) are priced as they go most evenly: what its own cut costs is "
      "not in the figures",
      layers.empty() ? "even" : fmt::format("{}", fmt::join(layers, " "))));
  return notes;
}

Json json_of(const std::vector<Listed>& list) {
  Json out = Json::array();
  for (const Listed& l : list) {
    Json j = {{"name", l.name}, {"value", l.value}, {"line", l.line}};
    if (!l.near.empty()) j["near"] = l.near;
    out.push_back(std::move(j));
  }
  return out;
}

}  // namespace

FrameworkFiles::FrameworkFiles(const PlanFlags& asked) : flags_(asked) {
  if (!asked.emit.empty()) emit_ = frameworks::parse_framework(asked.emit, "--emit");
  if (!asked.emit_to.empty() && !emit_) {
    throw Error(ErrorKind::config, "--emit-to without --emit", "--emit-to " + asked.emit_to,
                "say for which framework: --emit " + join(frameworks::framework_names(), "|"));
  }
  if (!asked.from.empty()) {
    if (!asked.against.empty()) {
      throw Error(ErrorKind::config, "--from and --against both say what your layout is", "--against",
                  "keep one of them");
    }
    read_file(asked);
  }
  if (emit_ || reading_) limit_space(emit_ ? *emit_ : reading_->framework);
}

void FrameworkFiles::read_file(const PlanFlags& asked) {
  const spec::ModelSpec model = spec::find_model(asked.model);
  const std::string file = asked.from;
  reading_ = frameworks::read(read_text(file), file,
                              {.model = &model,
                               .devices = asked.devices,
                               .devices_otherwise = spec::find_cluster(asked.cluster).num_devices,
                               .sequence_length = asked.sequence_length,
                               .practice = is_default(asked.practice) ? "" : asked.practice});
  const spec::Recipe& t = reading_->launch.job.train;
  Problems problems;
  flags_.devices = reading_->devices;
  const std::int64_t unsaid = 0;
  agree("--gbs", flags_.global_batch_size, t.global_batch_size, unsaid, file, problems);
  agree("--seq", flags_.sequence_length, t.sequence_length, unsaid, file, problems);
  agree("--precision", flags_.precision, std::string(spec::name(t.precision)), std::string("bf16"), file,
        problems);
  agree("--capacity-factor", flags_.capacity_factor, t.moe.capacity_factor, 0.0, file, problems);
  problems.throw_if_any();
  // What is not the file's to set is the practice's: the best layout is priced with all of it.
  flags_.practice = is_default(asked.practice) ? reading_->launch.practice.name : asked.practice;
}

void FrameworkFiles::limit_space(Framework f) {
  if (is_default(flags_.practice) && !reading_) flags_.practice = frameworks::usual_practice(f);
  for (const std::string& pin : frameworks::usual_pins(f)) {
    const std::string axis = pin.substr(0, pin.find('='));
    const auto pinned = [&](const std::string& p) { return p.substr(0, p.find('=')) == axis; };
    if (std::ranges::any_of(flags_.pins, pinned)) continue;
    limits_.push_back(pin);
    flags_.pins.push_back(pin);
  }
}

std::optional<cost::Candidate> FrameworkFiles::candidate() const {
  if (!reading_) return std::nullopt;
  return candidate_of(*reading_);
}

frameworks::Written FrameworkFiles::written(const cost::Setup& setup, const search::Ranked& best) const {
  const frameworks::Launch launch = frameworks::launch_of(
      cost::to_job(setup, best.candidate), setup.practice,
      {.devices_per_node = setup.cluster.devices_per_node, .zero_group = best.candidate.zero_group});
  const std::string model = std::filesystem::path(flags_.model).filename().string();
  return frameworks::write(
      *emit_, launch,
      {.about = {
           fmt::format("{} on {} x {} ({}): {}.", model, setup.cluster.num_devices, setup.calibration.name,
                       setup.cluster.name, cost::to_text(best.candidate)),
           fmt::format("Predicted: {} a step of {} x {} tokens, MFU {}, {} a device reserved.",
                       report::duration(Seconds(best.cost.seconds())), setup.work.global_batch_size,
                       setup.work.sequence_length, report::percent(best.cost.mfu()),
                       gigabytes(best.cost.memory.reserved())),
       }});
}

std::string FrameworkFiles::emitted(const cost::Setup& setup, const search::Ranked& best) const {
  return written(setup, best).text;
}

std::string FrameworkFiles::verdict(const cost::Setup& setup, const report::Style& style) const {
  const Reading& r = *reading_;
  const report::Style inner = inner_of(style);
  std::string out;
  const auto say = [&](const std::string& text) {
    for (const std::string& line : report::wrap(report::clean(text), report::columns(inner)))
      out += line + "\n";
  };
  const explain::Priced own = explain::price(as_it_stands(setup, r), candidate_of(r));
  const double usable = search::usable_memory(setup);
  say(fmt::format("As the file stands a step takes {} (MFU {}) and a device reserves {} of {} usable: {}.",
                  report::duration(Seconds(own.seconds())), report::percent(own.cost.mfu()),
                  gigabytes(own.cost.memory.reserved()), gigabytes(usable),
                  own.fits ? "it fits" : "it does not fit"));
  const std::vector<Change> changes = changes_of(setup, r);
  if (!changes.empty()) out += "\n";
  if (!changes.empty()) say("Set otherwise than the plans above are priced, each alone:");
  for (const Change& c : changes) say(fmt::format("  {:>+9.1f} ms  {}", c.seconds * 1e3, c.text));
  std::vector<std::string> notes = notes_of(setup, r);
  for (const frameworks::Carried& c : r.carried) {
    if (c.key != "devices" && c.key != "practice")
      notes.push_back(fmt::format("{} = {} is of Tessera's own line {}", c.key, c.value, c.line));
  }
  if (!notes.empty()) out += "\n";
  for (const std::string& n : notes) say("- " + n);
  if (!r.unknown.empty()) {
    out += "\n";
    say(fmt::format("Unknown to {} ({}), and not read: {}", title(r.framework), r.version,
                    listed(r.unknown)));
  }
  if (!r.not_priced.empty()) {
    out += "\n";
    say(fmt::format("Known, and nothing here depends on them: {}", listed(r.not_priced)));
  }
  return titled(fmt::format("Your file, {} ({})", report::clean(flags_.from), title(r.framework)), out,
                style);
}

std::string FrameworkFiles::page(const cost::Setup& setup, const search::Ranked& best,
                                 const report::Style& style) const {
  std::string out;
  if (reading_) out += "\n" + verdict(setup, style);
  if (!emit_ && limits_.empty()) return out;
  const auto say = [&](const std::string& text) {
    for (const std::string& line : report::wrap(text, report::columns(style))) out += line + "\n";
  };
  out += "\n";
  if (!limits_.empty())
    say(fmt::format("Only what {} runs was searched: {}", title(emit_ ? *emit_ : reading_->framework),
                    join(limits_, " ")));
  if (!emit_) return out;
  const frameworks::Written w = written(setup, best);
  write_atomically(flags_.emit_to, w.text);
  say(fmt::format("wrote {}: the {} for {}", flags_.emit_to, flags_.robust ? "robust choice" : "best one",
                  title(*emit_)));
  for (const std::string& n : w.notes) say("- " + n);
  return out;
}

std::string FrameworkFiles::from_json(const cost::Setup& setup) const {
  if (!reading_) return "";
  const Reading& r = *reading_;
  const explain::Priced own = explain::price(as_it_stands(setup, r), candidate_of(r));
  Json changes = Json::array(), carried = Json::object();
  for (const Change& c : changes_of(setup, r))
    changes.push_back({{"change", c.text}, {"seconds", c.seconds}});
  for (const frameworks::Carried& c : r.carried) carried[c.key] = c.value;
  return Json{{"file", flags_.from},
              {"framework", name(r.framework)},
              {"arguments", r.version},
              {"limits", limits_},
              {"layout", cost::to_text(candidate_of(r))},
              {"step_seconds", own.seconds()},
              {"mfu", own.cost.mfu()},
              {"reserved_bytes", own.cost.memory.reserved()},
              {"fits", own.fits},
              {"set_otherwise", std::move(changes)},
              {"notes", notes_of(setup, r)},
              {"carried", std::move(carried)},
              {"unknown", json_of(r.unknown)},
              {"not_priced", json_of(r.not_priced)}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string FrameworkFiles::emitted_json(const cost::Setup& setup, const search::Ranked& best) const {
  if (!emit_) return "";
  const frameworks::Written w = written(setup, best);
  if (!flags_.emit_to.empty()) write_atomically(flags_.emit_to, w.text);
  return Json{{"framework", name(*emit_)}, {"notes", w.notes}, {"limits", limits_}, {"text", w.text}}.dump();
}

int emit(const EmitFlags& flags) {
  const Framework f = frameworks::parse_framework(flags.framework, "tessera emit");
  const plan::Plan plan = plan::read_plan(flags.plan);
  const std::string practice = plan.planned_for.practice.empty() ? std::string(frameworks::usual_practice(f))
                                                                 : plan.planned_for.practice;
  frameworks::Machine machine;
  if (plan.planned_for.cluster) machine.devices_per_node = plan.planned_for.cluster->devices_per_node;
  const frameworks::Launch launch = frameworks::launch_of(plan.job, graph::practice(practice), machine);
  const frameworks::Written w =
      frameworks::write(f, launch, {.about = {fmt::format("The plan of {}.", flags.plan)}});
  if (!flags.output.empty()) write_atomically(flags.output, w.text);
  if (flags.json) {
    std::printf("%s\n", Json{{"framework", name(f)}, {"notes", w.notes}, {"text", w.text}}.dump(2).c_str());
  } else if (flags.output.empty()) {
    std::printf("%s", w.text.c_str());
  } else {
    std::printf("wrote %s: the plan for %s\n", flags.output.c_str(), std::string(title(f)).c_str());
    for (const std::string& n : w.notes) std::printf("- %s\n", n.c_str());
  }
  return 0;
}

}  // namespace tessera::cli
