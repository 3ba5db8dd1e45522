// safetensors files (https://github.com/huggingface/safetensors, "Format"): 8 bytes little-endian header
// length N, N bytes of JSON, then the tensors' row-major bytes without gap. Reading maps the file and checks
// the whole header: names, types, shapes and offsets that tile the data exactly; anything else is Error{io}
// naming the file and the fault.
//
//   const SafetensorsFile file("expected.safetensors");
//   const std::vector<double> logits = to_f64(file.at("logits"));
//
// Thread rule: a SafetensorsFile is constant after construction.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/file.h"
#include "tensor/tensor.h"

namespace tessera::ckpt {

using tensor::Tensor;

enum class StoredType : std::uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean };
[[nodiscard]] std::int64_t size_of(StoredType type);   // bytes of one element
[[nodiscard]] std::string_view name(StoredType type);  // as in the header: "F32"
[[nodiscard]] StoredType stored_type(tensor::DType dtype);

struct StoredTensor {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<std::int64_t> shape;   // empty: a scalar
  std::span<const std::byte> bytes;  // need not be aligned
  [[nodiscard]] std::int64_t num_elements() const;
};

using Metadata = std::vector<std::pair<std::string, std::string>>;

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  SafetensorsFile(std::filesystem::path path, MappedFile map);  // a file that is mapped already
  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] const std::vector<StoredTensor>& tensors() const {
    return tensors_;
  }  // in the order of the data
  [[nodiscard]] const Metadata& metadata() const { return metadata_; }
  [[nodiscard]] const StoredTensor* find(std::string_view name) const;  // nullptr: no such tensor
  [[nodiscard]] const StoredTensor& at(std::string_view name) const;    // Error{io} with the nearest name
  [[nodiscard]] std::span<const std::byte> bytes() const { return map_.bytes(); }  // the whole file

 private:
  std::filesystem::path path_;
  MappedFile map_;
  std::vector<StoredTensor> tensors_;
  Metadata metadata_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
};

// Writes beside the target, fsyncs and renames. tensors are written in this order; name, type, shape and
// bytes count.
void write_safetensors(const std::filesystem::path& path, std::span<const StoredTensor> tensors,
                       const Metadata& metadata = {});
// Length field and JSON of such a file, for those who stream the data themselves; bytes are not looked at.
// Padded so that the data begin at a multiple of 64.
[[nodiscard]] std::string safetensors_header(std::span<const StoredTensor> tensors, const Metadata& metadata);

// The elements as another type; Error{unsupported} for integers as floats and the other way.
[[nodiscard]] std::vector<double> to_f64(const StoredTensor& tensor);
[[nodiscard]] std::vector<std::int64_t> to_i64(
    const StoredTensor& tensor);  // from I64, I32, I16, I8, U8, BOOL
// `count` elements of `type` (a float type) at `from` to f32 or f64 at `to`. Same type: the same bits.
void convert(StoredType type, const std::byte* from, tensor::DType to_type, std::byte* to,
             std::int64_t count);

}  // namespace tessera::ckpt
