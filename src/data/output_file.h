// A file written piece by piece that appears under its name only when it is complete.
//
//   OutputFile out("tokens.bin");
//   out.write(bytes);
//   out.commit();
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace tessera::data {

// Writes beside the target (one process, one writer per target). Errors are Error{io} with the path and
// errno's text.
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path path);
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();  // without commit(): nothing is left of it

  void write(std::span<const std::byte> bytes);
  void finish();  // flushes and fsyncs; the file is complete but still aside
  void commit();  // finish(), renames over the target, fsyncs the folder
  [[nodiscard]] std::int64_t bytes_written() const { return bytes_written_; }

 private:
  void flush();
  std::filesystem::path path_;
  std::filesystem::path aside_;
  std::vector<std::byte> buffer_;
  std::int64_t bytes_written_ = 0;
  int fd_ = -1;
  bool committed_ = false;
};

}  // namespace tessera::data
