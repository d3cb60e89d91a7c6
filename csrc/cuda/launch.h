// The kernels as plain functions: they launch on the stream of the current device and return the first error.
// Device pointers inside of the parameters, sizes on the host; nothing here waits for the device.
#pragma once

#include <cuda_runtime_api.h>

#include "codebook_embedding_sum.cuh"
#include "decode_step.cuh"
#include "fused_sample.cuh"
#include "persistent_params.cuh"

namespace bark_accel::cuda {

cudaError_t launch_gemv(const GemvParams& params, cudaStream_t stream);
// `source` is the type of query, key and value, `cache` that of the caches: equal, or `source` float32.
cudaError_t launch_attention_split(const AttentionSplitParams& params, DType source, DType cache,
                                   cudaStream_t stream);
cudaError_t launch_attention_combine(const AttentionCombineParams& params, DType out, cudaStream_t stream);
cudaError_t launch_decode_step(const DecodeStepParams& params, cudaStream_t stream);
// One kernel for a step, or for the steps and draws of a run, that is_persistent.
cudaError_t launch_persistent(const DecodeStepParams& params, const TokenRun& run, cudaStream_t stream);
// Whether a kernel's blocks may wait for each other there.
bool runs_all_blocks_at_once(int device);
cudaError_t launch_fused_sample(const FusedSampleParams& params, cudaStream_t stream);
cudaError_t launch_codebook_embedding_sum(const CodebookEmbeddingSumParams& params, DType tables,
                                          cudaStream_t stream);

// Programmatic dependent launch: a kernel may be scheduled before the one ahead of it has ended. On where the
// device has it (compute capability 9.0 and later).
void set_dependent_launch(bool on);
bool dependent_launch();

// One kernel a decode step, where persistent_step.cuh can do it. Off until asked for.
void set_persistent_step(bool on);

}  // namespace bark_accel::cuda
