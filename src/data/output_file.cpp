#include "data/output_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/file.h"

namespace tessera::data {

namespace {
constexpr std::size_t kBufferBytes = 1 << 20;

[[noreturn]] void fail(std::string_view action, const std::filesystem::path& path) {
  throw Error(ErrorKind::io, fmt::format("cannot {}: {}", action, std::strerror(errno)), path.string(),
              "check that the folder exists, is writable and has space");
}
}  // namespace

OutputFile::OutputFile(std::filesystem::path path) : path_(std::move(path)), aside_(path_) {
  aside_ += fmt::format(".tmp{}", ::getpid());
  fd_ = ::open(aside_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("create", aside_);
  buffer_.reserve(kBufferBytes);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!committed_) ::unlink(aside_.c_str());
}

void OutputFile::write(std::span<const std::byte> bytes) {
  TESSERA_CHECK(fd_ >= 0, "no writing after finish()");
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  bytes_written_ += static_cast<std::int64_t>(bytes.size());
  if (buffer_.size() >= kBufferBytes) flush();
}

void OutputFile::flush() {
  std::size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write", aside_);
    done += static_cast<std::size_t>(n);
  }
  buffer_.clear();
}

void OutputFile::finish() {
  if (fd_ < 0) return;
  flush();
  if (::fsync(fd_) != 0) fail("fsync", aside_);
  ::close(std::exchange(fd_, -1));
}

void OutputFile::commit() {
  finish();
  if (::rename(aside_.c_str(), path_.c_str()) != 0) fail("rename to", path_);
  committed_ = true;
  const std::filesystem::path folder = path_.parent_path();
  fsync_path(folder.empty() ? std::filesystem::path(".") : folder);
}

}  // namespace tessera::data
