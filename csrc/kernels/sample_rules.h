// The options of the samplers, for all rows alike or for each, where the kernels can read them.
#pragma once

#include "params.h"

#ifndef BARK_BOTH
#define BARK_BOTH inline
#endif

namespace bark_accel {

// values[row * stride], or what is meant by no values.
template <class T>
struct PerRow {
  const T* values;
  int64_t stride;  // 0: one for all rows
  T without;

  BARK_BOTH T of(int64_t row) const { return values ? values[row * stride] : without; }
};

struct SampleRules {
  PerRow<int64_t> begin, end, eos;  // ids; eos -1: none
  PerRow<double> min_eos_p, temperature;
  PerRow<int64_t> top_k;
  PerRow<double> top_p;
  int64_t columns;  // of the logits
};

// `p` with the rules of one row. What lies outside of the logits is not allowed.
BARK_BOTH SampleParams with_rules(SampleParams p, const SampleRules& rules, int64_t row) {
  const int64_t begin = rules.begin.of(row) - p.first_id, end = rules.end.of(row) - p.first_id,
                eos = rules.eos.of(row) - p.first_id;
  const double top_p = rules.top_p.of(row);
  p.begin = begin < 0 ? 0 : begin;
  p.end = end > rules.columns ? rules.columns : end;
  if (p.end < p.begin) p.begin = p.end = 0;
  p.eos = rules.eos.of(row) >= 0 && eos >= 0 && eos < rules.columns ? eos : -1;
  p.min_eos_p = float(rules.min_eos_p.of(row));
  p.temperature = float(rules.temperature.of(row));
  p.top_k = rules.top_k.of(row);
  p.use_top_p = top_p < 1;
  p.top_p_cut = float(1 - top_p);
  return p;
}

}  // namespace bark_accel
