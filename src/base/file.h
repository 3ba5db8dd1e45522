// Files: whole reads, crash-safe whole writes, read-only memory maps. All throw Error{io} with the path and
// errno's text.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace tessera {

[[nodiscard]] std::string read_text(const std::filesystem::path& path);

// Writes beside the target, fsyncs, renames over it and fsyncs the folder: readers see the old or the new
// file, never half.
void write_atomically(const std::filesystem::path& path, std::string_view content);

void fsync_path(const std::filesystem::path& path);  // a file or a folder

// A whole file, mapped read-only. Movable; the view lives as long as the object.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();
  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace tessera
