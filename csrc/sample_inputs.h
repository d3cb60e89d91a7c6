// The arguments of fused_sample and fused_multinomial, checked and as a plain struct, for any device.
#pragma once

#include <cmath>

#include "checks.h"

namespace bark_accel::sample_inputs {

inline void check_noise(const char* op, const at::Tensor& noise, const at::Tensor& logits, int64_t first_id) {
  check_device(op, "noise", noise, logits.device());
  check_dim(op, "noise", noise, 2, "[N, V]");
  check_unit_stride(op, "noise", noise);
  BARK_CHECK(noise.scalar_type() == at::kFloat, op, "expected noise of dtype float32, got ",
             noise.scalar_type());
  BARK_CHECK(noise.size(0) == logits.size(0), op, "expected noise for ", logits.size(0), " rows, got ",
             noise.size(0));
  BARK_CHECK(noise.size(1) >= first_id + logits.size(1), op, "expected noise for at least ",
             first_id + logits.size(1), " ids, got ", noise.size(1));
}

inline void check_ids(const char* op, const at::Tensor& logits, int64_t first_id, int64_t begin, int64_t end,
                      int64_t eos) {
  const int64_t stop = first_id + logits.size(1);
  BARK_CHECK(first_id >= 0, op, "expected first_id >= 0, got ", first_id);
  BARK_CHECK(first_id <= begin && begin < end && end <= stop, op,
             "expected a non-empty allowed range inside [", first_id, ", ", stop, "), got [", begin, ", ",
             end, ")");
  BARK_CHECK(eos < 0 || (first_id <= eos && eos < stop), op, "expected eos_id -1 or inside [", first_id, ", ",
             stop, "), got ", eos);
}

inline void check_options(const char* op, double min_eos_p, double temperature, int64_t top_k, double top_p) {
  BARK_CHECK(min_eos_p >= 0, op, "expected min_eos_p >= 0 (0: off), got ", min_eos_p);
  BARK_CHECK(float(temperature) > 0 && std::isfinite(temperature), op,
             "expected a finite temperature > 0, got ", temperature);
  BARK_CHECK(top_k >= 0, op, "expected top_k >= 0 (0: off), got ", top_k);
  BARK_CHECK(top_p >= 0 && top_p <= 1, op, "expected top_p in [0, 1] (1: off), got ", top_p);
}

inline void raise_bad_rows(const char* op, const int64_t* ids, int64_t rows) {
  for (int64_t n = 0; n < rows; ++n) {
    BARK_CHECK(ids[n] != -int64_t(SampleStatus::kNotFinite), op,
               "expected allowed logits without NaN or +inf, also after the division by temperature, got one "
               "in row ",
               n);
    BARK_CHECK(ids[n] != -int64_t(SampleStatus::kAllMasked), op,
               "expected at least one allowed logit above -inf, got none in row ", n);
    BARK_CHECK(ids[n] != -int64_t(SampleStatus::kBadNoise), op,
               "expected noise > 0 (torch.Tensor.exponential_), got none in row ", n);
  }
}

// Everything but the noise, checked.
inline SampleParams checked_params(const char* op, const at::Tensor& logits, int64_t first_id,
                                   int64_t allowed_begin, int64_t allowed_end, int64_t eos_id,
                                   double min_eos_p, double temperature, int64_t top_k, double top_p,
                                   bool renormalize) {
  check_dim(op, "logits", logits, 2, "[N, L]");
  check_unit_stride(op, "logits", logits);
  check_no_grad(op, "logits", logits);
  SampleParams p{};
  p.dtype = checked_dtype(op, "logits", logits);
  check_ids(op, logits, first_id, allowed_begin, allowed_end, eos_id);
  check_options(op, min_eos_p, temperature, top_k, top_p);
  p.logits = logits.const_data_ptr();
  p.row_stride = logits.stride(0);
  p.first_id = first_id;
  p.begin = allowed_begin - first_id;
  p.end = allowed_end - first_id;
  p.eos = eos_id < 0 ? -1 : eos_id - first_id;
  p.min_eos_p = float(min_eos_p);
  p.temperature = float(temperature);
  p.top_k = top_k;
  p.use_top_p = top_p < 1;
  p.top_p_cut = float(1 - top_p);
  p.renormalize = renormalize;
  return p;
}

}  // namespace bark_accel::sample_inputs
