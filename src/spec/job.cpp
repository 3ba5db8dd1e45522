#include "spec/job.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <type_traits>

#include "base/file.h"
#include "base/text.h"
#include "spec/internal.h"
#include "spec/job_fields.h"

namespace tessera::spec {

namespace {

// Visitor: "train.steps", ...
class KeyLister {
 public:
  void section(std::string_view name) { section_ = name; }
  template <class T>
  void required(std::string_view key, const T& /*member*/) {
    keys.push_back(fmt::format("{}.{}", section_, key));
  }
  template <class T>
  void optional(std::string_view key, const T& member) {
    required(key, member);
  }
  std::vector<std::string> keys;

 private:
  std::string section_;
};

// Visitor: a Job into a tree.
class JobWriter {
 public:
  void section(std::string_view name) {
    root.set(name, map_value());
    section_ = name;
  }
  template <class T>
  void required(std::string_view key, const T& member) {
    root.find(section_)->set(key, value_of(member));
  }
  template <class T>
  void optional(std::string_view key, const T& member) {
    required(key, member);
  }
  Value root = map_value();

 private:
  template <class T>
  static Value value_of(const T& member) {
    if constexpr (std::is_enum_v<T>) {
      for (const auto& [value, word] : EnumNames<T>::kAll)
        if (value == member) return scalar(word);
      return {};
    } else if constexpr (std::is_same_v<T, std::vector<std::int32_t>>) {
      Value list;
      list.kind = Value::Kind::list;
      for (const std::int32_t item : member) list.items.push_back(scalar(std::int64_t{item}));
      return list;
    } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
      Value list;
      list.kind = Value::Kind::list;
      for (const std::string& item : member) list.items.push_back(scalar(std::string_view(item)));
      return list;
    } else if constexpr (std::is_same_v<T, std::string>) {
      return scalar(std::string_view(member));
    } else if constexpr (std::is_same_v<T, std::int32_t>) {
      return scalar(std::int64_t{member});
    } else {
      return scalar(member);
    }
  }
  std::string section_;
};

// Visitor: a tree into a Job. One MapReader a section; an absent section is an empty one.
class JobReader {
 public:
  JobReader(MapReader& root, std::string file, Problems& problems)
      : root_(root), file_(std::move(file)), problems_(problems) {}

  void section(std::string_view name) {
    close();
    const Value* v = root_.take(name);
    if (v != nullptr && v->kind != Value::Kind::map && v->kind != Value::Kind::null) {
      root_.problem(name, fmt::format("{} is not a section", name),
                    fmt::format("write {}: with indented keys below it", name));
      skip_ = true;
      v = nullptr;
    }
    section_.emplace(v != nullptr ? *v : empty_, Place{.file = file_, .path = std::string(name)}, problems_);
  }
  template <class T>
  void required(std::string_view key, T& member) {
    if (skip_ || section_->take(key) == nullptr) {
      if (skip_) {
        section_->mark_faulty(key);
      } else {
        section_->missing(key);
      }
      return;
    }
    optional(key, member);
  }
  template <class T>
  void optional(std::string_view key, T& member) {
    if (skip_) {
      section_->mark_faulty(key);
    } else if constexpr (std::is_enum_v<T>) {
      read_enum(key, member);
    } else {
      section_->optional(key, member);
    }
  }
  void close() {
    if (!section_) return;
    if (!skip_) section_->refuse_unknown();
    faulty.insert(section_->faulty().begin(), section_->faulty().end());
    section_.reset();
    skip_ = false;
  }
  std::set<std::string, std::less<>> faulty;

 private:
  template <class E>
  void read_enum(std::string_view key, E& member) {
    std::string word;
    section_->optional(key, word);
    if (word.empty()) return;
    std::vector<std::string> words;
    for (const auto& [value, text] : EnumNames<E>::kAll) {
      if (text == word) {
        member = value;
        return;
      }
      words.emplace_back(text);
    }
    const std::string near = nearest(word, words);
    section_->problem(
        key, fmt::format("{}={} is not known", key, word),
        fmt::format("use {}{}", join(words, ", "), near.empty() ? "" : "; did you mean " + near + "?"));
  }

  MapReader& root_;
  std::string file_;
  Problems& problems_;
  Value empty_ = map_value();
  std::optional<MapReader> section_;
  bool skip_ = false;  // the section itself is broken
};

// --- flags

void set_origin(Value& v, const std::string& origin) {
  v.origin = origin;
  for (Value& item : v.items) set_origin(item, origin);
  for (auto& [key, member] : v.members) set_origin(member, origin);
}

void apply_override(Value& root, const std::string& flag, Problems& problems) {
  const std::string origin = "flag " + flag;
  const std::size_t equals = flag.find('=');
  const std::vector<std::string> path = split(std::string_view(flag).substr(0, equals), '.');
  const bool named = std::find(path.begin(), path.end(), "") == path.end();
  if (equals == std::string::npos || !named) {
    problems.add(fmt::format("flag \"{}\" is not of the form key=value", flag), origin,
                 "write for example train.steps=50");
    return;
  }
  Value* at = &root;
  for (std::size_t i = 0; i + 1 < path.size(); ++i) {
    if (at->find(path[i]) == nullptr || at->find(path[i])->kind == Value::Kind::null) {
      Value section = map_value();
      section.origin = origin;
      at->set(path[i], std::move(section));
    }
    at = at->find(path[i]);
    if (at->kind != Value::Kind::map) {
      problems.add(fmt::format("{} is not a section", path[i]), origin, "check the path of the flag");
      return;
    }
  }
  try {
    Value value = parse_yaml(flag.substr(equals + 1), origin);
    set_origin(value, origin);
    at->set(path.back(), std::move(value));
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
  }
}

// --- the model

// True when the model can be trusted.
bool read_inline_model(const Value& map, const Place& place, Job& job, Problems& problems) {
  static const std::vector<std::string> kOrigin = {"from"};
  Problems inner;
  MapReader(map, place, inner).optional("from", job.model_config);
  job.model = read_model(map, place, kOrigin, inner);
  problems.append(inner);
  return inner.empty();
}

bool read_job_model(MapReader& root, const std::filesystem::path& folder, Job& job, Problems& problems) {
  const Value* model = root.take("model");
  if (model == nullptr || model->kind != Value::Kind::map || model->members.empty()) {
    root.problem("model", "model is missing", "add model: {config: path of a config.json}");
    return false;
  }
  const Place place{.file = root.place().file, .path = "model"};
  if (model->find("config") == nullptr) return read_inline_model(*model, place, job, problems);
  MapReader reader(*model, place, problems);
  reader.required("config", job.model_config);
  for (const auto& [key, value] : model->members) {
    if (key == "config") continue;
    reader.problem(key, fmt::format("{} stands beside config", place.child(key)),
                   "give the model either by config: PATH or by its own keys, not both");
  }
  if (!reader.faulty().empty()) return false;
  try {
    job.model = read_hf_config(folder / job.model_config);
    return true;
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
    return false;
  }
}

const Value* find_path(const Value& root, std::string_view path) {
  const Value* at = &root;
  for (const std::string& part : split(path, '.')) {
    at = at->find(part);
    if (at == nullptr) return nullptr;
  }
  return at;
}

// Absent keys of balancing follow from the model and from one another.
void fill_balancing(const Value& root, Job& job) {
  MoeRecipe& r = job.train.moe;
  MoeSpec& model = *job.model.moe;
  const auto absent = [&](std::string_view key) {
    const Value* v = find_path(root, key);
    return v == nullptr || v->kind == Value::Kind::null;
  };
  if (absent("moe.balancing")) {
    r.balancing = r.router != RouterChoice::model ? Balancing::none
                  : model.score_correction_bias   ? Balancing::bias
                                                  : Balancing::loss;
  }
  if (absent("moe.aux_loss_coef")) {
    r.aux_loss_coef = r.balancing == Balancing::loss ? model.router_aux_loss_coef : 0.0;
  }
  constexpr double kRate = 0.001;  // DeepSeek-V3 (arXiv 2412.19437 section 4.2)
  if (absent("moe.bias_update_rate") && r.balancing == Balancing::bias) r.bias_update_rate = kRate;
  if (r.balancing == Balancing::bias) model.score_correction_bias = true;
}

// A known section's key at the wrong place is named with the right one.
void refuse_unknown_sections(const Value& root, MapReader& reader) {
  const std::vector<std::string> keys = job_keys();
  for (const auto& [key, value] : root.members) {
    if (std::find(reader.known().begin(), reader.known().end(), key) != reader.known().end()) continue;
    std::vector<std::string> homes;
    for (const std::string& full : keys)
      if (full.ends_with("." + key)) homes.push_back(full);
    if (homes.empty()) continue;
    reader.problem(key, fmt::format("key \"{}\" stands outside its section", key),
                   fmt::format("did you mean {}?", join(homes, " or ")));
    reader.know(std::vector<std::string>{key});
  }
  reader.refuse_unknown();
}

}  // namespace

std::vector<std::string> job_keys() {
  KeyLister lister;
  const Job job;
  lister.keys.emplace_back("model.config");
  visit_job(job, lister);
  return lister.keys;
}

namespace {
Value job_value(const Job& job) {
  JobWriter writer;
  Value model = map_value();
  if (!job.model_config.empty()) model.set("from", scalar(std::string_view(job.model_config)));
  for (auto& [key, value] : model_value(job.model).members) model.set(key, value);
  writer.root.set("model", std::move(model));
  visit_job(job, writer);
  return std::move(writer.root);
}
}  // namespace

std::string to_yaml(const Job& job) {
  return to_yaml(job_value(job));
}
std::string to_json(const Job& job) {
  return to_json(job_value(job));
}

Job parse_job(std::string_view yaml, const std::filesystem::path& folder, std::string_view where,
              std::span<const std::string> overrides, JobUse use) {
  Value root = parse_yaml(yaml, where);
  if (root.kind == Value::Kind::null) root = map_value();
  if (root.kind != Value::Kind::map) {
    throw Error(ErrorKind::config, "the job is not a map of sections", std::string(where),
                "write sections such as train: and parallel:");
  }
  Problems problems;
  for (const std::string& flag : overrides) apply_override(root, flag, problems);
  const Place place{.file = std::string(where), .path = ""};
  MapReader reader(root, place, problems);
  Job job;
  const bool model_good = read_job_model(reader, folder, job, problems);
  JobReader fields(reader, std::string(where), problems);
  visit_job(job, fields);
  fields.close();
  if (model_good && job.model.moe) fill_balancing(root, job);
  refuse_unknown_sections(root, reader);
  std::set<std::string, std::less<>> faulty = fields.faulty;
  if (!model_good) faulty.insert("model");
  Checker checker([&](std::string_view key) { return place.where(key, find_path(root, key)); },
                  std::move(faulty), problems);
  validate_job(job, checker, use);
  problems.throw_if_any();
  return job;
}

Job read_job(const std::filesystem::path& path, std::span<const std::string> overrides, JobUse use) {
  return parse_job(read_text(path), path.parent_path(), path.string(), overrides, use);
}

void validate(const Job& job, std::string_view where, Problems& problems) {
  Problems model;
  validate(job.model, fmt::format("{}: model", where), model);
  std::set<std::string, std::less<>> faulty;
  if (!model.empty()) faulty.insert("model");
  problems.append(model);
  Checker checker([&](std::string_view key) { return fmt::format("{}: {}", where, key); }, std::move(faulty),
                  problems);
  validate_job(job, checker, JobUse::plan);
}

std::int64_t element_bytes(Precision precision) {
  switch (precision) {
    case Precision::f32:
      return 4;
    case Precision::f64:
      return 8;
    case Precision::bf16:
    case Precision::fp16:
    case Precision::fp8:
    case Precision::fp8_block:
    case Precision::mxfp8:
    case Precision::nvfp4:
      return 2;
  }
  return 2;
}

bool is_narrow(Precision precision) {
  switch (precision) {
    case Precision::fp8:
    case Precision::fp8_block:
    case Precision::mxfp8:
    case Precision::nvfp4:
      return true;
    case Precision::f32:
    case Precision::f64:
    case Precision::bf16:
    case Precision::fp16:
      return false;
  }
  return false;
}

std::string_view name(Precision precision) {
  for (const auto& [value, word] : EnumNames<Precision>::kAll)
    if (value == precision) return word;
  return "unknown";
}

}  // namespace tessera::spec
