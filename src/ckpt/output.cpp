// OutputFile and OutputFolder of step_folder.h.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "ckpt/step_folder.h"

namespace tessera::ckpt {

namespace {

[[noreturn]] void fail(std::string_view action, const std::filesystem::path& path, int code) {
  const bool full = code == ENOSPC || code == EDQUOT || code == EFBIG;
  const bool gone = code == ENOENT || code == ENOTDIR;
  const char* mend = full   ? "free some disk space; earlier checkpoints are untouched"
                     : gone ? "restore the folder, or give another one"
                            : "check that the folder is there, writable and on a working disk";
  throw Error(ErrorKind::io, fmt::format("cannot {}: {}", action, std::strerror(code)), path.string(), mend);
}

// Small enough to be hashed and written out of the cache.
constexpr std::size_t kChunkBytes = std::size_t{1} << 20;

std::filesystem::path parent_of(const std::filesystem::path& path) {
  const std::filesystem::path parent = path.parent_path();
  return parent.empty() ? std::filesystem::path(".") : parent;
}

}  // namespace

OutputFile::OutputFile(std::filesystem::path path) : path_(std::move(path)) {
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) fail("create", path_, errno);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
}

void OutputFile::write(std::span<const std::byte> bytes) {
  TESSERA_CHECK(fd_ >= 0, "no writing after finish()");
  while (!bytes.empty()) {
    const std::span<const std::byte> chunk = bytes.first(std::min(bytes.size(), kChunkBytes));
    digest_.update(chunk);
    std::size_t done = 0;
    while (done < chunk.size()) {
      const ssize_t n = ::write(fd_, chunk.data() + done, chunk.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("write", path_, errno);
      done += static_cast<std::size_t>(n);
    }
    bytes_written_ += static_cast<std::int64_t>(chunk.size());
    bytes = bytes.subspan(chunk.size());
  }
}

void OutputFile::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

void OutputFile::finish() {
  if (::fsync(fd_) != 0) fail("fsync", path_, errno);
  // Some file systems report a failed write here only.
  if (::close(std::exchange(fd_, -1)) != 0) fail("close", path_, errno);
}

OutputFolder::OutputFolder(const std::filesystem::path& path, IfPresent if_present)
    : path_(path.has_filename() ? path : path.parent_path()),  // without a slash at the end
      aside_(path_),
      if_present_(if_present) {
  std::error_code code;
  if (if_present == IfPresent::refuse && std::filesystem::exists(path_, code) &&
      !std::filesystem::is_empty(path_, code))
    refuse();  // before the work
  aside_ += fmt::format(".tmp{}", ::getpid());
  std::filesystem::remove_all(aside_, code);  // of an earlier process that had this number
  if (code) fail("remove", aside_, code.value());
  std::filesystem::create_directory(aside_, code);
  if (code) fail("create", aside_, code.value());
}

OutputFolder::OutputFolder(const std::filesystem::path& path, Shared shared)
    : path_(path), aside_(path), if_present_(IfPresent::replace) {
  aside_ += fmt::format(".tmp{}", shared.owner);
  std::error_code code;
  std::filesystem::create_directory(aside_, code);
  if (code) fail("create", aside_, code.value());
}

OutputFolder::~OutputFolder() {
  std::error_code ignored;  // left over, it is removed by the next writer
  if (!committed_) std::filesystem::remove_all(aside_, ignored);
}

void OutputFolder::refuse() const {
  throw Error(ErrorKind::io, "the folder exists already", path_.string(),
              "give a new folder, or remove this one first");
}

void OutputFolder::commit() {
  fsync_path(aside_);
  const bool renamed = ::rename(aside_.c_str(), path_.c_str()) == 0;  // also over an empty folder
  if (!renamed) {
    if (errno != ENOTEMPTY && errno != EEXIST) fail("rename to", path_, errno);
    if (if_present_ == IfPresent::refuse) refuse();
    // In one step, so that no moment is without this checkpoint.
    if (::renameat2(AT_FDCWD, aside_.c_str(), AT_FDCWD, path_.c_str(), RENAME_EXCHANGE) != 0)
      fail("exchange with the folder that is there", path_, errno);
  }
  fsync_path(parent_of(path_));
  committed_ = renamed;  // else `aside` is the old folder now and goes away with this object
}

}  // namespace tessera::ckpt
