#include "cli/report_error.h"

#include <cstdio>
#include <filesystem>
#include <new>
#include <string>
#include <vector>

namespace tessera::cli {

namespace {

// What every rank was doing explains a wait that never ended or a defect; beside a full disk it is noise.
bool is_worth_a_line(const Problem& p, ErrorKind kind) {
  return kind == ErrorKind::comm || kind == ErrorKind::internal || !p.what.starts_with("states of the ranks");
}

}  // namespace

Error as_error(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Error& e) {
    return e;
  } catch (const std::filesystem::filesystem_error& e) {
    return {ErrorKind::io, e.code().message(), e.path1().string(),
            "check the path, its permissions and the free space"};
  } catch (const std::bad_alloc&) {
    return {ErrorKind::io, "out of memory", "tessera",
            "use a smaller model, micro-batch or context; train --dry-run shows the memory per rank"};
  } catch (const std::exception& e) {
    return {ErrorKind::internal, e.what(), "", "please report it with the command and the input"};
  } catch (...) {
    return {ErrorKind::internal, "an exception of an unknown type", "", "please report it with the command"};
  }
}

int print_error(const Error& error) {
  std::vector<Problem> problems;
  for (const Problem& p : error.problems())
    if (is_worth_a_line(p, error.kind())) problems.push_back(p);
  std::fprintf(stderr, "tessera: %s%s\n", std::string(name(error.kind())).c_str(),
               problems.size() > 1 ? (" (" + std::to_string(problems.size()) + " problems)").c_str() : "");
  std::fprintf(stderr, "%s\n", Error(error.kind(), problems).what());
  return error.kind() == ErrorKind::config ? kWrongUse : kFailed;
}

}  // namespace tessera::cli
