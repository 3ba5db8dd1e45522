// Numbers with units, read and written: "400 Gb/s", "80 GB", "2 us".
#include "spec/units.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/text.h"

namespace tessera::spec {

namespace {

struct Scale {
  std::string_view name;
  double factor;
};
// The order is that in which a writer tries them.
constexpr std::array<Scale, 9> kPrefixes = {{{"G", 1e9},
                                             {"T", 1e12},
                                             {"M", 1e6},
                                             {"k", 1e3},
                                             {"K", 1e3},
                                             {"Gi", 0x1p30},
                                             {"Mi", 0x1p20},
                                             {"Ti", 0x1p40},
                                             {"Ki", 0x1p10}}};
// Units in a second: dividing by a whole number keeps 5 us equal to 5e-6.
constexpr std::array<Scale, 5> kTimes = {
    {{"us", 1e6}, {"ms", 1e3}, {"ns", 1e9}, {"s", 1.0}, {"\xc2\xb5s", 1e6}}};

struct Written {
  double number = 0.0;
  std::string_view digits;
  std::string_view unit;  // "" for a bare number
};

bool read_number(std::string_view text, Written& out) {
  const std::string_view all = trim(text);
  // from_chars also takes "inf" and "nan".
  if (all.empty() || all.find_first_of("0123456789.") != 0) return false;
  const auto [end, code] = std::from_chars(all.data(), all.data() + all.size(), out.number);
  if (code != std::errc{} || !std::isfinite(out.number)) return false;
  const auto length = static_cast<std::size_t>(end - all.data());
  out.digits = all.substr(0, length);
  out.unit = trim(all.substr(length));
  return true;
}

// 0 when `unit` is not a prefix and one of the ends.
double prefixed(std::string_view unit, std::initializer_list<std::string_view> ends) {
  for (const std::string_view end : ends) {
    if (unit == end) return 1.0;
    for (const Scale& p : kPrefixes)
      if (unit.size() == p.name.size() + end.size() && unit.starts_with(p.name) && unit.ends_with(end))
        return p.factor;
  }
  return 0.0;
}

Reading unreadable(std::string_view text, std::string_view what, std::string_view mend) {
  return {.good = false,
          .what = fmt::format("\"{}\" is not {}", text, what),
          .mend = fmt::format("write a number of 0 or more and its unit, for example {}", mend)};
}

// "450 GB/s (bytes) or 450 Gb/s (bits: 56.25 GB/s)"
std::string both_readings(double number, std::string_view prefix, double factor) {
  const double scale = factor > 0.0 ? factor : 1e9;
  const std::string_view letter = factor > 0.0 ? prefix : "G";
  return fmt::format("write {0} {1}B/s (bytes) or {0} {1}b/s (bits: {2})", number, letter,
                     bandwidth_text(BytesPerSecond(number * scale / 8.0), BandwidthUnit::bytes));
}

// True when `number` is written without an exponent.
bool short_digits(double number, std::string& digits) {
  digits = fmt::format("{}", number);
  return digits.find('e') == std::string::npos;
}

}  // namespace

Reading read_bandwidth(std::string_view text, BytesPerSecond& out) {
  Written w;
  if (!read_number(text, w)) return unreadable(text, "a bandwidth", "450 GB/s (bytes) or 400 Gb/s (bits)");
  const double bytes = prefixed(w.unit, {"B/s", "Bps"});
  const double bits = prefixed(w.unit, {"b/s", "bps", "bit/s"});
  Reading r;
  if (bytes > 0.0 || bits > 0.0) {
    const double value = w.number * (bytes > 0.0 ? bytes : bits / 8.0);
    if (!std::isfinite(value)) return unreadable(text, "a finite bandwidth", "450 GB/s");
    out = BytesPerSecond(value);
    r.bits = bits > 0.0;
  } else if (w.unit.empty()) {
    r.good = false;
    r.what = fmt::format("{} has no unit", w.digits);
    r.mend = both_readings(w.number, "G", 1e9);
  } else {
    const std::string_view prefix = w.unit.substr(0, 1);
    std::string_view letter = "G";
    double factor = 1e9;
    for (const Scale& p : kPrefixes) {
      if (prefix != p.name) continue;
      letter = p.name;
      factor = p.factor;
    }
    r.good = false;
    r.what = fmt::format("\"{}\" is not a unit of bandwidth", w.unit);
    r.mend = both_readings(w.number, letter, factor);
  }
  return r;
}

Reading read_bytes(std::string_view text, Bytes& out) {
  Written w;
  if (!read_number(text, w)) return unreadable(text, "a number of bytes", "80 GB (1e9) or 74.5 GiB (2^30)");
  const double factor = prefixed(w.unit, {"B"});
  Reading r;
  r.good = false;
  if (w.unit.empty()) {
    r.what = fmt::format("{} has no unit", w.digits);
    r.mend = fmt::format("write {0} GB (1e9 bytes) or {0} GiB (2^30 bytes)", w.digits);
    return r;
  }
  if (factor == 0.0) {
    r.what = fmt::format("\"{}\" is not a unit of bytes", w.unit);
    r.mend = fmt::format("use B, kB, MB, GB, TB or KiB, MiB, GiB, TiB, for example {} GB", w.digits);
    return r;
  }
  std::int64_t whole = 0;
  const auto [end, code] = std::from_chars(w.digits.data(), w.digits.data() + w.digits.size(), whole);
  const bool exact = factor == 1.0 && code == std::errc{} && end == w.digits.data() + w.digits.size();
  const double value = w.number * factor;
  if (!exact && !(value < 0x1p62)) {
    r.what = fmt::format("{} {} is more than {} bytes", w.digits, w.unit, std::int64_t{1} << 62);
    r.mend = "check the unit";
    return r;
  }
  out = Bytes(exact ? whole : std::llround(value));
  return {};
}

Reading read_seconds(std::string_view text, Seconds& out) {
  Written w;
  if (!read_number(text, w)) return unreadable(text, "a time", "2 us or 1.5 ms");
  for (const Scale& t : kTimes) {
    if (w.unit != t.name) continue;
    out = Seconds(w.number / t.factor);
    return {};
  }
  if (w.unit.empty()) {
    return {.good = false,
            .what = fmt::format("{} has no unit", w.digits),
            .mend = fmt::format("write {0} us, {0} ms or {0} s", w.digits)};
  }
  return {.good = false,
          .what = fmt::format("\"{}\" is not a unit of time", w.unit),
          .mend = fmt::format("use s, ms, us or ns, for example {} us", w.digits)};
}

std::string bandwidth_text(BytesPerSecond v, BandwidthUnit unit) {
  const bool bits = unit == BandwidthUnit::bits;
  std::string digits;
  for (const Scale& p : kPrefixes) {
    const double scale = bits ? p.factor / 8.0 : p.factor;
    const double number = v.value / scale;
    if (p.name.size() == 1 && p.name != "T" && number * scale == v.value && short_digits(number, digits))
      return fmt::format("{} {}{}", digits, p.name, bits ? "b/s" : "B/s");
  }
  return bits ? bandwidth_text(v, BandwidthUnit::bytes) : fmt::format("{} B/s", v.value);
}

std::string bytes_text(Bytes v) {
  for (const Scale& p : kPrefixes) {
    const auto factor = static_cast<std::int64_t>(p.factor);
    if (v.value != 0 && v.value % factor == 0) return fmt::format("{} {}B", v.value / factor, p.name);
  }
  return fmt::format("{} B", v.value);
}

std::string seconds_text(Seconds v) {
  std::string digits;
  for (const Scale& t : kTimes)
    if (const double number = v.value * t.factor;
        number / t.factor == v.value && short_digits(number, digits))
      return fmt::format("{} {}", digits, t.name);
  return fmt::format("{} s", v.value);
}

namespace {
bool reported(const Reading& r, std::string& problem) {
  if (!r.good) problem = fmt::format("{}; {}", r.what, r.mend);
  return r.good;
}
}  // namespace

bool parse_bandwidth(std::string_view text, BytesPerSecond& out, std::string& problem) {
  return reported(read_bandwidth(text, out), problem);
}
bool parse_bytes(std::string_view text, Bytes& out, std::string& problem) {
  return reported(read_bytes(text, out), problem);
}
bool parse_seconds(std::string_view text, Seconds& out, std::string& problem) {
  return reported(read_seconds(text, out), problem);
}

}  // namespace tessera::spec
