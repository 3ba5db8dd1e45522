// Numbers with units in files of this room. Readers take a number and a unit with an SI or binary prefix: B/s
// or Bps are bytes, b/s, bps or bit/s are bits; nothing is guessed. Writers find the shortest text that reads
// back to the same value. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "base/quantity.h"
#include "spec/cluster.h"

namespace tessera::spec {

struct Reading {
  bool good = true;
  bool bits = false;  // a bandwidth that was written in bits
  std::string what;   // the fault and how to mend it, when not good; the value is then left alone
  std::string mend;
};
[[nodiscard]] Reading read_bandwidth(std::string_view text, BytesPerSecond& out);
[[nodiscard]] Reading read_bytes(std::string_view text, Bytes& out);
[[nodiscard]] Reading read_seconds(std::string_view text, Seconds& out);

enum class BandwidthUnit : std::uint8_t { bytes, bits };
[[nodiscard]] std::string bandwidth_text(BytesPerSecond v, BandwidthUnit unit);  // "450 GB/s", "400 Gb/s"
[[nodiscard]] std::string bytes_text(Bytes v);                                   // "80 GB"
[[nodiscard]] std::string seconds_text(Seconds v);                               // "2 us"

}  // namespace tessera::spec
