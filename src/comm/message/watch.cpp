#include "comm/message/watch.h"

#include <fmt/format.h>
#include <signal.h>

#include <cerrno>
#include <fstream>
#include <string>

namespace tessera::comm::message {

Life life_of(std::int64_t pid) {
  if (::kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return Life::dead;
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string line;
  std::getline(file, line);
  // "pid (name) state ...": the name may hold anything, also brackets.
  const std::size_t end = line.rfind(") ");
  if (end == std::string::npos || end + 2 >= line.size()) return Life::runs;
  const char state = line[end + 2];
  if (state == 'Z' || state == 'X') return Life::dead;
  return state == 'T' || state == 't' ? Life::stopped : Life::runs;
}

}  // namespace tessera::comm::message
