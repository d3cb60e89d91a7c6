// Sums of csrc/cuda/codebook_embedding_sum.cuh against double precision.
#include "codebook_embedding_sum.cuh"

#include "model.h"

namespace {

using namespace bark_accel;
using namespace bark_accel::cuda;
using namespace support;

void embedding_sums(Run& run) {
  const int64_t batch = run.integer(1, 3), frames = run.size(40), tables = run.integer(1, 8),
                width = run.size(300);
  const int64_t codebooks = tables + run.integer(0, 2), vocabulary = run.integer(1, 40);
  std::vector<Matrix> held;
  CodebookEmbeddingSumParams p{};
  for (int64_t k = 0; k < tables; ++k) {
    held.push_back(Matrix::random(run, vocabulary, width, DType::kFloat16, false));
    p.tables[k] = held.back().storage.data();
    p.table_strides[k] = width;
  }
  const Matrix positions = Matrix::random(run, frames, width, DType::kFloat16, false);
  std::vector<int64_t> codes(batch * frames * codebooks);
  for (int64_t& c : codes) c = run.integer(0, vocabulary - 1);
  const int64_t wrong = run.coin() ? run.integer(0, batch * frames - 1) : -1;
  const int64_t wrong_codebook = run.integer(0, tables - 1);
  if (wrong >= 0) codes[wrong * codebooks + wrong_codebook] = run.coin() ? -1 : vocabulary;
  const std::vector<int32_t> narrow(codes.begin(), codes.end());
  Buffer<float> out(batch * frames * width);
  p.codes_are_int64 = run.coin();
  p.codes = p.codes_are_int64 ? static_cast<const void*>(codes.data()) : narrow.data();
  const int64_t strides[3] = {frames * codebooks, codebooks, 1};
  for (int i = 0; i < 3; ++i) p.codes_strides[i] = strides[i];
  p.batch = batch;
  p.frames = frames;
  p.tables_count = tables;
  p.vocabulary = vocabulary;
  p.width = width;
  p.positions = positions.storage.data();
  p.position_stride = width;
  p.out = out.data();
  launch_codebook_embedding_sum(run.executor, p, DType::kFloat16);
  for (int64_t row = 0; row < batch * frames; ++row) {
    for (int64_t c = 0; c < width; ++c) {
      double sum = positions.values[row % frames * width + c];
      for (int64_t k = 0; k < tables && row != wrong; ++k)
        sum += held[k].values[codes[row * codebooks + k] * width + c];
      run.expect_close(out[row * width + c], row == wrong ? NAN : sum, 4, 1e-6, "embedding sum");
    }
  }
}

constexpr Case kCases[] = {{"embedding sums", 30, true, embedding_sums}};

}  // namespace

int main(int argc, char** argv) { return main_of(kCases, argc, argv); }
