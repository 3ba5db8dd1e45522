// Rows for tests: a complete run, to be changed where a test needs it.
#pragma once
#include <string>

#include "validate/row.h"

namespace tessera::validate {

// Llama-3-like 70B on 64 H100, tp 4 pp 4 vpp 5 dp 4.
inline Row good_row() {
  Row r;
  r.id = "own-1";
  r.model = "Llama3-70B";
  r.gpu = "H100";
  r.framework = "NeMo/Megatron-Core";
  r.precision = "BF16";
  r.layers = 80;
  r.hidden = 8192;
  r.ffn_hidden = 28672;
  r.heads = 64;
  r.kv_heads = 8;
  r.vocab = 128256;
  r.seq_len = 8192;
  r.gpus = 64;
  r.gpus_per_node = 8;
  r.gbs = 128;
  r.mbs = 1;
  r.tp = 4;
  r.pp = 4;
  r.vpp = 5;
  r.cp = 1;
  r.dp = 4;
  r.zero = "optimizer-sharded";
  r.recompute = "none";
  r.sp = "y";
  r.step_time_s = 14.66;
  r.quality = Quality::a;
  return r;
}

}  // namespace tessera::validate
