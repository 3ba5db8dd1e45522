// Settings as the text of each framework's own format.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "base/text.h"
#include "frameworks/interpret.h"

namespace tessera::frameworks {

namespace {

// What the file says beside the settings.
struct Beside {
  std::vector<std::string> about, notes;
  std::vector<Carried> carried;
};

Settings settings_of(Framework f, const Launch& l) {
  switch (f) {
    case Framework::megatron:
      return megatron_settings(l);
    case Framework::torchtitan:
      return torchtitan_settings(l);
    case Framework::deepspeed:
      return deepspeed_settings(l);
    case Framework::megatron_bridge:
    case Framework::nemo:
      break;
  }
  Settings out = as_fields(megatron_settings(l), f);
  const bool nemo = f == Framework::nemo;
  const std::string model = nemo ? "model.config." : "model.";
  const std::string strategy = nemo ? "trainer.strategy." : "model.";
  if (l.job.parallel.vpp > 1)
    out.number("", strategy + "virtual_pipeline_model_parallel_size", l.job.parallel.vpp);
  out.number("", model + "vocab_size", l.job.model.vocab_size);
  return out;
}

// The framework whose arguments a framework's are: notes and carried lines follow from them.
Framework base_of(Framework f) {
  return f == Framework::megatron_bridge || f == Framework::nemo ? Framework::megatron : f;
}

std::vector<std::string> notes_of(Framework f, const std::vector<Carried>& carried, const Launch& l) {
  std::vector<std::string> out;
  for (const Carried& c : carried) {
    std::string text = why_carried(f, c, l);
    if (!text.empty() && std::ranges::find(out, text) == out.end()) out.push_back(std::move(text));
  }
  return out;
}

// Lines of comment, at most so wide.
std::string comment(std::string_view text) {
  constexpr std::size_t kWidth = 105;
  std::string out, line;
  const auto flush = [&] {
    if (!line.empty()) out += "# " + line + "\n";
    line.clear();
  };
  for (const std::string& word : split(text, ' ')) {
    if (!line.empty() && line.size() + 1 + word.size() > kWidth) {
      flush();
      line = "  ";
    }
    line += (line.empty() || line == "  " ? "" : " ") + word;
  }
  flush();
  return out;
}

std::string head(Framework f, const Beside& b) {
  std::string out;
  for (const std::string& a : b.about) out += comment(a);
  out += comment(fmt::format("Arguments of {}, {}.", title(f), argument_list(f).version));
  if (!b.notes.empty()) out += "#\n# Not told to " + std::string(title(f)) + ":\n";
  for (const std::string& n : b.notes) out += comment("- " + n);
  out += "#\n# Read back by Tessera:\n";
  for (const Carried& c : b.carried) out += fmt::format("# tessera: {} = {}\n", c.key, c.value);
  return out;
}

std::string shell_quoted(const std::string& text) {
  const bool plain = !text.empty() && text.find_first_not_of(
                                          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                          "._,/:+=-") == std::string::npos;
  if (plain) return text;
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

struct Nodes {
  std::int32_t nodes = 1, each = 1;
};
Nodes nodes_of(const Launch& l) {
  const std::int32_t world = l.job.parallel.world_size();
  const std::int32_t each = std::gcd(world, std::max(1, l.machine.devices_per_node));
  return {world / each, each};
}

std::string script(const Settings& s, const Launch& l, const Beside& b) {
  const Nodes n = nodes_of(l);
  std::string out = "#!/usr/bin/env bash\n" + head(Framework::megatron, b) + "set -euo pipefail\n\n";
  const spec::ParallelSpec& p = l.job.parallel;
  if ((p.tp > 1 || p.cp > 1) && l.job.train.zero_stage < 2)
    out +=
        "export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}  # needed before Blackwell\n";
  out += fmt::format("NNODES={}\nGPUS_PER_NODE={}\n", n.nodes, n.each);
  out +=
      "NODE_RANK=${NODE_RANK:-0}\nMASTER_ADDR=${MASTER_ADDR:-localhost}\nMASTER_PORT=${MASTER_PORT:-6000}\n";
  out += fmt::format("TRAIN_ITERS=${{TRAIN_ITERS:-{}}}\n\n", l.job.train.steps);
  std::vector<std::string> arrays;
  for (const Setting& one : s.list) {
    if (std::ranges::find(arrays, one.section) == arrays.end()) arrays.push_back(one.section);
  }
  for (const std::string& array : arrays) {
    out += array + "=(\n";
    for (const Setting& one : s.list) {
      if (one.section != array) continue;
      out += "  --" + one.name;
      for (const std::string& v : one.values)
        out += one.name == "train-iters" ? " \"$TRAIN_ITERS\"" : " " + shell_quoted(v);
      out += "\n";
    }
    out += ")\n";
  }
  out += fmt::format(
      "# Made-up data: put your own in its place. The tokenizer adds one word to its size.\nDATA_ARGS=(\n  "
      "--mock-data\n  --tokenizer-type "
      "NullTokenizer\n"
      "  --vocab-size {}\n)\n\n",
      l.job.model.vocab_size - 1);
  out +=
      "torchrun --nproc-per-node \"$GPUS_PER_NODE\" --nnodes \"$NNODES\" --node-rank \"$NODE_RANK\" \\\n"
      "  --master-addr \"$MASTER_ADDR\" --master-port \"$MASTER_PORT\" \\\n  pretrain_gpt.py";
  for (const std::string& array : arrays) out += fmt::format(" \"${{{}[@]}}\"", array);
  return out + " \"${DATA_ARGS[@]}\" \"$@\"\n";
}

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("-+.0123456789e") == std::string::npos && text != "e";
}

std::string value_text(const Setting& s, std::string_view yes, std::string_view no) {
  const auto item = [](const std::string& v) { return is_number(v) ? v : in_quotes(v); };
  switch (s.kind) {
    case ValueKind::flag:
      return std::string(yes);
    case ValueKind::boolean:
      return std::string(s.values.front() == "true" ? yes : no);
    case ValueKind::number:
      return s.values.front();
    case ValueKind::text:
      return in_quotes(s.values.front());
    case ValueKind::list:
    case ValueKind::lists:
      break;
  }
  std::vector<std::string> items;
  for (const std::string& v : s.values) {
    if (s.kind == ValueKind::list) {
      items.push_back(item(v));
      continue;
    }
    std::vector<std::string> inner;
    for (const std::string& word : split(v, ',')) inner.push_back(item(word));
    items.push_back("[" + join(inner, ", ") + "]");
  }
  return "[" + join(items, ", ") + "]";
}

std::string parent_of(const std::string& path) {
  const std::size_t dot = path.rfind('.');
  return dot == std::string::npos ? "" : path.substr(0, dot);
}
std::string leaf_of(const std::string& path) {
  return path.substr(path.rfind('.') + 1);
}

std::string toml(const Settings& s, const Launch& l, const Beside& b) {
  const Nodes n = nodes_of(l);
  std::string out = head(Framework::torchtitan, b);
  out += fmt::format(
      "#\n# torchrun --nproc_per_node={} --nnodes={} -m torchtitan.train --job.config_file FILE\n", n.each,
      n.nodes);
  std::vector<std::string> tables;
  for (const Setting& one : s.list) {
    if (std::ranges::find(tables, parent_of(one.name)) == tables.end()) tables.push_back(parent_of(one.name));
  }
  for (const std::string& table : tables) {
    out += fmt::format("\n[{}]\n", table);
    for (const Setting& one : s.list) {
      if (parent_of(one.name) == table)
        out += fmt::format("{} = {}\n", leaf_of(one.name), value_text(one, "true", "false"));
    }
  }
  return out;
}

// A tree of settings in the order of their first mention.
struct Branch {
  std::vector<std::pair<std::string, Branch>> children;
  std::string value;
  Branch& at(const std::string& name) {
    for (auto& [key, child] : children) {
      if (key == name) return child;
    }
    return children.emplace_back(name, Branch{}).second;
  }
};
Branch tree_of(const Settings& s, std::string_view yes, std::string_view no) {
  Branch root;
  for (const Setting& one : s.list) {
    Branch* at = &root;
    for (const std::string& part : split(one.name, '.')) at = &at->at(part);
    at->value = value_text(one, yes, no);
  }
  return root;
}

void print_json(const Branch& b, std::int32_t depth, std::string& out) {
  const std::string indent(static_cast<std::size_t>(2 * depth), ' ');
  for (std::size_t i = 0; i < b.children.size(); ++i) {
    const auto& [key, child] = b.children[i];
    out += indent + in_quotes(key) + ": ";
    if (child.children.empty()) {
      out += child.value;
    } else {
      out += "{\n";
      print_json(child, depth + 1, out);
      out += indent + "}";
    }
    out += i + 1 < b.children.size() ? ",\n" : "\n";
  }
}

std::string json(const Settings& s, const Beside& b) {
  Branch root = tree_of(s, "true", "false");
  Branch& own = root.at("tessera");
  const auto list = [](const std::vector<std::string>& lines) {
    std::vector<std::string> items;
    for (const std::string& line : lines) items.push_back("\n      " + in_quotes(line));
    return "[" + join(items, ",") + (items.empty() ? "]" : "\n    ]");
  };
  own.at("about").value = list(b.about);
  own.at("notes").value = list(b.notes);
  for (const Carried& c : b.carried) own.at(c.key).value = c.value;
  std::string out = "{\n";
  print_json(root, 1, out);
  return out + "}\n";
}

void print_yaml(const Branch& b, std::int32_t depth, std::string& out) {
  const std::string indent(static_cast<std::size_t>(2 * depth), ' ');
  for (const auto& [key, child] : b.children) {
    out += indent + key + ":" + (child.children.empty() ? " " + child.value : "") + "\n";
    print_yaml(child, depth + 1, out);
  }
}

std::string yaml(const Settings& s, const Launch& l, const Beside& b) {
  const Nodes n = nodes_of(l);
  std::string out = head(Framework::megatron_bridge, b);
  out += fmt::format(
      "#\n# Overrides of a recipe's ConfigContainer: torchrun --nproc-per-node {} --nnodes {} PRETRAIN.py "
      "--config-file FILE\n",
      n.each, n.nodes);
  print_yaml(tree_of(s, "true", "false"), 0, out);
  return out;
}

std::string python(const Settings& s, const Launch& l, const Beside& b) {
  const Nodes n = nodes_of(l);
  std::string out = head(Framework::nemo, b);
  out +=
      "#\n# recipe: a nemo_run.Partial of nemo.collections.llm, such as "
      "llm.llama3_70b.pretrain_recipe(...).\n\n\n"
      "def apply_plan(recipe):\n";
  out += fmt::format("    recipe.trainer.num_nodes = {}\n    recipe.trainer.devices = {}\n", n.nodes, n.each);
  for (const Setting& one : s.list)
    out += fmt::format("    recipe.{} = {}\n", one.name, value_text(one, "True", "False"));
  return out + "    return recipe\n";
}

}  // namespace

Written write(Framework f, const Launch& launch, const WriteOptions& options) {
  const Framework base = base_of(f);
  const Settings settings = settings_of(f, launch);
  std::vector<Carried> carried = differences(launch, as_read(base, settings_of(base, launch), launch));
  Written out{.text = {}, .notes = settings.notes};
  for (std::string& n : notes_of(f, carried, launch)) out.notes.push_back(std::move(n));
  Beside beside{.about = options.about, .notes = out.notes, .carried = {}};
  if (launch.job.train.steps <= 1 && f != Framework::deepspeed)
    beside.about.emplace_back("How long to train is yours to say: the steps stand at 1.");
  if (base != Framework::megatron)
    beside.carried.push_back({"devices", std::to_string(launch.job.parallel.world_size())});
  beside.carried.push_back({"practice", in_quotes(launch.practice.name)});
  beside.carried.insert(beside.carried.end(), carried.begin(), carried.end());
  switch (f) {
    case Framework::megatron:
      out.text = script(settings, launch, beside);
      break;
    case Framework::megatron_bridge:
      out.text = yaml(settings, launch, beside);
      break;
    case Framework::torchtitan:
      out.text = toml(settings, launch, beside);
      break;
    case Framework::deepspeed:
      out.text = json(settings, beside);
      break;
    case Framework::nemo:
      out.text = python(settings, launch, beside);
      break;
  }
  return out;
}

}  // namespace tessera::frameworks
