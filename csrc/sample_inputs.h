// The arguments of fused_sample and fused_multinomial, checked and as a plain struct, for any device.
#pragma once

#include <cmath>
#include <optional>

#include "checks.h"
#include "kernels/sample_rules.h"

namespace bark_accel::sample_inputs {

inline void check_noise(const char* op, const Tensor& noise, const Tensor& logits, int64_t first_id) {
  check_device(op, "noise", noise, logits.device());
  check_dim(op, "noise", noise, 2, "[N, V]");
  check_unit_stride(op, "noise", noise);
  BARK_CHECK(noise.scalar_type() == kFloat, op, "expected noise of dtype float32, got ", noise.scalar_type());
  BARK_CHECK(noise.size(0) == logits.size(0), op, "expected noise for ", logits.size(0), " rows, got ",
             noise.size(0));
  BARK_CHECK(noise.size(1) >= first_id + logits.size(1), op, "expected noise for at least ",
             first_id + logits.size(1), " ids, got ", noise.size(1));
}

// The rules as the schemas have them: one entry a row, or one for all rows.
struct RuleTensors {
  const Tensor& allowed;  // [N or 1, 3] int64: begin, end, eos
  const std::optional<Tensor>&min_eos_p, &temperature, &top_k, &top_p;
};

inline void check_rule(const char* op, const char* name, const Tensor& rule, ScalarType dtype, int64_t dims,
                       const Tensor& logits) {
  check_device(op, name, rule, logits.device());
  BARK_CHECK(rule.scalar_type() == dtype && rule.dim() == dims &&
                 (rule.size(0) == 1 || rule.size(0) == logits.size(0)),
             op, "expected ", name, " of dtype ", dtype, ", one entry or ", logits.size(0), ", got ",
             rule.scalar_type(), " of shape ", rule.sizes());
}

inline int64_t row_stride(const Tensor& rule) { return rule.size(0) == 1 ? 0 : rule.stride(0); }

template <class T>
PerRow<T> per_row(const char* op, const char* name, const std::optional<Tensor>& rule, T without,
                  const Tensor& logits) {
  if (!rule) return {nullptr, 0, without};
  check_rule(op, name, *rule, scalar_type_of<T>(), 1, logits);
  return {rule->const_data_ptr<T>(), row_stride(*rule), without};
}

inline PerRow<int64_t> column_of(const Tensor& allowed, int64_t i) {
  return {allowed.const_data_ptr<int64_t>() + i * allowed.stride(1), row_stride(allowed), 0};
}

inline SampleRules read_rules(const char* op, const RuleTensors& from, const Tensor& logits) {
  check_rule(op, "allowed", from.allowed, kLong, 2, logits);
  BARK_CHECK(from.allowed.size(1) == 3, op, "expected allowed of shape [1 or N, 3] (begin, end, eos), got ",
             from.allowed.sizes());
  SampleRules rules{};
  rules.begin = column_of(from.allowed, 0);
  rules.end = column_of(from.allowed, 1);
  rules.eos = column_of(from.allowed, 2);
  rules.min_eos_p = per_row(op, "min_eos_p", from.min_eos_p, 0.0, logits);
  rules.temperature = per_row(op, "temperature", from.temperature, 1.0, logits);
  rules.top_k = per_row<int64_t>(op, "top_k", from.top_k, 0, logits);
  rules.top_p = per_row(op, "top_p", from.top_p, 1.0, logits);
  rules.columns = logits.size(1);
  return rules;
}

inline void check_ids(const char* op, int64_t first_id, int64_t stop, int64_t begin, int64_t end,
                      int64_t eos) {
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

// For implementations that can look at the rules.
inline void check_rows(const char* op, const SampleRules& rules, int64_t first_id, int64_t rows) {
  for (int64_t n = 0; n < rows; ++n) {
    check_ids(op, first_id, first_id + rules.columns, rules.begin.of(n), rules.end.of(n), rules.eos.of(n));
    check_options(op, rules.min_eos_p.of(n), rules.temperature.of(n), rules.top_k.of(n), rules.top_p.of(n));
  }
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

// Everything but the noise and what the rules say of a row, checked.
inline SampleParams checked_params(const char* op, const Tensor& logits, int64_t first_id, bool renormalize) {
  check_dim(op, "logits", logits, 2, "[N, L]");
  check_unit_stride(op, "logits", logits);
  BARK_CHECK(first_id >= 0, op, "expected first_id >= 0, got ", first_id);
  SampleParams p{};
  p.dtype = checked_dtype(op, "logits", logits);
  p.logits = logits.const_data_ptr();
  p.row_stride = logits.stride(0);
  p.first_id = first_id;
  p.renormalize = renormalize;
  return p;
}

constexpr int64_t kMaxDraws = int64_t(1) << 31;

inline void check_vocab_size(const char* op, int64_t vocab_size, int64_t first_id, const Tensor& logits) {
  const int64_t stop = first_id + logits.size(1);
  BARK_CHECK(vocab_size >= stop, op, "expected vocab_size >= ", stop, ", the end of the logits' ids, got ",
             vocab_size);
  const int64_t rows = logits.size(0);
  BARK_CHECK(rows == 0 || vocab_size <= kMaxDraws / rows, op, "expected at most ", kMaxDraws,
             " numbers to draw, got ", rows, " rows of ", vocab_size);
}

}  // namespace bark_accel::sample_inputs
