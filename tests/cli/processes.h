// The processes below one, as the kernel lists them. For tests that kill some and look for orphans.
#pragma once
#include <dirent.h>
#include <sys/types.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "cli/program.h"

namespace tessera::cli {

struct Process {
  pid_t id = 0;
  std::string name;  // "tessera", "mpirun"
};

// Zombies are none.
inline std::vector<Process> processes_below(pid_t root) {
  struct Entry {
    pid_t parent;
    std::string name;
  };
  std::map<pid_t, Entry> all;
  std::error_code code;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", code)) {
    const pid_t id = std::atoi(entry.path().filename().c_str());
    if (id <= 0) continue;
    std::string text = text_of(entry.path() / "stat");
    const std::size_t open = text.find('('), close = text.rfind(')');
    if (open == std::string::npos || close == std::string::npos) continue;  // it has ended
    std::istringstream rest(text.substr(close + 1));
    char state = 0;
    pid_t parent = 0;
    rest >> state >> parent;
    if (state != 'Z') all[id] = {parent, text.substr(open + 1, close - open - 1)};
  }
  std::vector<Process> below;
  for (const auto& [id, entry] : all) {
    pid_t at = entry.parent;
    while (at > 1 && at != root && all.contains(at)) at = all[at].parent;
    if (at == root) below.push_back({id, entry.name});
  }
  return below;
}

inline bool is_running(pid_t id) {
  std::string text = text_of("/proc/" + std::to_string(id) + "/stat");
  const std::size_t close = text.rfind(')');
  return close != std::string::npos && close + 2 < text.size() && text[close + 2] != 'Z';
}

}  // namespace tessera::cli
