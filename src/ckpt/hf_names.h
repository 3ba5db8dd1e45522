// How the files of a family hold the engine's tensors: under the same names, or fused, transposed and
// interleaved. One table; every form is an affine view of a tensor of the file, so reading, writing and any
// rectangle of either go through the same two numbers an axis.
//
//   for (const HfTensor& t : hf_tensors(model))      // in the order in which files are written
//     for (const HfPart& p : t.parts) ...            // together they hold every element of t exactly once
//
// Thread rule: pure functions.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/safetensors.h"
#include "layout/layout.h"

namespace tessera::ckpt {

// Element (row, column) of an engine tensor is element offset + row * stride[0] + column * stride[1] of the
// file's, row-major.
struct HfView {
  std::int64_t offset = 0;
  std::array<std::int64_t, 2> stride{1, 1};
  friend bool operator==(const HfView&, const HfView&) = default;
};

struct HfPart {
  layout::ParamSpec param;  // of the whole model: one rank that holds everything
  HfView view;
};

struct HfTensor {
  std::string name;                 // as on the Hub, for gpt2 without the prefix "transformer."
  std::vector<std::int64_t> shape;  // of the whole tensor
  std::vector<HfPart> parts;
  [[nodiscard]] std::int64_t num_elements() const;
};

// What the whole model consists of, as the engine names it: every parameter and buffer once, without tied
// copies. Error{config} for a model that the engine does not train.
[[nodiscard]] std::vector<layout::ParamSpec> model_parameters(const spec::ModelSpec& model);
// The same as the family's files hold it.
[[nodiscard]] std::vector<HfTensor> hf_tensors(const spec::ModelSpec& model);

// The name without a prefix that some files of the family have.
[[nodiscard]] std::string_view without_prefix(spec::Family family, std::string_view name);
// Tensors that models compute themselves: rotary frequencies of old files, the causal masks of gpt2.
[[nodiscard]] bool is_computed(spec::Family family, std::string_view name);
// Of a layer of multi-token prediction, which the engine leaves out.
[[nodiscard]] bool is_mtp(const spec::ModelSpec& model, std::string_view name);
// Of the two tensors of an MTP layer that repeat one of the main model, its name; else empty.
[[nodiscard]] std::string_view mtp_copy_of(const spec::ModelSpec& model, std::string_view name);

// Fills `to` (contiguous f32 or f64, wanted.size elements) with the rectangle `wanted` of the engine tensor
// that `view` finds in the bytes of a file's tensor.
void gather(const HfView& view, StoredType type, const std::byte* from, const layout::Slice& wanted,
            const Tensor& to);
// The other way, for a whole engine tensor [rows, columns] in f32 and a file's tensor in F32.
void scatter(const HfView& view, std::array<std::int64_t, 2> shape, const float* from, float* to);

}  // namespace tessera::ckpt
