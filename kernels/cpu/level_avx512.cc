// The AVX-512 level (F, BW, DQ, VL): sixteen floats; bf16 is widened by shifts.
#include "kernels/cpu/vec_avx2.h"
#include "kernels/cpu/vec_avx512.h"
#include "kernels/cpu/level_impl.h"
#include "kernels/cpu/shape_avx512.h"

namespace {
// Heads of 8, 24, 40 ... elements do not divide by sixteen lanes: they take eight.
void AnyHeadChunk(const ChunkArgs& a) { a.head_dim % 16 == 0 ? AttentionChunk<VecAvx512>(a) : AttentionChunk<VecAvx2>(a); }
void AnyHeadLoad(const void* x, DType dtype, int64_t rows, int head_dim, bool paired, float* out) {
  head_dim % 16 == 0 ? LoadHeads<VecAvx512>(x, dtype, rows, head_dim, paired, out)
                     : LoadHeads<VecAvx2>(x, dtype, rows, head_dim, paired, out);
}
void AnyHeadStore(const float* x, int head_dim, bool paired, DType dtype, void* out) {
  head_dim % 16 == 0 ? StoreHead<VecAvx512>(x, head_dim, paired, dtype, out) : StoreHead<VecAvx2>(x, head_dim, paired, dtype, out);
}
void AnyHeadMerge(int head_dim, float* max, float* sum, float* out, float chunk_max, float chunk_sum, const float* chunk_out) {
  head_dim % 16 == 0 ? AttentionMerge<VecAvx512>(head_dim, max, sum, out, chunk_max, chunk_sum, chunk_out)
                     : AttentionMerge<VecAvx2>(head_dim, max, sum, out, chunk_max, chunk_sum, chunk_out);
}
}  // namespace

namespace phalanx::kernels::cpu {

const Level* Avx512Level() {
  static const Level level = [] {
    Level l = MakeLevel<VecAvx512, Shape>(kIsaAvx512);
    l.load_heads = AnyHeadLoad;
    l.store_head = AnyHeadStore;
    l.attention_chunk = AnyHeadChunk;
    l.attention_merge = AnyHeadMerge;
    return l;
  }();
  return &level;
}

}  // namespace phalanx::kernels::cpu
