// train, generate, eval, and the data commands.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "cli/definitions.h"

namespace tessera::cli {

namespace {

void add_device(CLI::App& c, std::string& device) {
  c.add_option("--device", device, "Where ranks compute: cpu, or cuda for this machine's GPUs in turn")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
}

void add_train(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.train;
  CLI::App* c =
      add(app, "train", "Run the plan of a job: ranks are threads of this machine, or several processes",
          "tessera train examples/demo/job.yaml --set train.steps=50\n"
          "  mpirun -n 4 tessera train job.yaml\n"
          "  torchrun --no-python --nproc-per-node 4 tessera train job.yaml\n"
          "Keys of a job: docs/formats/job.md, or --print-config for all with their values.",
          f.json);
  c->add_option("job", f.job, "Job file (YAML)")->required();
  c->add_option("--set", f.overrides, "Override a key of the job; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);  // one value each: the job may come behind it
  c->add_option("--start-from", f.start_from,
                "Take the first weights from a Hugging Face folder or a checkpoint");
  add_device(*c, f.device);
  c->add_option("--placement", f.placement,
                "Where experts live: a file of `tessera place` for the job's expert ranks and nodes");
  c->add_option("--rebalance", f.rebalance,
                "Every STEPS, move experts between ranks so that none has far more tokens than the mean")
      ->type_name("STEPS")
      ->check(CLI::Range(std::int64_t{1}, kMost));
  c->add_option("--most-moved", f.most_moved, "Share of a layer's slots that one such move may fill anew")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  c->add_option("--dump-routing", f.dump_routing,
                "Write what the tokens chose: counts and pairs of experts, a file for plan --routing");
  c->add_option("--dump-routing-tokens", f.dump_routing_tokens,
                "Keep every choice of so many last tokens in it")
      ->check(CLI::Range(std::int64_t{0}, kMost));
  c->add_option("--ranks-per-process", f.launch.ranks_per_process,
                "Of several processes: ranks that are threads of each (default 1)")
      ->check(CLI::Range(std::int64_t{1}, kMost));
  c->add_flag("--fast-reductions", f.launch.fast_reductions,
              "Under mpirun: sums by MPI's own algorithms, in an order that may differ from run to run");
  c->add_option("--comm-timeout", f.launch.timeout,
                "Of several processes: seconds that a rank waits for another")
      ->check(CLI::Range(0.1, 1e9))
      ->capture_default_str();
  c->add_option("--lost-after", f.launch.silence,
                "Of several processes: seconds without a sign of life after which a process counts as lost")
      ->check(CLI::Range(0.1, 1e9))
      ->capture_default_str();
  add_rendezvous(*c, f.launch.rendezvous);
  c->add_option("--restarts", f.restarts,
                "When the run dies, start it again from its newest checkpoint, at most so often")
      ->check(CLI::Range(std::int64_t{0}, kMost));
  c->add_option("--launch", f.launcher, "Start the run by this command, as in --launch 'mpirun -n 4'");
  c->add_flag("--show-routing", f.show_routing, "Print the heat map of the experts while training");
  c->add_flag("--dry-run", f.dry_run, "Check the job, print plan and memory per rank, stop");
  c->add_flag("--print-config", f.print_config, "Print the whole job as it will run, stop");
  c->callback([&] { code = train(f, terminal); });
}

void add_profile(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.profile;
  CLI::App* c =
      add(app, "profile", "Time every operation of a training step beside the machine's limits",
          "tessera profile examples/demo/job.yaml\n"
          "Thread ranks train on random tokens; the table is rank 0's. docs/howto/profile-a-step.md",
          f.json);
  c->add_option("job", f.job, "Job file (YAML)")->required();
  c->add_option("--set", f.overrides, "Override a key of the job; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add_device(*c, f.device);
  c->add_option("--steps", f.steps, "Steps that are timed, beside one to warm up")
      ->check(CLI::Range(std::int64_t{1}, kMost))
      ->capture_default_str();
  c->add_option("--most", f.most, "Operations to list, the others in one line (0: all)")
      ->check(CLI::Range(std::int64_t{0}, kMost))
      ->capture_default_str();
  c->callback([&] { code = profile(f, terminal); });
}

void add_ranks(CLI::App& c, RankFlags& f) {
  c.add_option("--tp", f.tp, "Tensor-parallel ranks (threads)")->capture_default_str();
  c.add_option("--ep", f.ep, "Expert-parallel ranks, folded over tp and dp")->capture_default_str();
  c.add_option("--etp", f.etp, "Ranks that cut an expert's width")->capture_default_str();
  c.add_option("--dp", f.dp, "Copies of the dense layers (default: what ep and etp need)");
  add_device(c, f.device);
  c.add_option("--precision", f.precision, "f32, f64, or bf16 on a GPU (default: f32, on a GPU bf16)")
      ->check(CLI::IsMember({"f32", "f64", "bf16"}));
}

void add_sampling(CLI::App& c, GenerateFlags& f) {
  c.add_option("--max-new-tokens", f.max_new_tokens, "Tokens to add")->capture_default_str();
  c.add_option("--temperature", f.temperature, "0 takes the likeliest token")->capture_default_str();
  c.add_option("--top-k", f.top_k, "Candidates per token (0: all)")->capture_default_str();
  c.add_option("--top-p", f.top_p, "Fewest candidates that have this much probability together")
      ->capture_default_str();
  c.add_option("--seed", f.seed, "Of the random choice")->capture_default_str();
  c.add_option("--stop", f.stop, "Text that ends a sequence and is cut off; may be repeated")
      ->allow_extra_args(false);
  c.add_option("--stop-id", f.stop_ids, "Token that ends a sequence; may be repeated")
      ->allow_extra_args(false);
  c.add_flag("--ignore-end", f.ignore_end, "Go on behind the tokenizer's end of text");
}

void add_generate(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.generate;
  CLI::App* c = add(app, "generate", "Continue texts with a trained model",
                    "tessera generate runs/demo/checkpoints --tokenizer runs/demo/tokenizer.model "
                    "--prompt \"It was a truth\"",
                    f.json);
  c->add_option("checkpoint", f.checkpoint, "Checkpoint folder (its newest step) or Hugging Face folder")
      ->required();
  c->add_option("--tokenizer", f.tokenizer,
                "sentencepiece .model, tokenizer.json, or a folder with one (default: the checkpoint's)");
  c->add_option("--prompt", f.prompts, "Text to continue; may be repeated")->allow_extra_args(false);
  c->add_option("--prompts", f.prompts_file, "File with a prompt a line, or JSON lines {\"prompt\": ...}");
  add_sampling(*c, f);
  c->add_option("--context", f.context, "Most tokens of prompt and text (0: the model's positions)")
      ->capture_default_str();
  c->add_flag("--slide", f.slide, "Forget the oldest tokens when the context is full instead of stopping");
  c->add_flag("--begin", f.begin, "Put the tokenizer's begin-of-text token in front of each prompt");
  c->add_option("--batch", f.batch, "Sequences at once (0: all prompts, at most 8)")->capture_default_str();
  c->add_option("--chunk", f.chunk, "Most prompt tokens that go through the model at once")
      ->capture_default_str();
  add_ranks(*c, f.ranks);
  c->add_option("--placement", f.placement,
                "Where experts live, replicas too: a file of `tessera place` for as many GPUs as --ep");
  c->add_flag("--bandwidth", f.bandwidth, "Measure the memory's bandwidth too and print the share in use");
  c->callback([&] { code = generate(f, terminal); });
}

void add_eval(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.evaluate;
  CLI::App* c =
      add(app, "eval", "Score a text with a trained model: loss, perplexity, bits per byte",
          "tessera eval runs/demo/checkpoints text.txt --tokenizer runs/demo/tokenizer.model", f.json);
  c->add_option("checkpoint", f.checkpoint, "Checkpoint folder (its newest step) or Hugging Face folder")
      ->required();
  c->add_option("text", f.text, "UTF-8 text; a form feed ends a document")->required();
  c->add_option("--tokenizer", f.tokenizer,
                "sentencepiece .model, tokenizer.json, or a folder with one (default: the checkpoint's)");
  c->add_option("--context", f.context, "Tokens of a window (0: as trained)")->capture_default_str();
  c->add_option("--stride", f.stride, "Tokens from one window to the next (0: the context)")
      ->capture_default_str();
  c->add_option("--batch", f.batch, "Windows of one replica at once")->capture_default_str();
  c->add_flag("--begin", f.begin, "Put the tokenizer's begin-of-text token in front of each document");
  add_ranks(*c, f.ranks);
  c->callback([&] { code = evaluate(f, terminal); });
}

void add_data(CLI::App& app, AllFlags& all, int& code) {
  auto& v = all.convert;
  CLI::App* convert = add(app, "convert", "Hugging Face folder <-> Tessera checkpoint",
                          "tessera convert runs/demo/checkpoints hf-model", v.json);
  convert->add_option("from", v.from, "Checkpoint folder or Hugging Face folder")->required();
  convert->add_option("to", v.to, "Folder to write; must not exist")->required();
  convert->add_option("--upcycle", v.upcycle,
                      "Make a mixture of experts of a dense model, as a Hugging Face folder: "
                      "experts=8,top_k=2[,noise=0.01][,seed=1]");
  convert->callback([&] { code = cli::convert(v); });
  auto& t = all.tokenize;
  CLI::App* tokenize =
      add(app, "tokenize", "Text to a Megatron token file, with a trained or given tokenizer",
          "tessera tokenize text.txt --vocab-size 4096 --tokenizer t.model --output tokens", t.json);
  tokenize->add_option("text", t.text, "UTF-8 text; a form feed ends a document")->required();
  tokenize
      ->add_option(
          "--tokenizer", t.tokenizer,
          "sentencepiece .model, tokenizer.json or a folder with one; with --vocab-size the .model to write")
      ->required();
  tokenize->add_option("--vocab-size", t.vocab_size, "Train a tokenizer of this size first")
      ->check(CLI::Range(std::int64_t{1}, kMost));
  tokenize->add_option("--output", t.output, "Prefix of the .bin and .idx written")->required();
  tokenize->callback([&] { code = cli::tokenize(t); });
}

}  // namespace

void add_rendezvous(CLI::App& c, RendezvousFlags& f) {
  c.add_option("--rdzv-endpoint", f.endpoint,
               "Of processes started by hand: where they meet, a host and port of process 0")
      ->type_name("HOST:PORT");
  c.add_option("--rank", f.rank, "Of processes started by hand: which one this is, from 0")
      ->check(CLI::Range(std::int64_t{0}, kMost));
  c.add_option("--world-size", f.world_size, "Of processes started by hand: how many there are")
      ->check(CLI::Range(std::int64_t{1}, kMost));
  c.add_option("--local-rank", f.local_rank,
               "Of processes started by hand: which one of this host, for its GPU (default: counted)")
      ->check(CLI::Range(std::int64_t{0}, kMost));
  c.add_option("--rdzv-id", f.id,
               "A word that all processes of one job have; keeps jobs apart, is no secret");
  c.add_option("--bind-address", f.bind,
               "Where process 0 listens, where that is not the endpoint's host; 0.0.0.0: everywhere")
      ->type_name("ADDRESS");
  c.add_option("--rdzv-timeout", f.timeout, "Seconds until all processes must be there")
      ->check(CLI::Range(0.1, 1e9))
      ->capture_default_str();
}

CLI::App* add(CLI::App& app, const char* name, const char* what, const char* example, bool& json) {
  CLI::App* command = app.add_subcommand(name, what);
  command->footer(std::string("Example:\n  ") + example);
  command->add_flag("--json", json, "Machine-readable output");
  return command;
}

void add_training(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  add_train(app, all, terminal, code);
  add_profile(app, all, terminal, code);
  add_generate(app, all, terminal, code);
  add_eval(app, all, terminal, code);
  add_data(app, all, code);
}

}  // namespace tessera::cli
