// Functions of vectors: exponential, error function, and the activations that are made of them.
#pragma once

#include "vec.h"

namespace bark_accel::BARK_ACCEL_ISA {

// e^x within about 1 ulp; 0 below -87.3 (so also for -inf), NaN stays NaN. Cephes' polynomial.
inline VecF vexp(VecF x) {
  const VecF low = splat(-87.3f), high = splat(88.7f);
  VecF y = x < low ? low : x;
  y = y > high ? high : y;
  const VecF magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const VecF shifted = y * 1.44269504088896341f + magic;
  const VecF n = shifted - magic;
  const VecF r = (y - n * 0.693359375f) - n * -2.12194440e-4f;
  VecF p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const VecF power = (VecF)(((VecI)shifted + (127 - 0x4b400000)) << 23);
  const VecF result = p * power;
  return x < low ? VecF{} : result;
}

inline VecF velu(VecF x) { return x > 0.0f ? x : vexp(x) - 1.0f; }

// Within 1e-7 both.
inline VecF vsigmoid(VecF x) { return 1.0f / (1.0f + vexp(-x)); }
inline VecF vtanh(VecF x) { return 1.0f - 2.0f / (vexp(2.0f * x) + 1.0f); }

// Error function within 1.5e-7: two polynomials, fitted to erf(x) / x on [0, 1) and -log(erfc(x)) on [1, 4].
inline VecF verf(VecF x) {
  const VecF magnitude = vabs(x);
  const VecF a = magnitude > 4.0f ? splat(4.0f) : magnitude;
  const VecF u = a * a;
  VecF small = splat(7.882497448e-05f);
  small = small * u + -8.018855006e-04f;
  small = small * u + 5.189312156e-03f;
  small = small * u + -2.685432881e-02f;
  small = small * u + 1.128359735e-01f;
  small = small * u + -3.761262596e-01f;
  small = small * u + 1.128379107e+00f;
  VecF q = splat(-1.614061603e-06f);
  q = q * a + 4.559062290e-05f;
  q = q * a + -5.927695311e-04f;
  q = q * a + 4.740222357e-03f;
  q = q * a + -2.636471763e-02f;
  q = q * a + 1.099782437e-01f;
  q = q * a + 6.319370866e-01f;
  q = q * a + 1.130166650e+00f;
  q = q * a + -3.032132990e-04f;
  const VecF large = 1.0f - vexp(-q);
  const VecF result = magnitude < 1.0f ? a * small : large;
  // The sign of x, and NaN stays NaN.
  const VecI sign = (VecI)x & VecI(VecI{} + INT32_MIN);
  return x != x ? x : (VecF)((VecI)result | sign);
}

// x * Phi(x), the exact GELU
inline VecF vgelu(VecF x) { return 0.5f * x * (1.0f + verf(x * 0.707106781186547524f)); }

}  // namespace bark_accel::BARK_ACCEL_ISA
