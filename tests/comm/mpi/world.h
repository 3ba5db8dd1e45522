// The one world of a test program that mpirun starts, and what its tests need to see the other processes.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>

#include "comm/message/process_world.h"

namespace tessera::comm {

// Made by mpi_main before any test; gone after the last one.
inline std::unique_ptr<ProcessWorld>& mpi_world() {
  static std::unique_ptr<ProcessWorld> world;
  return world;
}

// A number that the processes of one host share. All of them make the same ones in the same order.
class SharedCount {
 public:
  SharedCount() {
    static int made = 0;
    path_ = "/dev/shm/tessera-test-" + std::to_string(::getppid()) + "-" + std::to_string(made++);
    const int file = ::open(path_.c_str(), O_CREAT | O_RDWR, 0600);
    EXPECT_GE(file, 0);
    EXPECT_EQ(::ftruncate(file, sizeof(std::atomic<std::int64_t>)), 0);
    memory_ = ::mmap(nullptr, sizeof(std::atomic<std::int64_t>), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    ::close(file);
    EXPECT_NE(memory_, MAP_FAILED);
  }
  ~SharedCount() {
    ::munmap(memory_, sizeof(std::atomic<std::int64_t>));
    if (mpi_world()->process() == 0) ::unlink(path_.c_str());
  }
  SharedCount(const SharedCount&) = delete;
  SharedCount& operator=(const SharedCount&) = delete;
  std::int64_t load() const { return count().load(); }
  void fetch_add(std::int64_t n) { count().fetch_add(n); }
  void operator+=(std::int64_t n) { count().fetch_add(n); }

 private:
  std::atomic<std::int64_t>& count() const { return *static_cast<std::atomic<std::int64_t>*>(memory_); }
  std::string path_;
  void* memory_ = nullptr;
};

}  // namespace tessera::comm
