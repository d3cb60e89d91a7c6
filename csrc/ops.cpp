// Every op schema, and the module that loads them. Implementations register themselves in cpu/.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>
#include <torch/version.h>

#include <map>

#include "cpu/isa.h"
#include "cpu/lazy_noise.h"
#ifdef BARK_ACCEL_CUDA_ARCHS
#include "cuda/bind.h"
#else
#define BARK_ACCEL_CUDA_ARCHS "none"
#define BARK_ACCEL_WITHOUT_CUDA
#endif

TORCH_LIBRARY(bark_accel, m) {
  m.def(
      "fused_sample(Tensor logits, Tensor? noise, int first_id, Tensor allowed, Tensor? min_eos_p=None, "
      "Tensor? temperature=None, Tensor? top_k=None, Tensor? top_p=None, bool renormalize=True) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "fused_multinomial(Tensor logits, Generator? generator, int vocab_size, int first_id, Tensor allowed, "
      "Tensor? min_eos_p=None, Tensor? temperature=None, Tensor? top_k=None, Tensor? top_p=None, "
      "bool renormalize=True) -> Tensor",
      {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
  m.def("codebook_embedding_sum(Tensor codes, Tensor[] tables, Tensor positions) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "static_cache_attention(Tensor query, Tensor key, Tensor value, Tensor(a!) key_cache, "
      "Tensor(b!) value_cache, Tensor length) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "decode_step(Tensor ids, Tensor token_table, Tensor positions, Tensor?[] weights, float[] eps, Tensor "
      "head, "
      "Tensor? head_scales, int num_heads, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor length) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "int16_linear(Tensor input, Tensor weight, Tensor? scales=None, Tensor? bias=None, bool gelu=False) -> "
      "Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "int8_linear(Tensor input, Tensor weight, Tensor scales, Tensor? bias=None, bool gelu=False) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "float32_linear(Tensor input, Tensor weight, Tensor? bias=None, Tensor? residual=None, bool "
      "gelu=False) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("float32_attention(Tensor query, Tensor key, Tensor value, bool causal=False) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def("int16_attention(Tensor query, Tensor key, Tensor value, bool causal=False) -> Tensor",
        {at::Tag::pt2_compliant_tag});
}

PYBIND11_MODULE(_C, m) {
  m.def("build_info", [] {
    return std::map<std::string, std::string>{
        {"torch", TORCH_VERSION}, {"compiler", __VERSION__}, {"cuda", BARK_ACCEL_CUDA_ARCHS}};
  });
  m.def("isa", [] { return std::string(bark_accel::kernels().name); });
  m.def("available_isas", &bark_accel::available_isas);
  m.def("set_isa", &bark_accel::set_isa);
  m.def("release_memory", &bark_accel::release_memory);
  m.def("lazy_noise", &bark_accel::lazy_noise);
  m.def("set_lazy_noise", &bark_accel::set_lazy_noise);
#ifndef BARK_ACCEL_WITHOUT_CUDA
  m.def("cuda_stream", &bark_accel::cuda_stream);
  m.def("set_dependent_launch", &bark_accel::set_dependent_launch);
#endif
}
