#include "cudalib/gemm.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"

namespace tessera::cudalib {
namespace {

using tensor::DType;
constexpr const char* kWhere = "product by cuBLASLt";

std::string_view name_of(GemmPass pass) {
  switch (pass) {
    case GemmPass::forward:
      return "forward";
    case GemmPass::input_gradient:
      return "input_gradient";
    case GemmPass::weight_gradient:
      return "weight_gradient";
  }
  TESSERA_CHECK(false, "a pass");
  return "";
}

void check_shape(const GemmShape& s) {
  Problems problems;
  for (const auto& [what, value] : {std::pair{"rows", s.rows}, {"outputs", s.outputs}, {"inputs", s.inputs}})
    if (value < 1) problems.add(fmt::format("{}={}", what, value), kWhere, "use at least 1");
  const bool floating = s.in == DType::bf16 || s.in == DType::f32 || s.in == DType::f64;
  if (!floating || (s.out != s.in && !(s.in == DType::bf16 && s.out == DType::f32)))
    problems.add(fmt::format("no product of {} factors with a result of {}", name(s.in), name(s.out)), kWhere,
                 "use bf16 factors with a bf16 or f32 result, or f32 or f64 throughout");
  problems.throw_if_any();
}

}  // namespace

std::string GemmShape::text() const {
  return fmt::format("{} T={} N={} K={} {}>{} {}", name_of(pass), rows, outputs, inputs, name(in), name(out),
                     write == kernels::Write::overwrite ? "overwrite" : "accumulate");
}

GemmLayout gemm_layout(const GemmShape& s) {
  check_shape(s);
  // Stored: x[T, K] is K x T, w[N, K] is K x N, y[T, N] is N x T.
  const std::int64_t T = s.rows;
  const std::int64_t N = s.outputs;
  const std::int64_t K = s.inputs;
  const auto x = [&](bool transposed) { return StoredMatrix{GemmOperand::x, transposed, K, T, K}; };
  const auto w = [&](bool transposed) { return StoredMatrix{GemmOperand::w, transposed, K, N, K}; };
  const auto y = [&](bool transposed) { return StoredMatrix{GemmOperand::y, transposed, N, T, N}; };
  switch (s.pass) {
    case GemmPass::forward:
      return {.a = w(true), .b = x(false), .d = y(false)};
    case GemmPass::input_gradient:
      return {.a = w(false), .b = y(false), .d = x(false)};
    case GemmPass::weight_gradient:
      return {.a = x(false), .b = y(true), .d = w(false)};
  }
  TESSERA_CHECK(false, "a pass");
  return {};
}

std::string GemmTable::to_text() const {
  nlohmann::ordered_json value;
  value["format"] = 1;
  value["gpu"] = gpu;
  value["cublaslt_version"] = version;
  value["algorithms"] = nlohmann::ordered_json::object();
  for (const auto& [shape, words] : algorithms) {
    std::string hex;
    for (const std::uint64_t word : words) hex += fmt::format("{:016x}", word);
    value["algorithms"][shape] = hex;
  }
  return value.dump(1) + "\n";
}

GemmTable GemmTable::from_text(std::string_view text) {
  constexpr const char* kFile = "table of products";
  constexpr const char* kMend = "delete the file: the products are timed again";
  try {
    const auto value = nlohmann::json::parse(text);
    if (value.at("format").get<std::int64_t>() != 1)
      throw Error(ErrorKind::config, fmt::format("format {}, known is 1", value["format"].dump()), kFile,
                  kMend);
    GemmTable table{.gpu = value.at("gpu").get<std::string>(),
                    .version = value.at("cublaslt_version").get<std::int64_t>(),
                    .algorithms = {}};
    for (const auto& [shape, hex] : value.at("algorithms").items()) {
      const auto digits = hex.get<std::string>();
      if (digits.size() != 128 || digits.find_first_not_of("0123456789abcdef") != std::string::npos)
        throw Error(ErrorKind::config,
                    fmt::format("the algorithm of '{}' is not 128 hexadecimal digits", shape), kFile, kMend);
      GemmAlgorithm words{};
      for (std::size_t i = 0; i < words.size(); ++i)
        words[i] = std::stoull(digits.substr(i * 16, 16), nullptr, 16);
      table.algorithms[shape] = words;
    }
    return table;
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorKind::config, fmt::format("not a table of products: {}", e.what()), kFile, kMend);
  }
}

bool GemmTable::valid_for(std::string_view gpu_name, std::int64_t library) const {
  return gpu == gpu_name && version == library;
}

}  // namespace tessera::cudalib
