#include "ckpt/digest.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <new>

namespace tessera::ckpt {

struct Digest::State {
  XXH3_state_t* state = XXH3_createState();  // aligned as the library needs it
  State() {
    if (state == nullptr) throw std::bad_alloc();
    XXH3_128bits_reset(state);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { XXH3_freeState(state); }
};

namespace {
std::string hex_of(XXH128_hash_t hash) {
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}
}  // namespace

Digest::Digest() : state_(std::make_unique<State>()) {}
Digest::~Digest() = default;
Digest::Digest(Digest&&) noexcept = default;
Digest& Digest::operator=(Digest&&) noexcept = default;

void Digest::update(std::span<const std::byte> bytes) {
  if (!bytes.empty()) XXH3_128bits_update(state_->state, bytes.data(), bytes.size());
}

std::string Digest::hex() const {
  return hex_of(XXH3_128bits_digest(state_->state));
}

std::string digest_of(std::span<const std::byte> bytes) {
  return hex_of(XXH3_128bits(bytes.data(), bytes.size()));
}

std::string digest_of(std::string_view text) {
  return digest_of(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

}  // namespace tessera::ckpt
