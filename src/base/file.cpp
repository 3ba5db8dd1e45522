#include "base/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace tessera {

namespace {
[[noreturn]] void fail(std::string_view action, const std::filesystem::path& path) {
  const int code = errno;
  const char* mend = code == ENOENT   ? "check the path"
                     : code == EACCES ? "check the permissions"
                     : code == ENOSPC ? "free some disk space"
                                      : "check the file and its folder";
  throw Error(ErrorKind::io, fmt::format("cannot {}: {}", action, std::strerror(code)), path.string(), mend);
}

struct Fd {
  int fd;
  explicit Fd(int f) : fd(f) {}
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() {
    if (fd >= 0) ::close(fd);
  }
};
}  // namespace

std::string read_text(const std::filesystem::path& path) {
  const Fd f(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (f.fd < 0) fail("open", path);
  std::string out;
  std::string buffer(1 << 16, '\0');
  while (true) {
    const ssize_t n = ::read(f.fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("read", path);
    if (n == 0) return out;
    out.append(buffer.data(), static_cast<std::size_t>(n));
  }
}

void fsync_path(const std::filesystem::path& path) {
  const Fd f(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (f.fd < 0) fail("open for fsync", path);
  if (::fsync(f.fd) != 0) fail("fsync", path);
}

namespace {
void write_all(int fd, std::string_view content, const std::filesystem::path& path) {
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t n = ::write(fd, content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("write", path);
    done += static_cast<std::size_t>(n);
  }
  if (::fsync(fd) != 0) fail("fsync", path);
}
}  // namespace

void write_atomically(const std::filesystem::path& path, std::string_view content) {
  std::filesystem::path aside = path;
  aside += fmt::format(".tmp{}", ::getpid());
  try {
    const Fd f(::open(aside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
    if (f.fd < 0) fail("create", aside);
    write_all(f.fd, content, aside);
    if (::rename(aside.c_str(), path.c_str()) != 0) fail("rename to", path);
  } catch (const Error&) {
    ::unlink(aside.c_str());
    throw;
  }
  const std::filesystem::path folder = path.parent_path();
  fsync_path(folder.empty() ? std::filesystem::path(".") : folder);
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const Fd f(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (f.fd < 0) fail("open", path);
  struct stat info {};
  if (::fstat(f.fd, &info) != 0) fail("stat", path);
  if (!S_ISREG(info.st_mode)) {
    throw Error(ErrorKind::io, "not a regular file", path.string(), "give the path of a file");
  }
  size_ = static_cast<std::size_t>(info.st_size);
  if (size_ == 0) return;
  void* p = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, f.fd, 0);
  if (p == MAP_FAILED) fail("map", path);
  data_ = static_cast<const std::byte*>(p);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

}  // namespace tessera
