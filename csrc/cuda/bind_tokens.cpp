// Tokens of a causal model in one launch, up to the end of speech: steps and draws by persistent_step.cuh.
#include "../decode_inputs.h"
#include "../sample_inputs.h"
#include "bind.h"
#include "device.h"
#include "draw_inputs.h"

namespace bark_accel {
namespace {

constexpr const char* kOp = "decode_tokens";
using OptionalTensors = std::vector<std::optional<Tensor>>;

// The options of a draw but for the ids that are allowed.
struct Options {
  const std::optional<Tensor>&min_eos_p, &temperature, &top_k, &top_p;
  bool renormalize;
};

// A draw from a head, whose scores will lie at `scores`.
cuda::Draw read_draw(const MatrixView& head, const Tensor& weight, float* scores, int64_t rows,
                     int64_t first_id, const Tensor& allowed, const Options& options, int64_t vocab_size) {
  cuda::Draw draw{};
  draw.head = head;
  draw.head_rows = weight.size(0);
  // What the samplers' checks look at; nothing is written to it.
  const Tensor logits = empty({rows, draw.head_rows}, kFloat, weight.device());
  draw.sample.sample = sample_inputs::checked_params(kOp, logits, first_id, options.renormalize);
  draw.sample.rules = sample_inputs::read_rules(
      kOp, {allowed, options.min_eos_p, options.temperature, options.top_k, options.top_p}, logits);
  sample_inputs::check_vocab_size(kOp, vocab_size, first_id, logits);
  BARK_CHECK(draw.head_rows <= INT32_MAX, kOp, "expected fewer than 2^31 ids, got ", draw.head_rows);
  draw.sample.sample.logits = scores;
  draw.sample.rows = rows;
  return draw;
}

void check_lists(const TensorList& heads, const OptionalTensors& scales,
                 const std::vector<int64_t>& first_ids, const TensorList& allowed) {
  const size_t ways = heads.size();
  BARK_CHECK(
      (ways == 1 || ways == 2) && scales.size() == ways && first_ids.size() == ways && allowed.size() == ways,
      kOp, "expected one or two heads, with scales, a first id and allowed ids of each, got ", ways, ", ",
      scales.size(), ", ", first_ids.size(), " and ", allowed.size());
}

Tensor decode_tokens(Tensor& ids, const Tensor& token_table, const Tensor& positions,
                     const decode_inputs::Weights& weights, const std::vector<double>& eps,
                     const TensorList& heads, const OptionalTensors& head_scales, int64_t num_heads,
                     Tensor& key_cache, Tensor& value_cache, Tensor& length, Tensor& drawn, Tensor& count,
                     Tensor& limit, int64_t stop, const std::optional<Tensor>& philox, int64_t vocab_size,
                     const std::vector<int64_t>& first_ids, const TensorList& allowed,
                     const std::optional<Tensor>& min_eos_p, const std::optional<Tensor>& temperature,
                     const std::optional<Tensor>& top_k, const std::optional<Tensor>& top_p,
                     bool renormalize) {
  const Device device = key_cache.device();
  const DeviceGuard guard(device);
  check_lists(heads, head_scales, first_ids, allowed);
  decode_inputs::DecodeInputs in =
      decode_inputs::read(ids, token_table, positions, weights, eps, heads[0], head_scales[0], num_heads,
                          key_cache, value_cache, length, device);
  const int64_t rows = in.params.batch, ways = int64_t(heads.size());
  const cuda::NextStep next = draw_inputs::read_next(kOp, ids, drawn, count, length, rows, device);
  BARK_CHECK(stop >= -1, kOp, "expected an id to stop at, or -1, got ", stop);
  int64_t widest = 0;
  for (const Tensor& head : heads) widest = std::max(widest, head.size(0));
  Tensor scores = empty({rows, widest}, kFloat, device);
  if (rows == 0) return scores;

  cuda::TokenRun run{};
  run.ways = int32_t(ways);
  run.limit = draw_inputs::counter(kOp, "limit", limit, 1, device);
  run.stop = stop;
  decode_inputs::Reader reader(weights, device);
  for (int64_t i = 0; i < ways; ++i) {
    check_dim(kOp, "a head", heads[i], 2, "[N, C]");
    check_sizes(kOp, "a head", heads[i], {heads[i].size(0), in.params.width});
    cuda::Draw& draw = run.draws[i];
    draw = read_draw(reader.view(heads[i], head_scales[i], nullptr), heads[i],
                     scores.mutable_data_ptr<float>(), rows, first_ids[i], allowed[i],
                     {min_eos_p, temperature, top_k, top_p, renormalize}, vocab_size);
    draw.sample.next = next;
    draw.sample.ids = next.ids;
    if (philox) draw.sample.philox = draw_inputs::read_philox(kOp, *philox, next, rows, vocab_size, device);
  }
  cuda::DecodeStepParams step{};
  step.decode = in.params;
  step.decode.ids = next.ids;
  step.decode.lengths = next.length;
  step.decode.logits = scores.mutable_data_ptr<float>();
  step.capacity = in.capacity;
  step.vocabulary = in.vocabulary;
  step.positions_count = in.positions_count;
  step.splits = cuda::attention_splits(rows, in.params.heads, in.capacity);
  BARK_CHECK(
      in.params.width / in.params.heads <= cuda::kMostHeadSize && cuda::is_persistent(step, run), kOp,
      "expected one token of each of up to ", cuda::kMostPersistentRows,
      " rows, weights of one dtype in lines of 16 bytes, and a cache of that dtype (float16 beside int8)");
  const Tensor scratch = empty({cuda::decode_scratch(step).floats}, kFloat, device);
  step.decode.scratch = scratch.mutable_data_ptr<float>();
  check_launch(kOp, cuda::launch_persistent(step, run, current_stream(device)));
  return scores;
}

}  // namespace

bool runs_all_blocks_at_once(int64_t device) { return cuda::runs_all_blocks_at_once(int(device)); }

const Implementations tokens_registered("CUDA", {implement<decode_tokens>("decode_tokens")});

}  // namespace bark_accel
