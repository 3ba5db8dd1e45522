// The only main: arguments, the terminal, errors and exit codes.
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "cli/definitions.h"
#include "cli/report_error.h"

namespace {

using tessera::cli::Terminal;

Terminal read_terminal() {
  Terminal t;
  t.style.width = 100;
  if (tessera::cli::has_launcher()) return t;  // what looks like a terminal is a pipe of the launcher
  t.interactive = ::isatty(STDOUT_FILENO) == 1;
  winsize size{};
  const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  if (known) t.style.width = std::max<std::int32_t>(40, size.ws_col);
  t.style.color = t.interactive && std::getenv("NO_COLOR") == nullptr;
  return t;
}

std::vector<std::string> names_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* c : app.get_subcommands({})) names.push_back(c->get_name());
  return names;
}

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* o : app.get_options()) {
    for (const std::string& name : o->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

// What the parser says, with the nearest known word and where to read more.
tessera::Error wrong_use(const CLI::App& app, const CLI::ParseError& e,
                         const std::vector<std::string>& args) {
  using tessera::ErrorKind;
  const std::vector<std::string> commands = names_of(app);
  if (args.empty()) {
    return {ErrorKind::config, "no command is given", "tessera",
            "use one of " + tessera::join(commands, ", ") + "; tessera --help tells what they do"};
  }
  const auto parsed = app.get_subcommands();
  if (parsed.empty()) {
    const std::string near = tessera::nearest(args[0], commands);
    return {ErrorKind::config, "there is no command or flag \"" + args[0] + "\"", "tessera " + args[0],
            near.empty() ? "use one of " + tessera::join(commands, ", ") : "did you mean " + near + "?"};
  }
  const CLI::App& command = *parsed.front();
  const std::string help = "tessera " + command.get_name() + " --help lists the arguments";
  for (const std::string& arg : command.remaining()) {
    const std::string near = tessera::nearest(arg, flags_of(command));
    const bool flag = arg.starts_with("-");
    return {ErrorKind::config, (flag ? "unknown flag \"" : "one argument too many: \"") + arg + "\"",
            "tessera " + command.get_name(), near.empty() ? help : "did you mean " + near + "? " + help};
  }
  return {ErrorKind::config, e.what(), "tessera " + command.get_name(), help};
}

int run(int argc, char** argv) {
  CLI::App app{"Tessera trains dense and mixture-of-experts language models in 4D parallelism", "tessera"};
  app.require_subcommand(1);
  app.set_version_flag("--version", TESSERA_VERSION);
  app.footer("Exit codes: 0 good, 1 failed, 2 wrong use; of train also 3 diverged, 75 left on request.");
  tessera::cli::AllFlags all;
  all.train.arguments.assign(argv + 1, argv + argc);
  const Terminal terminal = read_terminal();
  int code = 0;
  tessera::cli::add_training(app, all, terminal, code);
  tessera::cli::add_planning(app, all, terminal, code);
  tessera::cli::add_sizing(app, all, terminal, code);
  tessera::cli::add_experts(app, all, terminal, code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // help and version
    throw wrong_use(app, e, std::vector<std::string>(argv + 1, argv + argc));
  }
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (...) {
    // Most likely the first process tells the same, and the launcher ends this one meanwhile.
    if (!tessera::cli::seems_first()) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    return tessera::cli::print_error(tessera::cli::as_error(std::current_exception()));
  }
}
