#include "frameworks/interpret.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/text.h"

namespace tessera::frameworks {

namespace {

// Degrees that the framework has no argument for, before anything is computed of them.
void take_degrees(std::span<const Carried> carried, spec::ParallelSpec& p) {
  for (const Carried& c : carried) {
    for (const auto& [key, member] : {std::pair{"parallel.tp", &spec::ParallelSpec::tp},
                                      {"parallel.cp", &spec::ParallelSpec::cp},
                                      {"parallel.pp", &spec::ParallelSpec::pp},
                                      {"parallel.ep", &spec::ParallelSpec::ep},
                                      {"parallel.etp", &spec::ParallelSpec::etp},
                                      {"parallel.vpp", &spec::ParallelSpec::vpp}}) {
      std::int32_t v = 0;
      const auto [end, code] = std::from_chars(c.value.data(), c.value.data() + c.value.size(), v);
      if (c.key == key && code == std::errc() && v >= 1 && v <= (1 << 20)) p.*member = v;
    }
  }
}

void take_sequence(std::span<const Carried> carried, spec::Recipe& t) {
  for (const Carried& c : carried) {
    std::int64_t v = 0;
    const auto [end, code] = std::from_chars(c.value.data(), c.value.data() + c.value.size(), v);
    if (c.key == "train.sequence_length" && code == std::errc() && v > 0) t.sequence_length = v;
  }
}

void interpret_arguments(Framework f, Arguments& args, Interpretation& in) {
  spec::Recipe& t = in.launch.job.train;
  t.steps = 1;
  // What the model itself says, where the file does not.
  if (in.launch.job.model.moe && f != Framework::megatron)
    t.moe.aux_loss_coef = in.launch.job.model.moe->router_aux_loss_coef;
  switch (f) {
    case Framework::torchtitan:
      interpret_torchtitan(args, in);
      break;
    case Framework::deepspeed:
      interpret_deepspeed(args, in);
      break;
    case Framework::megatron:
    case Framework::megatron_bridge:
    case Framework::nemo:
      interpret_megatron(args, in);
      break;
  }
  const graph::Practice& w = in.launch.practice;
  t.overlap_grad_reduce = w.grad_overlap;
  t.overlap_param_gather = w.param_overlap;
  in.launch.job.parallel.overlap_p2p_comm = w.p2p_overlap;
  in.launch.job.parallel.tp_comm_overlap = w.tp_overlap;
  if (w.cp_all_to_all != w.name.ends_with("+ulysses"))
    in.launch.practice.name = w.cp_all_to_all ? w.name + "+ulysses" : w.name.substr(0, w.name.size() - 8);
}

}  // namespace

std::string as_json(const spec::Value& v) {
  std::string out;
  for (const std::string& line : split(spec::to_json(v), '\n')) out += std::string(trim(line)) + " ";
  return std::string(trim(out));
}

void interpret(Framework f, Arguments& args, std::span<const Carried> carried, std::string_view file,
               Interpretation& in) {
  take_degrees(carried, in.launch.job.parallel);
  take_sequence(carried, in.launch.job.train);
  interpret_arguments(f, args, in);
  args.refuse_contradictions(in.problems);
  in.problems.throw_if_any();
  if (carried.empty()) {
    spec::validate(in.launch.job, file, in.problems);
  } else {
    apply(carried, file, in.launch, in.problems);
  }
  in.problems.throw_if_any();
}

Launch as_read(Framework f, const Settings& settings, const Launch& want) {
  Arguments args("", "--");
  for (const Setting& s : settings.list) args.add({.name = s.name, .values = s.values});
  Interpretation in{.launch = {.job = {}, .practice = want.practice, .machine = want.machine},
                    .devices = want.job.parallel.world_size(),
                    .problems = {},
                    .notes = {}};
  in.launch.practice = graph::practice(want.practice.name);
  in.launch.machine.zero_group = 0;
  in.launch.job.model = want.job.model;
  in.launch.job.data = want.job.data;
  interpret_arguments(f, args, in);
  return std::move(in.launch);
}

void complete_batch(Arguments& args, const BatchNames& names, const Batch& batch, Interpretation& in) {
  spec::ParallelSpec& p = in.launch.job.parallel;
  spec::Recipe& t = in.launch.job.train;
  const std::int64_t inner = std::int64_t{p.tp} * p.cp * p.pp;
  t.micro_batch_size = batch.micro;
  t.global_batch_size = batch.global;
  if (in.devices < 1) {
    in.problems.add("the file does not say on how many devices it runs", args.file(),
                    "say it with --devices");
    return;
  }
  if (inner < 1 || in.devices % inner != 0) {
    in.problems.add(fmt::format("tp {} x cp {} x pp {} = {} does not divide {} devices", p.tp, p.cp, p.pp,
                                inner, in.devices),
                    args.where(names.tp),
                    "choose degrees whose product divides the devices, or other --devices");
    return;
  }
  p.dp = static_cast<std::int32_t>(in.devices / inner);
  if (!args.has(names.micro_batch) && batch.micro < 1) {
    in.problems.add(fmt::format("{} is not given", args.spelt(names.micro_batch)), args.file(), "add it");
    return;
  }
  if (batch.micro < 1 || batch.global < 0 || batch.micro > (1 << 30)) {
    in.problems.add(fmt::format("a micro-batch of {} sequences, a batch of {}", batch.micro, batch.global),
                    args.where(names.micro_batch), "use whole numbers from 1 on");
    return;
  }
  const std::int64_t together = batch.micro * p.dp;
  if (batch.global == 0) t.global_batch_size = together;
  if (t.global_batch_size % together != 0) {
    in.problems.add(fmt::format("micro-batch {} x dp {} = {} does not divide the batch of {}", batch.micro,
                                p.dp, together, t.global_batch_size),
                    args.where(names.global_batch), fmt::format("use a multiple of {}", together));
  }
}

}  // namespace tessera::frameworks
