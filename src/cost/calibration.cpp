#include "cost/calibration.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>
#include <span>
#include <utility>

#include "base/file.h"
#include "base/text.h"
#include "spec/cluster.h"
#include "spec/value.h"

namespace tessera::cost {

// Generated from src/cost/calibrations/: name and text of each file, sorted.
std::span<const std::pair<std::string_view, std::string_view>> embedded_calibrations();

namespace {

using spec::MapReader;
using spec::Place;
using spec::Value;

// A file may be `like` one that is like another; more levels than this are a circle.
constexpr std::int32_t kMaxChain = 8;

// A gemm's rate: "989 TFLOP/s".
constexpr std::pair<std::string_view, double> kFlopUnits[] = {
    {"PFLOP/s", 1e15}, {"TFLOP/s", 1e12}, {"GFLOP/s", 1e9}, {"FLOP/s", 1.0}};

bool parse_flops(std::string_view text, double& out, std::string& problem) {
  const std::string_view all = trim(text);
  for (const auto& [unit, factor] : kFlopUnits) {
    if (!all.ends_with(unit)) continue;
    const std::string_view number = trim(all.substr(0, all.size() - unit.size()));
    double v = 0.0;
    const auto [end, code] = std::from_chars(number.data(), number.data() + number.size(), v);
    if (code != std::errc{} || end != number.data() + number.size() || !std::isfinite(v)) break;
    out = v * factor;
    return true;
  }
  problem = fmt::format("\"{}\" is not a rate; write for example 989 TFLOP/s", text);
  return false;
}

// Shortest text with a unit that reads back to exactly the same value.
template <class Parse>
std::string with_unit(double value, std::span<const std::pair<std::string_view, double>> units, Parse parse) {
  for (const auto& [unit, factor] : units) {
    std::string text = fmt::format("{} {}", value / factor, unit);
    if (parse(text) == value) return text;
  }
  return fmt::format("{} {}", value, units.back().first);
}

struct Units {
  static std::string flops(double v) {
    return with_unit(v, std::span(kFlopUnits).subspan(1), [](const std::string& t) {
      double out = 0.0;
      std::string ignored;
      return parse_flops(t, out, ignored) ? out : -1.0;
    });
  }
  static std::string bandwidth(double v) {
    constexpr std::pair<std::string_view, double> units[] = {{"GB/s", 1e9}, {"MB/s", 1e6}, {"B/s", 1.0}};
    return with_unit(v, units, [](const std::string& t) {
      BytesPerSecond out;
      std::string ignored;
      return spec::parse_bandwidth(t, out, ignored) ? out.value : -1.0;
    });
  }
  static std::string bytes(double v) {
    constexpr std::pair<std::string_view, double> units[] = {{"GB", 1e9}, {"MB", 1e6}, {"B", 1.0}};
    return with_unit(v, units, [](const std::string& t) {
      Bytes out;
      std::string ignored;
      return spec::parse_bytes(t, out, ignored) ? static_cast<double>(out.value) : -1.0;
    });
  }
  static std::string seconds(double v) {
    constexpr std::pair<std::string_view, double> units[] = {{"us", 1e-6}, {"ms", 1e-3}, {"s", 1.0}};
    return with_unit(v, units, [](const std::string& t) {
      Seconds out;
      std::string ignored;
      return spec::parse_seconds(t, out, ignored) ? out.value : -1.0;
    });
  }
};

// The one list of keys: section by section, read by Reader and written by Writer.
template <class V, class G>
void gemm_fields(V& v, G& g) {
  v.flops("peak", g.peak);
  v.number("efficiency", g.efficiency);
  v.tile("tile", g.tile_m, g.tile_n);
  v.number("small_tile", g.small_tile);
  v.number("tail", g.tail);
  v.number("k_half", g.k_half);
  v.number("bytes", g.bytes);
}
template <class V, class C>
void all_fields(V& v, C& c) {
  v.integer("processors", c.processors);
  v.seconds("kernel_latency", c.kernel_latency);
  v.seconds("launch", c.launch);
  v.section("memory");
  v.bytes("size", c.memory);
  v.bytes("usable", c.usable_memory);
  v.bandwidth("bandwidth", c.memory_bandwidth);
  v.number("efficiency", c.memory_efficiency);
  v.bytes("l2", c.l2_bytes);
  v.section("gemm");
  v.gemm("f32", c.f32);
  v.gemm("bf16", c.bf16);
  v.gemm("fp8", c.fp8);
  v.gemm("fp8_block", c.fp8_block);
  v.gemm("mxfp8", c.mxfp8);
  v.gemm("nvfp4", c.nvfp4);
  v.number("grouped_efficiency", c.grouped_efficiency);
  v.seconds("group_latency", c.group_latency);
  v.section("attention");
  v.number("forward", c.attention_forward);
  v.number("backward", c.attention_backward);
  v.number("short", c.attention_short);
  v.number("short_backward", c.attention_short_backward);
  v.number("wide", c.attention_wide);
  v.number("flash2", c.attention_flash2);
  v.number("flash1", c.attention_flash1);
  v.section("links");
  v.number("intra_efficiency", c.intra_efficiency);
  v.number("inter_efficiency", c.inter_efficiency);
  v.number("all_to_all_efficiency", c.all_to_all_efficiency);
  v.number("in_network_efficiency", c.in_network_efficiency);
  v.seconds("intra_latency", c.intra_latency);
  v.seconds("inter_latency", c.inter_latency);
  v.seconds("chunk_latency", c.chunk_latency);
  v.seconds("collective_launch", c.collective_launch);
  v.section("step");
  v.number("sustained", c.sustained);
  v.number("sustained_low", c.sustained_low);
  v.number("sustained_attention", c.sustained_attention);
  v.number("sustained_memory", c.sustained_memory);
  v.number("sustained_network", c.sustained_network);
  v.number("overlap_slowdown", c.overlap_slowdown);
  v.number("straggler", c.straggler);
  v.number("optimizer_passes", c.optimizer_passes);
}

class Reader {
 public:
  // complete: the file stands alone, so every key but the low precisions must be there.
  Reader(MapReader& root, std::string file, Problems& problems, bool complete)
      : root_(&root), at_(&root), file_(std::move(file)), problems_(problems), complete_(complete) {}

  void section(std::string_view name) {
    close();
    section_.emplace(map_of(*root_, name), Place{.file = file_, .path = std::string(name)}, problems_);
    at_ = &*section_;
  }
  void close() {
    if (section_) section_->refuse_unknown();
    section_.reset();
    at_ = root_;
  }
  template <class T>
  void integer(std::string_view key, T& out) {
    if (complete_) {
      at_->required(key, out);
    } else {
      at_->optional(key, out);
    }
  }
  void number(std::string_view key, double& out) { integer(key, out); }
  void flops(std::string_view key, double& out) { unit(key, out, "989 TFLOP/s", parse_flops); }
  void bandwidth(std::string_view key, double& out) {
    unit(key, out, "3352 GB/s", [](std::string_view t, double& v, std::string& problem) {
      BytesPerSecond b;
      if (!spec::parse_bandwidth(t, b, problem)) return false;
      v = b.value;
      return true;
    });
  }
  void bytes(std::string_view key, Bytes& out) { unit(key, out, "80 GB", spec::parse_bytes); }
  void bytes(std::string_view key, double& out) {
    Bytes b(static_cast<std::int64_t>(out));
    bytes(key, b);
    out = static_cast<double>(b.value);
  }
  void seconds(std::string_view key, Seconds& out) { unit(key, out, "2 us", spec::parse_seconds); }
  void tile(std::string_view key, std::int32_t& m, std::int32_t& n) {
    std::vector<std::int32_t> both{m, n};
    integer(key, both);
    if (both.size() != 2) {
      at_->problem(key, fmt::format("{} has {} numbers, not rows and columns", key, both.size()),
                   "write for example tile: [128, 256]");
      return;
    }
    m = both[0];
    n = both[1];
  }
  // A precision that the accelerator has not is left out, or null where the file is like another.
  void gemm(std::string_view key, GemmModel& g) {
    const Value* v = at_->take(key);
    if (v == nullptr) {
      if (complete_ && key == "bf16") at_->missing(key);
      return;
    }
    if (v->kind == Value::Kind::null) {
      g = GemmModel{};
      return;
    }
    MapReader* outer = at_;
    const bool outer_complete = std::exchange(complete_, complete_ || g.peak == 0.0);
    MapReader inner(map_of(*outer, key), Place{.file = file_, .path = outer->place().child(key)}, problems_);
    at_ = &inner;
    gemm_fields(*this, g);
    inner.refuse_unknown();
    at_ = outer;
    complete_ = outer_complete;
  }

 private:
  const Value& map_of(MapReader& reader, std::string_view key) {
    const Value* v = reader.take(key);
    if (v != nullptr && v->kind == Value::Kind::map) return *v;
    if (v != nullptr && v->kind != Value::Kind::null) {
      reader.problem(key, fmt::format("{} is not a section", key),
                     fmt::format("write {}: with indented keys below it", key));
    }
    return empty_;
  }
  template <class T, class Parse>
  void unit(std::string_view key, T& out, std::string_view example, Parse parse) {
    const Value* v = at_->take(key);
    if (v == nullptr) {
      if (complete_) at_->missing(key);
      return;
    }
    std::string problem;
    if (v->kind != Value::Kind::string) {
      at_->problem(key, fmt::format("{}={} has no unit", key, v->text),
                   fmt::format("write the unit, for example {}: {}", key, example));
    } else if (!parse(v->text, out, problem)) {
      at_->problem(key, problem, fmt::format("write for example {}: {}", key, example));
    }
  }

  MapReader* root_;
  MapReader* at_;
  std::optional<MapReader> section_;
  std::string file_;
  Problems& problems_;
  bool complete_;
  const Value empty_ = spec::map_value();
};

class Writer {
 public:
  Value root = spec::map_value();

  void section(std::string_view name) {
    section_ = name;
    root.set(name, spec::map_value());
  }
  template <class T>
  void integer(std::string_view key, T v) {
    put(key, spec::scalar(static_cast<std::int64_t>(v)));
  }
  void number(std::string_view key, double v) { put(key, spec::scalar(v)); }
  void flops(std::string_view key, double v) { text(key, Units::flops(v)); }
  void bandwidth(std::string_view key, double v) { text(key, Units::bandwidth(v)); }
  void bytes(std::string_view key, double v) { text(key, Units::bytes(v)); }
  void bytes(std::string_view key, Bytes v) { text(key, Units::bytes(static_cast<double>(v.value))); }
  void seconds(std::string_view key, Seconds v) { text(key, Units::seconds(v.value)); }
  void tile(std::string_view key, std::int32_t m, std::int32_t n) {
    Value list;
    list.kind = Value::Kind::list;
    list.items = {spec::scalar(std::int64_t{m}), spec::scalar(std::int64_t{n})};
    put(key, std::move(list));
  }
  void gemm(std::string_view key, const GemmModel& g) {
    if (g.peak == 0.0) return;
    put(key, spec::map_value());
    gemm_ = key;
    gemm_fields(*this, g);
    gemm_.clear();
  }

 private:
  void text(std::string_view key, const std::string& v) { put(key, spec::scalar(std::string_view(v))); }
  void put(std::string_view key, Value v) {
    Value* at = &root;
    if (!section_.empty()) at = at->find(section_);
    if (!gemm_.empty()) at = at->find(gemm_);
    at->set(key, std::move(v));
  }
  std::string section_, gemm_;
};

std::optional<std::string_view> embedded_text(std::string_view name) {
  for (const auto& [known, text] : embedded_calibrations()) {
    if (known == name) return text;
  }
  return std::nullopt;
}

std::string known_names_mend(std::string_view name) {
  const std::vector<std::string> names = calibration_names();
  const std::string near = nearest(name, names);
  return fmt::format("{}use one of {}, or the path of a file made by tessera calibrate",
                     near.empty() ? "" : fmt::format("did you mean {}? Else ", near), join(names, ", "));
}

Calibration parse(std::string_view yaml, std::string_view where, Problems& problems, std::int32_t chain) {
  Calibration c;
  const Value root = spec::parse_yaml(yaml, where);
  if (root.kind != Value::Kind::map) {
    problems.add("a calibration is a map of keys", std::string(where), "see docs/formats/calibration.md");
    return c;
  }
  MapReader top(root, {.file = std::string(where), .path = ""}, problems);
  std::string like;
  top.optional("like", like);
  if (!like.empty()) {
    const auto text = embedded_text(like);
    if (!text) {
      top.problem("like", fmt::format("like: {} is not an accelerator that is known here", like),
                  known_names_mend(like));
    } else if (chain >= kMaxChain) {
      top.problem("like", fmt::format("like: {} closes a circle of files", like),
                  "let one of them stand alone");
    } else {
      c = parse(*text, fmt::format("calibrations/{}.yaml", like), problems, chain + 1);
    }
  }
  top.required("name", c.name);
  top.optional("description", c.description);
  Reader reader(top, std::string(where), problems, like.empty());
  all_fields(reader, c);
  reader.close();
  top.refuse_unknown();
  return c;
}

class Check {
 public:
  Check(std::string_view where, Problems& problems) : where_(where), problems_(problems) {}
  // Written so that NaN fails.
  void in(std::string_view key, double v, double low, double high) {
    if (v >= low && v <= high) return;
    problems_.add(fmt::format("{}={} is not from {} to {}", key, v, low, high),
                  fmt::format("{}: {}", where_, key), fmt::format("use a value from {} to {}", low, high));
  }

 private:
  std::string_view where_;
  Problems& problems_;
};

void check_gemm(Check& check, std::string_view key, const GemmModel& g) {
  if (g.peak == 0.0) return;
  const auto at = [&](std::string_view field) { return fmt::format("gemm.{}.{}", key, field); };
  check.in(at("peak"), g.peak, 1e8, 1e18);
  check.in(at("efficiency"), g.efficiency, 0.01, 1.0);
  check.in(at("tile"), std::min(g.tile_m, g.tile_n), 1, 4096);
  check.in(at("tile"), std::max(g.tile_m, g.tile_n), 1, 4096);
  check.in(at("small_tile"), g.small_tile, 0.0, 1.0);
  check.in(at("tail"), g.tail, 0.0, 1.0);
  check.in(at("k_half"), g.k_half, 0.0, 1e5);
  check.in(at("bytes"), g.bytes, 0.25, 8.0);
}

}  // namespace

const GemmModel& gemm_model(const Calibration& c, spec::Precision precision) {
  const auto or_bf16 = [&](const GemmModel& g) -> const GemmModel& { return g.peak > 0.0 ? g : c.bf16; };
  switch (precision) {
    case spec::Precision::f32:
    case spec::Precision::f64:
      return or_bf16(c.f32);
    case spec::Precision::bf16:
    case spec::Precision::fp16:
      return c.bf16;
    case spec::Precision::fp8:
      return or_bf16(c.fp8);
    case spec::Precision::fp8_block:
      return or_bf16(c.fp8_block);
    case spec::Precision::mxfp8:
      return or_bf16(c.mxfp8);
    case spec::Precision::nvfp4:
      return or_bf16(c.nvfp4);
  }
  return c.bf16;
}

std::vector<std::string> calibration_names() {
  std::vector<std::string> names;
  for (const auto& [name, text] : embedded_calibrations()) names.emplace_back(name);
  return names;
}

Calibration calibration(std::string_view name) {
  const auto text = embedded_text(name);
  if (!text) {
    throw Error(ErrorKind::config, fmt::format("no calibration is named \"{}\"", name),
                "device of the cluster", known_names_mend(name));
  }
  Problems problems;
  const std::string where = fmt::format("calibrations/{}.yaml", name);
  Calibration c = parse_calibration(*text, where, problems);
  problems.throw_if_any();
  return c;
}

Calibration parse_calibration(std::string_view yaml, std::string_view where, Problems& problems) {
  Problems found;
  Calibration c = parse(yaml, where, found, 0);
  if (found.empty()) validate(c, where, found);
  problems.append(found);
  return c;
}

Calibration read_calibration(const std::filesystem::path& path) {
  Problems problems;
  Calibration c = parse_calibration(read_text(path), path.string(), problems);
  problems.throw_if_any();
  return c;
}

std::string to_yaml(const Calibration& c) {
  Writer writer;
  writer.root.set("name", spec::scalar(std::string_view(c.name)));
  writer.root.set("description", spec::scalar(std::string_view(c.description)));
  all_fields(writer, c);
  return spec::to_yaml(writer.root);
}

void validate(const Calibration& c, std::string_view where, Problems& problems) {
  Check check(where, problems);
  if (c.name.empty()) problems.add("name is empty", std::string(where), "name it as the cluster's device");
  check.in("processors", c.processors, 1, 100'000);
  check.in("memory.size", static_cast<double>(c.memory.value), 1e6, 1e14);
  // Memory is sold in powers of two called GB: a part of 80 GB has 85.9e9 bytes.
  check.in("memory.usable", static_cast<double>(c.usable_memory.value), 1e6,
           1.08 * static_cast<double>(c.memory.value));
  check.in("memory.bandwidth", c.memory_bandwidth, 1e8, 1e15);
  check.in("memory.efficiency", c.memory_efficiency, 0.01, 1.0);
  check.in("memory.l2", c.l2_bytes, 0.0, 1e12);
  if (c.bf16.peak == 0.0) {
    problems.add("gemm.bf16.peak is 0", fmt::format("{}: gemm.bf16", where), "every accelerator needs bf16");
  }
  check_gemm(check, "f32", c.f32);
  check_gemm(check, "bf16", c.bf16);
  check_gemm(check, "fp8", c.fp8);
  check_gemm(check, "fp8_block", c.fp8_block);
  check_gemm(check, "mxfp8", c.mxfp8);
  check_gemm(check, "nvfp4", c.nvfp4);
  check.in("gemm.grouped_efficiency", c.grouped_efficiency, 0.01, 1.0);
  check.in("gemm.group_latency", c.group_latency.value, 0.0, 1.0);
  check.in("attention.forward", c.attention_forward, 0.01, 1.0);
  check.in("attention.backward", c.attention_backward, 0.01, 1.0);
  check.in("attention.short", c.attention_short, 0.0, 1e5);
  check.in("attention.short_backward", c.attention_short_backward, 0.0, 1e5);
  check.in("attention.wide", c.attention_wide, 0.1, 2.0);
  check.in("kernel_latency", c.kernel_latency.value, 0.0, 1.0);
  check.in("launch", c.launch.value, 0.0, 1.0);
  check.in("links.intra_efficiency", c.intra_efficiency, 0.01, 1.0);
  check.in("links.inter_efficiency", c.inter_efficiency, 0.01, 1.0);
  check.in("links.all_to_all_efficiency", c.all_to_all_efficiency, 0.01, 2.0);
  check.in("links.in_network_efficiency", c.in_network_efficiency, 0.01, 1.0);
  check.in("links.intra_latency", c.intra_latency.value, 0.0, 1.0);
  check.in("links.inter_latency", c.inter_latency.value, 0.0, 1.0);
  check.in("links.chunk_latency", c.chunk_latency.value, 0.0, 1.0);
  check.in("links.collective_launch", c.collective_launch.value, 0.0, 1.0);
  check.in("step.sustained", c.sustained, 0.01, 1.0);
  check.in("step.sustained_low", c.sustained_low, 0.01, 1.1);
  check.in("step.sustained_attention", c.sustained_attention, 0.01, 1.2);
  check.in("step.sustained_memory", c.sustained_memory, 0.01, 1.2);
  check.in("step.sustained_network", c.sustained_network, 0.01, 1.1);
  check.in("attention.flash2", c.attention_flash2, 0.01, 1.0);
  check.in("attention.flash1", c.attention_flash1, 0.01, 1.0);
  check.in("step.overlap_slowdown", c.overlap_slowdown, 0.0, 10.0);
  check.in("step.straggler", c.straggler, 0.0, 1.0);
  check.in("step.optimizer_passes", c.optimizer_passes, 0.01, 100.0);
}

}  // namespace tessera::cost
