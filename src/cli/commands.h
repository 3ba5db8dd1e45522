// The commands behind the `tessera` program: each takes parsed flags and returns an exit code
// (report_error.h). Errors are thrown and printed by main. Only this room prints.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/launch.h"
#include "report/terminal.h"

namespace tessera::cli {

struct Terminal {  // of standard output; read once in main
  report::Style style;
  bool interactive = false;  // a person watches: progress may rewrite its line
};

struct TrainFlags {
  std::string job;
  std::vector<std::string> overrides;  // "train.steps=50"
  std::string start_from;              // Hugging Face folder or checkpoint
  std::string device = "cpu";          // or cuda
  std::string placement;               // file of `tessera place`
  std::int64_t rebalance = 0;          // steps between two moves of experts; 0: they stay
  double most_moved = 1.0;             // share of a layer's slots that one move may fill anew
  std::string dump_routing;            // file to write; docs/formats/routing.md
  std::int64_t dump_routing_tokens = 0;
  bool show_routing = false;  // the heat map while training
  LaunchFlags launch;
  std::int32_t restarts = 0;           // of a run that dies
  std::string launcher;                // "mpirun -n 4"; empty: the run is this process, or its child
  std::vector<std::string> arguments;  // as given, the command's name first
  bool dry_run = false;                // plan and memory, no training
  bool print_config = false;
  bool json = false;
};
int train(const TrainFlags& flags, const Terminal& terminal);

struct RankFlags {  // how a model is spread over thread ranks of this machine
  std::int32_t tp = 1, ep = 1, etp = 1;
  std::int32_t dp = 0;  // 0: the fewest that ep and etp need
  std::string device = "cpu";
  std::string precision;  // empty: f32, on a GPU bf16
};

struct GenerateFlags {
  std::string checkpoint;  // Tessera checkpoint (folder of one or of several) or Hugging Face folder
  std::string tokenizer;   // empty: the checkpoint's folder
  std::vector<std::string> prompts;
  std::string prompts_file;  // a prompt a line, or JSON lines
  std::int64_t max_new_tokens = 100;
  std::int64_t context = 0;  // 0: the model's positions, as far as prompts and new tokens need them
  double temperature = 0.8;
  std::int64_t top_k = 40;
  double top_p = 1.0;
  std::uint64_t seed = 1;
  std::vector<std::string> stop;       // texts
  std::vector<std::int32_t> stop_ids;  // besides the tokenizer's end of text
  bool ignore_end = false;             // go on behind the end of text
  bool begin = false;                  // put the tokenizer's begin of text in front
  bool slide = false;                  // forget the oldest tokens when the context is full
  std::int64_t batch = 0;              // sequences at once; 0: all prompts, at most 8
  std::int64_t chunk = 256;
  RankFlags ranks;
  std::string placement;  // where experts live; empty: in order
  bool bandwidth = false;
  bool json = false;
};
int generate(const GenerateFlags& flags, const Terminal& terminal);

struct EvaluateFlags {
  std::string checkpoint, text, tokenizer;
  std::int64_t context = 0;  // 0: what the checkpoint was trained with, at most 1024
  std::int64_t stride = 0;   // 0: context
  std::int64_t batch = 1;
  bool begin = false;  // begin-of-text in front of each document
  RankFlags ranks;
  bool json = false;
};
int evaluate(const EvaluateFlags& flags, const Terminal& terminal);

struct ConvertFlags {
  std::string from, to;
  std::string upcycle;  // "experts=8,top_k=2[,noise=..][,seed=..]": write a mixture of experts
  bool json = false;
};
int convert(const ConvertFlags& flags);

struct TokenizeFlags {
  std::string text;
  std::string tokenizer;        // existing model, or where the trained one goes
  std::int64_t vocab_size = 0;  // > 0: train the tokenizer
  std::string output;           // prefix of .bin and .idx
  bool json = false;
};
int tokenize(const TokenizeFlags& flags);

struct ScheduleFlags {
  std::string kind = "1f1b";
  std::int32_t pp = 4, vpp = 0, microbatches = 8;
  double forward = 1.0, backward_input = 1.0, backward_weight = 1.0;
  bool lowered = false;
  bool text = false;  // the text form instead of the picture
  bool json = false;
};
int schedule(const ScheduleFlags& flags, const Terminal& terminal);

struct SimulateFlags {
  std::string plan;     // plan.json or job.yaml
  std::string cluster;  // preset or YAML; behind the plan, or --cluster
  std::string cluster_flag;
  std::vector<std::string> overrides;  // of a job.yaml
  std::string model;                   // preset or config.json: the layout comes from the flags below
  std::optional<std::int32_t> devices, tp, cp, pp, vpp, dp, ep, etp, micro_batch_size, zero_stage;
  std::optional<std::int64_t> global_batch_size, sequence_length;
  std::optional<double> capacity_factor;
  bool no_sequence_parallel = false;
  std::string precision, schedule, recompute, order;
  std::string practice, routing, placement, calibration;
  std::vector<std::string> stragglers;  // "0=1.2"
  bool shared_links = false;
  std::string trace;  // file to write
  std::string trace_detail = "segments";
  bool what_if = false;  // the table of single changes
  std::string against;   // another layout: "tp=8,pp=4"
  bool json = false;
};
int simulate(const SimulateFlags& flags, const Terminal& terminal);

struct ValidateFlags {
  std::string runs;                    // CSV of measured runs, as validation/README.md describes
  std::string csv, svg;                // files to write: one line a row, the scatter plot
  std::string calibrations;            // folder of calibration files beside the shipped ones
  std::string write_calibrations;      // folder for the fitted ones
  std::vector<std::string> constants;  // to fit; empty: all
  std::string folds;                   // "", source, model
  std::int32_t threads = 0;            // 0: all cores
  bool fit = false;
  bool from_shipped = false;  // fit from the calibration files instead of neutral values
  bool markdown = false;
  bool json = false;
};
int validate_runs(const ValidateFlags& flags);

}  // namespace tessera::cli
