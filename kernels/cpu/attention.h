// Attention over a paged KV cache, with grouped queries.
//
// The rows of a step are grouped in chunks: consecutive rows of one sequence
// at consecutive positions (one row in decode). Chunks name the pages of their
// sequence; nothing here knows of layouts or ranks.
//
// Exactness: a row's result depends on its query, its position and the K and V
// of the positions that it sees alone; not on the other rows, on the chunking,
// on which pages hold the tokens, or on what lies in a page beyond the row's
// position (those bytes may be anything).
//
// Threading: a null pool means the calling thread alone.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/attend.h"
#include "kernels/formats.h"
#include "kernels/thread_pool.h"

namespace moebius {

// Stores the rows of k and v ([rows][num_kv_heads * head_dim]) of all chunks
// into layer `layer` of their pages.
// REQUIRES: the chunks' pages are in the pool; no two share a token's place.
void WriteKv(ConstRows k, ConstRows v, absl::Span<const QueryChunk> chunks,
             int num_kv_heads, int layer, const KvPool& pool,
             ThreadPool* threads);

// out row i, head h = softmax(q_h . K / sqrt(head_dim)) V over the positions of
// its sequence that row i sees. Query head h uses KV head
// h / (num_q_heads / num_kv_heads).
//   q, out  [rows][num_q_heads * head_dim]; out may be q
// Rows outside every chunk are not touched.
// REQUIRES: the chunks' pages are in the pool; num_kv_heads divides the number
//   of query heads; K and V of all the positions were written.
void PagedAttention(ConstRows q, absl::Span<const QueryChunk> chunks,
                    int num_kv_heads, const KvLayer<Cpu>& kv, Rows out,
                    ThreadPool* threads);

}  // namespace moebius
