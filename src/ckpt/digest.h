// XXH3 with 128 bits (https://github.com/Cyan4973/xxHash), as 32 hexadecimal digits. One thread at a time.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace tessera::ckpt {

class Digest {
 public:
  Digest();
  ~Digest();
  Digest(Digest&&) noexcept;
  Digest& operator=(Digest&&) noexcept;
  void update(std::span<const std::byte> bytes);
  [[nodiscard]] std::string hex() const;  // of everything so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

[[nodiscard]] std::string digest_of(std::span<const std::byte> bytes);
[[nodiscard]] std::string digest_of(std::string_view text);

}  // namespace tessera::ckpt
